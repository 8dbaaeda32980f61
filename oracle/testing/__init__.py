"""Tests for whoever builds on Dodona (`pip install 'dodona[testing]'`): hypothesis strategies for
configurations, environments, models and facts, and the properties that a rule book should have.

>>> from hypothesis import given
>>> from dodona.oracle.testing import engine_config_mappings
>>> @given(engine_config_mappings())
... def test_my_launcher(mapping): ...

>>> from dodona.oracle.testing import RuleBookTests
>>> class TestMyBook(RuleBookTests):
...     book = "rules/mine.yaml"
"""

from dodona.oracle.testing.deployments import check_counterfactuals, deployments
from dodona.oracle.testing.properties import (
    PROPERTIES,
    Property,
    RuleBookTests,
    check_properties,
    check_property,
)
from dodona.oracle.testing.strategies import (
    FactMapping,
    RandomFacts,
    candidate_values,
    engine_config_mappings,
    environments,
    facts,
    model_configs,
    model_infos,
)

__all__ = [
    "PROPERTIES",
    "FactMapping",
    "Property",
    "RandomFacts",
    "RuleBookTests",
    "candidate_values",
    "check_counterfactuals",
    "check_properties",
    "check_property",
    "deployments",
    "engine_config_mappings",
    "environments",
    "facts",
    "model_configs",
    "model_infos",
]

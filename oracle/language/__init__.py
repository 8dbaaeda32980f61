"""The rule language: strict YAML, facts, conditions and rule books."""

"""How a pooling model is served: its task, and what becomes of the model's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.hub import is_to_be_downloaded
from dodona.oracle.models.sentence_transformers import DenseModule, read_sentence_transformers
from dodona.oracle.models.stored_tensors import file_tensors
from dodona.oracle.models.weight_files import has_weight_files
from dodona.oracle.systems.own.connectors import has_active_connector
from dodona.oracle.systems.own.parallel import uses_workers
from dodona.oracle.systems.own.pooling import pooling_task

if TYPE_CHECKING:
    from dodona.oracle.config.engine_config import EngineConfig
    from dodona.oracle.machine.environment import Environment
    from dodona.oracle.models.model_info import ModelInfo

Activation = Literal["softmax", "sigmoid", "identity"]

_CROSS_ENCODER_ACTIVATIONS: Mapping[str, Activation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Softmax": "softmax",
}


@dataclass(frozen=True, slots=True)
class PoolingSettings:
    """Everything is resolved: configuration first, then the model's files, then what the field expects."""

    task: str
    """"embed", "classify" or "token_classify"."""
    pooling_types: tuple[str, ...]
    """How an embedding is made of hidden states; several are concatenated."""
    dense: tuple[DenseModule, ...]
    dimensions: int | None
    matryoshka_dimensions: tuple[int, ...] | None
    """What a request may ask for: these, any number (empty), or nothing (None)."""
    labels: tuple[str, ...]
    """Names of a classifier's classes, in the order of its logits."""
    activation: Activation
    """What makes probabilities of logits."""
    use_activation: bool
    """Whether embeddings are normalized, or the activation is applied, unless a request says otherwise."""
    max_seq_length: int | None
    """Most tokens of a prompt, as Sentence Transformers has it."""
    do_lower_case: bool


def pooling_settings(config: EngineConfig, model: ModelInfo) -> PoolingSettings:
    """The settings of a configuration for its model. Raises ConfigError for files that contradict."""
    task = pooling_task(config, model)
    if task is None:
        raise ConfigError(f"{model.file}: the model is not served for pooling")
    asked, labels = config.pooler_config, _labels(model)
    files = read_sentence_transformers(Path(model.file).parent) if task == "embed" else None
    types = files.pooling_types if files else ()
    if asked is not None and asked.pooling_type is not None:
        types = (asked.pooling_type,)
    if not types:
        is_encoder = model.is_masked_lm and model.raw.get("is_decoder") is not True
        types = ("CLS" if is_encoder else "LAST",)
    use_activation = asked.use_activation if asked is not None else None
    if use_activation is None:
        use_activation = files is None or files.normalize
    return PoolingSettings(
        task=task,
        pooling_types=types,
        dense=files.dense if files else (),
        dimensions=None if asked is None else asked.dimensions,
        matryoshka_dimensions=_matryoshka(model),
        labels=labels if task != "embed" else (),
        activation=_activation(model, len(labels)),
        use_activation=use_activation,
        max_seq_length=files.max_seq_length if files else None,
        do_lower_case=files is not None and files.do_lower_case,
    )


def pooler_fault(config: EngineConfig, model: ModelInfo, environment: Environment) -> str | None:
    """Why no engine can pool so: files that contradict or are missing, or more `dimensions` than the
    embedding has. None where one can, or the model is not served for pooling."""
    if pooling_task(config, model) is None:
        return None
    try:
        settings = pooling_settings(config, model)
        check_dimensions(settings, model.hidden_size)
        for module in settings.dense:
            if _is_here(config, module.folder, Path(model.file).parent, environment):
                check_dense_tensors(module)
    except ConfigError as error:
        return str(error)
    return None


def _is_here(config: EngineConfig, folder: Path, directory: Path, environment: Environment) -> bool:
    """Whether an engine would find the weights in a module's folder as they are now."""
    if not environment.is_here and not has_weight_files(folder):
        return False
    return not is_to_be_downloaded(config.model_config.model, directory)


def check_dense_tensors(module: DenseModule) -> None:
    """Raise ConfigError where a Dense module's file is missing or damaged, or has other tensors than its
    configuration says."""
    file = module.folder / "model.safetensors"
    stored = file_tensors(file)
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (module.out_features, module.in_features)}
    if module.bias:
        shapes["linear.bias"] = (module.out_features,)
    for name, shape in shapes.items():
        found = stored[name].shape if name in stored else "none"
        if found != shape:
            raise ConfigError(f"{file}: expected {name} of shape {shape}, as config.json says, got {found}")


def check_dimensions(settings: PoolingSettings, width: int | None) -> None:
    """Raise ConfigError where an embedding of hidden states of `width` elements (None: not known) does not
    fit the settings."""
    if settings.task != "embed" or width is None:
        return
    size = width * len(settings.pooling_types)
    for module in settings.dense:
        if module.in_features != size:
            raise ConfigError(
                f"{module.folder / 'config.json'}: field 'in_features': expected {size}, the size of what "
                f"comes before, got {module.in_features}"
            )
        size = module.out_features
    if settings.dimensions is not None and settings.dimensions > size:
        raise ConfigError(f"pooler_config.dimensions={settings.dimensions} is over the embedding's {size}")


def lacks_combination(config: EngineConfig) -> bool:
    """Whether a configuration asks for what no pooling runner has, in one process and without a KV cache."""
    compilation = config.compilation_config
    return (
        config.speculative_config is not None
        or has_active_connector(config)
        or (compilation is not None and compilation.mode == "STOCK_TORCH_COMPILE")
        or uses_workers(config)
    )


def _labels(model: ModelInfo) -> tuple[str, ...]:
    """Names by config.json's id2label; without it, transformers' own for `num_labels`, which is 2 unset."""
    names, count = model.raw.get("id2label"), model.raw.get("num_labels")
    if isinstance(names, Mapping) and names:
        try:
            by_id = {int(key): str(name) for key, name in names.items()}
        except ValueError:
            by_id = {}
        if sorted(by_id) != list(range(len(by_id))) or not by_id:
            raise ConfigError(f"{model.file}: field 'id2label': expected a name for each of 0, 1, …")
        return tuple(by_id[i] for i in range(len(by_id)))
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 1 << 20:
        count = 2
    return tuple(f"LABEL_{i}" for i in range(count))


def _activation(model: ModelInfo, num_labels: int) -> Activation:
    """As `problem_type` says; else a cross-encoder's own; else softmax, or sigmoid of a single logit."""
    kind = model.raw.get("problem_type")
    if kind == "regression":
        return "identity"
    if kind == "multi_label_classification":
        return "sigmoid"
    plain: Activation = "softmax" if num_labels > 1 else "sigmoid"
    if kind == "single_label_classification":
        return plain
    own: Any = model.raw.get("sentence_transformers")
    name = own.get("activation_fn") if isinstance(own, Mapping) else None
    name = name or model.raw.get("sbert_ce_default_activation_function")
    if name is None:
        return plain
    if name not in _CROSS_ENCODER_ACTIVATIONS:
        known = ", ".join(_CROSS_ENCODER_ACTIVATIONS)
        raise ConfigError(
            f"{model.file}: a cross-encoder's activation: expected one of {known}, got {name!r:.80}"
        )
    return _CROSS_ENCODER_ACTIVATIONS[name]


def _matryoshka(model: ModelInfo) -> tuple[int, ...] | None:
    sizes = model.raw.get("matryoshka_dimensions")
    if isinstance(sizes, list) and sizes and all(isinstance(size, int) for size in sizes):
        return tuple(sizes)
    return () if model.raw.get("is_matryoshka") is True else None

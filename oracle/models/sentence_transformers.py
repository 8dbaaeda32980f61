"""What a Sentence Transformers directory says of pooling: modules.json and the files that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dodona.oracle.errors import ConfigError
from dodona.oracle.files import read_json

MODULES_FILE = "modules.json"
_LIMIT = 1 << 20

_MODES = {
    "pooling_mode_cls_token": "CLS",
    "pooling_mode_max_tokens": "MAX",
    "pooling_mode_mean_tokens": "MEAN",
    "pooling_mode_mean_sqrt_len_tokens": "MEAN_SQRT_LEN",
    "pooling_mode_weightedmean_tokens": "WEIGHTED_MEAN",
    "pooling_mode_lasttoken": "LAST",
}
"""Flag of a Pooling module → pooling type, in the order in which several are concatenated."""

_NAMES = {
    "cls": "CLS",
    "max": "MAX",
    "mean": "MEAN",
    "mean_sqrt_len_tokens": "MEAN_SQRT_LEN",
    "weightedmean": "WEIGHTED_MEAN",
    "lasttoken": "LAST",
}
"""The same by the value of `pooling_mode`."""

_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}

_LENGTH_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


@dataclass(frozen=True, slots=True)
class DenseModule:
    """A linear layer over the pooled vector; `folder` has its weights."""

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True)
class SentenceTransformers:
    """The modules Transformer, Pooling, then Dense ones, then Normalize, or less of these."""

    pooling_types: tuple[str, ...]
    """Pooling types whose vectors are concatenated; empty without a Pooling module."""
    dense: tuple[DenseModule, ...]
    normalize: bool
    max_seq_length: int | None
    """Most tokens of a sequence."""
    do_lower_case: bool
    """Whether texts are written small before they are tokenized."""
    files: tuple[Path, ...]
    """Configurations of modules in folders of their own."""


def read_sentence_transformers(directory: Path) -> SentenceTransformers | None:
    """What the directory says; None where it has no modules.json. Read again only when a file has changed.

    Raises ConfigError that names file and field for modules in another order, paths out of the directory,
    and values of a wrong type.
    """
    cached = _CACHE.get(directory)
    if cached is not None and all(_stamp(file) == stamp for file, stamp in cached[0].items()):
        return cached[1]
    names = (MODULES_FILE, *_LENGTH_FILES)
    before = {directory / name: _stamp(directory / name) for name in names}
    found = _read(directory)
    if found is not None:
        before |= {file: _stamp(file) for file in found.files}
    if len(_CACHE) >= _MAX_CACHED:
        _CACHE.clear()
    _CACHE[directory] = (before, found)
    return found


_Stamp = tuple[int, int, int] | None
_CACHE: dict[Path, tuple[dict[Path, _Stamp], SentenceTransformers | None]] = {}
"""Directory → the stamps of all files that were looked at, and what they say."""
_MAX_CACHED = 64


def _stamp(file: Path) -> _Stamp:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(directory: Path) -> SentenceTransformers | None:
    file = directory / MODULES_FILE
    if not file.is_file():
        return None
    modules = read_json(file, limit=_LIMIT, expected="a modules.json")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ConfigError(f"{file}: expected a list of modules, as Sentence Transformers writes it")
    kinds = [_kind(file, module) for module in modules]
    order = ["Transformer", "Pooling", *["Dense"] * kinds.count("Dense"), "Normalize"]
    if kinds != [kind for kind in order if kind in kinds] or kinds[:1] != ["Transformer"]:
        raise ConfigError(
            f"{file}: expected the modules Transformer, Pooling, Dense (any number) and Normalize, in this "
            f"order, got {', '.join(kinds) or 'none'}"
        )
    if "Dense" in kinds and "Pooling" not in kinds:
        raise ConfigError(
            f"{file}: a Dense module without a Pooling module makes a vector of each token (late "
            "interaction, as ColBERT), which no runner serves"
        )
    folders = [_folder(file, module) for module in modules]
    if folders[0] != directory:
        raise ConfigError(f"{file}: the Transformer's path must be empty: its files are beside modules.json")
    pooling: tuple[str, ...] = ()
    dense: list[DenseModule] = []
    for kind, folder in zip(kinds, folders, strict=True):
        if kind == "Pooling":
            pooling = _pooling_types(folder / "config.json")
        elif kind == "Dense":
            dense.append(_dense(folder))
    lengths = _lengths(directory)
    return SentenceTransformers(
        pooling,
        tuple(dense),
        "Normalize" in kinds,
        _size(*lengths, "max_seq_length", optional=True),
        _flag(*lengths, "do_lower_case"),
        tuple(
            folder / "config.json"
            for kind, folder in zip(kinds, folders, strict=True)
            if kind in ("Pooling", "Dense")
        ),
    )


def _kind(file: Path, module: Mapping[str, Any]) -> str:
    """The class of a module, which must be Sentence Transformers' own: another package's of the same name
    computes something else."""
    package, _, kind = str(module.get("type", "")).rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise ConfigError(
            f"{file}: field 'type': expected a module of sentence_transformers, got "
            f"{module.get('type')!r:.80}, whose code is not run"
        )
    return kind


def _folder(file: Path, module: Mapping[str, Any]) -> Path:
    path = module.get("path", "")
    parts = Path(path).parts if isinstance(path, str) else ("..",)
    if ".." in parts or Path(*parts).is_absolute():
        raise ConfigError(f"{file}: field 'path': expected a folder inside the model's, got {path!r:.80}")
    return file.parent.joinpath(*parts)


def _pooling_types(file: Path) -> tuple[str, ...]:
    config = _object(file)
    if config.get("include_prompt", True) is not True:
        raise ConfigError(f"{file}: include_prompt=false is not served: a prompt is pooled whole")
    if "pooling_mode" in config:
        given = config["pooling_mode"]
        listed = [given] if isinstance(given, str) else given
        known = [n for n in listed if isinstance(n, str) and n in _NAMES] if isinstance(listed, list) else []
        if not known or known != listed:
            raise ConfigError(f"{file}: field 'pooling_mode': expected one of {', '.join(_NAMES)}")
        return tuple(_NAMES[name] for name in known)
    unknown = [
        key for key, on in config.items() if key.startswith("pooling_mode_") and on and key not in _MODES
    ]
    found = tuple(name for key, name in _MODES.items() if _flag(file, config, key))
    if unknown or not found:
        raise ConfigError(
            f"{file}: expected one of {', '.join(_MODES)} to be true"
            + (f", not {unknown[0]!r:.60}" if unknown else "")
        )
    return found


def _dense(folder: Path) -> DenseModule:
    file = folder / "config.json"
    config = _object(file)
    for field in ("module_input_name", "module_output_name"):
        if config.get(field) not in (None, "sentence_embedding"):
            raise ConfigError(
                f"{file}: field {field!r}: expected 'sentence_embedding', got {config[field]!r:.60}: only a "
                "pooled vector goes through Dense modules"
            )
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ConfigError(
            f"{file}: field 'activation_function': expected one of {', '.join(_ACTIVATIONS)}, "
            f"got {name!r:.80}"
        )
    return DenseModule(
        folder,
        in_features=_size(file, config, "in_features") or 0,
        out_features=_size(file, config, "out_features") or 0,
        bias=_flag(file, config, "bias", default=True),
        activation=_ACTIVATIONS[name],
    )


def _lengths(directory: Path) -> tuple[Path, Mapping[str, Any]]:
    for name in _LENGTH_FILES:
        if (directory / name).is_file():
            return directory / name, _object(directory / name)
    return directory / _LENGTH_FILES[0], {}


def _object(file: Path) -> Mapping[str, Any]:
    value = read_json(file, limit=_LIMIT, expected="a module's configuration")
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return value


def _flag(file: Path, config: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{file}: field {key!r}: expected true or false, got {value!r:.60}")
    return value


def _size(file: Path, config: Mapping[str, Any], key: str, *, optional: bool = False) -> int | None:
    value = config.get(key)
    if value is None and optional:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 24:
        raise ConfigError(f"{file}: field {key!r}: expected a whole number of at least 1, got {value!r:.60}")
    return value

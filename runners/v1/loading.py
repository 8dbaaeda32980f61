"""Loads the Hugging Face model of a directory, from its safetensors or with random weights.

A quantized model is loaded by transformers too, but from a class whose linear layers and experts expect the
tensors that the checkpoint has: transformers' own quantizers are not asked, so that weights stay compressed.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.files import check_folder
from dodona.oracle.models.quantization import QuantizationConfig
from dodona.oracle.models.weight_files import weight_files
from dodona.runners.quantization.library import say_once
from dodona.runners.quantization.replacement import (
    ExpertNames,
    convert_stored,
    expect_stored,
    quantize_layers,
    quantized_layers,
)
from dodona.runners.safetensors_file import open_safetensors
from dodona.runners.third_party import naming
from dodona.runners.v1.expert_names import expert_names, lacking_expert_weights, renamed_parts
from dodona.runners.v1.model_folder import folder_for_transformers
from dodona.runners.v1.model_making import making_a_model

MAX_FILE_BYTES = 256 << 20
"""Largest file of a model directory that is not weights."""


def load_model(
    path: Path,
    *,
    weights: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    trust_remote_code: bool,
    quantization: QuantizationConfig | None = None,
    auto_class: str = "AutoModelForCausalLM",
) -> torch.nn.Module:
    """The model that `path`/config.json describes, in evaluation mode on `device`.

    weights: the directory with its safetensors; None draws random weights from `seed` as the architecture
    initialises them (the same on every call; CPU and CUDA draw different ones).
    quantization: how the checkpoint's linear layers are quantized, or are to be; random weights are too.
        What a library (bitsandbytes, torchao) quantizes, transformers loads through it.
    auto_class: name of transformers' automatic class that makes the model. A causal language model gets
        transformers' plain attention, another the implementation that transformers chooses for it.

    Raises ConfigError where weights are missing, damaged or do not fit, UnsupportedConfiguration where
    transformers has no such model for the configuration.
    """
    folders = {path, *([] if weights is None else [weights])}
    for folder in folders:
        check_folder(folder, suffixes=(".json", ".jinja", ".txt"), limit=MAX_FILE_BYTES)
    with making_a_model(), naming(f"transformers can't make the model of {path / 'config.json'}"):
        return _load_model(path, weights, dtype, device, seed, trust_remote_code, quantization, auto_class)


def _load_model(
    path: Path,
    weights: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    trust_remote_code: bool,
    quantization: QuantizationConfig | None,
    auto_class: str,
) -> torch.nn.Module:
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoConfig

    factory: Any = getattr(transformers, auto_class)

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError) as error:
        raise UnsupportedConfiguration.lacking(
            "v1", "architecture", why=f"{path / 'config.json'}: {error}"
        ) from error
    common: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if auto_class == "AutoModelForCausalLM":
        common["attn_implementation"] = "eager"
    elif auto_class == "AutoModel" and _takes_pooling_layer(factory, config):
        common["add_pooling_layer"] = False  # its weights may be missing, and hidden states are pooled
    library = None if quantization is None or quantization.library_scheme is None else quantization.method
    if library is None:
        _forget_quantization(config)
    elif library == "bitsandbytes":
        common["device_map"] = {"": device.type}
        say_once()
    # transformers would read this file, or the shards of this index, in place of `weight_files`.
    config.__dict__.pop("transformers_weights", None)
    layouts = {rule.scheme.layout for rule in quantization.rules} if quantization is not None else set()
    is_online, is_stored = layouts == {"online"}, bool(layouts - {"online"})
    try:
        if weights is None and library is not None:
            model = _random_library_model(factory, config, device, seed, common)
        elif weights is None:
            model = _random_model(factory, config, device, seed, common)
        else:
            weight_files(weights)
            loader: Any = factory
            renamed: dict[str, str] | None = None
            if quantization is not None and is_stored:
                stored = _stored_shapes(weights)
                quantization = quantization.with_names_of(stored)
                plain = _plain_model(factory, config, trust_remote_code)
                experts = expert_names(plain, stored)
                renamed = renamed_parts(plain, experts, quantization) or None
                prefix = _prefix_of_stored(plain, stored)
                dense = _dense_heads(plain, weights)
                loader = _class_of_stored(type(plain), quantization, stored, experts, prefix, dense)
            with _no_progress_bar(), folder_for_transformers(weights) as folder:
                model, info = loader.from_pretrained(
                    folder,
                    config=config,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported below, by name
                    key_mapping=renamed,
                    **common,
                )
            _check_complete(weights, info)
            if is_stored:
                _check_nothing_ignored(weights, model, info)
                convert_stored(model)
        if quantization is not None and (is_online or (is_stored and weights is None)):
            # A classifier's last layers stay as they are, as the output layer.
            body: Any = model if auto_class == "AutoModelForCausalLM" else model.base_model
            quantize_layers(body, quantization)
            if not quantized_layers(model):
                raise UnsupportedConfiguration.lacking(
                    "v1",
                    "quantization",
                    why=f"{type(model).__name__} has no layer that can be quantized at load",
                )
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        why = (
            f"transformers has no {auto_class} for model_type {config.model_type!r} of {path / 'config.json'}"
        )
        raise UnsupportedConfiguration.lacking("v1", "architecture", why=why) from error
    except RuntimeError as error:
        if weights is None:
            raise
        # transformers joins the experts of a layer as it reads them, and names none that it lacks.
        plain = _plain_model(factory, config, trust_remote_code)
        lacking = lacking_expert_weights(plain, _stored_shapes(weights))
        if not lacking:
            raise
        raise ConfigError(
            f"{weights}: {len(lacking)} weights of experts are missing or have other shapes than config.json "
            f"says: {_first_names(lacking)}"
        ) from error
    except ImportError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"{path}: the model's code needs a package: {' '.join(lines)[:300]}") from error
    except OSError as error:
        raise ConfigError(f"{weights or path}: {error}") from error
    except SafetensorError as error:
        raise ConfigError(
            f"{weights}: a *.safetensors file is damaged or cut off: {error}; fetch the model again"
        ) from error
    model.requires_grad_(False)
    loaded: torch.nn.Module = model.eval().to(device)
    return loaded


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar on stderr, which is the caller's."""
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _takes_pooling_layer(factory: Any, config: Any) -> bool:
    """Whether the class can leave away the layer with which BERT's kin classify."""
    try:
        found = factory._model_mapping[type(config)]
    except KeyError:
        return False
    return "add_pooling_layer" in inspect.signature(found.__init__).parameters


def _random_model(
    factory: Any, config: Any, device: torch.device, seed: int, common: Mapping[str, Any]
) -> torch.nn.Module:
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    # On the target device: drawing billions of weights on a CPU takes minutes.
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        model: torch.nn.Module = factory.from_config(config, **common)
        return model


def _random_library_model(
    factory: Any, config: Any, device: torch.device, seed: int, common: Mapping[str, Any]
) -> torch.nn.Module:
    """A model of random weights that a library has quantized, which it does while it reads them."""
    quantization = config.quantization_config
    _forget_quantization(config)
    plain: Any = _random_model(
        factory, config, device, seed, {k: v for k, v in common.items() if k != "device_map"}
    )
    with tempfile.TemporaryDirectory() as folder, _no_progress_bar():
        plain.save_pretrained(folder)
        model: torch.nn.Module = factory.from_pretrained(
            folder, config=config, quantization_config=quantization, use_safetensors=True, **common
        )
        return model


def _forget_quantization(config: Any) -> None:
    """Keep transformers from loading quantized weights by itself."""
    for part in (config, config.get_text_config(decoder=True)):
        for field in ("quantization_config", "compression_config"):
            if hasattr(part, field):
                delattr(part, field)


def _plain_model(factory: Any, config: Any, trust_remote_code: bool) -> Any:
    """The model as transformers makes it, without memory for its weights."""
    with torch.device("meta"):
        model: torch.nn.Module = factory.from_config(config, trust_remote_code=trust_remote_code)
    return model


def _class_of_stored(
    plain: type,
    quantization: QuantizationConfig,
    stored: Mapping[str, tuple[int, ...]],
    experts: Mapping[str, ExpertNames],
    prefix: str,
    dense: Collection[str],
) -> Any:
    """The model's class, whose linear layers and experts expect the stored tensors of their quantization."""

    class Stored(plain):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            expect_stored(self, quantization, stored, experts, prefix=prefix, dense=dense)

    # transformers finds a class's conversions of names by these.
    Stored.__module__ = plain.__module__
    Stored.__name__ = plain.__name__
    Stored.__qualname__ = plain.__qualname__
    return Stored


def _dense_heads(model: Any, path: Path) -> frozenset[str]:
    """The linear layers after the base model that the checkpoint stores as they are. Classifiers are
    published with a `quantization_config` that names all linear layers, whether it is true of the last one
    or not."""
    base = f"{model.base_model_prefix}."
    heads = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith(base) and model.base_model is not model
    }
    found: set[str] = set()
    for file in weight_files(path):
        with open_safetensors(file) as stored:
            for name in heads:
                is_here = f"{name}.weight" in stored.keys()  # noqa: SIM118
                if is_here and stored.get_slice(f"{name}.weight").get_dtype() in ("F32", "F16", "BF16"):
                    found.add(name)
    return frozenset(found)


def _prefix_of_stored(model: Any, stored: Iterable[str]) -> str:
    """What comes before the names of the model's modules in a checkpoint: that of a model with an output
    layer, where `model` is without one."""
    prefix = f"{model.base_model_prefix}."
    is_without = model.base_model is model and len(prefix) > 1
    return prefix if is_without and any(name.startswith(prefix) for name in stored) else ""


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in the directory's safetensors, by name."""
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(path):
        with open_safetensors(file) as stored:
            found |= {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    return found


_QUANTIZED_TENSORS = (
    "weight_packed", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_g_idx", "input_scale",
    "activation_scale", "input_zero_point", "weight_global_scale", "input_global_scale", "qweight", "qzeros",
    "scales", "g_idx", "weight_blocks", "weight_scales", "bias",
)  # fmt: skip
"""Names of tensors that change what a quantized layer computes, when a layer has them."""


def _check_nothing_ignored(path: Path, model: Any, info: Mapping[str, Any]) -> None:
    """Raise ConfigError where a quantized layer's tensors were not read. A model without an output layer, or
    with another one than the checkpoint's, has no use for that layer."""
    known = {model.base_model_prefix, *(name for name, _ in model.named_children())}
    pools = model.get_output_embeddings() is None
    ignored = sorted(
        name
        for name in info["unexpected_keys"]
        if name.rpartition(".")[2] in _QUANTIZED_TENSORS
        and not (pools and name.partition(".")[0] not in known)
    )
    if ignored:
        raise ConfigError(
            f"{path}: config.json's quantization_config makes no use of {len(ignored)} stored tensors: "
            f"{_first_names(ignored)}; check that weights and config.json belong together"
        )


def _check_complete(path: Path, info: Mapping[str, Any]) -> None:
    """Raise ConfigError for weights that transformers did not find, and so drew at random."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(
            f"{path}: the safetensors lack {len(missing)} weights of the model: {_first_names(missing)}"
        )
    mismatched = sorted(str(item[0] if isinstance(item, tuple) else item) for item in info["mismatched_keys"])
    if mismatched:
        raise ConfigError(
            f"{path}: {len(mismatched)} weights have other shapes than config.json says: "
            f"{_first_names(mismatched)}"
        )


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")

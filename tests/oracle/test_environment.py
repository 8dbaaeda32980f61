"""Environment: what is found, what is refused, and that looking costs no torch and no CUDA context."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from dodona.oracle.errors import ConfigError
from dodona.oracle.language.facts import UNKNOWN
from dodona.oracle.machine import packages, probe
from dodona.oracle.machine.assumed import assumed_machine
from dodona.oracle.machine.environment import Environment, assumed_gpu
from dodona.oracle.machine.packages import PACKAGES

OVERRIDE_VARIABLE = "DODONA_USE_V2_MODEL_RUNNER"


@pytest.mark.parametrize(("value", "runner"), [(None, None), ("0", "v1"), ("1", "v2")])
def test_the_override_has_three_meanings(value: str | None, runner: str | None) -> None:
    environ = {} if value is None else {OVERRIDE_VARIABLE: value}
    assert Environment.detect(environ).override == runner


@pytest.mark.parametrize(
    ("address", "is_cluster"),
    [(None, False), ("", False), ("local", False), ("auto", True), ("h:6379", True)],
)
def test_a_ray_cluster_is_named_by_rays_own_variable(address: str | None, is_cluster: bool) -> None:
    environ = {} if address is None else {"RAY_ADDRESS": address}
    assert Environment.detect(environ).ray_cluster == is_cluster


def test_a_ray_cluster_that_the_process_has_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_initialized in (False, True):
        monkeypatch.setitem(
            sys.modules, "ray", SimpleNamespace(is_initialized=lambda now=is_initialized: now)
        )
        assert Environment.detect({}).ray_cluster == is_initialized


@pytest.mark.parametrize("value", ["", "2", "-1", "true", "v2", " 1", "01", "1.0"])
def test_any_other_override_is_an_error_that_names_the_meanings(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Environment.detect({OVERRIDE_VARIABLE: value})
    for word in (OVERRIDE_VARIABLE, repr(value), "unset", '"0"', '"1"', "v1", "v2"):
        assert word in str(caught.value)


def test_capability_has_one_form_and_belongs_to_cuda() -> None:
    assert Environment(True, "cuda", compute_capability=(9, 0)) == Environment(
        True, "cuda", compute_capability=90
    )
    assert Environment(has_triton=True, platform="cuda").compute_capability == 90
    assert Environment(has_triton=False, platform="cpu").compute_capability is None
    with pytest.raises(ConfigError, match="no CUDA compute capability"):
        Environment(has_triton=False, platform="cpu", compute_capability=90)


@pytest.mark.parametrize(
    "fields",
    [
        {"has_triton": 1, "platform": "cuda"},
        {"has_triton": True, "platform": "gpu"},
        {"has_triton": True, "platform": "cuda", "override": 3},
        {"has_triton": True, "platform": "cuda", "override": ""},
        {"has_triton": True, "platform": "cuda", "overide": None},
        {"platform": "cuda"},
    ],
)
def test_wrong_fields_are_config_errors(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"environment\."):
        Environment(**fields)


def test_the_versions_of_packages_are_found_without_importing_them() -> None:
    import torch
    import transformers

    found = Environment.detect({})
    assert found.version("transformers") == transformers.__version__
    torch_version = found.version("torch")
    assert isinstance(torch_version, str)
    # A wheel's metadata may leave out the local part ("+cu130") of the module's version.
    assert torch_version.partition("+")[0] == str(torch.__version__).partition("+")[0]
    assert {name for name, _ in found.packages} == set(PACKAGES)
    for name, version in found.packages:
        assert (version is None) == (importlib.util.find_spec(name) is None), name


@pytest.mark.parametrize("metadata", [b"Name: torchao\nVersion: \xff\n", b"Name: torchao\n", b"", None])
def test_a_package_whose_metadata_cant_be_read_is_not_there(
    metadata: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "torchao-1.dist-info").mkdir()
    if metadata is None:
        (folder / "METADATA").mkdir()
    else:
        (folder / "METADATA").write_bytes(metadata)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not packages._version("torchao")


def test_versions_of_packages_are_told_or_not_known(tmp_path: Path) -> None:
    told = Environment(False, "cpu", packages={"transformers": "5.23.0", "ray": None})
    assert told.version("transformers") == "5.23.0"
    assert told.version("ray") is None
    assert told.version("torchao") is UNKNOWN
    assert Environment(False, "cpu", packages=told.packages) == told
    assert json.loads(TypeAdapter(Environment).dump_json(told))["packages"] == dict(told.packages)
    file = tmp_path / "machine.yaml"
    file.write_text("platform: cpu\nhas_triton: false\npackages: {transformers: 5.17.0, ray: 2.60.0}\n")
    assumed = assumed_machine([str(file), "transformers==5.24.0", "no-ray"])
    assert [assumed.version(name) for name in ("transformers", "ray")] == ["5.24.0", None]
    assert assumed_machine(["h100"]).version("transformers") is UNKNOWN


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ({"transfomers": "5.23.0"}, "transfomers.*did you mean 'transformers'"),
        ({"ray": 2.6}, "packages.*valid string"),
        ({"ray": ""}, "ray: '' is no version; expected one such as"),
        ({"transformers": "9" * 5000}, "transformers: '9{70,80}… is no version"),
        ({"transformers": "\u202e5"}, r"transformers: '\\+u202e5' is no version"),
        ({"x" * 5000: "1"}, "'x{70,80}…: rules do not read"),
        (3, "packages.*valid tuple"),
    ],
)
def test_wrong_packages_are_config_errors(packages: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Environment(False, "cpu", packages=packages)


def test_it_is_a_value() -> None:
    assert pickle.loads(pickle.dumps(assumed_gpu("v1"))) == assumed_gpu("v1")
    assert len({assumed_gpu(), assumed_gpu(), assumed_gpu("v2")}) == 2
    with pytest.raises(AttributeError):
        assumed_gpu().platform = "cpu"  # type: ignore[misc]


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles", "-1,0"])
def test_devices_that_are_hidden_are_not_there(visible: str) -> None:
    found = Environment.detect({"CUDA_VISIBLE_DEVICES": visible})
    assert (found.platform, found.has_triton, found.compute_capability) == ("cpu", False, None)


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        (None, None),
        ("", []),
        ("0", ["0"]),
        ("1, 0", ["1", "0"]),
        ("1,-1,0", ["1"]),
        ("GPU-ab,2", ["GPU-ab", "2"]),
    ],
)
def test_visible_devices_end_at_the_first_that_is_none(
    visible: str | None, devices: list[str] | None
) -> None:
    assert probe._visible_devices(visible) == devices


class FakeNvml:
    """Stands in for the library: devices of given capabilities, in order."""

    def __init__(self, *capabilities: tuple[int, int]) -> None:
        self.capabilities = capabilities
        self.running = 0

    def nvmlInit_v2(self) -> int:
        self.running += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.running -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.capabilities)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:
        handle._obj.value = index.value + 1
        return 0 if index.value < len(self.capabilities) else 6

    def nvmlDeviceGetCudaComputeCapability(self, handle: ctypes.c_void_p, major: Any, minor: Any) -> int:
        assert handle.value is not None
        major._obj.value, minor._obj.value = self.capabilities[handle.value - 1]
        return 0


@pytest.mark.parametrize(
    ("visible", "capabilities"),
    [
        (None, (90, 80)),
        ("0", (90,)),
        ("1,0", (80, 90)),
        ("7", ()),
        ("MIG-1", (80,)),
        ("GPU-a,GPU-b", (80, 80)),
        ("0,-1,1", (90,)),
    ],
)
def test_each_visible_device_has_its_capability(
    visible: str | None, capabilities: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml((9, 0), (8, 0))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    assert probe.cuda_capabilities.__wrapped__(visible) == capabilities
    assert nvml.running == 0


def test_no_library_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    assert probe.cuda_capabilities.__wrapped__(None) == ()


def test_torch_build_is_read_from_its_version_file() -> None:
    import torch

    assert probe.torch_supports_cuda() == (torch.version.cuda is not None)


def test_entry_points_agree_with_importlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    for group in ("pytest11", "console_scripts", "no.such.group"):
        found = bool(importlib.metadata.entry_points(group=group))
        assert probe.has_entry_points.__wrapped__(group) == found, group
    (tmp_path / "plugin-1.0.dist-info").mkdir()
    (tmp_path / "plugin-1.0.dist-info" / "entry_points.txt").write_text("[vllm.logits_processors]\nx = y:z\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert probe.has_entry_points.__wrapped__("vllm.logits_processors")


def imported_modules(code: str) -> set[str]:
    """Top-level modules of a fresh interpreter after `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    return set(json.loads(run.stdout.splitlines()[-1]))


HEAVY = {
    "torch",
    "transformers",
    "triton",
    "numpy",
    "durable",
    "ruamel",
    "rich",
    "typer",
    "huggingface_hub",
    "click",
}


@pytest.mark.parametrize(
    "code",
    [
        "import dodona.oracle",
        "from dodona.oracle import *",
        "from dodona.oracle import Environment; Environment.detect()",
        "from dodona.oracle import select_runner, EngineConfig, UnsupportedConfiguration, Verdict",
    ],
)
def test_the_oracle_loads_nothing_heavy(code: str) -> None:
    assert imported_modules(code) & HEAVY == set()


@pytest.mark.gpu
def test_detection_agrees_with_torch_and_makes_no_context() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    code = (
        "from dodona.oracle import Environment; e = Environment.detect(); import os; pid = os.fork()\n"
        "if pid == 0:\n import torch; torch.zeros(1, device='cuda'); os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0; import torch\n"
        "lowest = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))\n"
        "assert (e.platform, e.compute_capability) == ('cuda', lowest[0] * 10 + lowest[1])"
    )
    assert "torch" in imported_modules(code)

"""The wheel, the wheel built from the sdist and the editable install: all hold the linked folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("cli", "oracle", "runners", "kernels", "rules")
PACKAGED_SUFFIXES = {".py", ".yaml", ".json", ".typed"}
NEEDED = ("pyproject.toml", "README.md", "LICENSE")

USE_IT = """
import importlib.resources, json, site, sys
installed = list(sys.path)
site.addsitedir(SITE)
# in front of the project that the tests run from, which may be installed too
sys.path[:0] = [path for path in sys.path if path not in installed]
import dodona.oracle
loaded_torch = "torch" in sys.modules
import dodona.runners, dodona.runners.interface
rules = importlib.resources.files("dodona") / "rules"
from pathlib import Path
print(json.dumps({
    "oracle": str(Path(dodona.oracle.__file__).resolve()),
    "rules": sorted(entry.name for entry in rules.iterdir()),
    "book": len((rules / "dodona.yaml").read_text(encoding="utf-8")),
    "loaded_torch": loaded_torch,
}))
"""


def build(backend_call: str, project: Path, out: Path) -> Path:
    """Run a hook of the build backend in `project`, without network or isolation; returns what it made."""
    out.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta; print('MADE', build_meta.{backend_call}({str(out)!r}))"
    return out / python(code, cwd=project).rsplit("MADE ", 1)[1].strip()


def python(code: str, *, cwd: Path) -> str:
    """What a fresh interpreter prints that stands in `cwd` and is told of no source folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("dodona/")}


def use(site: Path, *, cwd: Path) -> dict[str, object]:
    """Import from `site` (.pth files included) in a fresh interpreter."""
    answer: dict[str, object] = json.loads(python(f"SITE = {str(site)!r}\n{USE_IT}", cwd=cwd))
    return answer


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that make the distributions: building leaves nothing behind in the checkout."""
    copy = tmp_path_factory.mktemp("project")
    for name in (*NEEDED, "src", *LINKED):
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def expected(project: Path) -> set[str]:
    """What a distribution must hold, read off the folders."""
    files = {
        f"dodona/{path.relative_to(project).as_posix()}"
        for folder in LINKED
        for path in (project / folder).rglob("*")
        if path.suffix in PACKAGED_SUFFIXES
    }
    return files | {f"dodona/{path.name}" for path in (project / "src/dodona").iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", project, tmp_path_factory.mktemp("wheel"))


@pytest.mark.parametrize("folder", LINKED)
def test_the_import_links_lead_to_the_folders(folder: str) -> None:
    link = ROOT / "src" / "dodona" / folder
    assert link.is_symlink()
    assert link.resolve() == ROOT / folder


def test_the_wheel_holds_the_linked_folders(wheel: Path, expected: set[str]) -> None:
    assert {"dodona/rules/dodona.yaml", "dodona/oracle/__init__.py", "dodona/py.typed"} <= expected
    assert files_of(wheel) == expected


def test_the_wheel_works_once_installed(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    seen = use(site, cwd=tmp_path)
    assert seen["oracle"] == str(site / "dodona/oracle/__init__.py")
    assert "dodona.yaml" in seen["rules"]
    assert seen["book"]
    assert seen["loaded_torch"] is False


def test_the_sdist_builds_the_same_wheel(project: Path, expected: set[str], tmp_path: Path) -> None:
    sdist = build("build_sdist", project, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        # Python before 3.11.4 has no filters; later ones warn where none is given.
        archive.extractall(
            tmp_path / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert (unpacked / "LICENSE").is_file()
    assert files_of(build("build_wheel", unpacked, tmp_path / "wheel")) == expected


def test_the_editable_install_sees_the_source_folders(project: Path, tmp_path: Path) -> None:
    made = build("build_editable", project, tmp_path / "editable")
    site = tmp_path / "site"
    with zipfile.ZipFile(made) as archive:
        archive.extractall(site)
    seen = use(site, cwd=tmp_path)
    assert seen["oracle"] == str((project / "oracle/__init__.py").resolve())
    assert "dodona.yaml" in seen["rules"]
    (project / "rules" / "added.yaml").write_text("{}")
    assert "added.yaml" in use(site, cwd=tmp_path)["rules"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_constraints_pin_every_dependency_within_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {canonicalize_name(name): version for name, version in pins().items()}
    declared = [
        *project["dependencies"],
        *(d for ds in project["optional-dependencies"].values() for d in ds),
    ]
    for text in declared:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name == "dodona":
            continue
        assert name in pinned, f"constraints.txt pins no {name}"
        assert requirement.specifier.contains(pinned[name]), f"{text} excludes the pinned {pinned[name]}"


def test_pins_have_no_local_version() -> None:
    # "torch==2.13.0+cpu" would refuse the CUDA build, which is the same version.
    assert not [name for name, version in pins().items() if "+" in version]

"""From a model's name to its directory, offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dodona.oracle.errors import ConfigError
from dodona.oracle.models.hub import locate_or_download


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, with the hub out of reach."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def put(cache: Path, repo: str, files: dict[str, str], revision: str = "main") -> Path:
    """A snapshot in the cache's own layout."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / revision).write_text("0" * 40)
    for name, text in files.items():
        (snapshot / name).write_text(text)
    return snapshot


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert locate_or_download(str(tmp_path)) == tmp_path
    with pytest.raises(ConfigError, match="only hub ids have revisions"):
        locate_or_download(str(tmp_path), revision="main")


@pytest.mark.parametrize("name", ["/no/such/dir", "./nowhere", "~/nowhere-at-all", "a/b/c", "a b"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match="no such directory; check the path"):
        locate_or_download(name)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a file"):
        locate_or_download(str(tmp_path / "config.json"))


def test_a_hub_id_comes_from_the_cache(hub_cache: Path) -> None:
    snapshot = put(hub_cache, "org/model", {"config.json": "{}"})
    assert locate_or_download("org/model").resolve() == snapshot.resolve()


def test_weights_must_be_whole(hub_cache: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    snapshot = put(
        hub_cache, "org/model", {"config.json": "{}", "model.safetensors.index.json": json.dumps(index)}
    )
    (snapshot / "model-1.safetensors").write_text("")
    with pytest.raises(ConfigError, match=r"org/model: .* does not have all of its \*\.safetensors"):
        locate_or_download("org/model", weights=True)
    (snapshot / "model-2.safetensors").write_text("")
    assert locate_or_download("org/model", weights=True).resolve() == snapshot.resolve()


def test_an_id_that_is_nowhere(hub_cache: Path) -> None:
    with pytest.raises(ConfigError, match="org/none: no such directory, not in the local Hugging Face cache"):
        locate_or_download("org/none")

"""V1 with SharedStorageConnector: tokens are transformers', blocks outlive their engine, and nothing that
happens to a file changes a token."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dodona.oracle.config.engine_config import EngineConfig
from dodona.oracle.errors import ConfigError, UnsupportedConfiguration
from dodona.oracle.systems.own.kv_transfer import resolve_kv_transfer
from dodona.runners.errors import EngineSetupError, InvalidRequestError
from dodona.runners.interface import LayerKVSpec
from dodona.runners.kv_transfer.storage.block_files import BlockFiles
from dodona.runners.kv_transfer.storage.paths import is_stored
from dodona.runners.kv_transfer.threaded_worker import DamagedBlockError
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams
from dodona.runners.v1.runner import V1Runner
from tests.support.hostile_files import SPECIAL
from tests.support.tiny_models import VOCAB_SIZE

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
SIZES = {
    "device": "cpu", "skip_tokenizer_init": True, "block_size": 4, "max_num_seqs": 5, "max_model_len": 64,
    "max_num_batched_tokens": 24, "num_gpu_blocks_override": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _v1(monkeypatch):
    monkeypatch.setenv("DODONA_USE_V2_MODEL_RUNNER", "0")


def storage(path: Path, role: str = "kv_both", name: str = "SharedStorageConnector", **extra: object):
    return {
        "kv_transfer_config": {
            "kv_connector": name,
            "kv_role": role,
            "kv_connector_extra_config": {"shared_storage_path": str(path), **extra},
        }
    }


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    found = [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (3, 33, 17, 40)]
    return [*found, found[1][:24] + found[0]]


def run(llm: LLM, todo, params=GREEDY):
    outputs = llm.generate([{"prompt_token_ids": p} for p in todo], params, use_tqdm=False)
    return [list(o.outputs[0].token_ids) for o in outputs], [o.num_cached_tokens for o in outputs]


def files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def expected(tiny_models, reference):
    plain = reference(tiny_models.path("llama"))
    return [plain.generate(prompt, 6) for prompt in prompts()]


def test_blocks_outlive_their_engine(tiny_models, tmp_path, expected):
    with LLM(tiny_models.path("llama"), **SIZES, **storage(tmp_path)) as llm:
        for _ in range(2):
            tokens, _ = run(llm, prompts())
            assert tokens == expected
    stored = files(tmp_path)
    assert stored
    with LLM(tiny_models.path("llama"), **SIZES, **storage(tmp_path, name="ExampleConnector")) as llm:
        tokens, cached = run(llm, prompts())
        assert tokens == expected
        assert cached == [4 * ((len(p) - 1) // 4) for p in prompts()]
    assert files(tmp_path) == stored
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_producer_and_a_consumer_at_the_same_time(tiny_models, tmp_path, expected):
    path = tiny_models.path("llama")
    with LLM(path, **SIZES, **storage(tmp_path, "kv_producer")) as producer:
        with LLM(path, **SIZES, **storage(tmp_path, "kv_consumer")) as consumer:
            assert run(consumer, prompts()[1:2]) == (expected[1:2], [0])
            assert not files(tmp_path)
            run(producer, prompts(), SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))
            deadline = time.monotonic() + 60
            wanted = sum((len(p) - 1) // 4 for p in prompts()) - 6  # two begin with the same six blocks
            while len(files(tmp_path)) < wanted and time.monotonic() < deadline:
                time.sleep(0.01)
            tokens, cached = run(consumer, prompts())
            assert tokens == expected
            assert cached == [4 * ((len(p) - 1) // 4) for p in prompts()]
        stored = files(tmp_path)
        for file in stored:
            file.unlink()
    with LLM(path, **SIZES, **storage(tmp_path, "kv_producer")) as producer:
        assert run(producer, prompts())[0] == expected
    assert len(files(tmp_path)) >= len(stored)
    with LLM(path, **SIZES, **storage(tmp_path, "kv_producer")) as producer:
        assert run(producer, prompts()[2:3]) == (expected[2:3], [0])


def damage_cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def damage_empty(file: Path) -> None:
    os.truncate(file, 0)


def damage_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)


def damage_header(file: Path) -> None:
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def damage_missing(file: Path) -> None:
    file.unlink()


def damage_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = [damage_cut, damage_empty, damage_bit, damage_header, damage_missing, damage_folder]


def test_damaged_files_are_computed_again(tiny_models, tmp_path, expected):
    path = tiny_models.path("llama")
    with LLM(path, **SIZES, **storage(tmp_path)) as llm:
        run(llm, prompts())
    stored = files(tmp_path)
    for index, file in enumerate(stored):
        DAMAGES[index % len(DAMAGES)](file)
    exchanged = [file for index, file in enumerate(stored) if index % len(DAMAGES) == 4]
    for index, file in enumerate(exchanged):  # other blocks' files under these names
        sound = stored[(index * len(DAMAGES) + 7) % len(stored)]
        file.write_bytes(sound.read_bytes() if sound.is_file() else b"")
    with LLM(path, **SIZES, **storage(tmp_path)) as llm:
        assert run(llm, prompts())[0] == expected
    with LLM(path, **SIZES, **storage(tmp_path)) as llm:
        assert run(llm, prompts())[0] == expected


def test_what_is_shared_follows_the_weights(tiny_models, reference, tmp_path, monkeypatch):
    path, other, todo = tiny_models.path("llama"), tmp_path / "other", prompts()[1:2]
    shutil.copytree(path, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] *= torch.linspace(-1, 1, tensors["model.norm.weight"].numel())
    tensors["model.layers.0.mlp.up_proj.weight"] *= -1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    reload = V1Runner.reload_weights

    def reload_while_files_change(runner, path):
        reload(runner, path)
        os.utime(other / "model.safetensors")

    with LLM(path, **SIZES, **storage(tmp_path / "kv")) as llm:
        mine, theirs = (reference(p).generate(todo[0], 6) for p in (path, other))
        assert mine != theirs
        assert run(llm, todo) == ([mine], [0])
        llm.sleep(level=1)
        llm.wake_up()
        assert run(llm, todo) == ([mine], [32])
        llm.reload_weights(other)
        assert run(llm, todo) == ([theirs], [0])
        with LLM(other, **SIZES, **storage(tmp_path / "kv", "kv_consumer")) as consumer:
            assert run(consumer, todo) == ([theirs], [32])
        llm.reload_weights()
        assert run(llm, todo) == ([mine], [32])
        name = "model.norm.weight"
        llm.load_weights([(name, load_file(path / "model.safetensors")[name])])  # the same, by chance
        assert run(llm, todo) == ([mine], [0])
        llm.reload_weights(other)
        with pytest.raises(InvalidRequestError):
            llm.load_weights([("unknown", torch.ones(1))])
        assert run(llm, todo) == ([theirs], [32])
        monkeypatch.setattr(V1Runner, "reload_weights", reload_while_files_change)
        llm.reload_weights(other)
        assert run(llm, todo) == ([theirs], [0])


def test_other_weights_and_other_layouts_find_nothing(tiny_models, tmp_path):
    path, todo = tiny_models.path("llama"), prompts()[1:2]
    with LLM(path, **SIZES, **storage(tmp_path)) as llm:
        run(llm, todo)
    for flat in ({"block_size": 8}, {"dtype": "bfloat16"}):
        with LLM(path, **{**SIZES, **flat}, **storage(tmp_path)) as llm:
            assert run(llm, todo)[1] == [0]
    with LLM(path, **SIZES, **storage(tmp_path)) as llm:
        assert run(llm, todo)[1] == [32]
    weights = path / "model.safetensors"
    before = weights.stat()
    try:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        with LLM(path, **SIZES, **storage(tmp_path)) as llm:
            assert run(llm, todo)[1] == [0]
    finally:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_size_has_a_bound_and_the_oldest_go(tmp_path):
    files_ = BlockFiles(tmp_path, max_bytes=10_000)
    blocks = {f"n/aa/{i:02}.safetensors": torch.full((100,), float(i)) for i in range(60)}
    for number, (path, block) in enumerate(blocks.items()):
        files_.write(path, block)
        os.utime(tmp_path / path, (number + 1, number + 1))
        if number:
            files_.read("n/aa/00.safetensors", elements=100, dtype=torch.float32)  # stays: it is used
        assert sum(file.stat().st_size for file in files(tmp_path)) <= 10_000
    left = {str(file.relative_to(tmp_path)) for file in files(tmp_path)}
    assert "n/aa/00.safetensors" in left
    assert "n/aa/59.safetensors" in left
    assert "n/aa/01.safetensors" not in left
    for path in left:
        assert torch.equal(files_.read(path, elements=100, dtype=torch.float32), blocks[path])
    with pytest.raises(DamagedBlockError):
        files_.read("n/aa/59.safetensors", elements=99, dtype=torch.float32)
    with pytest.raises(FileNotFoundError):
        files_.read("n/aa/59.safetensors", elements=100, dtype=torch.float32)


def test_a_writer_that_is_killed_leaves_only_whole_blocks(tmp_path):
    program = """
import sys, torch
from pathlib import Path
from dodona.runners.interface import LayerKVSpec
from dodona.runners.kv_transfer.storage.block_files import BlockFiles
from dodona.runners.kv_transfer.storage.paths import is_stored
files = BlockFiles(Path(sys.argv[1]), max_bytes=None)
for number in range(100_000):
    files.write(f"n/aa/{number:06}.safetensors", torch.full((1 << 18,), float(number)))
    if number == 3:
        print("writing", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reader = BlockFiles(tmp_path, max_bytes=None)
    found = [str(file.relative_to(tmp_path)) for file in files(tmp_path)]
    assert len(found) >= 4
    for path in found:
        block = reader.read(path, elements=1 << 18, dtype=torch.float32)
        assert torch.equal(block, torch.full((1 << 18,), float(Path(path).stem)))


def test_files_that_a_dead_writer_left_are_removed(tmp_path):
    old = tmp_path / "n" / "dead.tmp"
    old.parent.mkdir()
    old.write_bytes(b"x" * 100)
    os.utime(old, (1, 1))
    BlockFiles(tmp_path, max_bytes=1 << 20).write("n/aa/1.safetensors", torch.zeros(4))
    assert not old.exists()


def test_what_lies_in_the_folder_and_is_no_block(tmp_path):
    layers = (LayerKVSpec(4, 2, 2),) * 2
    path, parts = "n/aa/1.safetensors", tmp_path / "n/aa/1.parts"
    parts.mkdir(parents=True)
    lies = ("0-999999999.0of1", "0-2.0of999999937", "0-2.1of3", "1-3.0of2", "0-2.0of\u0661")
    for name in (*lies, f"0-{'9' * 200}.0of1"):
        (parts / f"{name}.safetensors").touch()
    block_files = BlockFiles(tmp_path, max_bytes=1)
    assert not block_files.regions(path, layers)
    assert not is_stored(tmp_path, path, layers)
    assert not is_stored(tmp_path / ("x" * 300), path, layers)  # what can't be looked at
    file = tmp_path / path
    for kind in ("pipe", "directory", "endless", "link to itself"):
        make = SPECIAL[kind]
        make(file)
        assert not is_stored(tmp_path, path, layers)
        with pytest.raises(OSError, match=r"1\.safetensors"):
            block_files.read(path, elements=8, dtype=torch.float32)
        file.rmdir() if file.is_dir() else file.unlink()
    header = {"path": path, "checksum": "x"}
    for tensor in (torch.tensor(1.0), torch.zeros(0, 8), torch.zeros(8, dtype=torch.complex64)):
        save_file({"kv": tensor}, file, header)
        with pytest.raises(DamagedBlockError, match="it holds"):
            block_files.read(path, elements=8, dtype=torch.float32)
    file.touch()
    os.truncate(file, 1 << 36)
    with pytest.raises(DamagedBlockError):
        block_files.read(path, elements=8, dtype=torch.float32)
    link = tmp_path / "n/aa/2.safetensors"
    link.symlink_to(link)
    block_files.write("n/aa/3.safetensors", torch.zeros(8))  # a bound that a link doesn't disable
    assert not any(file.is_file() for file in tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ({"shared_storage_path": 3}, "needs shared_storage_path"),
        ({"shared_storage_path": "/dev/null/x"}, "shared_storage_path '/dev/null/x'"),
        ({"max_bytes": 0}, "max_bytes must be a number of bytes above 0"),
        ({"max_bytes": 10**30}, "max_bytes must be a number of bytes above 0"),
        ({"shared_storage_path": "a\0b"}, "needs shared_storage_path"),
        ({"shared_storage_path": "\ud800"}, "needs shared_storage_path"),
        ({"shared_storage_path": "~nobody-of-this-name/x"}, "needs shared_storage_path"),
        ({"shared_storage_path": "s3://user:s3cret@host/x"}, "of this machine; got a value of type str\\)"),
        ({"shared_storage_path": "/tmp/" + "x/" * 2500}, "shared_storage_path '/tmp/x/x"),
        ({"shards": 2}, "doesn't know 'shards'"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_models, tmp_path, extra, error):
    with pytest.raises((EngineSetupError, UnsupportedConfiguration), match=error):
        LLM(tiny_models.path("llama"), **SIZES, **storage(tmp_path, **extra))


@pytest.mark.parametrize("wrong", ["s3cret", {"password": "s3cret"}, ["s3cret"]])
@pytest.mark.parametrize(
    ("connector", "key"),
    [
        ("SharedStorageConnector", "max_bytes"),
        ("SharedStorageConnector", "shared_storage_path"),
        ("OffloadingConnector", "cpu_bytes_to_use"),
    ],
)
def test_errors_show_no_value_of_the_extra_config(tmp_path, connector, key, wrong):
    extra = {"shared_storage_path": str(tmp_path)} if connector.startswith("Shared") else {}
    wrong = "" if (key, wrong) == ("shared_storage_path", "s3cret") else wrong
    transfer = {"kv_connector": connector, "kv_role": "kv_both"}
    config = EngineConfig.from_flat(
        "m", kv_transfer_config={**transfer, "kv_connector_extra_config": {**extra, key: wrong}}
    )
    with pytest.raises(ConfigError, match=f"{key}.* a value of type {type(wrong).__name__}") as caught:
        resolve_kv_transfer(config)
    assert "s3cret" not in str(caught.value)

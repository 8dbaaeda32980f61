"""A throw-away environment in which a release of vLLM makes its configuration: its Python, no kernels.

    python tools/record_vllm/environment.py RELEASE FOLDER [--base SITE_PACKAGES] [--transformers VERSION]

Downloads the release's wheel, unpacks Python files and metadata into FOLDER/RELEASE, deletes the wheel, and
installs into FOLDER/env what the release needs and a computer without a GPU can import. `--base` names
site-packages with a CPU build of torch, triton and transformers, which are used from there instead of a copy.
One FOLDER may hold several releases; those that need another transformers get it with `--transformers`.
Prints how to record.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

LEFT_OUT = re.compile(
    r"^(torch|torchaudio|torchvision|torchcodec|numba|opencv|ninja|flashinfer|apache-tvm-ffi|tilelang|nvidia-|"
    r"nvtx|fastsafetensors|instanttensor|quack-kernels|tokenspeed|humming|xgrammar|llguidance|PyNvVideoCodec|"
    r"compressed-tensors|setuptools|six)"
)
"""Requirements that need a GPU's libraries, bring torch with them, or are installed without their own."""

ALONE = (
    "torchvision",
    "xgrammar",
    "apache-tvm-ffi",
    "llguidance",
    "compressed-tensors",
    "numba",
    "llvmlite",
    "ray",
    "msgpack",
)
"""Packages whose Python is imported, and whose requirements would bring a CUDA build of torch."""

UNPACKED = re.compile(r"\.(py|json|jinja)$|\.dist-info/")


def main() -> None:
    """Read the arguments and make the environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("release")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--transformers")
    args = parser.parse_args()
    site = unpack(args.release, args.folder)
    python = make(args.folder, args.base, requirements(site))
    paths = [str(site)]
    if args.transformers:
        target = args.folder / f"transformers-{args.transformers}"
        _pip(python, "--target", str(target), f"transformers=={args.transformers}")
        paths.append(str(target))
    script = Path(__file__).with_name("record.py")
    print(f"PYTHONPATH={':'.join(paths)} {python} {script} CASES ANSWERS")


def unpack(release: str, folder: Path) -> Path:
    """Unpack a release's Python files; the folder to import them from."""
    site = folder / release
    if not site.exists():
        wheels = folder / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "-d", str(wheels), f"vllm=={release}"], check=True)
        for wheel in wheels.glob("vllm-*.whl"):
            with zipfile.ZipFile(wheel) as files:
                files.extractall(site, [name for name in files.namelist() if UNPACKED.search(name)])
            wheel.unlink()
    return site


def requirements(site: Path) -> list[str]:
    """What the release needs and this computer can import."""
    metadata = next(site.glob("vllm-*.dist-info")) / "METADATA"
    found = re.findall(r"^Requires-Dist: (.*)$", metadata.read_text(), re.MULTILINE)
    return [line for line in found if "extra ==" not in line and not LEFT_OUT.match(line)]


def make(folder: Path, base: Path | None, wanted: list[str]) -> Path:
    """The environment's Python, after installing what is wanted."""
    python = folder / "env" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
        if base is not None:
            own = next((folder / "env" / "lib").glob("python*/site-packages"))
            (own / "base.pth").write_text(f"{base.resolve()}\n")
    _pip(python, *([] if base is not None else ["torch", "triton"]), *wanted)
    _pip(python, "--no-deps", *ALONE)
    return python


def _pip(python: Path, *words: str) -> None:
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *words], check=True)


if __name__ == "__main__":
    main()

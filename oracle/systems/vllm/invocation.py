"""Command lines that start vLLM's server, as people write them, down to the arguments of `vllm serve`.

Environment variables before the command, wrappers (`sudo`, `env`, `exec`, `nohup`, …), `python -m vllm…`,
`sh -c '…'` and `docker run … IMAGE …` are taken off.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dodona.oracle.systems.vllm.shell import UNRESOLVED, SimpleCommand, Work, check_words, simple_commands

SERVER_MODULES: Final = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.api_server")
"""Modules that `python -m` runs as a server; their arguments are those of `vllm serve`, with `--model`."""

_CLI_MODULES: Final = ("vllm", "vllm.entrypoints.cli.main", "vllm.entrypoints.cli")

_WRAPPERS: Final[Mapping[str, str]] = {
    "sudo": "ugCphrtTU",
    "exec": "a",
    "nohup": "",
    "time": "fo",
    "nice": "n",
    "ionice": "cnp",
    "setsid": "",
    "stdbuf": "ioe",
    "command": "",
    "catchsegv": "",
    "tini": "",
    "dumb-init": "",
    "gosu": "",
    "xvfb-run": "",
}
"""Programs that run the command after their own options → their options that take a value."""

_SKIP_ONE: Final = {"timeout": "ks", "taskset": "", "numactl": "NmClip", "chrt": "", "gosu": ""}
"""The same, where one operand comes before the command; for numactl, none."""

_SHELLS: Final = ("sh", "bash", "dash", "zsh", "ash")

_DOCKER_SWITCHES: Final = frozenset(
    [
        "-d",
        "--detach",
        "-i",
        "--interactive",
        "-t",
        "--tty",
        "-it",
        "-ti",
        "-dit",
        "-itd",
        "-id",
        "-di",
        "-td",
        "-dt",
        "--rm",
        "--privileged",
        "--init",
        "-P",
        "--publish-all",
        "--read-only",
        "--no-healthcheck",
        "--oom-kill-disable",
        "--sig-proxy",
        "--disable-content-trust",
        "--help",
        "-q",
        "--quiet",
        "--replace",
        "--rmi",
        "--no-hosts",
    ]
)
_ENGINES: Final = ("docker", "podman", "nerdctl", "finch")

_NO_LAUNCHERS: Final = (
    *(
        "echo",
        "printf",
        "logger",
        "grep",
        "egrep",
        "pgrep",
        "pkill",
        "kill",
        "killall",
        "git",
        "alias",
        "man",
    ),
    *("pip", "pip3", "which", "type", "cat", "sed", "awk", "tee", "ls", "rm", "cp", "mv", "test", "[", ":"),
)
"""Programs whose words are no command; of others, the words from `vllm serve` on are one."""

_TAKE_TEXT: Final = frozenset(
    ["ssh", "su", "runuser", "tmux", "screen", "watch", "script", "flock", "wsl", "eval"]
)
"""Programs that give one of their words to a shell."""

_OF_REGISTRY: Final = "docker://"
"""What Apptainer and its kin write before an image."""

_IMAGE = re.compile(
    r"^(?:[\w.\-:]+/)*[\w.\-]*vllm[\w.\-]*(?:/[\w.\-]+)*(?::([\w.\-${}]+))?(?:@sha256:[0-9a-f]+)?$"
)
_RELEASE = re.compile(r"v?(\d+\.\d+\.\d+)(?!\d)")
_NAME = re.compile(r"[A-Za-z_]\w*\Z")

MAX_IMAGE: Final = 512
"""Most characters of an image's name."""

MAX_NESTING: Final = 4
"""Shells inside shells that are looked into."""


@dataclass(frozen=True)
class Invocation:
    """A start of vLLM's server."""

    arguments: tuple[str, ...]
    """What `vllm serve` gets."""
    environ: Mapping[str, str | None]
    """Variables that the command line sets; None: unset there."""
    release: str | None = None
    """The release that the tag of its image names."""
    line: int = 1
    """Line of the text on which the command begins."""
    unread: tuple[str, ...] = ()
    """What may set more variables or arguments and can't be read, such as `--env-file`."""


def image_release(image: str) -> str | None:
    """The release that the tag of an image of vLLM names; None where it names none ("latest")."""
    if len(image) > MAX_IMAGE:
        return None
    tag = image.rpartition("@")[0] or image
    found = _RELEASE.match(tag.rpartition(":")[2]) if ":" in tag.rpartition("/")[2] else None
    return found[1] if found else None


def is_vllm_image(image: str) -> bool:
    """Whether a container image's name is one of vLLM: some part of it is called vllm."""
    return len(image) <= MAX_IMAGE and _IMAGE.match(image) is not None


def invocations(
    text: str, environ: Mapping[str, str | None] | None = None, work: Work | None = None
) -> Iterator[Invocation]:
    """Every start of vLLM's server in a shell text. environ: what is set for all commands. work: what is left
    for the file that the text is in.

    Raises ConfigError for text that is no shell, and TooLarge for more words than are looked at.
    """
    yield from _in_text(text, environ or {}, 0, work or Work())


def _in_text(text: str, environ: Mapping[str, str | None], depth: int, work: Work) -> Iterator[Invocation]:
    for command in simple_commands(text, environ, work):
        yield from _of_command(command, depth, work)


def invocation_of(words: Sequence[str]) -> Invocation | None:
    """The start of vLLM's server that one command's words are; None where they are no command known here."""
    return next(_of_command(SimpleCommand(tuple(words), {}, 1), 0, Work()), None)


def _of_command(command: SimpleCommand, depth: int, work: Work) -> Iterator[Invocation]:
    check_words(command.words)
    environ = dict(command.environ)
    words = list(_unwrapped(command.words, environ))
    if not words:
        return
    program = words[0].rsplit("/", 1)[-1]
    if program in _SHELLS:
        script = _script(words)
        if script is not None and depth < MAX_NESTING:
            for found in _in_text(script, environ, depth + 1, work):
                yield dataclasses.replace(found, line=command.line + found.line - 1)
    elif program in _ENGINES and "run" in words[1:4]:
        yield from _container(words, command.line, depth, work)
    else:
        arguments = server_arguments(words)
        if arguments is not None:
            yield Invocation(tuple(arguments), environ, None, command.line)
        elif depth < MAX_NESTING and program not in _NO_LAUNCHERS:
            yield from _launched(words, environ, command.line, depth + 1, work)


def _launched(
    words: Sequence[str], environ: Mapping[str, str | None], line: int, depth: int, work: Work
) -> Iterator[Invocation]:
    """What a program of which only the name is known starts: `srun OPTIONS vllm serve …`, `ssh HOST '…'`."""
    program = words[0].rsplit("/", 1)[-1]
    for i, word in enumerate(words[1:], 1):
        name = word.rsplit("/", 1)[-1]
        if word.startswith(_OF_REGISTRY):
            rest = words[i + 1 :]
            yield from container_invocations(
                word.removeprefix(_OF_REGISTRY), None, rest, environ, line=line, depth=depth, work=work
            )
            return
        if name in _SHELLS or name in _ENGINES or name == "env" or server_arguments(words[i:]) is not None:
            yield from _of_command(SimpleCommand(tuple(words[i:]), environ, line), depth, work)
            return
        if program in _TAKE_TEXT and " " in word:
            for found in _in_text(word, environ, depth, work):
                yield dataclasses.replace(found, line=line + found.line - 1)


def server_arguments(words: Sequence[str]) -> Sequence[str] | None:
    """The arguments of `vllm serve …` or of a server that `python -m` runs; None for other commands."""
    program = words[0].rsplit("/", 1)[-1] if words else ""
    if program == "vllm":
        return words[2:] if words[1:2] == ["serve"] else None
    if re.fullmatch(r"python[\d.]*", program):
        i = 1
        while i < len(words) and words[i].startswith("-") and words[i] != "-m":
            i += 2 if words[i] in ("-W", "-X") else 1
        if words[i : i + 1] == ["-m"] and i + 1 < len(words):
            module, rest = words[i + 1], words[i + 2 :]
            if module in SERVER_MODULES:
                return rest
            if module in _CLI_MODULES and rest[:1] == ["serve"]:
                return rest[1:]
        elif i < len(words) and words[i].endswith(("vllm/entrypoints/openai/api_server.py", "/bin/vllm")):
            rest = words[i + 1 :]
            return rest[1:] if rest[:1] == ["serve"] else rest
    return None


def _unwrapped(words: Sequence[str], environ: dict[str, str | None]) -> Sequence[str]:
    """The words after wrappers; variables that they set are put into `environ`."""
    words = list(words)
    while words:
        name, equals, value = words[0].partition("=")
        program = words[0].rsplit("/", 1)[-1]
        if equals and _NAME.match(name):
            environ[name] = value
            words = words[1:]
        elif program == "env":
            words = _after_env(words[1:], environ)
        elif program in _SKIP_ONE:
            rest = _after_options(words[1:], _SKIP_ONE[program])
            words = rest if program == "numactl" else rest[1:]
        elif program in _WRAPPERS:
            words = _after_options(words[1:], _WRAPPERS[program])
        elif (
            program in ("uv", "poetry", "pdm", "pipenv", "conda", "micromamba", "mamba")
            and "run" in words[1:3]
        ):
            words = _after_options(words[words.index("run") + 1 :], "npw")
        elif program == "uvx":
            words = _after_options(words[1:], "pw")
        else:
            break
    return words


def _after_options(words: list[str], with_value: str) -> list[str]:
    """The words after a wrapper's own options. with_value: its short options that take a value."""
    i = 0
    while i < len(words) and words[i].startswith("-") and words[i] != "-":
        if words[i] == "--":
            return words[i + 1 :]
        takes = len(words[i]) == 2 and words[i][1] in with_value
        long = words[i].startswith("--") and "=" not in words[i] and words[i] in _LONG_WITH_VALUE
        i += 2 if takes or long else 1
    return words[i:]


_LONG_WITH_VALUE: Final = frozenset(
    [
        "--user",
        "--group",
        "--name",
        "--prefix",
        "--with",
        "--python",
        "--extra",
        "--project",
        "--directory",
        "--env-file",
        "--signal",
        "--kill-after",
    ]
)


def _after_env(words: list[str], environ: dict[str, str | None]) -> list[str]:
    i = 0
    while i < len(words):
        word = words[i]
        if word in ("-u", "--unset") and i + 1 < len(words):
            environ[words[i + 1]] = None
            i += 2
        elif word.startswith("--unset="):
            environ[word.partition("=")[2]] = None
            i += 1
        elif word in ("-C", "--chdir"):
            i += 2
        elif word.startswith("-"):
            i += 1
        elif "=" in word and _NAME.match(word.partition("=")[0]):
            name, _, environ[name] = word.partition("=")
            i += 1
        else:
            break
    return words[i:]


def _is_model(image: str, word: str) -> bool:
    """Whether the first argument of an image is the model: vLLM's own images run `vllm serve` on it."""
    name = word.rsplit("/", 1)[-1]
    return (
        image.partition("@")[0].rsplit("/", 1)[-1].startswith("vllm-openai")
        and ("/" in word or UNRESOLVED.match(word) is not None)
        and name not in (*_SHELLS, "env")
        and re.fullmatch(r"python[\d.]*", name) is None
    )


def _script(words: Sequence[str]) -> str | None:
    """The text of `sh -c TEXT`; None where a file is run."""
    for i, word in enumerate(words[1:], 1):
        if word.startswith("-") and not word.startswith("--") and word.endswith("c"):
            return words[i + 1] if i + 1 < len(words) else None
        if not word.startswith("-"):
            break
    return None


def _container(words: Sequence[str], line: int, depth: int, work: Work) -> Iterator[Invocation]:
    """`docker run OPTIONS IMAGE ARGUMENTS`, where the image is one of vLLM or the arguments start vLLM."""
    rest = list(words[words.index("run") + 1 :])
    environ: dict[str, str | None] = {}
    unread: list[str] = []
    entrypoint: list[str] | None = None
    i = 0
    while i < len(rest) and rest[i].startswith("-"):
        option, equals, value = rest[i].partition("=")
        if option.startswith("-e") and not option.startswith("--") and len(rest[i]) > 2:
            value, option, equals = rest[i][2:], "-e", "="
        if not equals and option not in _DOCKER_SWITCHES:
            i += 1
            value = rest[i] if i < len(rest) else ""
        i += 1
        if option in ("-e", "--env"):
            name, has_value, text = value.partition("=")
            if has_value:
                environ[name] = text
            elif name.startswith("VLLM_"):
                unread.append(f"{option} {name} (its value comes from the caller's environment)")
        elif option == "--env-file":
            unread.append(f"--env-file {value}")
        elif option == "--entrypoint":
            entrypoint = value.split()
    if i >= len(rest):
        return
    image, arguments = rest[i], rest[i + 1 :]
    yield from container_invocations(
        image, entrypoint, arguments, environ, line=line, unread=tuple(unread), depth=depth, work=work
    )


def container_invocations(
    image: str,
    entrypoint: Sequence[str] | None,
    arguments: Sequence[str],
    environ: Mapping[str, str | None],
    *,
    line: int = 1,
    unread: tuple[str, ...] = (),
    depth: int = 0,
    work: Work | None = None,
) -> Iterator[Invocation]:
    """What a container of an image runs. entrypoint: None: the image's own, which of vLLM's is its server.
    work: what is left for the file that starts it.

    Raises ConfigError for text that is no shell, and TooLarge for more words than are looked at.
    """
    command = [*(entrypoint or ()), *arguments]
    start = SimpleCommand(tuple(command), environ, line)
    found = list(_of_command(start, depth + 1, work or Work())) if command else []
    if not found and not entrypoint and is_vllm_image(image):
        words = command[1:] if command[:1] == ["serve"] else command
        if not words or words[0].startswith("-") or command[:1] == ["serve"] or _is_model(image, words[0]):
            found = [Invocation(tuple(words), dict(environ), None, line)]
    for invocation in found:
        yield Invocation(
            invocation.arguments,
            invocation.environ,
            image_release(image) if is_vllm_image(image) else None,
            invocation.line,
            (*unread, *invocation.unread),
        )

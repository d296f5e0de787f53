"""Whether what a document's commands name exists: subcommands, options, stages, params keys."""

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.cli import DvcParserError
from dvc.cli.parser import get_main_parser
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gliotrail import params
from gliotrail.errors import ParamsError
from gliotrail.plain_yaml import read_yaml
from tests.support.documents import Block, commands
from tests.support.projects import ROOT, Project

SHELL = {"sh", "bash", "console"}
COMMANDS = SHELL | {"python", "yaml"}
SYNONYMS = {"shell", "zsh", "shell-session", "py", "python3", "pycon", "yml"}
"""Refused: one name a language, so that no block slips through."""
PROGRAMS = {
    *("awk", "cat", "cd", "cp", "curl", "echo", "export", "find", "git", "grep", "head", "ip"),
    *("kill", "ls", "mkdir", "mv", "psql", "rm", "rsync", "scp", "sed", "source", "ssh", "tail"),
    *("tar", "tmux", "wget", "docker", "helm", "kubectl", "kustomize", "nvidia-smi", "pytest"),
    *("mlflow", "pip", "ray", "ruff", "sbatch"),
}
STAGE_COMMANDS = {"repro", "freeze", "unfreeze"}


@dataclass(frozen=True)
class Known:
    """What a document may name."""

    cli: Any
    """The click group of `gliotrail`."""
    make_targets: frozenset[str]
    stages: frozenset[str]
    params: Mapping[str, Any]
    """params.yaml's plain values."""


def known_in(root: Path, cli: Any) -> Known:
    """What there is in a checkout."""
    targets = re.findall(r"^([a-z][a-z-]*):", (root / "Makefile").read_text(), re.MULTILINE)
    stages = YAML(typ="safe").load(root / "dvc.yaml")["stages"]
    values = read_yaml(root / "params.yaml")
    return Known(cli, frozenset(targets), frozenset(stages), values)


def problems(block: Block, known: Known) -> Iterator[str]:
    """What is wrong with a block, one line each, without running it."""
    where = f"{block.document}:{block.line}"
    for problem in _problems(block, known):
        yield f"{where}: {problem}"


def _problems(block: Block, known: Known) -> Iterator[str]:
    if block.language == "":
        yield "the block has no language; output is `text`"
    if block.language in SYNONYMS:
        yield f"write sh, console, python or yaml, not {block.language}"
    if block.language not in COMMANDS:
        return
    if block.tag is None:
        yield "the block needs a tag on the line above: run, run-long or not-run with its reason"
    elif block.tag != "run" and block.reason is None:
        yield f"{block.tag} needs its reason: <!-- {block.tag}: ... -->"
    if block.language == "yaml":
        yield from _yaml_problems(block.text, known)
    elif block.language == "python":
        yield from _python_problems(block.text)
    else:
        try:
            typed = list(commands(block.script))
        except ValueError as error:
            yield f"can't be read as shell: {error}"
            return
        if not typed:
            yield "no command in the block (in a console block they follow `$ `)"
        for command in typed:
            yield from _command_problems(command, known)


def _command_problems(command: Sequence[str], known: Known) -> Iterator[str]:
    program, arguments = command[0].removeprefix(".venv/bin/"), list(command[1:])
    shown = " ".join(command)
    if program == "gliotrail":
        yield from _cli_problems(arguments, known.cli)
    elif program == "make":
        targets = {a for a in arguments if not a.startswith("-") and "=" not in a}
        for target in sorted(targets - known.make_targets):
            yield f"make has no target {target}"
    elif program == "dvc":
        yield from _dvc_problems(arguments, known)
    elif program in {"python", "python3.11"}:
        if arguments[:1] == ["-m"] and not _module_exists(arguments[1]):
            yield f"there is no module {arguments[1]}"
    elif program not in PROGRAMS and not (ROOT / program).is_file():
        yield f"{program} is no known command ({shown})"
    for before, word in zip(["", *arguments], arguments, strict=False):
        is_setting = re.match(r"[+~]?[a-z_]+(\.[a-z0-9_]+)+=", word)
        if program in {"dvc", "gliotrail"} and (is_setting or before in {"-S", "--set-param"}):
            key = word.partition("=")[0].lstrip("+~")
            if not has_key(known.params, key):
                yield f"params.yaml has no {key}"


def has_key(values: Mapping[str, Any], key: str) -> bool:
    """Whether nested mappings have a dotted key."""
    part: Any = values
    for name in key.split("."):
        if not isinstance(part, Mapping) or name not in part:
            return False
        part = part[name]
    return True


def _cli_problems(arguments: list[str], node: Any) -> Iterator[str]:
    path = "gliotrail"
    words = iter(arguments)
    for word in words:
        if word.startswith("-") and len(word) > 1:
            name, _, value = word.partition("=")
            option = next((p for p in node.params if name in (*p.opts, *p.secondary_opts)), None)
            if option is None and name != "--help":
                yield f"{path} has no option {name}"
            elif option is not None and not option.is_flag and not value:
                next(words, None)
        elif hasattr(node, "commands"):
            if word not in node.commands:
                yield f"{path} has no command {word}"
                return
            node, path = node.commands[word], f"{path} {word}"


def _dvc_problems(arguments: list[str], known: Known) -> Iterator[str]:
    try:
        parsed = get_main_parser().parse_args(arguments)
    except DvcParserError:
        yield f"dvc doesn't know: dvc {' '.join(arguments)}"
        return
    except SystemExit:  # --help
        return
    if arguments[0] in STAGE_COMMANDS or arguments[:2] == ["exp", "run"]:
        for target in parsed.targets or []:
            if target.partition("@")[0].removeprefix("dvc.yaml:") not in known.stages:
                yield f"dvc.yaml has no stage {target}"


def _module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _python_problems(text: str) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"not Python: {error}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names: list[tuple[str, str | None]] = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, attribute in names:
            if module.split(".")[0] in {"gliotrail", "pipelines"} and not _exists(
                module, attribute
            ):
                yield f"there is no {module}{f'.{attribute}' if attribute else ''}"


def _exists(module: str, attribute: str | None) -> bool:
    if not _module_exists(module):
        return False
    if attribute is None or _module_exists(f"{module}.{attribute}"):
        return True
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:  # a library of `gliotrail.integrations`
        return error.name in {"lightning", "transformers"}


def _yaml_problems(text: str, known: Known) -> Iterator[str]:
    try:
        documents = list(YAML(typ="safe").load_all(text))
    except YAMLError as error:
        yield f"not YAML: {str(error).splitlines()[0]}"
        return
    for values in documents:
        # anything else is another program's file
        if isinstance(values, Mapping) and set(values) & set(known.params):
            try:
                params.validate(merged(known.params, values))
            except ParamsError as error:
                yield str(error)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with some values changed."""
    out = dict(values)
    for key, value in changes.items():
        old = out.get(key)
        # a space is another one as a whole
        nested = key != "space" and isinstance(old, Mapping) and isinstance(value, Mapping)
        out[key] = merged(old, value) if nested else value  # type: ignore[arg-type]
    return out


def run_block(block: Block, project: Project, timeout_s: float = 120) -> None:
    """Run a block in a project; YAML is not run.

    Raises:
        AssertionError: a command failed.
    """
    words = {"python": ("python", "-c", block.text)}
    words |= dict.fromkeys(SHELL, ("bash", "-euo", "pipefail", "-c", block.script))
    if command := words.get(block.language):
        # the pipeline itself is run by two workers elsewhere; one starts sooner
        project.run(*command, timeout_s=timeout_s, GLIOTRAIL_WORKERS="1")

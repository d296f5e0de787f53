"""Fenced blocks of Markdown documents: their tags, and the commands that are typed in them.

docs/conventions.md says how blocks are tagged.
"""

import re
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.projects import ROOT

TAG = re.compile(r"<!-- (run|run-long|not-run)(?:: (\S.*))? -->")
FENCE = re.compile(r"[\s>]*(`{3,}|~{3,})\s*([\w+-]*)")
PREFIXES = {"!", "do", "else", "env", "if", "nohup", "sudo", "then", "time", "while"}
OTHER_WORDS = {"done", "fi", "for", "{", "}"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    line: int
    language: str
    tag: str | None
    reason: str | None
    text: str

    @property
    def script(self) -> str:
        """What to type: in a console block that is what follows `$ `."""
        if self.language != "console":
            return self.text
        typed, more = [], False
        for line in self.text.splitlines():
            if more or line.startswith("$ "):
                typed.append(line if more else line[2:])
                more = line.endswith("\\")
        return "\n".join(typed)


def blocks(text: str, document: str = "") -> list[Block]:
    """All fenced blocks of a document.

    Raises:
        ValueError: a block that is not closed.
    """
    found: list[Block] = []
    fence, language, start, lines = "", "", 0, text.splitlines()
    for n, line in enumerate(lines):
        opened = FENCE.match(line)
        if not fence and opened:
            fence, language, start = opened[1], opened[2], n
        elif fence and opened and line.strip().strip(fence[0]) == "" and opened[1] >= fence:
            tagged = TAG.fullmatch(lines[start - 1].strip()) if start else None
            tag, reason = tagged.groups() if tagged else (None, None)
            body = textwrap.dedent("\n".join(lines[start + 1 : n]))
            found.append(Block(document, start + 1, language, tag, reason, body))
            fence = ""
    if fence:
        raise ValueError(f"{document}:{start + 1}: the block is not closed")
    return found


def write_own_parts(folder: Path) -> None:
    """Write the parts that the how-to pages make, into a folder."""
    pages = ("network", "loss", "augmentation", "measure")
    for page in pages:
        text = (ROOT / f"docs/how-to/add-{page}.md").read_text(encoding="utf-8")
        for block in blocks(text):
            if found := re.search(r"cat >own/(\S+) <<'END'\n(.*?\n)END\n", block.text, re.DOTALL):
                (folder / found[1]).write_text(found[2])
    assert len(list(folder.glob("*.py"))) == len(pages)


def commands(script: str) -> Iterator[list[str]]:
    """The simple commands of a script as words, without assignments and redirections.

    Raises:
        ValueError: a quote that is not closed.
    """
    open_line, end_of_heredoc = "", None
    for line in script.splitlines():
        if end_of_heredoc is not None:
            end_of_heredoc = None if line.strip() == end_of_heredoc else end_of_heredoc
            continue
        if line.endswith("\\"):
            open_line += line[:-1] + " "
            continue
        heredoc = re.search(r"<<-?\s*['\"]?(\w+)", line)
        end_of_heredoc = heredoc[1] if heredoc else None
        try:
            words = _words(open_line + line)
        except ValueError:  # a quote goes on on the next line
            open_line += line + "\n"
            continue
        open_line = ""
        yield from _split(words)
    if open_line:
        raise ValueError("No closing quotation")


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def _split(words: Sequence[str]) -> Iterator[list[str]]:
    command: list[str] = []
    skip = False
    for word in [*words, ";"]:
        if skip:
            skip = False
        elif word and set(word) <= set("<>&") and set(word) & set("<>"):
            skip = True
            if command and command[-1].isdigit():
                command.pop()
        elif word and set(word) <= set(";()|&"):
            while command and (command[0] in PREFIXES or re.match(r"\w+=|\$$", command[0])):
                command.pop(0)
            if command and command[0] not in OTHER_WORDS:
                yield command
            command = []
        else:
            command.append(word)

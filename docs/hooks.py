"""For MkDocs: documents outside of docs/ are pages, too, and links between all of them hold.

README.md is the site's home. In the repository links are as GitHub wants them.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PLACES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "LICENSE": "LICENSE.txt"}
"""Where the site has these files of the repository; other documents are below `repository/`."""
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s:]+)([)#])")


def on_files(files: Files, config: Any) -> Files:
    """Add the documents that others link to, and those that they link to."""
    seen: set[str] = set()
    waiting = [*PLACES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".md"):
            linked = [_target(source, found[2]) for found in LINK.finditer(text)]
            waiting += [target for target in linked if target.endswith(".md")]
            text = moved(text, source)
        if not source.startswith("docs/"):
            files.append(File.generated(config, place_of(source), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ lead to the places of what is outside."""
    generated = page.file.generated_by is not None
    return markdown if generated else moved(markdown, f"docs/{page.file.src_uri}")


def place_of(source: str) -> str:
    """Where a file of the repository is on the site."""
    inside = source.startswith("docs/")
    return source.removeprefix("docs/") if inside else PLACES.get(source, f"repository/{source}")


def moved(text: str, source: str) -> str:
    """The text of a file of the repository, its links as seen from its place on the site."""
    here = Path(place_of(source)).parent

    def link(found: re.Match[str]) -> str:
        target = _target(source, found[2])
        if not (target.startswith("docs/") or target in PLACES or target.endswith(".md")):
            return found[0].partition("](")[0].lstrip("![")  # code, which the site doesn't have
        return found[1] + os.path.relpath(place_of(target), here) + found[3]

    return LINK.sub(link, text)


def _target(source: str, link: str) -> str:
    return os.path.normpath(Path(source).parent / link)

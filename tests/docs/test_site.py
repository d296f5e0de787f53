"""`make docs`: the reference is what the code says, nothing in the site is from elsewhere."""

import re
from pathlib import Path

import pytest

from tests.support.projects import ROOT


def test_the_reference_is_what_the_code_says():
    from docs.generate import written

    stale = [path.name for path, text in written().items() if path.read_text() != text]
    assert not stale, f"{', '.join(stale)}: run `make docs`"


def test_a_variable_that_the_reference_does_not_know_is_an_error(monkeypatch):
    from docs import generate

    monkeypatch.delitem(generate.ENVIRONMENT, "GLIOTRAIL_WORKERS")
    with pytest.raises(SystemExit, match="GLIOTRAIL_WORKERS"):
        generate.pages()


def test_every_document_is_a_page(site):
    documents = {path.relative_to(ROOT / "docs") for path in ROOT.glob("docs/**/*.md")}
    pages = {path.relative_to(site).with_suffix(".md") for path in site.glob("**/*.html")}
    renamed = {Path("log/README.md"): Path("log/index.md")}
    assert {renamed.get(document, document) for document in documents} <= pages
    assert "833,507" in (site / "index.html").read_text()


def test_every_document_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    documents = [str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")]
    assert [document for document in documents if f" {document}\n" not in menu] == []


def test_pages_load_no_font_script_style_or_picture_from_elsewhere(site):
    found = []
    for path in [*site.glob("**/*.html"), *site.glob("**/*.css")]:
        text = path.read_text(encoding="utf-8")
        loads = r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*"
        found += re.findall(loads, text) + re.findall(r"url\([\"']?(?:https?:)?//[^)]*", text)
    assert not found


def test_links_between_documents_hold_on_the_site_too(site):
    gone = []
    for page in site.glob("**/*.html"):
        text = re.sub(r"<(code|pre)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"<(?:a|img)\b[^>]*(?:href|src)=\"([^\"#:]+)[\"#]", text):
            if page.name != "404.html" and not (page.parent / link).exists():
                gone.append(f"{page.relative_to(site)}: {link}")
    assert not gone


def test_the_architecture_page_names_the_rooms_and_where_to_find_things():
    from docs.rooms import rooms

    page = ROOT / "docs/explanation/architecture.md"
    text = page.read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == rooms()
    rows = re.findall(r"^\|.*\]\((\.\./\S+\.py)\) \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) > 5
    for path, names in rows:
        code = (page.parent / path).read_text()
        known = set(re.findall(r"^ *(?:def|class) (\w+)", code, re.MULTILINE))
        gone = sorted(set(re.findall(r"`(\w+)`", names)) - known)
        assert not gone, f"{path}: {gone}"

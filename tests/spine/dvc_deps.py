"""The code that each stage imports: `python -m tests.spine.dvc_deps` writes it into dvc.yaml."""

import re
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]


def import_graph():
    """Who imports whom, read from the source; what only type checkers import is left out."""
    return grimp.build_graph(
        "gliotrail", "pipelines", cache_dir=None, exclude_type_checking_imports=True
    )


def code_of(name, imports):
    """The files a stage's script imports, directly and through others, and the script itself."""
    modules = imports.find_upstream_modules(f"pipelines.{name}") | {f"pipelines.{name}"}
    paths = {source_of(module) for module in modules}
    return {path for path in paths if not path.endswith("/__init__.py")}  # they hold no code


def source_of(module):
    base = ("platform/" if module.startswith("gliotrail") else "") + module.replace(".", "/")
    return f"{base}.py" if (ROOT / f"{base}.py").is_file() else f"{base}/__init__.py"


def written_anew(text, imports):
    """dvc.yaml with each stage's deps on code as they should be; the rest as it is."""
    parts = re.split(r"(?m)^(?=  [a-z]+:$)", text)
    return "".join(_stage(part, imports) for part in parts)


def _stage(part, imports):
    name = re.match(r"  ([a-z]+):$", part, re.MULTILINE)
    if name is None or f"python -m pipelines.{name[1]}" not in part:
        return part
    script, *code = sorted(code_of(name[1], imports), key=lambda path: path.startswith("platform"))
    kept = re.sub(r"(?m)^      - (?:platform|pipelines)/.*\n", "", part)
    lines = "".join(f"      - {path}\n" for path in [script, *sorted(code)])
    return kept.replace("    deps:\n", f"    deps:\n{lines}", 1)


if __name__ == "__main__":
    path = ROOT / "dvc.yaml"
    path.write_text(written_anew(path.read_text(), import_graph()))

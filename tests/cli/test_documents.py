"""Commands in README.md and docs/: tagged, naming only what exists, and run where tagged `run`."""

import re
import textwrap

import pytest
import typer
from typer.main import get_command

from gliotrail.plain_yaml import read_yaml
from tests.support.documents import Block, blocks, commands
from tests.support.known import Known, known_in, problems, run_block
from tests.support.projects import ROOT

DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("infra/**/*.md")]
)


def blocks_of(document):
    return blocks((ROOT / document).read_text(encoding="utf-8"), document)


@pytest.fixture(scope="module")
def known():
    from gliotrail.cli.app import app

    return known_in(ROOT, get_command(app))


def test_blocks_are_tagged_and_name_only_what_exists(known):
    found = [
        problem
        for document in DOCUMENTS
        for block in blocks_of(document)
        for problem in problems(block, known)
    ]
    assert not found, "\n" + "\n".join(found)


WITH_BLOCKS_TO_RUN = [
    document for document in DOCUMENTS if any(block.tag == "run" for block in blocks_of(document))
]


@pytest.mark.parametrize("document", WITH_BLOCKS_TO_RUN)
@pytest.mark.timeout(600)  # the first waits for the session's `dvc repro`
def test_blocks_tagged_run_do_run(document, request):
    project = request.getfixturevalue("reproduced_copy")
    for block in blocks_of(document):
        if block.tag == "run":
            run_block(block, project)
    code = project.run("git", "ls-files", "--others", "--exclude-standard").stdout.split()
    scans = (".gif", ".h5", ".html", ".nii.gz", ".png")
    assert not [name for name in code if name.endswith(scans)]  # a run's code goes to the server


def test_links_lead_somewhere():
    gone = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)#\s]+)|\bsrc=\"([^\"]+)", text)
        relative = [a or b for a, b in links if not re.match(r"\w+:", a or b)]
        folder = (ROOT / document).parent
        gone += [f"{document}: {link}" for link in relative if not (folder / link).exists()]
    assert not gone, "\n" + "\n".join(gone)


def test_the_readme_is_short_and_names_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 800
    assert "make demo" in text
    assert "make test" in text


# The checker itself, on a small document and on each fault it must see.

app = typer.Typer()
patches = typer.Typer()
app.add_typer(patches, name="patches")


@app.callback()
def main(verbose: bool = False, state: str = ""): ...


@app.command()
def metrics(case: str = "", json: bool = False): ...


@patches.command()
def export(folder: str, size: str = ""): ...


@pytest.fixture(scope="module")
def sample():
    values = read_yaml(ROOT / "params.yaml")
    stages = frozenset({"train", "patch"})
    return Known(get_command(app), frozenset({"demo", "test"}), stages, values)


def test_the_sample_document_has_no_fault(sample):
    text = (ROOT / "tests/data/sample.md").read_text()
    found = blocks(text, "sample.md")
    assert [block.tag for block in found].count(None) == 1
    assert [problem for block in found for problem in problems(block, sample)] == []


def test_the_sample_document_runs(clone):
    for block in blocks((ROOT / "tests/data/sample.md").read_text(), "sample.md"):
        if block.tag == "run":
            run_block(block, clone)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("gliotrail metrix", "gliotrail has no command metrix"),
        ("gliotrail metrics --jsn", "gliotrail metrics has no option --jsn"),
        ("gliotrail --state metrics patches exprt", "gliotrail patches has no command exprt"),
        ("RAY_ADDRESS=auto gliotrial metrics", "gliotrial is no known command"),
        ("ls && gliotrail metrix", "gliotrail has no command metrix"),
        ('echo "$(ls)" | gliotrail metrix', "gliotrail has no command metrix"),
        ("gliotrail metrics \\\n  --jsn", "gliotrail metrics has no option --jsn"),
        ("make dmeo", "make has no target dmeo"),
        ("dvc repo", "dvc doesn't know: dvc repo"),
        ("dvc repro --nope", "dvc doesn't know: dvc repro --nope"),
        ("dvc repro trian", "dvc.yaml has no stage trian"),
        ("dvc repro pach@48x48x16", "dvc.yaml has no stage pach@48x48x16"),
        ("dvc exp run -S train.lerning_rate=3e-4", "params.yaml has no train.lerning_rate"),
        ("dvc exp run -S seed=3", "params.yaml has no seed"),
        ("gliotrail metrics train.lerning_rate=1", "params.yaml has no train.lerning_rate"),
        ("python -m pipelines.trian", "there is no module pipelines.trian"),
        ("echo 'open", "can't be read as shell"),
        ("# only a comment", "no command in the block"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command, problem, sample):
    found = list(problems(Block("a.md", 7, "sh", "not-run", "why", command), sample))
    assert len(found) == 1
    assert found[0].startswith(f"a.md:7: {problem}")


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("```sh\nls\n```", "the block needs a tag"),
        ("<!-- run -->\n\n```sh\nls\n```", "the block needs a tag"),
        ("<!-- not-run -->\n```sh\nls\n```", "not-run needs its reason"),
        ("<!-- run-long -->\n```sh\nls\n```", "run-long needs its reason"),
        ("```\nls\n```", "the block has no language"),
        ("<!-- run -->\n```shell\nls\n```", "write sh, console, python or yaml, not shell"),
        ("<!-- run -->\n```console\nls\n```", "no command in the block"),
        ("<!-- run -->\n```yaml\ntrain: {epochz: 2}\n```", "params: train.epochz: unknown key"),
        ("<!-- run -->\n```yaml\ntrain: {epochs: none}\n```", "params: train.epochs"),
        ("<!-- run -->\n```yaml\na: [1\n```", "not YAML"),
        ("<!-- run -->\n```python\nimport gliotrail.nothing\n```", "there is no gliotrail.nothing"),
        (
            "<!-- run -->\n```python\nfrom gliotrail.params import Parms\n```",
            "there is no gliotrail.params.Parms",
        ),
        ("<!-- run -->\n```python\nx = = 1\n```", "not Python"),
    ],
)
def test_a_faulty_block_is_found(block, problem, sample):
    found = [p for b in blocks(f"Words.\n\n{block}\n", "a.md") for p in problems(b, sample)]
    assert len(found) == 1
    assert problem in found[0]


def test_a_block_that_is_not_closed_is_found():
    with pytest.raises(ValueError, match=r"a\.md:2: the block is not closed"):
        blocks("Words.\n```sh\nls\n", "a.md")


def test_shell_is_split_into_its_commands():
    script = textwrap.dedent(
        """\
        cd x && A=1 B=2 make demo  # words
        for f in *.nii; do gliotrail segment "$f" >out.txt 2>&1; done
        cat <<'END' >file
        not a command
        END
        echo 'two
        lines' | grep two
        n=$(gliotrail metrics --json)
        """
    )
    assert list(commands(script)) == [
        ["cd", "x"],
        ["make", "demo"],
        ["gliotrail", "segment", "$f"],
        ["cat"],
        ["echo", "two\nlines"],
        ["grep", "two"],
        ["gliotrail", "metrics", "--json"],
    ]

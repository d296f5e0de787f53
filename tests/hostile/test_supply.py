"""What is installed is what was pinned, and the history holds no secret."""

import re
import subprocess
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.projects import ROOT

SECRETS = {
    "a private key": rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}",
    "an AWS key": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": rb"\bgh[pousr]_[A-Za-z0-9]{36}\b|\bgithub_pat_[A-Za-z0-9_]{50}",
    "a PyPI token": rb"\bpypi-AgEI[A-Za-z0-9_-]{50}",
    "a Slack token": rb"\bxox[abprs]-[A-Za-z0-9-]{20}",
    "a Google key": rb"\bAIza[0-9A-Za-z_-]{35}\b",
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{34}\b",
    "a web token": rb"\beyJ[A-Za-z0-9_-]{20,}\.eyJ[A-Za-z0-9_-]{20,}\.",
    "a password in a file": rb"(?im)^\s*(?:password|passwd|secret_key|aws_secret_access_key)"
    rb"\s*[:=]\s*[\"']?[A-Za-z0-9/+=]{16,}[\"']?\s*$",
}


def secrets_in(content: bytes) -> list[str]:
    return [what for what, pattern in SECRETS.items() if re.search(pattern, content)]


def test_a_secret_is_seen() -> None:
    shown = {
        "a private key": b"-----BEGIN RSA " + b"PRIVATE KEY-----\n" + b"A" * 64,
        "an AWS key": b"key = " + b"AKIA" + b"A1B2" * 4,
        "a GitHub token": b"ghp" + b"_" + b"a1B2" * 9,
        "a password in a file": b"  password: " + b"correcthorse" * 2,
    }
    for what, content in shown.items():
        assert secrets_in(content) == [what]


def test_no_secret_was_ever_committed() -> None:
    """Every version of every file that the history holds, but for large ones: those are data."""
    listed = subprocess.run(
        ["git", "rev-list", "--objects", "--all"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    names = dict(line.split(b" ", 1) for line in listed.splitlines() if b" " in line)
    with subprocess.Popen(
        ["git", "cat-file", "--batch"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as git:
        assert git.stdin is not None and git.stdout is not None
        found, looked_at = [], 0
        for digest, name in names.items():
            git.stdin.write(digest + b"\n")
            git.stdin.flush()
            _, kind, size = git.stdout.readline().split()
            content = git.stdout.read(int(size) + 1)
            if kind == b"blob" and int(size) < 1_000_000:
                looked_at += 1
                found += [f"{name.decode()}: {what}" for what in secrets_in(content)]
        git.stdin.close()
    assert found == []
    assert looked_at > 300


def test_all_that_gliotrail_needs_is_pinned_and_installed_as_pinned() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip()]
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {str(canonicalize_name(name)): version for name, version in pins.items()}
    waiting, seen = [("gliotrail", frozenset({"dev"}))], set()
    while waiting:
        name, extras = waiting.pop()
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            marker = needed.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            key = (str(canonicalize_name(needed.name)), frozenset(needed.extras))
            if key not in seen:
                seen.add(key)
                waiting.append(key)
    wanted = {name: metadata.version(name).partition("+")[0] for name, _ in seen}
    assert len(wanted) > 100
    assert wanted == {name: pinned.get(name) for name in wanted}

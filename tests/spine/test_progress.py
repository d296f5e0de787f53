import pytest

from gliotrail import progress as module
from gliotrail.progress import progress


def test_a_log_gets_plain_lines_now_and_then_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 1000, 2))  # each look at the clock is 2 s after the one before
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(seconds)))
    with progress(20, "prepare", "cases") as advance:
        for _ in range(20):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[0].startswith("prepare: 5/20 cases, ")
    assert " cases/s, ETA " in lines[0]
    assert lines[-1].startswith("prepare: 20/20 cases, ")


def test_bytes_are_told_in_mb_and_what_was_there_before_is_not_counted_into_the_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter((0.0, 2.0, 4.0, 4.0, 4.0))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(seconds))
    with progress(3_000_000, "download", "bytes", done=1_000_000) as advance:
        advance(2_000_000)
    assert capsys.readouterr().err == "download: 3.00/3.00 MB, 0.5 MB/s, 4.0 s\n"


def test_a_job_that_fails_doesn_t_tell_that_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), progress(3, "prepare", "cases"):
        raise KeyError
    assert capsys.readouterr().err == ""

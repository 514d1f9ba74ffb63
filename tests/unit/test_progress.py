import io
import re
from types import SimpleNamespace

import pytest

from tlray import progress
from tlray.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until its `now_s` is set."""
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


def run(clock, updates: list[tuple[float, int]], **settings) -> None:
    """Updates at some seconds after the start."""
    with Progress("Scoring", 100, **settings) as shown:
        for after_s, completed in updates:
            clock.now_s = 100.0 + after_s
            shown.update(completed)


@pytest.mark.parametrize(
    ("updates", "lines"),
    [
        ([(0, 0), (5, 10), (9.9, 20)], []),  # a line every 10 s at most
        # 10 of them in 10 s: 90 s for the other 90.
        ([(0, 0), (10, 10)], ["Scoring: 10 of 100 images, 1 min 30 s left"]),
        ([(0, 0), (10, 10), (15, 40), (20, 50)],
         ["Scoring: 10 of 100 images, 1 min 30 s left", "Scoring: 50 of 100 images, 20 s left"]),
        # Of a resumed work only what was done now counts: 20 in 12 s, so 60 in 36 s. The clock starts with the first.
        ([(8, 20), (20, 40)], ["Scoring: 40 of 100 images, 36 s left"]),
        # 1 in 80 s: 99 * 80 s = 7920 s
        ([(0, 0), (80, 1)], ["Scoring: 1 of 100 images, 2 h 12 min left"]),
        ([(0, 0), (10, 0)], ["Scoring: starting"]),
        ([(11, 50)], ["Scoring: starting"]),
        ([(0, 10), (10, 5)], ["Scoring: starting"]),  # a training that went back to its checkpoint
        ([(0, 0), (10, 100)], ["Scoring: 100 of 100 images, 0 s left"]),
    ],
)  # fmt: skip
def test_lines_in_a_log_by_hand(clock, capsys, updates, lines):
    run(clock, updates)
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["Scoring: 100 images", *lines]  # the first one at once
    assert shown.out == ""


def test_unit_is_named(clock, capsys):
    run(clock, [(0, 0), (10, 50)], unit="steps")
    assert capsys.readouterr().err == "Scoring: 100 steps\nScoring: 50 of 100 steps, 10 s left\n"


def test_nothing_to_do_is_not_announced(capsys):
    with Progress("Scoring", 0):
        pass
    assert capsys.readouterr() == ("", "")


def test_quiet_shows_nothing(clock, capsys):
    run(clock, [(0, 0), (30, 50), (60, 100)], quiet=True)
    with Progress("Scoring", 1, quiet=True) as shown:
        shown.say("hello")
    assert capsys.readouterr() == ("", "")


def test_say_prints_as_it_is(capsys):
    with Progress("Scoring", 1) as shown:
        shown.say("epoch 1 [bold]")
    assert capsys.readouterr().err == "Scoring: 1 image\nepoch 1 [bold]\n"


def test_bar_in_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress("Scoring", 8, unit="files") as shown:
        shown.update(3)
        shown.say("worker 1 [failed]")
    shown_text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "worker 1 [failed]\n" in shown_text
    assert re.search(r"Scoring\W+3/8 files 0:00:00 left", shown_text)


@pytest.mark.parametrize("error", [RuntimeError("failed"), KeyboardInterrupt()])
def test_errors_come_through(error):
    with pytest.raises(type(error)), Progress("Scoring", 1):
        raise error


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90061, "25 h 1 min"),
    ],
)
def test_durations(seconds, expected):
    assert progress._duration(seconds) == expected

"""What is shown on the screen, and what is held back."""

import os
import sys

import pytest

from tlray.screen import held_back


def test_what_is_written_within_the_block_is_held_back(capfd: pytest.CaptureFixture[str]):
    with held_back():
        os.write(2, b"from C++\n")
        print("a result")
    print("after", file=sys.stderr)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("a result\n", "after\n")


def test_it_is_shown_if_the_block_fails(capfd: pytest.CaptureFixture[str]):
    def fail() -> None:
        os.write(2, b"from C++\n")
        raise ImportError("no such library")

    with pytest.raises(ImportError, match="no such library"), held_back():
        fail()
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "from C++\nafter\n"

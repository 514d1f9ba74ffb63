import threading
from contextlib import closing

import pytest

from tlray.files.read_ahead import read_ahead

DEADLINE_S = 20.0


class Reader:
    """Stands for a file system: counts the calls that have begun, and can wait for a number of them."""

    def __init__(self) -> None:
        self.num_begun = 0
        self._changed = threading.Condition()

    def read(self, location: str) -> str:
        with self._changed:
            self.num_begun += 1
            self._changed.notify_all()
        return location.upper()

    def wait_for(self, num_begun: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.num_begun >= num_begun, DEADLINE_S)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@pytest.mark.parametrize("num_files", [0, 1, 3, 4, 20])
def test_results_come_in_order(num_files):
    locations = [f"{number}.png" for number in range(num_files)]
    results = list(read_ahead(Reader().read, iter(locations), num_threads=3))
    assert results == [f"{number}.PNG" for number in range(num_files)]
    assert threads() == []


def test_the_window_is_always_full_and_never_exceeded():
    reader, asked = Reader(), []

    def locations():
        for number in range(20):
            asked.append(number)
            yield str(number)

    results = read_ahead(reader.read, locations(), num_threads=3)
    assert asked == []
    for num_taken in range(1, 21):
        next(results)
        # All calls that the window allows begin while the consumer works, and no other is even handed in.
        reader.wait_for(min(num_taken + 3, 20))
        assert len(asked) == min(num_taken + 3, 20)
    assert list(results) == []


def test_an_error_is_raised_in_its_place():
    reader = Reader()

    def read(location: str) -> str:
        if location == "b":
            raise ValueError(location)
        return reader.read(location)

    results = read_ahead(read, "abcdef", num_threads=2)
    assert next(results) == "A"
    with pytest.raises(ValueError, match="b"):
        next(results)
    assert threads() == []
    assert reader.num_begun <= 3  # a and c, and d at the most


def test_a_consumer_that_stops_ends_the_threads():
    reader = Reader()
    with closing(read_ahead(reader.read, map(str, range(1000)), num_threads=4)) as results:
        assert next(results) == "0"
        assert 1 <= len(threads()) <= 4
    assert threads() == []
    assert reader.num_begun <= 5

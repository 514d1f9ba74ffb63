import pytest

from tlray import timing


def test_phases_add_up_in_their_order(monkeypatch):
    clock = iter([0.0, 1.5, 2.0, 2.25, 3.0, 7.0])
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(clock))
    found = timing.Timing()
    with found.phase("reading"):
        pass
    with pytest.raises(ValueError), found.phase("export"):  # noqa: PT011
        raise ValueError
    with found.phase("reading"):
        pass
    assert list(found.seconds.items()) == [("reading", 5.5), ("export", 0.25)]

"""What `benchmarks/serving_turns.py` computes from the turns of two servers."""

import pytest

from benchmarks.serving_turns import OURS, PEER, Turn, median_with_interval, rows


def test_the_median_of_pairs_is_within_its_interval_and_the_same_each_time():
    found = median_with_interval([0.9, 1.1, 1.0, 0.8, 5.0])
    assert found[0] == 1.0
    assert 0.8 <= found[1] < 1.0 < found[2] <= 5.0
    assert found == median_with_interval([0.9, 1.1, 1.0, 0.8, 5.0])


def test_ratios_are_of_pairs_and_do_not_see_that_the_machine_slows_down():
    ours = [Turn(images_per_s=100.0, cpu_ms=12.0), Turn(images_per_s=50.0, cpu_ms=24.0)]
    peer = [Turn(images_per_s=80.0, cpu_ms=10.0), Turn(images_per_s=40.0, cpu_ms=20.0)]
    rates, cpu = rows(64, {OURS: ours, PEER: peer})
    assert rates.endswith("| **1.25 (1.25 to 1.25)** |")
    assert cpu.endswith("| 1.20 (1.20 to 1.20) |")


def test_servers_have_as_many_turns():
    with pytest.raises(ValueError, match="zip"):
        rows(8, {OURS: [Turn(images_per_s=1.0, cpu_ms=1.0)], PEER: []})

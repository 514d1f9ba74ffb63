"""What `benchmarks/suggest_gain.py` draws and counts."""

import numpy as np
import pytest

from benchmarks import suggest_gain
from benchmarks.trust import Images


def make_images(groups: list[str], labels: list[int]) -> Images:
    return Images(pooled_BD=np.zeros((len(groups), 2), np.float16), labels=np.array(labels), groups=np.array(groups))


@pytest.mark.parametrize("seed", range(5))
def test_labelled_images_are_whole_groups_of_all_classes(seed: int):
    groups = [f"g{number // 2}" for number in range(80)] + ["rare"] + ["large"] * 20
    labels = [number // 2 % 2 for number in range(80)] + [2] + [0] * 20
    images, rows = make_images(groups, labels), np.arange(len(groups))
    drawn = suggest_gain.draw_labelled(images, rows, 20, np.random.default_rng(seed))
    assert {*images.labels[drawn].tolist()} == {0, 1, 2}
    assert 20 <= len(drawn) <= 22
    names = images.groups[drawn].tolist()
    assert "large" not in names  # more than a tenth of what is wanted
    assert all(names.count(name) == groups.count(name) for name in names)


def test_the_table_has_paired_gains_with_their_standard_errors():
    ways = {way: {"": 0.8, ": images": 50.0, ": pictures": 40.0} for way in suggest_gain.WAYS}
    rounds = []
    for gain in (0.02, 0.04):
        each = {"start": 0.7, "start: images": 60.0}
        for way, figures in ways.items():
            each |= {
                way + name: value + (gain if way == "suggested" and not name else 0) for name, value in figures.items()
            }
        rounds.append(each)
    lines = suggest_gain.table(rounds)
    assert lines[2] == "| none but the first | 60 | | 0.700 | |"
    assert "| suggested | 50 | 40 | 0.830 | +3.0 points (standard error 1.0) |" in lines
    assert "| random | 50 | 40 | 0.800 |  |" in lines

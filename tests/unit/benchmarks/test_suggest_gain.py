"""What `benchmarks/suggest_gain.py` draws and counts."""

import numpy as np
import pytest

from benchmarks import suggest_gain
from benchmarks.trust import Images


def make_images(groups: list[str], labels: list[int]) -> Images:
    return Images(pooled_BD=np.zeros((len(groups), 2), np.float16), labels=np.array(labels), groups=np.array(groups))


@pytest.mark.parametrize("seed", range(5))
def test_as_many_images_of_each_class_are_drawn_from_several_groups(seed: int):
    groups = [f"g{number // 2}" for number in range(80)] + ["rare"] * 3 + ["large"] * 20
    labels = [number // 2 % 2 for number in range(80)] + [2] * 3 + [0] * 20
    images, rows = make_images(groups, labels), np.arange(len(groups))
    drawn = suggest_gain.draw_labelled(images, rows, 30, np.random.default_rng(seed))
    assert np.bincount(images.labels[drawn]).tolist() == [10, 10, 2]  # the rare class has one group
    assert len({*drawn.tolist()}) == 22
    assert np.unique(images.groups[drawn], return_counts=True)[1].max() == 2


def test_random_pictures_are_no_copies(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2
    images = Images(
        pooled_BD=(rng.normal(size=(100, 8)) + 2 * labels[:, None]).astype(np.float16),
        labels=labels,
        groups=np.array([f"g{number}" for number in range(100)]),
    )
    pictures = np.arange(100) // 4
    parts = np.array_split(rng.permutation(100), 5)
    settings = suggest_gain.Settings(run="", num_labelled=20, count=10)
    monkeypatch.setattr(
        suggest_gain, "choose", lambda *_, pool, **__: dict.fromkeys(("suggested", "uncertain", "all"), pool)
    )
    found = suggest_gain.measure(images, pictures, parts, settings, number=0, seed=0)
    assert found["random pictures: images"] == found["random pictures: pictures"] <= 10
    assert (found["random: images"], found["start: images"]) == (10, 20)
    assert found["start"] > 0.8


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

"""What the benchmarks of trust draw and compute: simulated patients, synthetic rows, means over groups."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    audit_cost,
    by_source,
    interval_coverage,
    other_anatomy,
    planted_copies,
    planted_shortcuts,
    trust,
    trust_fine_tuned,
)
from tlray.trust.copies import Copies
from tlray.trust.intervals import Interval


def test_simulated_images_are_right_as_often_and_as_correlated_as_said():
    case = interval_coverage.Case(kind="patients", num_groups=20_000, accuracy=0.8, correlation=0.3)
    is_right, groups = interval_coverage.simulate(case, np.random.default_rng(0))
    assert np.mean(is_right) == pytest.approx(0.8, abs=0.01)
    starts, sizes = np.unique(groups, return_index=True, return_counts=True)[1:]
    assert (sizes.min(), sizes.max()) == (1, 10)
    first = starts[sizes > 1]
    assert np.corrcoef(is_right[first], is_right[first + 1])[0, 1] == pytest.approx(0.3, abs=0.03)


def test_groups_of_copies_are_mostly_single_images():
    case = interval_coverage.Case(kind="copies", num_groups=10_000, accuracy=0.8, correlation=0.9)
    sizes = interval_coverage.group_sizes(case, np.random.default_rng(0))
    assert np.mean(sizes == 1) == pytest.approx(0.9, abs=0.02)
    assert (sizes[sizes > 1].min(), sizes.max()) == (5, 20)


def test_simulated_probabilities_are_calibrated_unless_they_are_sharpened():
    calibrated = interval_coverage.LogitCase(num_groups=4000, signal=2.0, sharpness=1.0)
    found = interval_coverage.figures(*interval_coverage.simulate_logits(calibrated, 4000, np.random.default_rng(0)))
    assert found["calibration error"].value < 0.02
    assert found["calibration error"].low == 0
    sharp = interval_coverage.LogitCase(num_groups=4000, signal=2.0, sharpness=2.0)
    sharpened = interval_coverage.figures(*interval_coverage.simulate_logits(sharp, 4000, np.random.default_rng(0)))
    assert sharpened["calibration error"].low > 0.1
    assert sharpened["accuracy"] == found["accuracy"]


def test_figures_of_simulated_sets_are_covered_mostly(monkeypatch):
    monkeypatch.setattr(interval_coverage, "TRUTH_GROUPS", 2000)
    case = interval_coverage.LogitCase(num_groups=40, signal=2.0, sharpness=1.0)
    found = interval_coverage.measure_figures(case, 20, np.random.default_rng(0))
    assert all(coverage >= 0.75 and 0 < width < 1 for coverage, width in found.values()), found


def test_foreign_images_are_told_by_their_scores():
    own, foreign = np.arange(20) / 100, {"brains": np.array([0.1, 0.5, 0.6, 0.7])}
    found = trust.measure_foreign([(own, foreign, 0.15), (own, foreign, 0.55)])
    assert found["own images within the limit"] == pytest.approx((16 + 20) / 40)
    # of 80 pairs those are told in which the foreign image has the larger score; 0.1 is above 10 of 20 and equals one
    assert found["brains: AUROC"] == pytest.approx((60 + 10.5) / 80)
    assert found["brains: accepted at 95% of the own"] == 0.25
    assert found["brains: within the limit"] == pytest.approx((0.25 + 0.5) / 2)


def test_images_of_fine_tuned_models_are_links_in_their_places(tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    paths = [str(tmp_path / name) for name in ("a.png", "b.jpg")]
    trust_fine_tuned.link(paths, ["train/normal", "valid/normal"], tmp_path / "data")
    found = {path.relative_to(tmp_path / "data").as_posix(): path.read_bytes() for path in tmp_path.glob("data/*/*/*")}
    assert found == {"train/normal/00000.png": b"a.png", "valid/normal/00001.jpg": b"b.jpg"}


def fine_tuned(
    *, num_epochs: int, note: str, has_truth: list[bool] | None, temperature: float = 1.0
) -> trust_fine_tuned.Held:
    probs_BK = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    return trust_fine_tuned.Held(
        labels=np.array([0, 1, 1, 0]),
        groups=np.array(["a", "b", "b", "c"]),
        probs_BK=probs_BK,
        is_accepted=np.array([True, True, False, True]),
        has_truth=None if has_truth is None else np.array(has_truth),
        ood_scores=np.array([0.1, 0.2, 0.3, 0.4]),
        foreign_scores={"noise": np.array([0.9])},
        max_ood_score=0.35,
        about={
            "calibration": {"ece_before": 0.2, "ece": 0.1, "temperature": temperature, "biases": [0.0, 0.0]},
            "referral": {"note": note},
        },
        num_epochs=num_epochs,
    )


def test_fine_tuned_models_are_measured_on_what_they_were_not_trained_on():
    tuned = fine_tuned(num_epochs=3, note="", has_truth=[True, True, False, True], temperature=1.5)
    probe = fine_tuned(num_epochs=0, note="No threshold.", has_truth=None)
    settings = trust_fine_tuned.Settings(run="", weights="", max_error=0.2)
    found = trust_fine_tuned.measure([tuned, probe], settings)
    assert found["models that were fine-tuned, not probes"] == 1
    assert found["models that were calibrated"] == 1
    assert found["models with a threshold for --max-error 0.2"] == 1
    accuracy, wrong = found["accuracy"], found["wrong among them"]
    assert isinstance(accuracy, Interval)
    assert isinstance(wrong, Interval)
    assert (accuracy.value, wrong.value) == (0.75, 0)
    assert found["share accepted, by all models"] == 0.75
    # confidences 0.9, 0.8, 0.6 and 0.7, each in a bin of its own, twice; the third is wrong
    ece = found["ECE after it, on the held-out images"]
    assert ece == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4)
    covered = found["sets with the true class, by group"]
    assert isinstance(covered, Interval)
    assert covered.value == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["noise: AUROC"] == 1


def test_the_mean_over_groups_counts_a_group_once():
    found = trust.mean_over_groups(np.array([1, 1, 1, 0]), np.array(["a", "a", "a", "b"]))
    half = 1.96 * np.sqrt(0.5) / np.sqrt(2)  # the deviation of 1 and 0, of two groups
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_probabilities_that_are_right_have_a_small_calibration_error_by_chance():
    probs_BK = np.tile([0.7, 0.3], (2_000, 1))
    # The mean of |observed - 0.7| in one bin: sqrt(2 / pi) standard errors.
    expected = np.sqrt(2 / np.pi) * np.sqrt(0.7 * 0.3 / 2_000)
    assert trust.right_by_chance(probs_BK, 0) == pytest.approx(expected, rel=0.2)
    # Together, 20 images count as one.
    in_groups = trust.right_by_chance(probs_BK, 0, np.arange(2_000) // 20)
    assert in_groups == pytest.approx(np.sqrt(20) * expected, rel=0.2)


def test_the_mean_of_a_figure_is_over_the_cuts_that_have_it():
    cuts = [{"a": 1.0, "b": Interval(value=0.5, low=0.4, high=0.6)}, {"a": 3.0}]
    assert (trust.mean_of(cuts, "a"), trust.mean_of(cuts, "b"), trust.mean_of(cuts, "c")) == (2.0, 0.5, None)
    assert trust.text_of(cuts[0]["b"]) == "0.500 (0.400 to 0.600)"


@pytest.mark.parametrize(
    ("uri", "width_px", "kind"),
    [
        ("data/a.JPEG", 299, "jpg, 0 to 299 px wide"),
        ("data/a.png", 300, "png, 300 to 511 px wide"),
        ("data/a.png", 512, "png, 512 px wide or more"),
    ],
)
def test_kinds_of_files(uri, width_px, kind):
    assert by_source.kind_of(uri, width_px, (300, 512)) == kind


def test_thumbnails_are_enlarged_by_splines_that_keep_a_slope():
    enlarge = audit_cost._cubic(96, 12)
    assert enlarge.sum(axis=1) == pytest.approx(np.ones(96))
    slope = enlarge @ np.arange(12, dtype=np.float32)
    place = (np.arange(96) + 0.5) / 8 - 0.5
    inner = (place >= 1) & (place <= 10)
    assert slope[inner] == pytest.approx(place[inner], abs=1e-4)


def test_planted_copies_are_like_their_originals_and_others_stay():
    rng = np.random.default_rng(0)
    features_BD, thumbnails_BHW = (
        audit_cost.synthetic_features(200, rng),
        audit_cost.synthetic_thumbnails(200, 0.0, rng),
    )
    before = thumbnails_BHW.copy()
    pairs = audit_cost.plant(features_BD, thumbnails_BHW, rng)
    assert pairs.shape == (4, 2)
    assert len(np.unique(pairs)) == 8
    for source, place in pairs:
        both = np.corrcoef(thumbnails_BHW[source].ravel(), thumbnails_BHW[place].ravel())
        assert both[0, 1] > 0.95
        assert features_BD[source] == pytest.approx(features_BD[place], abs=0.1)
    others = np.setdiff1d(np.arange(200), pairs[:, 1])
    assert (thumbnails_BHW[others] == before[others]).all()


@pytest.mark.parametrize("draw", [other_anatomy.head, other_anatomy.abdomen])
def test_other_anatomy_is_a_body_in_air(draw):
    pixels = draw(np.random.default_rng(0), 64)
    assert (pixels.shape, pixels.dtype) == ((64, 64), np.uint8)
    assert pixels[:4, :4].mean() < 20
    assert pixels[24:40, 24:40].mean() > 60


def test_results_by_source_lie_beside_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert by_source.Settings(run="runs/probe").folder == str(tmp_path / "runs/by_source")
    assert by_source.Settings(run="/data/runs/probe/").folder == "/data/runs/by_source"
    assert by_source.Settings(run="runs/probe", out="elsewhere").folder == "elsewhere"


def test_the_published_shortcuts_are_those_of_the_defaults():
    settings = planted_shortcuts.Settings()
    newest = max(Path(planted_shortcuts.__file__).parent.glob("results/planted_shortcuts_*.md"))
    command = f"python benchmarks/planted_shortcuts.py --sets {settings.sets} --first-set {settings.first_set}"
    assert command in newest.read_text().splitlines()[2]


def grouped(group_of: list[int]) -> Copies:
    """Returns copies with the given groups, and no pairs."""
    groups = np.array(group_of)
    return Copies(
        group_of=groups,
        identical_of=np.arange(len(groups)),
        series_of=groups,
        pairs=np.empty((0, 2), np.int64),
        kinds=np.empty(0, dtype="U9"),
        scores=np.empty(0, np.float32),
        is_mirrored=np.empty(0, bool),
    )


PLANTED_ITEMS = [
    planted_copies.Item(data=b"", picture=picture, change=change)
    for picture, change in [
        ("a", "original"), ("a", "original"), ("a", "crop"), ("a", "mixed"), ("b", "original"), ("b", "noise"),
    ]
]  # fmt: skip


def test_pairs_are_counted_by_change_and_the_set_s_own_copies_apart():
    # Of picture `a` the mixed copy is missed. It is taken for a copy of `b`, whose noisy copy is missed.
    counts = planted_copies.count(PLANTED_ITEMS, grouped([0, 0, 0, 3, 3, 5]))
    told = {name: (each.num_true, each.num_right, each.num_wrong) for name, each in counts.items() if each.num_true}
    assert told == {
        "crop": (2, 2, 0),
        "noise": (1, 0, 0),
        "mixed": (2, 0, 1),
        "copies with one another": (1, 0, 0),
        "at least one planted copy": (6, 2, 1),
        "in the data set itself": (1, 1, 0),
        "all": (7, 3, 1),
    }
    assert (counts["all"].recall, counts["all"].precision) == (3 / 7, 3 / 4)
    assert counts["jpeg"].recall == counts["jpeg"].precision == 0
    assert counts["all"].row("all") == "| all | 7 | 3 | 0.429 | 1 | 0.750 |"


def test_wrong_pairs_are_listed_with_what_is_wrong():
    assert planted_copies.wrong_pairs(PLANTED_ITEMS, grouped([0, 0, 0, 0, 4, 4])) == []
    assert planted_copies.wrong_pairs(PLANTED_ITEMS, grouped([0, 0, 0, 0, 0, 5])) == [
        "- no copies: a (original) and b (original)",
        "- no copies: a (original) and b (original)",
        "- no copies: a (crop) and b (original)",
        "- no copies: a (mixed) and b (original)",
        "- missed: b (original) and b (noise)",
    ]


@pytest.mark.parametrize(
    ("num_true", "num_right", "num_wrong", "is_met"),
    [
        (300, 291, 9, [True, True]),
        (300, 290, 8, [False, True]),
        (300, 291, 10, [True, False]),
        (299, 299, 0, [False, False]),  # too few pairs to tell
        (0, 0, 0, [False, False]),
    ],
)
def test_copies_are_wanted_to_be_found_and_nothing_else(num_true, num_right, num_wrong, is_met):
    counted = planted_copies.Count(num_true=num_true, num_right=num_right, num_wrong=num_wrong)
    goals = planted_copies.judge("with features", counted)
    assert [goal.is_met for goal in goals] == is_met
    assert goals[0].wanted == "with features: recall at least 0.97 over at least 300 pairs with a planted copy"
    assert goals[1].found.endswith(f"({num_right} of {num_right + num_wrong} found)")


def test_the_page_on_planted_copies_has_a_table_with_and_one_without_features(tmp_path, monkeypatch):
    monkeypatch.setattr(planted_copies, "NUM_PATIENTS", 2)
    folder = tmp_path / "data" / "train" / "squamous.cell.carcinoma_left"
    folder.mkdir(parents=True)
    for number, item in enumerate(planted_copies.phantom_slices(np.random.default_rng(1))):
        (folder / f"{number}.png").write_bytes(item.data)

    def features_of(items: list[planted_copies.Item], weights: str) -> np.ndarray:
        assert weights == "weights"
        return np.stack([np.random.default_rng(zlib.crc32(item.picture.encode())).normal(size=16) for item in items])

    given = []

    def find(features, thumbnails, digests):
        given.append((features if features is None else features.shape, thumbnails.shape[0], len(digests)))
        return grouped([0] * len(digests))

    monkeypatch.setattr(planted_copies, "pooled_features", features_of)
    monkeypatch.setattr(planted_copies.copies, "find_copies", find)
    settings = planted_copies.Settings(
        data=str(tmp_path / "data"), weights="weights", num_copies=2, out=str(tmp_path / "results")
    )
    planted_copies.main(settings)
    (page,) = (tmp_path / "results").glob("planted_copies_*.md")
    text = page.read_text()
    num_images = given[0][1]
    assert given == [((num_images, 16), num_images, num_images), (None, num_images, num_images)]
    assert text.count("| at least one planted copy | ") == 2
    assert text.index("## With features") < text.index("## Without features")
    assert "python benchmarks/planted_copies.py --data DIR --weights FILE --num-originals 90 --num-copies 2" in text
    assert "- no copies: train/squamous.cell.carcinoma_left/" in text
    assert str(tmp_path) not in text
    assert text.count(" | NO |") == 4  # all images are taken for copies, and they are few

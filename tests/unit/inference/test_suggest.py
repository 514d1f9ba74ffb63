"""Suggestions beside Ray: what is selected from scored images, the table, the notes and the contact sheet."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pytest
from PIL import Image

from tests.unit.data.test_manifest import make_table
from tlray.bundle.novelty import Novelty
from tlray.bundle.spec import BundleSpec
from tlray.data.listing import list_images
from tlray.errors import DataError
from tlray.inference import contact_sheet, pool, predictions, selection
from tlray.inference import suggest as suggesting
from tlray.inference.predictor import Scores
from tlray.inference.selection import BY_UNCERTAINTY, Scored
from tlray.trust.suggestions import Seen

SPEC = BundleSpec(
    classes=("=a", "b", "c"), image_size_px=8, preprocessing="unit", backbone="b", weights="w",
    thresholds={"max_ood_score": 0.5},
)  # fmt: skip
NO_SCORE = dataclasses.replace(SPEC, thresholds={})


def make_scored(
    probs: Sequence[Sequence[float] | None], ood_scores: Sequence[float], places: Sequence[Sequence[float]] | None
) -> Scored:
    """Scored images without labels, of which the fifth one belongs to a patient; None: the file is empty."""
    num_images = len(probs)
    images = make_table(*((None, None, "-p" if number == 4 else f"{number:05}") for number in range(num_images)))
    codes = np.array(["" if each else "empty" for each in probs])
    batch = {
        "probabilities": np.array([each or [math.nan] * 3 for each in probs], np.float32),
        "ood_score": np.array(ood_scores, np.float32),
        "sha256": np.array(images["image_id"].to_pylist()),
        "error_code": codes,
        "error": codes,
    }
    table = predictions.prediction_table(images, batch, SPEC, "5" * 64)
    return Scored(predictions=table, places_BC=None if places is None else np.array(places, np.float16))


PROBS = [[0.5, 0.4, 0.1], [0.5, 0.4, 0.1], None, [0.34, 0.33, 0.33], [0.1, 0.8, 0.1], [0.02, 0.96, 0.02]]
"""Uncertainties: 0.859, 0.859, not known, 1.000, 0.582, 0.178."""

SIX = make_scored(PROBS, [0.1, 0.1, math.nan, 0.9, 0.1, 0.1], [[1, 0], [1, 0], [math.nan] * 2, [1, 1], [0, 1], [-1, 0]])
"""The second image is a copy of the first one, the third one is empty, the fourth one is foreign."""


def test_every_image_is_selected_or_counted():
    found = selection.select(SIX, SPEC, count=4)
    assert found.rows["image_id"].to_pylist() == ["00000", "00004", "00005"]
    assert found.probs_BK.tolist() == [pytest.approx(PROBS[place]) for place in (0, 4, 5)]
    summary = selection.summarize(found, SPEC)
    assert summary.pop("uncertainty_range") == pytest.approx([0.1781, 0.8587], abs=1e-4)
    assert summary == {
        "num_scored": 5, "num_by_error": {"empty": 1}, "num_foreign": 1, "num_known": None, "num_suggested": 3,
        "num_unsure": 2, "is_diverse": True,
        "max_ood_score": 0.5, "copy_distance": 0.02,
    }  # fmt: skip
    sure = (
        "The model is sure of 1 of these 3 images (confidence of 0.95 or more). Their labels would help little: leave "
        "them out, or give more images to choose from."
    )
    assert selection.notes_on(found, count=3, max_shown=200) == (sure,)
    assert selection.notes_on(selection.select(SIX, SPEC, count=2), count=2, max_shown=200) == ()
    assert selection.notes_on(found, count=4, max_shown=2) == (
        "Only 3 images are suggested, not 4: of the others 1 is a copy of these.",
        sure,
        "The contact sheet shows the first 2 images.",
    )


@pytest.mark.parametrize("places", [None, [[math.nan] * 2] * 6])
def test_where_places_are_not_known_uncertainty_alone_counts_and_a_note_says_so(places):
    found = selection.select(make_scored(PROBS, [math.nan] * 6, places), NO_SCORE, count=9)
    assert found.rows["image_id"].to_pylist() == ["00003", "00000", "00001", "00004", "00005"]
    assert (found.num_foreign, found.is_diverse) == (0, False)
    assert selection.summarize(found, NO_SCORE)["max_ood_score"] is None
    assert selection.notes_on(found, count=9, max_shown=200)[:2] == (
        BY_UNCERTAINTY,
        "Only 5 images are suggested, not 9: there are no more to choose from.",
    )


def searching(seen: Callable[[Sequence[int]], Seen]) -> tuple[Any, list[list[int]]]:
    """Returns a search with these results, and a list to which it adds the indices that it is asked for."""
    asked: list[list[int]] = []

    def find(indices: Sequence[int]) -> Seen:
        asked.append(list(indices))
        return seen(indices)

    return lambda *_: find, asked


def test_copies_that_only_the_pictures_tell_are_left_out_and_counted():
    """Of the scored images (0, 1, 3, 4, 5 of all) the first and the last are foreign to no one."""
    scored = make_scored(PROBS, [math.nan] * 6, None)
    # In the order of their uncertainty: 2 (the fourth image), 0, 1, 3, 4. The first of them is one of training.
    search, asked = searching(
        lambda indices: Seen(
            picture_of={index: min(index, 3) for index in indices}, known=frozenset({2}.intersection(indices))
        )
    )
    found = selection.select(scored, NO_SCORE, count=3, search=search)
    assert found.rows["image_id"].to_pylist() == ["00000", "00001", "00004"]
    assert found.num_known == 1
    assert selection.summarize(found, NO_SCORE)["num_known"] == 1
    assert asked == [[0, 1, 2, 3, 4]]
    found = selection.select(scored, NO_SCORE, count=9, search=search)
    assert found.rows["image_id"].to_pylist() == ["00000", "00001", "00004"]
    assert selection.notes_on(found, count=9, max_shown=200)[1] == (
        "Only 3 images are suggested, not 9: of the others 1 is a copy of these and 1 is a copy of training images."
    )


def test_where_most_are_copies_ever_more_are_looked_at_in_a_turn():
    scored = make_scored([[0.5, 0.4, 0.1]] * 64, [math.nan] * 64, None)
    search, asked = searching(lambda indices: Seen(known=frozenset(index for index in indices if index != 63)))
    found = selection.select(scored, NO_SCORE, count=4, search=search)
    assert found.rows["image_id"].to_pylist() == ["00063"]
    assert found.num_known == 63
    assert [len(each) for each in asked] == [12, 24, 48, 64]
    search, _ = searching(lambda indices: Seen(known=frozenset(indices)))
    with pytest.raises(DataError, match="All 64 images that could be scored and are like the training images of the"):
        selection.select(scored, NO_SCORE, count=4, search=search)


def test_a_search_gets_the_scored_images_and_their_places():
    given: list[Any] = []

    def search(uris: pa.ChunkedArray, places_BC: np.ndarray | None) -> selection.Find:
        given.extend((uris.to_pylist(), places_BC))
        return lambda _: Seen()

    selection.select(SIX, SPEC, count=2, search=search)
    assert given[0] == ["/00000", "/00001", "/00003", "/00004", "/00005"]
    assert given[1].tolist() == [[1, 0], [1, 0], [1, 1], [0, 1], [-1, 0]]
    selection.select(make_scored(PROBS, [math.nan] * 6, [[math.nan] * 2] * 6), NO_SCORE, count=2, search=search)
    assert given[3] is None  # the model gives no features for the novelty score


def test_where_nothing_can_be_selected_this_is_an_error():
    with pytest.raises(DataError, match=r"None of the 1 images without a label could be scored, for example '/00000'"):
        selection.select(make_scored([None], [math.nan], None), SPEC, count=1)
    with pytest.raises(DataError, match=r"All 2 images .* \(their ood_score is above 0.5\), so none is suggested"):
        selection.select(make_scored(PROBS[:2], [0.6, 0.7], [[1, 0], [0, 1]]), SPEC, count=1)


def test_the_table_has_no_formulas():
    table = selection.csv_table(selection.select(SIX, SPEC, count=2), SPEC.classes)
    assert table.column_names == [
        *("rank", "image_id", "uri", "label", "predicted_label", "confidence", "uncertainty", "second_label"),
        "group_id",
    ]
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        (1, "00000", "/00000", None, "'=a", 0.5, pytest.approx(0.8587, abs=1e-4), "b", None),
        (2, "00004", "/00004", None, "b", pytest.approx(0.8), pytest.approx(0.5817, abs=1e-4), "'=a", "'-p"),
    ]


def test_the_table_is_a_manifest_once_its_labels_are_filled_in(tmp_path):
    path = tmp_path / "suggestions.csv"
    pv.write_csv(selection.csv_table(selection.select(SIX, SPEC, count=3), SPEC.classes), path)
    assert list_images(str(path)).table["label"].to_pylist() == [None] * 3
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["label"], rows[2]["label"] = "b", "c"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = list_images(str(path)).table.select(["image_id", "uri", "label", "split", "group_id"])
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("00000", "/00000", "b", None, "00000"),
        ("00004", "/00004", None, None, "-p"),
        ("00005", "/00005", "c", None, "00005"),
    ]


def test_suggestions_that_are_appended_to_the_old_table_have_the_same_patients(tmp_path):
    """As docs/suggest.md tells: a patient `-p` of the old table must not be another one than that of the new images."""
    (tmp_path / "old.csv").write_text("uri,label,group_id,split\n/old.png,=a,-p,test\n")
    pv.write_csv(selection.csv_table(selection.select(SIX, SPEC, count=3), SPEC.classes), tmp_path / "suggestions.csv")
    with (tmp_path / "suggestions.csv").open(newline="") as file:
        new = [row | {"label": row["second_label"], "split": "train"} for row in csv.DictReader(file)]
    assert [row["group_id"] for row in new] == ["", "'-p", ""]  # no formula for the spreadsheet that opens it
    with (tmp_path / "old.csv").open("a", newline="") as file:
        columns: list[str] = ["uri", "label", "group_id", "split"]
        csv.DictWriter(file, columns, extrasaction="ignore").writerows(new)
    found = list_images(str(tmp_path / "old.csv")).table
    of_uri = {row["uri"]: (row["label"], row["group_id"], row["split"]) for row in found.to_pylist()}
    assert (of_uri["/old.png"], of_uri["/00004"]) == (("=a", "-p", "test"), ("=a", "-p", "train"))


def test_images_that_have_a_label_are_left_out():
    table = make_table(("a", None, "1"), (None, None, "2"))
    assert suggesting.without_labels(table, "d")["image_id"].to_pylist() == ["00001"]
    with pytest.raises(DataError, match=r"All 1 images of 'd' have labels \(the names of folders count as labels\)"):
        suggesting.without_labels(table.slice(0, 1), "d")


# Scored batches

NOVELTY = Novelty(mean=np.zeros(4, np.float32), basis=np.eye(2, 4, dtype=np.float32), threshold=0.5)
PROBS_K, PLACE_C = np.array([0.5, 0.25, 0.25], np.float32), np.array([1, 2], np.float32)


def make_predictor(novelty: Novelty | None) -> Any:
    """A stand-in for a predictor that says the same about every image."""

    def score(images_BHWC: np.ndarray) -> Scores:
        num_images = len(images_BHWC)
        probs_BK, ood_scores = np.tile(PROBS_K, (num_images, 1)), np.zeros(num_images, np.float32)
        if novelty is None or not num_images:
            return Scores(probs_BK=probs_BK, ood_scores=np.full(num_images, math.nan, np.float32))
        return Scores(probs_BK=probs_BK, ood_scores=ood_scores, places_BC=np.tile(PLACE_C, (num_images, 1)))

    return SimpleNamespace(bundle=SimpleNamespace(spec=SPEC), novelty=novelty, score=score)


def make_batch(*codes: str) -> dict[str, Any]:
    num_images = len(codes)
    return {
        "row": np.arange(num_images), "image": np.zeros((num_images, 8, 8, 3), np.uint8),
        "epoch": np.zeros(num_images), "weight": np.ones(num_images), "sha256": np.full(num_images, "f00"),
        "error_code": np.array(codes), "error": np.array(codes),
    }  # fmt: skip


def test_a_batch_tells_places_where_the_bundle_knows_them():
    found = pool.score_batch(make_predictor(NOVELTY), make_batch("", "empty", ""), with_places=True)
    assert set(found) == {"row", "sha256", "error_code", "error", "probabilities", "ood_score", "places"}
    assert found["places"].dtype == np.float16
    np.testing.assert_array_equal(found["places"], [[1, 2], [math.nan, math.nan], [1, 2]])
    np.testing.assert_array_equal(found["ood_score"], [0, math.nan, 0])
    np.testing.assert_array_equal(found["probabilities"], [[0.5, 0.25, 0.25], [math.nan] * 3, [0.5, 0.25, 0.25]])
    # All batches have the same columns, also those without a readable image.
    found = pool.score_batch(make_predictor(NOVELTY), make_batch("empty", "empty"), with_places=True)
    assert found["places"].shape == (2, 2)
    assert np.isnan(found["places"]).all()
    assert "places" not in pool.score_batch(make_predictor(None), make_batch("", "empty"), with_places=True)
    assert "places" not in pool.score_batch(make_predictor(NOVELTY), make_batch("", "empty"), with_places=False)


# The contact sheet


def make_images(root: Path, num_images: int) -> pa.Table:
    """Grey images, each lighter than the one before it."""
    for number in range(num_images):
        Image.fromarray(np.full((10, 20), 10 * number, np.uint8)).save(root / f"{number}.png")
    uris = [str(root / f"{number}.png") for number in range(num_images)]
    return pa.table({"uri": uris, "predicted_label": ["b"] * num_images})


def test_the_sheet_has_rows_of_ten_thumbnails(tmp_path):
    rows = make_images(tmp_path, 12)
    (tmp_path / "11.png").unlink()
    sheet = Image.open(io.BytesIO(suggesting.draw_sheet(rows, None)))
    assert (sheet.format, sheet.mode, sheet.size) == ("PNG", "RGB", (8 + 10 * 136, 8 + 2 * 154))
    pixels_HWC = np.asarray(sheet)
    middles = [(8 + 154 * (number // 10) + 64, 8 + 136 * (number % 10) + 64) for number in range(13)]
    shown = [pixels_HWC[middle].tolist() for middle in middles]
    assert shown[:11] == [[10 * number] * 3 for number in range(11)]
    assert shown[11:] == [[211] * 3, [255] * 3]  # one that cannot be read any more, and the end
    captions = [pixels_HWC[y + 64 : y + 82, x - 64 : x + 64] for y, x in middles]
    assert [bool(caption.min() < 200) for caption in captions] == [True] * 12 + [False]


def test_the_sheet_shows_the_first_images_only(tmp_path, monkeypatch):
    monkeypatch.setattr(suggesting, "MAX_SHOWN", 3)
    sheet = Image.open(io.BytesIO(suggesting.draw_sheet(make_images(tmp_path, 5), None)))
    assert sheet.size == (8 + 3 * 136, 8 + 154)


@pytest.mark.parametrize("caption", ["7 " + "adenocarcinoma." * 5, "7 腺癌\nnormal é", "7 " + "癌" * 90])
def test_a_caption_stays_below_its_thumbnail(caption):
    sheet = contact_sheet.draw([np.zeros((128, 128, 3), np.uint8)], [caption])
    assert sheet.size == (8 + 136, 8 + 154)
    pixels_HWC = np.asarray(sheet)
    assert (pixels_HWC[:, -4:] == 255).all()
    assert (pixels_HWC[-4:] == 255).all()
    assert (pixels_HWC[8 + 128 :] < 200).any()

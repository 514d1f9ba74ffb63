"""`tlray compare` on copies of pictures and on images that a bundle knows; scores and pixels are given, without Ray."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.data.test_manifest import make_table
from tests.unit.evaluation.test_compare import make_spec, predict
from tests.unit.evaluation.test_relations import by_id, kept_of, seen_of
from tlray.bundle import store
from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.spec import BundleSpec
from tlray.cluster import capacity, connection
from tlray.cluster.capacity import Capacity, Node
from tlray.config.prediction import CompareConfig
from tlray.data import fingerprints, manifest, phantom_drawing, phantoms, thumbnail
from tlray.data.looks import THUMBNAIL_PX
from tlray.engines import choice
from tlray.engines.kinds import EngineKind
from tlray.evaluation import relations
from tlray.evaluation.compare import CompareResult, compare
from tlray.evaluation.paired import IF_NEW, NONE_IS_NEW, SIDES
from tlray.evaluation.paired_doubts import OTHER_FILES, TRAINED_ON_SHORTCUT
from tlray.evaluation.scope import Scope
from tlray.inference import score
from tlray.trust import pictures, pixel_match

SPEC = make_spec("a", "b")

Run = Callable[..., CompareResult]


@pytest.fixture(scope="module")
def slices() -> list[np.ndarray]:
    """A slice of each of 13 patients."""
    rng = np.random.default_rng(0)
    anatomies = [phantoms.sample_anatomy(rng) for _ in range(13)]
    return [phantom_drawing.render_slice(each, None, rng=rng, size_px=THUMBNAIL_PX) for each in anatomies]


def copies_of(pixels: np.ndarray) -> list[np.ndarray]:
    """A picture and five copies of it: mirrored, saved as JPEG, both, darker, and scribbled on."""
    saved, mirrored = (thumbnail.decode(thumbnail.to_jpeg(each)) for each in (pixels, pixels[:, ::-1]))
    assert saved is not None
    assert mirrored is not None
    scribbled = pixels.copy()
    scribbled[8:12, 8:50] = 255
    return [pixels, pixels[:, ::-1], saved, mirrored, (pixels * 0.7).astype(np.uint8), scribbled]


@pytest.fixture
def run(monkeypatch, tmp_path) -> Run:
    """Returns a function that compares two bundles.

    It takes the images, their pixels by id, the label that each bundle gives to each image by its side and the image's
    id, the images that they keep and their descriptions by side, and the split.
    """

    def run(
        listed: pa.Table,
        shown: Mapping[str, np.ndarray],
        told: Mapping[str, Mapping[str, str]],
        *,
        kept: Mapping[str, KeptImages] | None = None,
        specs: Mapping[str, BundleSpec] | None = None,
        split: Literal["test", "all"] = "test",
        quiet: bool = True,
    ) -> CompareResult:
        def load(location: str) -> SimpleNamespace:
            side = Path(location).name
            spec = (specs or {}).get(side, SPEC)
            return SimpleNamespace(spec=spec, sha256=side, lookalikes=lambda: (kept or {}).get(side))

        def score_images(location: str, spec: BundleSpec, sha256: str, table: pa.Table, **_: Any) -> Iterator[pa.Table]:
            assert (spec, sha256) == ((specs or {}).get(sha256, SPEC), Path(location).name)
            labels = [told[Path(location).name][image_id] for image_id in table["image_id"].to_pylist()]
            yield predict(table, SPEC, labels)

        def look(images: Scope, **_: Any) -> pa.Table:
            table = images.table.filter(pa.array(images.is_read))
            return seen_of(table, [shown[image_id] for image_id in table["image_id"].to_pylist()])

        monkeypatch.setattr(store, "load", load)
        monkeypatch.setattr(score, "predict", score_images)
        monkeypatch.setattr(relations, "look", look)
        source = str(tmp_path / "images.parquet")
        manifest.write_manifest(listed, source)
        bundle, reference, out = (str(tmp_path / name) for name in (*SIDES, "out"))
        return compare(
            CompareConfig(
                bundle=bundle, reference=reference, data=source, out=out, split=split, overwrite=True, quiet=quiet
            )
        )

    available = Capacity(
        num_cpus=4.0, num_gpus=0.0, nodes=(Node(4.0, 0.0),), object_store_bytes=10**9,
        smallest_object_store_bytes=10**9, memory_bytes=1e9, has_many_nodes=False,
    )  # fmt: skip
    monkeypatch.setattr(connection, "connect", lambda: None)
    monkeypatch.setattr(capacity, "measure", lambda: available)
    monkeypatch.setattr(choice, "for_bundle", lambda *_, **__: EngineKind("openvino", "float32"))
    monkeypatch.setattr(pictures, "compare", lambda thumbnails, pairs, **_: pixel_match.compare(thumbnails, pairs))
    return run


def labels_of(listed: pa.Table, wrong: Sequence[int] = ()) -> dict[str, str]:
    """Returns the labels of the images by their ids, but the other class for those in these rows."""
    labels = ["b" if label == "a" else "a" for label in listed["label"].to_pylist()]
    right = listed["label"].to_pylist()
    given = [labels[row] if row in wrong else right[row] for row in range(listed.num_rows)]
    return dict(zip(listed["image_id"].to_pylist(), given, strict=True))


@pytest.mark.parametrize("quiet", [False, True])
def test_labels_with_other_names_than_their_classes_are_told_and_kept(run, slices, capsys, quiet):
    listed = make_table(*((label, "test", f"p{number}") for number, label in enumerate(["a_left", "b"])))
    predicted = dict(zip(listed["image_id"].to_pylist(), "ab", strict=True))
    told = {"bundle": predicted, "reference": predicted}
    result = run(listed, by_id(listed, slices[:2]), told, quiet=quiet)
    assert ("Classes: a_left -> a, b -> b\n" in capsys.readouterr().out) != quiet
    written = json.loads(Path(result.out, "comparison.json").read_text())
    assert written["renamed_labels"] == result.comparison["renamed_labels"] == {"a_left": "a"}
    assert written["bundle_metrics"]["accuracy"] == 1


def test_two_bundles_that_differ_only_on_copies_of_one_picture_are_not_told_apart(run, slices):
    """Each image has a file and a patient of its own. The reference is wrong on the last six."""
    listed = make_table(*((label, "test", f"p{number}") for number, label in enumerate("abababaaaaaaa")))
    told = {"bundle": labels_of(listed), "reference": labels_of(listed, range(7, 13))}
    found = run(listed, by_id(listed, [*slices[:7], *copies_of(slices[7])]), told).comparison
    assert (found["num_images"], found["num_groups"]) == (13, 8)
    assert found["accuracy_difference"] == pytest.approx(6 / 13)
    assert found["p_value"] == pytest.approx(2 / 2**6)  # as if they were six pictures
    low, high = found["accuracy_difference_ci95"]
    assert low < 0 < high
    assert found["conclusion"].startswith(f"{IF_NEW} the images do not show which is better: ")
    # With six pictures in place of the copies the bundle is better.
    found = run(listed, by_id(listed, slices), told).comparison
    assert found["num_groups"] == 13
    assert found["conclusion"].startswith(f"{IF_NEW} the bundle is better: ")


def test_images_that_a_bundle_keeps_a_copy_of_are_left_out(run, slices):
    """The reference is wrong on the first three images. The bundle knows two of these, and the reference the last."""
    listed = make_table(*((label, "test", f"p{number}") for number, label in enumerate("ababa")))
    shown = by_id(listed, slices[:5])
    told = {"bundle": labels_of(listed), "reference": labels_of(listed, range(3))}
    keeps = kept_of([slices[0], slices[1][:, ::-1]], num_pictures=2)
    result = run(listed, shown, told, kept={"bundle": keeps, "reference": kept_of(slices[4:5], num_pictures=1)})
    found, rows = result.comparison, dict(result.rows())
    assert (found["num_images"], found["num_only_bundle_right"], found["num_left_out"]) == (2, 1, 3)
    assert (found["bundle_num_known"], found["reference_num_known"], found["is_leak_free"]) == (2, 1, True)
    assert result.warnings == (
        "Left out, because a bundle knows them from its training: 3 of 5 images (bundle: 2, reference: 1).",
    )
    assert rows["images"] == "2 compared, 3 known from training, 0 failed, 0 unlabelled"
    assert (rows["known to the bundle"], rows["known to the reference"]) == ("2 of 5 images", "1 of 5 images")
    assert [path.name for path in sorted(Path(result.out).iterdir())] == [
        ".tlray", "comparison.csv", "comparison.json",
    ]  # fmt: skip


def test_of_images_that_the_reference_keeps_all_of_nothing_is_concluded(run, slices):
    listed = make_table(*((label, "test", f"p{number}") for number, label in enumerate("aba")))
    told = {"bundle": labels_of(listed), "reference": labels_of(listed, [0])}
    keeps = kept_of(slices[:3], num_pictures=3)
    result = run(listed, by_id(listed, slices[:3]), told, kept={"reference": keeps})
    found = result.comparison
    assert (found["num_images"], found["num_left_out"], found["is_leak_free"]) == (3, 0, False)
    assert found["conclusion"] == NONE_IS_NEW
    assert result.warnings[0].endswith("of 3 images: bundle: not known, reference: 3.")
    assert dict(result.rows())["known to the bundle"] == "cannot be told"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("split", "left_out"), [("test", 2), ("all", 4)])
def test_of_the_data_that_a_bundle_was_trained_on_copies_and_patients_are_known(run, slices, side, split, left_out):
    """Of four test images one is a copy of a training image, and one of the patient of another."""
    rows = [("a", "train", "p0"), ("b", "train", "p1"), ("a", "test", "p2"), ("b", "test", "p1")]
    listed = make_table(*rows, ("a", "test", "p3"), ("b", "test", "p4"))
    own = dataclasses.replace(
        SPEC, id_fingerprint=manifest.id_fingerprint(listed), split_fingerprint=manifest.split_fingerprint(listed)
    )
    shown = by_id(listed, [*slices[:2], slices[0][:, ::-1], *slices[2:5]])
    told = dict.fromkeys(SIDES, labels_of(listed))
    found = run(listed, shown, told, specs={side: own}, split=split).comparison
    assert (found["num_images"], found["num_left_out"], found[f"{side}_num_known"]) == (2, left_out, left_out)
    assert found[f"{side}_leak_search"] == {
        "among": "images", "num_compared": 2, "num_pictures": None, "is_own": True, "knows_splits": True,
        "has_own_files": None,
    }  # fmt: skip
    (other,) = set(SIDES) - {side}
    assert (found[f"{other}_num_known"], found[f"{other}_leak_search"]["among"]) == (None, "nothing")


@pytest.mark.parametrize(("split", "left_out"), [("test", 0), ("all", 3)])
def test_validation_images_are_left_out_of_a_comparison_on_all_images(run, slices, split, left_out):
    """Both bundles were trained on these images, the first one on other files with their ids."""
    rows = [("a", "train", "p0"), ("b", "train", "p1"), ("a", "valid", "p2"), ("b", "test", "p3"), ("a", "test", "p4")]
    listed, shown = make_table(*rows), by_id(make_table(*rows), slices[:5])
    read = seen_of(listed, slices[:5])
    specs = {"bundle": own_spec(manifest.with_column(read, "sha256", ["other"] * 5)), "reference": own_spec(read)}
    result = run(listed, shown, dict.fromkeys(SIDES, labels_of(listed)), specs=specs, split=split)
    found = result.comparison
    assert (found["num_images"], found["num_left_out"], found["is_leak_free"]) == (2, left_out, True)
    assert (found["bundle_num_known"], found["reference_num_known"]) == (left_out, left_out)
    assert found["bundle_leak_search"]["has_own_files"] is False
    assert OTHER_FILES.format("the bundle was") in result.warnings
    assert "The reference was trained on this data, and the training found: Sizes." in result.warnings
    assert TRAINED_ON_SHORTCUT.format("the bundle", "Sizes.") in result.warnings


def own_spec(read: pa.Table) -> BundleSpec:
    """A bundle whose model was trained on images that have been read, and found a shortcut in them."""
    of_files = fingerprints.of_files(read)
    ids, splits = manifest.id_fingerprint(read), manifest.split_fingerprint(read)
    return dataclasses.replace(
        SPEC, id_fingerprint=ids, split_fingerprint=splits, file_fingerprints=of_files, shortcuts=("Sizes.",)
    )

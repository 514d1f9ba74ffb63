"""The training images that a bundle keeps: how they are stored, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlray.bundle import lookalikes
from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.novelty import Novelty, directions
from tlray.bundle.spec import LOOKALIKES, NAMES, NOVELTY, BundleSpec
from tlray.bundle.store import Bundle
from tlray.errors import BundleError, DataError


@pytest.fixture
def kept() -> KeptImages:
    """Three images; one of them has an empty thumbnail."""
    places_BC = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    return KeptImages(directions=directions(places_BC), labels=np.array([1, 0, 1]), jpegs=[b"first", b"", b"third!"])


def opened(directory: Path, *, has_file: bool = True) -> Bundle:
    spec = BundleSpec(
        classes=("a", "b"), image_size_px=8, preprocessing="unit", backbone="b", weights="w",
        files={LOOKALIKES: "0" * 64} if has_file else {},
    )  # fmt: skip
    return Bundle(spec=spec, directory=directory, sha256="")


def save(directory: Path, arrays: dict[str, Any]) -> None:
    np.savez(directory / LOOKALIKES, **arrays)


def test_stored_and_read(kept, tmp_path):
    save(tmp_path, kept.arrays())
    with np.load(tmp_path / LOOKALIKES, allow_pickle=False) as arrays:
        assert {name: arrays[name].dtype.name for name in arrays} == {
            "directions": "float16",
            "labels": "int32",
            "jpegs": "uint8",
            "ends": "int64",
        }
    found = opened(tmp_path).lookalikes()
    assert found is not None
    assert list(found.jpegs) == [b"first", b"", b"third!"]
    assert found.labels.tolist() == [1, 0, 1]
    np.testing.assert_allclose(found.directions, kept.directions, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("num_components", "is_fit"), [(4, True), (3, False)])
def test_another_space_than_that_of_the_novelty_score_is_refused(kept, tmp_path, num_components, is_fit):
    save(tmp_path, kept.arrays())
    basis = np.eye(num_components, 6, dtype=np.float32)
    stored: dict[str, Any] = dict(Novelty(mean=np.zeros(6, np.float32), basis=basis, threshold=0.5).arrays())
    np.savez(tmp_path / NOVELTY, **stored)
    bundle = opened(tmp_path)
    spec = dataclasses.replace(
        bundle.spec, files=dict.fromkeys((LOOKALIKES, NOVELTY), "0" * 64), thresholds={"max_ood_score": 0.5}
    )
    if is_fit:
        assert dataclasses.replace(bundle, spec=spec).lookalikes() is not None
        return
    with pytest.raises(BundleError, match=rf"{LOOKALIKES} .* of 4 components, .* has 3\. Restore the bundle\."):
        dataclasses.replace(bundle, spec=spec).lookalikes()


@pytest.mark.parametrize("number", [None, 3, 2000])
def test_the_number_of_all_training_pictures_is_kept_where_it_is_known(kept, tmp_path, number):
    save(tmp_path, dataclasses.replace(kept, num_pictures=number).arrays())
    found = opened(tmp_path).lookalikes()
    assert found is not None
    assert found.num_pictures == number


@pytest.mark.parametrize("number", [np.int64(2), np.float64(3), np.array([3, 4])])
def test_a_number_of_pictures_that_does_not_fit(kept, number):
    with pytest.raises(DataError, match="number of training pictures"):
        lookalikes.from_arrays(kept.arrays() | {"num_pictures": number}, num_classes=2)


def test_the_file_is_one_of_a_bundle_and_may_be_missing(tmp_path):
    assert LOOKALIKES in NAMES
    assert opened(tmp_path, has_file=False).lookalikes() is None


@pytest.mark.parametrize("name", ["directions", "labels", "jpegs", "ends"])
def test_an_array_that_is_missing(kept, name):
    arrays = kept.arrays()
    del arrays[name]
    with pytest.raises(DataError, match=rf"lack \['{name}'\]"):
        lookalikes.from_arrays(arrays, num_classes=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("directions", np.zeros((2, 4), np.float16)),
        ("directions", np.zeros(3, np.float16)),
        ("directions", np.array([["a"]] * 3)),
        ("directions", np.full((3, 4), np.nan, np.float16)),
        ("labels", np.array([0, 1])),
        ("labels", np.array([0, 1, 2])),
        ("labels", np.array([0, -1, 1])),
        ("labels", np.array([0.0, 1.0, 1.0])),
        ("labels", np.array(1)),
        ("jpegs", np.zeros(12, np.uint8)),
        ("jpegs", np.zeros(11, np.uint16)),
        ("ends", np.array([5, 4, 11])),
        ("ends", np.array([-1, 5, 11])),
        ("ends", np.array([5, 5, 10])),
    ],
)
def test_arrays_that_do_not_fit(kept, name, value):
    with pytest.raises(DataError, match="do not fit together"):
        lookalikes.from_arrays(kept.arrays() | {name: value}, num_classes=2)


@pytest.mark.parametrize("how", ["other content", "one array", "pickle", "other classes"])
def test_a_damaged_file_is_refused(kept, tmp_path, how):
    match how:
        case "other content":
            (tmp_path / LOOKALIKES).write_bytes(b"no array")
        case "one array":
            with (tmp_path / LOOKALIKES).open("wb") as file:
                np.save(file, kept.directions)
        case "pickle":
            save(tmp_path, {**kept.arrays(), "jpegs": np.array([b"first", None, b"third!"], dtype=object)})
        case "other classes":
            save(tmp_path, {**kept.arrays(), "labels": np.array([0, 1, 2])})
    with pytest.raises(BundleError, match=LOOKALIKES):
        opened(tmp_path).lookalikes()

"""The comparison of an exported model with its features; models themselves are built in tests/ray and tests/e2e."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.data.sample import read_some
from tlray.data.stream import Pixels
from tlray.engines.kinds import EngineKind, Precision
from tlray.training import export, logits
from tlray.training.judgement_fit import Judging, Wanted

PIXELS = Pixels(size_px=8)


@pytest.fixture
def uris(tmp_path: Path) -> list[str]:
    """Three grey images; the pixels tell which is which."""
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.new("L", (8, 8), 50 * number).save(path)
    return list(map(str, paths))


def predict(images: np.ndarray) -> SimpleNamespace:
    """A model that is sure of dark images."""
    sure = 1 - images[:, 0, 0, 0] / 200
    return SimpleNamespace(numpy=lambda: np.stack([sure, 1 - sure], axis=1))


PROBS = np.array([[1, 0], [0.75, 0.25], [0.5, 0.5]])


def check(probs: np.ndarray, uris: list[str]) -> export.Exported:
    images = read_some(pa.table({"uri": uris}), PIXELS, max_images=256)
    found = predict(np.stack(list(images.values()))).numpy() if images else None
    judging = Judging(shift=np.zeros(2, np.float32), temperature=1.0, refer_below=0.5)
    return export._checked(
        export.Exported(judging=judging), {"valid": probs, "test": probs}, found, probs[list(images)]
    )


@pytest.mark.parametrize("gone", [[], [0], [0, 1]])
def test_images_that_have_gone_are_passed_over(uris, gone):
    for place in gone:
        Path(uris[place]).unlink()
    found = check(PROBS + 0.01, uris)
    assert found.warnings == ()
    assert found.probs["test"] == pytest.approx(PROBS + 0.01)


def test_the_images_compared_are_of_all_classes(tmp_path):
    paths = [tmp_path / f"{number:02d}.png" for number in range(40)]
    for path in paths:
        Image.new("L", (8, 8), 0).save(path)
    probs = np.tile([[1.0, 0.0]], (40, 1))
    probs[-1] = [0.0, 1.0]  # an error of the last class alone
    assert check(probs, list(map(str, paths))).warnings


def test_without_any_image_the_features_are_believed_with_a_warning(uris):
    for uri in uris:
        Path(uri).write_bytes(b"")
    found = check(PROBS, uris)
    assert list(found.probs) == ["valid", "test"]
    assert found.warnings == (export.NOT_COMPARED,)


@pytest.mark.parametrize(("wrong", "difference"), [(0.875, "0.125"), (float("nan"), "nan")])
def test_where_features_and_model_differ_the_model_is_to_be_measured(uris, wrong, difference):
    probs = PROBS.copy()
    probs[1, 0] = wrong
    found = check(probs, uris)
    assert found.probs == {}
    (warning,) = found.warnings
    assert (
        f"differ by up to {difference} from those of the stored features, so the metrics were measured with" in warning
    )


def test_a_model_without_stored_features_is_calibrated_on_images_that_are_new_to_it(uris):
    """Half of the validation images are known: of the others, as many as may be seen again are."""
    num_images = 2 * logits.MAX_IMAGES_AGAIN
    names, is_new = [f"{number:04d}" for number in range(num_images)], np.arange(num_images) % 4 < 2
    columns = {"image_id": names, "uri": [uris[0]] * num_images, export.GROUP: names, export.IS_NEW: is_new}
    table = pa.table(columns | {"class_index": pa.array([0, 1] * (num_images // 2), pa.int32())})
    found = export._outputs_again(lambda images: [np.zeros((len(images), 2), np.float32)], {"valid": table}, PIXELS)
    shares = np.array([0.5, 0.5])
    wanted = Wanted(assumed_shares=shares, shares=shares, refer_below=None, max_error=0.05)
    unseen = export._unseen(found["valid"], {"valid": table}, wanted)
    assert unseen is not None
    assert unseen.image_ids == [name for name, new in zip(names, is_new, strict=True) if new]
    assert len(unseen.labels) == len(unseen.groups) == len(unseen.logits_BK) == 500


def compared_of(is_fit: Mapping[Precision, bool]) -> Any:
    """The engines that were compared, by precision, and whether they are fit."""
    return {
        EngineKind("openvino", precision): SimpleNamespace(agreement=SimpleNamespace(is_fit=fit))
        for precision, fit in is_fit.items()
    }


def test_what_will_not_be_taken_is_told():
    small: dict[Precision, str] = {"float32": "o", "bfloat16": "o", "int8": "i"}
    everything = compared_of({"float32": True, "int8": False})
    assert export.engine_warnings(everything, small) == []
    assert export.engine_warnings(compared_of({"float32": True}), small) == [export.INT8_NOT_COMPARED]
    assert export.engine_warnings(compared_of({"float32": True}), {"float32": "o"}) == []
    # Where OpenVINO is wrong in float32, no precision of it is taken.
    assert export.engine_warnings(compared_of({"float32": False}), small) == [export.DIFFERS]
    assert export.engine_warnings({}, small) == []  # nothing could be compared, which is told elsewhere

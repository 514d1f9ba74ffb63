"""Which images `tlray engines --data` measures on, as which classes and in which groups. No engine runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.evaluation.test_compare import make_spec
from tlray.config.prediction import EnginesConfig
from tlray.data import phantom_drawing, phantoms
from tlray.errors import DataError
from tlray.evaluation import engine_table
from tlray.trust.paired_models import compare_accuracy

SPEC = make_spec("covid", "normal")


def write(root: Path, files: Mapping[str, np.ndarray]) -> None:
    for name, pixels in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)


def settings(data: Path, **more: Any) -> EnginesConfig:
    return EnginesConfig(bundle="b", data=str(data), split="all", **more)


@pytest.fixture(scope="module")
def slices() -> list[np.ndarray]:
    """A slice of each of four patients."""
    rng = np.random.default_rng(0)
    return [phantom_drawing.render_slice(phantoms.sample_anatomy(rng), None, rng=rng, size_px=96) for _ in range(4)]


@pytest.mark.parametrize("quiet", [False, True])
def test_labels_with_other_names_than_their_classes_are_told(tmp_path, slices, capsys, quiet):
    write(tmp_path, {"covid_left/1.png": slices[0], "normal/2.png": slices[1]})
    images_BHWC, labels, _ = engine_table._read(settings(tmp_path, quiet=quiet), SPEC)
    assert images_BHWC.shape == (2, 8, 8, 3)
    assert labels.tolist() == [0, 1]
    assert ("Classes: covid_left -> covid, normal -> normal\n" in capsys.readouterr().out) != quiet


def test_negatives_are_not_measured_as_positives(tmp_path, slices):
    write(tmp_path, {"covid_negative/1.png": slices[0], "normal/2.png": slices[1]})
    with pytest.raises(DataError, match=r"The labels 'covid_negative' match none, .* Give a class map"):
        engine_table._read(settings(tmp_path), SPEC)


def test_copies_and_patients_are_groups_of_the_interval(tmp_path, slices):
    """Image 1 is a mirrored copy of 0, and 3 of the patient of 2; 5 cannot be read."""
    shown = [slices[0], slices[0][:, ::-1], slices[1], slices[2], slices[3]]
    write(tmp_path, {f"{number}.png": pixels for number, pixels in enumerate(shown)})
    (tmp_path / "5.png").write_bytes(b"")
    rows = ["0.png,covid,a", "1.png,covid,b", "2.png,normal,c", "3.png,normal,c", "4.png,covid,d", "5.png,covid,e"]
    (tmp_path / "table.csv").write_text("\n".join(["uri,label,group_id", *rows]))
    images_BHWC, labels, groups = engine_table._read(settings(tmp_path / "table.csv", quiet=True), SPEC)
    assert len(images_BHWC) == 5
    assert labels.tolist() == [0, 0, 1, 1, 0]
    assert groups.tolist() == ["a", "a", "c", "c", "d"]
    # The model is wrong on the two copies alone: as one of three groups these say less than two of five images.
    predicted = np.array([1, 1, 1, 1, 0])
    found = compare_accuracy(predicted, labels, labels=labels, groups=groups)
    alone = compare_accuracy(predicted, labels, labels=labels, groups=np.arange(5))
    assert (found.value, found.num_groups, alone.num_groups) == (-0.4, 3, 5)
    assert found.high - found.low > alone.high - alone.low


def test_an_image_alone_is_measured_and_nothing_readable_is_refused(tmp_path, slices):
    write(tmp_path, {"covid/1.png": slices[0]})
    _, labels, groups = engine_table._read(settings(tmp_path, quiet=True), SPEC)
    assert (labels.tolist(), len(groups)) == ([0], 1)
    (tmp_path / "covid/1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"None of the images of .* can be read"):
        engine_table._read(settings(tmp_path, quiet=True), SPEC)

"""Which images calibrate a model that was trained elsewhere, and what they tell of it; nothing is built with Keras."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlray.config.export import ExportConfig
from tlray.data.stream import Pixels
from tlray.errors import DataError
from tlray.training import own_judging
from tlray.training.export import GROUP

CLASSES = ("normal", "ill")


def settings(data: Path, **more: Any) -> ExportConfig:
    return ExportConfig(model="m", classes="c", out="o", preprocessing="unit", data=str(data), **more)


def write(root: Path, *names: str, level: int | None = None) -> None:
    """Writes an image to each path below a folder, each with another grey level or all with a given one."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), level if level is not None else 10 + number).save(root / name)


def chosen_ids(data: Path, **more: Any) -> list[str]:
    return own_judging.choose_images(settings(data, **more), CLASSES)["image_id"].to_pylist()


OF_TRAIN = ("train/ill/a.png", "train/normal/b.png")
OF_TEST = ("test/ill/e.png", "test/normal/f.png")
OF_VALID = ("valid/ill/c.png", "valid/normal/d.png")
UNSPLIT = ("ill/g.png", "normal/h.png")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((*OF_TRAIN, *OF_TEST, *OF_VALID), OF_VALID),
        ((*OF_TRAIN, *OF_TEST), OF_TEST),
        (UNSPLIT, UNSPLIT),
    ],
    ids=["valid", "no valid", "no splits"],
)
def test_images_that_the_model_was_not_trained_on_are_chosen(tmp_path, names: Sequence[str], expected: Sequence[str]):
    write(tmp_path, *names)
    table = own_judging.choose_images(settings(tmp_path), CLASSES)
    assert sorted(Path(uri).relative_to(tmp_path).as_posix() for uri in table["uri"].to_pylist()) == sorted(expected)
    of_label = {"normal": 0, "ill": 1}
    assert table["class_index"].to_pylist() == [of_label[label] for label in table["label"].to_pylist()]


def test_a_copy_of_a_training_image_is_left_out_and_copies_are_one_group(tmp_path, caplog):
    write(tmp_path, *OF_TRAIN, *OF_VALID)
    copy = (tmp_path / OF_TRAIN[0]).read_bytes()
    (tmp_path / "valid/ill/copy of a.png").write_bytes(copy)
    (tmp_path / "valid/ill/copy of c.png").write_bytes((tmp_path / OF_VALID[0]).read_bytes())
    table = own_judging.choose_images(settings(tmp_path), CLASSES)
    names = [Path(uri).name for uri in table["uri"].to_pylist()]
    assert sorted(names) == ["c.png", "copy of c.png", "d.png"]
    group_of = dict(zip(names, table[GROUP].to_pylist(), strict=True))
    assert group_of["c.png"] == group_of["copy of c.png"] != group_of["d.png"]
    assert "1 of 4 images are left out" in caplog.text


def manifest(tmp_path: Path, *rows: str) -> Path:
    """Writes a table with the columns path, dx, split and group_id, and images for it."""
    write(tmp_path, *(row.split(",")[0] for row in rows))
    (tmp_path / "table.csv").write_text("\n".join(["path,dx,split,group_id", *rows]) + "\n")
    return tmp_path / "table.csv"


def test_other_images_of_a_training_patient_are_left_out(tmp_path):
    rows = ("a.png,ill,train,p1", "b.png,normal,train,p2", "c.png,ill,valid,p1", "d.png,normal,valid,p3")
    data = manifest(tmp_path, *rows, "e.png,,valid,p4")
    assert chosen_ids(data, columns="uri=path,label=dx") == ["d.png"]


def test_labels_are_mapped_to_the_classes(tmp_path):
    data = manifest(tmp_path, "a.png,K,,p1", "b.png,G,,p2")
    (tmp_path / "map.csv").write_text("name,class\nK,ill\nG,normal\n")
    table = own_judging.choose_images(
        settings(data, columns="uri=path,label=dx", class_map=str(tmp_path / "map.csv")), CLASSES
    )
    assert table["class_index"].to_pylist() == [1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a.png,ill,train,p1", "b.png,normal,train,p2"], "All of its labelled images are in the split train"),
        (["a.png,,valid,p1"], "None has a label"),
        (["a.png,ill,train,p1", "b.png,ill,valid,p1"], "has the patients of all other images"),
        (["a.png,lame,valid,p1"], "'lame' match none, or more than one, of the model's classes"),
    ],
)
def test_data_without_an_image_that_is_new_is_refused(tmp_path, rows: list[str], message: str):
    with pytest.raises(DataError, match=message):
        chosen_ids(manifest(tmp_path, *rows), columns="uri=path,label=dx")


def by_grey(images: np.ndarray) -> list[np.ndarray]:
    """A model that is the surer of ill the brighter an image is."""
    x = images[:, 0, 0, 0].astype(np.float32) / 16 - 1
    return [np.stack([-x, x], axis=1)]


def judge(data: Path, **more: Any) -> own_judging.Judged:
    config = settings(data, **more)
    table = own_judging.choose_images(config, CLASSES)
    return own_judging.judge_on(by_grey, table, Pixels(size_px=8), config, classes=CLASSES)


def test_images_of_one_class_calibrate_nothing(tmp_path):
    write(tmp_path, *(f"ill/{number}.png" for number in range(12)))
    judged = judge(tmp_path)
    assert judged.judging.shift.tolist() == [0, 0]
    assert (judged.judging.temperature, judged.prior) == (1, None)
    assert "there are not images of every class" in judged.judging.about["calibration"]["note"]
    temperature = dict(own_judging.table_rows(judged.judging))["temperature"]
    assert temperature == "1 (Not calibrated: there are not images of every class.)"


@pytest.mark.parametrize(("given", "expected"), [({}, 0.5), ({"refer_below": 0.9}, 0.9)])
def test_images_of_one_class_promise_nothing(tmp_path, given: dict[str, float], expected: float):
    """The model is right about all of them, and would be wrong about the others."""
    write(tmp_path, *(f"ill/{number}.png" for number in range(80)), level=60)
    found = judge(tmp_path, **given).judging
    assert (found.refer_below, found.set_thresholds) == (expected, None)
    assert found.about["referral"]["max_error"] is None
    assert found.warnings[0].startswith("There is no readable image of 'normal', so no threshold is chosen")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_images_without_a_split_are_of_train_where_others_have_one(tmp_path, split: str):
    rows = ("a.png,ill,,p1", "b.png,normal,,p2", f"c.png,ill,{split},p1", f"d.png,normal,{split},p4")
    assert chosen_ids(manifest(tmp_path, *rows), columns="uri=path,label=dx") == ["d.png"]


@pytest.mark.parametrize(("given", "expected"), [({}, 0.5), ({"refer_below": 0.9}, 0.9)])
def test_few_images_choose_no_threshold(tmp_path, given: dict[str, float], expected: float):
    write(tmp_path, *(f"{name}/{number}.png" for number in range(6) for name in CLASSES))
    judged = judge(tmp_path, **given)
    assert judged.judging.refer_below == expected
    assert bool(judged.judging.about["referral"]["note"]) == (not given)
    assert judged.predictions.class_counts == (7, 5)  # of the grey levels 10 to 21, those above 16 are ill


def test_images_of_which_none_can_be_read_are_refused(tmp_path):
    write(tmp_path, *UNSPLIT)
    for name in UNSPLIT:
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(DataError, match="None of the 2 labelled images"):
        judge(tmp_path)

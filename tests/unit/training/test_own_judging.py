"""Which images calibrate a model that was trained elsewhere, and what they tell of it; nothing is built with Keras."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, special

from tlray.bundle.judgement import Limits
from tlray.bundle.judgement import judge as judge_predictions
from tlray.config.export import ExportConfig
from tlray.data.stream import Pixels
from tlray.errors import DataError
from tlray.training import own_judging
from tlray.training.export import GROUP

CLASSES = ("normal", "ill")


def settings(data: Path, **more: Any) -> ExportConfig:
    return ExportConfig(model="m", classes="c", out="o", preprocessing="unit", data=str(data), **more)


def write(root: Path, *names: str, first_level: int = 10) -> None:
    """Writes an image of one grey level to each path below a folder, each one level brighter than the one before."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), first_level + number).save(root / name)


def texture(rng: np.random.Generator) -> np.ndarray:
    """Smooth noise with a standard deviation of 1, float64 [96, 96]: of two, none is like the other."""
    noise = ndimage.gaussian_filter(rng.normal(size=(96, 96)), 2)
    return noise / noise.std()


def picture(texture_HW: np.ndarray, label: str) -> Image.Image:
    """An image of a texture that tells its class by a corner, see `by_grey`."""
    grey = np.clip(128 + 40 * texture_HW, 0, 255).astype(np.uint8)
    grey[:12, :12] = 200 if label == "ill" else 0
    return Image.fromarray(grey)


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
    picture(texture(np.random.default_rng(0)), "ill").save(tmp_path / OF_VALID[0])
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


@pytest.mark.parametrize("quiet", [False, True])
def test_labels_with_other_names_than_their_classes_are_told(tmp_path, capsys, quiet):
    write(tmp_path, "ill_left/a.png", "normal/b.png")
    table = own_judging.choose_images(settings(tmp_path, quiet=quiet), CLASSES)
    assert sorted(table["label"].to_pylist()) == ["ill", "normal"]
    assert ("Classes: ill_left -> ill, normal -> normal\n" in capsys.readouterr().out) != quiet


def test_negatives_do_not_calibrate_as_positives(tmp_path):
    write(tmp_path, "ill_negative/a.png", "normal/b.png")
    with pytest.raises(DataError, match=r"The labels 'ill_negative' match none, .* Give a class map"):
        own_judging.choose_images(settings(tmp_path), CLASSES)


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
    """The model is wrong about the twelve darkest of the 80 images."""
    write(tmp_path, *(f"ill/{number}.png" for number in range(80)), first_level=4)
    found = judge(tmp_path, **given).judging
    assert (found.refer_below, found.set_thresholds) == (expected, None)
    assert (found.about["num_groups"], found.about["referral"]["max_error"]) == (80, None)
    images = np.broadcast_to(np.arange(4, 84, dtype=np.uint8)[:, None, None, None], (80, 8, 8, 3))
    limits = Limits(refer_below=found.refer_below, set_thresholds=found.set_thresholds)
    judged = judge_predictions(special.softmax(by_grey(images)[0], axis=1), np.full(80, np.nan), limits)
    assert found.about["referral"]["coverage"] == pytest.approx(1 - judged.refer.mean())
    assert found.warnings[0].startswith("There is no readable image of 'normal', so no threshold is chosen")


def saved_again(image: Image.Image, path: Path, number: int) -> None:
    size_px = 96 + 4 * number
    image.resize((size_px, size_px)).save(path.with_suffix(".jpg"), quality=90)


@pytest.mark.parametrize("are_copies", [False, True], ids=["neighbouring slices", "copies"])
def test_images_of_unnamed_patients_that_are_alike_count_as_one(tmp_path, are_copies: bool):
    """The model is right about all 84 images, of which 59 independent ones would show an error rate of 5 %."""
    rng = np.random.default_rng(0)
    for patient in range(12):
        label, own = CLASSES[patient % 2], texture(rng)
        (tmp_path / label).mkdir(exist_ok=True)
        for number in range(7):
            path = tmp_path / label / f"{patient}_{number}.png"
            if are_copies:
                saved_again(picture(own, label), path, number)
            else:
                picture(0.96 * own + 0.28 * texture(rng), label).save(path)
    found = judge(tmp_path).judging
    assert (found.about["num_images"], found.about["num_groups"]) == (84, 12)
    assert found.about["referral"]["note"].startswith(
        "No threshold keeps errors at 5 % as far as 84 images (12 groups)"
    )
    assert dict(own_judging.table_rows(found))["calibrated on"].startswith("84 images of 12 groups")


def test_unreadable_images_are_left_out_and_told(tmp_path, caplog):
    write(tmp_path, *(f"{name}/{number}.png" for number in range(6) for name in CLASSES))
    for name in ("ill/0.png", "normal/3.png"):
        (tmp_path / name).write_bytes(b"no image")
    assert len(chosen_ids(tmp_path)) == 10
    assert "2 of 12 images cannot be read and are left out: 'ill/0.png', 'normal/3.png'." in caplog.text


def test_no_more_images_are_used_than_the_limit_and_it_is_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(own_judging, "MAX_IMAGES", 4)
    write(tmp_path, *(f"ill/{number}.png" for number in range(9)), *(f"normal/{number}.png" for number in range(3)))
    table = own_judging.choose_images(settings(tmp_path), CLASSES)
    assert sorted(table["label"].to_pylist()) == ["ill", "ill", "ill", "normal"]
    assert "4 of 12 images are used" in caplog.text


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

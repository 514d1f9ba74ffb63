"""What a run keeps of the pictures that it has looked at, and what it shows of its audit."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tlray.cluster import capacity, locations, plans
from tlray.config.training import Augmentation, TrainConfig
from tlray.data import audit, dataset
from tlray.data.dataset import Dataset
from tlray.files import storage
from tlray.timing import Timing
from tlray.training import prepare, probing
from tlray.training.paths import RunPaths
from tlray.training.prepare import Read
from tlray.training.stages import Begun
from tlray.trust import findings, pictures
from tlray.trust.copies import Copies

NAMES = ["1.png", "2.png", "3.png", "4.png"]
TABLE = pa.table(
    {
        "image_id": NAMES,
        "label": ["a", "b", "a", "b"],
        "split": ["train", "train", "train", "valid"],
        "error_code": pa.nulls(4, pa.string()),
        "is_16_bit": [False, False, True, False],
    }
)


@pytest.mark.parametrize(
    ("thumbnails", "for_bundle", "encoded"),
    [(True, True, ["1.png", "2.png"]), (True, False, []), (False, True, [])],
)
def test_thumbnails_are_encoded_only_if_a_bundle_is_made_of_the_images(monkeypatch, thumbnails, for_bundle, encoded):
    copies = Copies(
        group_of=np.array([0, 0, 2, 3]), identical_of=np.arange(4), series_of=np.array([0, 0, 2, 2]),
        pairs=np.array([[0, 1], [2, 3]]), kinds=np.array(["copy", "neighbour"]), scores=np.ones(2, np.float32),
        is_mirrored=np.zeros(2, bool),
    )  # fmt: skip
    seen = SimpleNamespace(table=TABLE, copies=copies, thumbnails_BHW=np.zeros((4, 96, 96), np.uint8))
    images = Dataset(table=TABLE, findings={"num_skipped": 0})
    monkeypatch.setattr(pictures, "look", lambda *_, **__: seen)
    monkeypatch.setattr(dataset, "assemble", lambda *_, **__: images)
    monkeypatch.setattr(findings, "find", lambda *_, **__: {})
    model: Any = None
    config = TrainConfig(data="d", out="o", thumbnails=thumbnails)
    read = Read(images=images, model=model, table=TABLE)
    found = prepare.look(config, read, None, task_cpus=1, for_bundle=for_bundle)
    assert sorted(found.thumbnails) == encoded
    groups = [(group["kind"], [image["image_id"] for image in group["images"]]) for group in found.gallery]
    both = [("copies", ["1.png", "2.png"]), ("neighbours", ["3.png", "4.png"])]
    assert groups == (both if thumbnails else [])


def without_cluster(monkeypatch: pytest.MonkeyPatch, images: Dataset, model: Any) -> None:
    """Gives `prepare.prepare` images and a model, and takes all from it that needs a cluster or writes files."""
    for module, name in (
        *((prepare, "create"), (prepare, "first_features"), (storage, "delete"), (dataset, "write_dataset")),
        *((dataset, "measure"), (locations, "check_shared"), (locations, "check_shared_images")),
        *((plans, "plan_training"), (capacity, "tell_shortage")),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    monkeypatch.setattr(prepare, "read_and_build", lambda *_, **__: Read(images=images, model=model))
    monkeypatch.setattr(prepare, "look", lambda *_, **__: images)


@pytest.mark.parametrize("quiet", [False, True])
def test_views_that_do_not_fit_are_no_error_but_told(monkeypatch, capsys, quiet):
    table = TABLE.append_column("uri", pa.array(NAMES))
    images, model = Dataset(table=table, findings={}), SimpleNamespace(network=object(), tail=None)
    without_cluster(monkeypatch, images, model)
    monkeypatch.setattr(dataset, "describe", lambda _: "images")
    monkeypatch.setattr(findings, "rows", lambda _: [])
    monkeypatch.setattr(prepare, "show_table", lambda *_: None)
    monkeypatch.setattr(probing, "fits_cache", lambda *_: False)
    monkeypatch.setattr(probing, "cache_bytes", lambda *_: 6_000_000_000)
    config = TrainConfig(
        data="d", out="o", method="lp-ft", views=3, augmentation=Augmentation(zoom=0.1), quiet=quiet
    ).resolved()
    begun = Begun(config=config, paths=RunPaths("o"), source=images, before=None)
    available: Any = SimpleNamespace(task_cpus=1.0, smallest_object_store_bytes=2_000_000_000)
    run = prepare.prepare(begun, Timing(), available)
    assert (run.config.cache, run.config.views, run.is_cached) == ("off", 1, False)
    assert capsys.readouterr().out == (
        ""
        if quiet
        else "The stored features for training would take 6.0 GB, more than half of Ray's object store (2.0 GB on its "
        "smallest node). Training uses images that are read and augmented in every epoch instead, without --views 3.\n"
        "images\n"
    )


@pytest.mark.parametrize(
    ("is_new", "quiet", "is_told"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_new_run_tells_that_the_augmentation_is_not_used(monkeypatch, capsys, is_new, quiet, is_told):
    images = Dataset(table=TABLE.append_column("uri", pa.array(NAMES)), findings={})
    without_cluster(monkeypatch, images, SimpleNamespace(network=None))
    monkeypatch.setattr(dataset, "describe", lambda _: "images")
    monkeypatch.setattr(findings, "rows", lambda _: [])
    monkeypatch.setattr(prepare, "show_table", lambda *_: None)
    monkeypatch.setattr(prepare.resume, "keep_new_settings", lambda *_: None)
    config = TrainConfig(data="d", out="o", method="probe", augmentation=Augmentation(zoom=0.125), quiet=quiet)
    begun = Begun(config=config.resolved(), paths=RunPaths("o"), source=images, before=None if is_new else {})
    available: Any = SimpleNamespace(task_cpus=1.0)
    prepare.prepare(begun, Timing(), available)
    assert ("The augmentation is not used: training is on " in capsys.readouterr().out) == is_told


@pytest.mark.parametrize("quiet", [False, True])
def test_what_the_audit_has_found_is_shown_as_a_table_unless_quiet(monkeypatch, capsys, quiet):
    nothing = {"num_groups": 0, "num_images": 0}
    across = {"across_splits": {"num_groups": 1, "num_images": 2}, "conflicting_labels": nothing}
    copies = dict.fromkeys(("identical", "series"), nothing) | {"copies": across | {"num_groups": 1, "num_images": 3}}
    table = TABLE.append_column("uri", pa.array(NAMES)).append_column("group_id", pa.array(NAMES))
    table = table.append_column("sha256", pa.array(NAMES)).append_column("width_px", pa.nulls(4, pa.int32()))
    found = audit.audit(table) | {
        "copies": copies,
        "shortcuts": {"found": [{"family": "corners"}], "num_folds": 5},
        "split_shortcuts": {"found": [{"family": "size"}], "num_folds": 5, "given": ["train", "valid"]},
        "traits_control": None,
    }
    images = Dataset(table=table, findings=found)
    model: Any = SimpleNamespace(network=None, tail=None)
    without_cluster(monkeypatch, images, model)
    begun = Begun(config=TrainConfig(data="d", out="o", quiet=quiet), paths=RunPaths("o"), source=images, before=None)
    available: Any = SimpleNamespace(task_cpus=1.0)
    assert prepare.prepare(begun, Timing(), available).images is images
    shown = capsys.readouterr().out
    if quiet:
        assert shown == ""
        return
    assert shown.startswith("Images by class:\n  a: 2 train, 0 valid, 0 test\n  b: 1 train, 1 valid, 0 test\nAudited")
    assert re.findall(r"^│ (.*?) +│ (.*?) +│$", shown, re.MULTILINE) == [
        ("images", "4, 0 cannot be read"),
        ("the same pixels", "none"),
        ("copies of a picture", "3 images in 1 group"),
        ("copies in several splits", "2 images in 1 group"),
        ("copies with several labels", "none"),
        ("copies and neighbouring slices", "none"),
        ("patients in several splits", "not known: no patients are named"),
        ("what tells the classes", "corners"),
        ("what tells the splits", "size"),
    ]

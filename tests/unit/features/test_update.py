"""The progress of a feature extraction, without Ray."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from tlray.cluster.plans import ScorePlan
from tlray.config.commands import FeaturesConfig
from tlray.data.stream import Pixels
from tlray.engines.kinds import EngineKind
from tlray.engines.networks import KerasNetwork, Packed
from tlray.errors import ConfigError, DataError
from tlray.features import extraction, store, update
from tlray.features.preparation import Network

NETWORK = Network(
    packed=Packed(
        network=KerasNetwork(architecture="{}", weights=[]), kind=EngineKind(engine="tensorflow", precision="float32")
    ),
    names=["pooled"],
    shapes=[(2,)],
    fingerprint="f",
)


def make_table(num_images: int, *, first: int = 0) -> pa.Table:
    names = [str(number) for number in range(first, first + num_images)]
    nothing = pa.nulls(num_images, pa.string())
    columns = dict.fromkeys(("image_id", "uri", "label", "group_id", "sha256"), names)
    return pa.table(
        {**columns, "split": ["train"] * num_images, "is_16_bit": [False] * num_images}
        | {"error_code": nothing, "error": nothing}
    )


def compute(out, rows, network, pixels, plan, *, batch_size):
    """Writes features of zeros for the rows, as `extraction.compute` writes those of a network."""
    assert (network.fingerprint, pixels.size_px, plan, batch_size) == ("f", 8, None, 4)
    if not rows.num_rows:
        return
    zeros = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((rows.num_rows, 2), np.float16))
    part = rows.select([*store.COLUMNS, "view", store.KEY]).append_column("pooled", zeros)
    store.write_part(f"{out}/part-{rows['image_id'][0]}-{rows.num_rows}.parquet", part)
    yield {"num_done": rows.num_rows, "failures": []}


def test_a_pass_has_a_name_and_is_not_shown_if_nothing_is_left_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(extraction, "compute", compute)

    def run(num_images: int, title: str = "Computing features") -> tuple[int, str]:
        result = update.update(
            str(tmp_path / "features"), make_table(num_images), NETWORK, Pixels(size_px=8),
            plan=None,  # pyright: ignore[reportArgumentType]
            views=1, batch_size=4, overwrite=False, quiet=False, title=title,
        )  # fmt: skip
        return result.num_reused, capsys.readouterr().err

    assert run(3, title="Computing features for audit and training") == (
        0, "Computing features for audit and training: 3 images\n"
    )  # fmt: skip
    assert run(3) == (3, "")
    assert run(5) == (3, "Computing features: 5 images\n")


def bring_up_to_date(out: Path, table: pa.Table, *, keep_most: bool = True) -> int:
    """Returns how many features were there already."""
    return update.update(
        str(out), table, NETWORK, Pixels(size_px=8),
        plan=None,  # pyright: ignore[reportArgumentType]
        views=1, batch_size=4, overwrite=False, quiet=True, keep_most=keep_most,
    ).num_reused  # fmt: skip


def stored_ids(out: Path) -> list[str]:
    """Returns the ids of the images with features, whether these are complete or not."""
    parts = [store.read_part(str(out), name) for name in store.part_names(str(out))]
    return sorted((image_id for part in parts for image_id in part["image_id"].to_pylist()), key=int)


def test_features_are_deleted_only_once_the_others_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "compute", compute)
    assert bring_up_to_date(tmp_path, make_table(10)) == 0

    def interrupted(*_arguments, **_named):
        assert len(stored_ids(tmp_path)) == 10
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "compute", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bring_up_to_date(tmp_path, make_table(10, first=4))
    assert not (tmp_path / store.SUCCESS).exists()
    assert bring_up_to_date(tmp_path, make_table(10)) == 10
    # Four of ten images are others, and one has another label.
    table = make_table(10, first=4)
    labels = pa.array(["new", *table["label"].to_pylist()[1:]])
    table = table.set_column(table.schema.get_field_index("label"), "label", labels)
    assert bring_up_to_date(tmp_path, table) == 6
    assert stored_ids(tmp_path) == [str(number) for number in range(4, 14)]
    found = store.read_features(str(tmp_path)).to_pylist()
    assert {row["image_id"]: row["label"] for row in found} == {"4": "new"} | {
        str(each): str(each) for each in range(5, 14)
    }


def test_most_of_the_features_are_deleted_only_if_told(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "compute", compute)
    bring_up_to_date(tmp_path, make_table(10))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"^6 of the 10 features in '.*' would be deleted: .* or --overwrite\.$"):
        bring_up_to_date(tmp_path, make_table(4))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert bring_up_to_date(tmp_path, make_table(5)) == 5  # half of them go
    assert bring_up_to_date(tmp_path, make_table(3, first=100), keep_most=False) == 0
    assert stored_ids(tmp_path) == ["100", "101", "102"]


def test_a_feature_that_is_there_twice_is_kept_once(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "compute", compute)
    bring_up_to_date(tmp_path, make_table(3))
    (part,) = tmp_path.glob("part-*")
    store.write_part(f"{tmp_path}/part-z.parquet", store.read_part(str(tmp_path), part.name).slice(1))
    assert bring_up_to_date(tmp_path, make_table(3)) == 3
    assert stored_ids(tmp_path) == ["0", "1", "2"]
    assert list(tmp_path.glob("part-*")) == [part]


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_command_keeps_most_features_unless_told(tmp_path, monkeypatch, overwrite):
    config = FeaturesConfig(data=str(tmp_path), out=str(tmp_path / "f"), overwrite=overwrite, quiet=True)
    asked: dict[str, Any] = {}

    def note(*_arguments, **named):
        asked.update(named)
        raise DataError("enough")

    table, nothing = make_table(3), lambda *_, **__: None
    for module, names in (
        (update, ("check",)),
        (update.connection, ("connect",)),
        (update.locations, ("check_shared", "check_shared_images")),
        (update.plans, ("plan_scoring",)),
        (update.capacity, ("tell_shortage",)),
        (update.preparation, ("start", "finish")),
        (update.intensity, ("find_range",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, nothing)
    monkeypatch.setattr(update.plans, "plan_scoring", lambda *_, **__: cast("Any", SimpleNamespace(gpus_per_actor=0)))
    monkeypatch.setattr(update.capacity, "measure", lambda: cast("Any", SimpleNamespace(task_cpus=1)))
    monkeypatch.setattr(update.dataset, "list_classes", lambda *_, **__: cast("Any", SimpleNamespace(table=table)))
    for name in ("read_images", "without_looks", "with_splits"):
        monkeypatch.setattr(update.dataset, name, lambda table, **_: table)
    monkeypatch.setattr(update.splits, "missing", lambda _: False)
    monkeypatch.setattr(update, "update", note)
    with pytest.raises(DataError, match="enough"):
        update.extract_features(config)
    assert asked["keep_most"] is not overwrite


@pytest.mark.parametrize("why_not", ["", "It has an operation of another world."])
def test_notes_about_the_network_of_an_audit_are_returned(tmp_path, monkeypatch, why_not):
    network = dataclasses.replace(NETWORK, packed=dataclasses.replace(NETWORK.packed, why_not=why_not))
    monkeypatch.setattr(extraction, "compute", compute)
    monkeypatch.setattr(update.preparation, "finish", lambda *_: network)
    monkeypatch.setattr(update.plans, "plan_scoring", lambda *_, **__: cast("ScorePlan", None))
    config = FeaturesConfig(data="d", out="o", image_size_px=8, batch_size=4, quiet=True)
    pooled, notes = update.pooled_features(
        config, cast("Any", None), make_table(3), str(tmp_path / "features"), cast("Any", None)
    )
    np.testing.assert_array_equal(pooled, np.zeros((3, 2), np.float16))
    assert notes == ((network.packed.note,) if why_not else ())
    assert all(note.endswith(why_not) for note in notes)

"""The progress of a feature extraction, without Ray."""

import dataclasses
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from tlray.cluster.plans import ScorePlan
from tlray.config.commands import FeaturesConfig
from tlray.data.stream import Pixels
from tlray.engines.kinds import EngineKind
from tlray.engines.networks import KerasNetwork, Packed
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


def make_table(num_images: int) -> pa.Table:
    names = [str(number) for number in range(num_images)]
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
    store.write_part(f"{out}/part-{rows.num_rows}.parquet", part)
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

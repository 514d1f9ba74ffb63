"""Which images set the range of the 16-bit pixel values that become 0 to 255."""

import pyarrow as pa
import pytest

from tlray.config.training import TrainConfig
from tlray.data import inspection, intensity


@pytest.mark.parametrize(
    ("wide", "given", "of", "counts"),
    [
        ("", "auto", None, {}),
        ("03", "auto", "0", {}),
        ("234", "auto", "234", {"valid": 1, "test": 2}),
        ("34", "0,400", None, {}),
    ],
)
def test_the_intensity_range_is_of_training_images_where_these_have_16_bits(monkeypatch, wide, given, of, counts):
    measured: list[str] = []
    monkeypatch.setattr(inspection, "intensity_range", lambda uris: measured.extend(uris.to_pylist()) or (7.0, 9.0))
    splits = ["train", "train", "valid", "test", "test", None]
    is_16_bit = [str(number) in wide for number in range(5)] + [None]  # the last one cannot be read
    table = pa.table({"uri": list("012345"), "split": splits, "is_16_bit": is_16_bit})
    config = TrainConfig(data="d", out="o", intensity_range=given)
    found = intensity.find_range(config, table)
    assert found == ((7.0, 9.0) if of else (0.0, 400.0) if given != "auto" else None)
    assert "".join(measured) == (of or "")
    assert intensity.count_untrained(config, table) == counts
    unsplit = table.set_column(1, "split", pa.nulls(6, pa.string()))
    assert intensity.count_untrained(config, unsplit) == {}

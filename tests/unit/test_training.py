import json

import pytest

from tlray import training
from tlray.config import TrainConfig


@pytest.mark.parametrize(
    ("method", "epochs", "content", "expected"),
    [
        ("fine-tune", 30, {"epochs": 30, "num_epochs": 30}, True),
        ("fine-tune", 30, {"epochs": 30, "num_epochs": 26}, True),  # early stopping
        ("fine-tune", 31, {"epochs": 30, "num_epochs": 30}, False),
        ("fine-tune", 10, {"epochs": 30, "num_epochs": 26}, True),
        ("probe", 30, {"epochs": 30, "num_epochs": 0}, True),
        ("fine-tune", 30, None, False),
    ],
)
def test_when_a_run_is_finished(tmp_path, method, epochs, content, expected):
    if content is not None:
        (tmp_path / "metrics.json").write_text(json.dumps(content))
    config = TrainConfig(data="d", out=str(tmp_path), method=method, epochs=epochs)
    assert training._is_finished(config) is expected


def test_a_run_begun_by_an_earlier_version_is_continued(tmp_path):
    """Settings that it did not have yet count as the defaults."""
    config = TrainConfig(data="d", out=str(tmp_path), resume=True)
    known = {"data": "d", "out": str(tmp_path), "epochs": 12, "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(known))
    assert training._check_output(config)
    (tmp_path / "config.json").write_text(json.dumps(known | {"seed": 1}))
    with pytest.raises(ValueError, match="seed was 1 and is 0"):
        training._check_output(config)

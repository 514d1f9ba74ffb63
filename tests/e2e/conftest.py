"""What the tests of commands share: a Ray with a job server, and a trained run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import head as heads
from tlray import cli


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a submitter to a Ray with a job server. Its Serve is left as it was found: not running."""
    with heads.started(tmp_path_factory.mktemp("head")) as environment:
        yield environment


@pytest.fixture(scope="session")
def trained(local_ray, phantom_set, tmp_path_factory) -> Path:  # noqa: ARG001
    """A run of the default recipe with two workers, from random weights, on the phantoms."""
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = [
        *("--data", phantom_set, "--out", out, "--weights", "none", "--backbone", "MobileNet"),
        *("--image-size-px", 64, "--epochs", 2, "--num-workers", 2, "--batch-size", 16, "--max-failures", 0, "--quiet"),
        "--int8",
        *("--inference-precision", "float32"),  # which tests compare with what training computes
    ]
    assert cli.execute("train", list(map(str, arguments))) == 0
    return out

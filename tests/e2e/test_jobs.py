"""`ray job submit` of the project's scripts, with token authentication, as on a cluster.

`test_batches.py` submits `jobs/score.py` and compares its predictions with those of the endpoint.
"""

import json

import keras
import pytest

from tests.head import submit
from tlray.bundle.store import load
from tlray.data import phantoms
from tlray.models.backbone import find_application

SIZE_PX = 32


@pytest.fixture
def weights(tmp_path):
    keras.utils.set_random_seed(4)
    network = find_application("MobileNet")(include_top=False, weights=None, input_shape=(SIZE_PX, SIZE_PX, 3))
    network.save_weights(tmp_path / "network.weights.h5")
    return tmp_path / "network.weights.h5"


def test_the_articles_recipe_is_trained_as_a_job(head, phantom_set, weights, tmp_path):
    run = tmp_path / "run"
    trained = submit(
        head,
        *("jobs/train.py", "article", "--data", phantom_set, "--out", run, "--weights", weights, "--epochs", 1),
        *("--backbone", "MobileNet", "--image-size-px", SIZE_PX, "--num-workers", 2, "--max-failures", 0),
        # Those that tlray sets for its processes, too: with Keras 2 nothing would work.
        variables={"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "0"},
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert json.loads((run / "metrics.json").read_text())["num_epochs"] == 1
    assert f"{run}/bundle" in trained.stdout
    assert load(str(run / "bundle")).spec.classes == phantoms.CLASSES


def test_a_relative_output_in_a_job_is_refused(head, phantom_set):
    job = submit(head, "jobs/train.py", "--data", phantom_set, "--out", "runs/lost", "--weights", "none")
    assert job.returncode == 1
    assert "--out runs/lost is relative: in a Ray job it would be lost" in job.stdout + job.stderr


def test_without_the_token_nothing_is_submitted(head):
    strangers = {name: value for name, value in head.items() if not name.startswith("RAY_AUTH")}
    job = submit(strangers | {"HOME": "/nonexistent"}, "jobs/train.py", "--help")
    assert job.returncode != 0
    assert "authentication" in (job.stdout + job.stderr).lower()

"""A sweep's table: what is written is read, and what is not whole is not taken."""

import pytest

from tlray import trialtable
from tlray.errors import DataError
from tlray.trialtable import RESULTS, SETTINGS

GOOD = {
    "depths": 4, "inverse_penalty": 1e-3, "hidden_layers": 2, "trainable_layers": 10, "learning_rate": 2e-4,
    "dropout": 0.3, "views": 2, "seed": 5, "probe_loss": 0.25, "probe_accuracy": 0.875, "best_loss": 0.2,
    "standard_error": 0.03125, "best_accuracy": 0.9375, "best_epoch": 3, "num_epochs": 4,
}  # fmt: skip
BETTER = GOOD | {"seed": 6, "best_loss": 0.1, "inverse_penalty": 0.0123, "best_epoch": 0}
BETTER |= {"trainable_layers": 0, "hidden_layers": 0}
FAILED = {name: GOOD[name] for name in SETTINGS} | {"seed": 7, "error": 'ValueError: "C", or\nnot'}


def test_the_best_comes_first_and_what_failed_last(tmp_path):
    trialtable.write_trials(str(tmp_path), [FAILED, GOOD, BETTER])
    assert trialtable.read_trials(str(tmp_path)) == ([BETTER, GOOD], [FAILED["error"]])
    header, first, *_ = (tmp_path / "trials.csv").read_text().splitlines()
    assert header == ",".join([*SETTINGS, *RESULTS, "error"])
    assert first == "4,0.0123,0,0,0.0002,0.3,2,6,0.25,0.875,0.1,0.03125,0.9375,0,4,"


def test_no_table_is_no_trials(tmp_path):
    assert trialtable.read_trials(str(tmp_path)) == ([], [])
    (tmp_path / "trials.csv").write_text("")
    assert trialtable.read_trials(str(tmp_path)) == ([], [])


def test_a_row_that_is_cut_off_is_no_result(tmp_path):
    trialtable.write_trials(str(tmp_path), [GOOD, BETTER])
    path = tmp_path / "trials.csv"
    whole = path.read_text()
    for num_letters in range(len(whole) - 3, whole.index("\n4,0.001,") + 1, -1):
        path.write_text(whole[:num_letters])
        assert trialtable.read_trials(str(tmp_path)) == ([BETTER], [])


def test_the_table_of_another_version_is_refused(tmp_path):
    (tmp_path / "trials.csv").write_text("depths,loss\n1,0.5\n")
    with pytest.raises(DataError, match=r"trials\.csv' is not as this version .* Begin anew with --overwrite"):
        trialtable.read_trials(str(tmp_path))


def test_a_trial_is_known_by_its_settings():
    assert trialtable.identity(GOOD) == (4, 1e-3, 2, 10, 2e-4, 0.3, 2, 5)
    assert trialtable.identity(GOOD) == trialtable.identity(GOOD | {"best_loss": 9.0})
    assert trialtable.identity(GOOD) != trialtable.identity(BETTER)


def test_failures_are_counted():
    assert trialtable.failure_warnings([GOOD], []) == []
    assert trialtable.failure_warnings([GOOD, BETTER], ["First.", "Second."]) == [
        "2 of 4 trials failed and were left out. The first error: First."
    ]

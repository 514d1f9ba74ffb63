"""A sweep's table: what is written is read, what is not whole is not taken, and which trial is chosen."""

from typing import Any

import numpy as np
import pytest

from tlray.errors import DataError
from tlray.tuning import trial_table
from tlray.tuning.trial_table import RESULTS, SETTINGS, GroupLosses

GOOD = {
    "depths": 4, "inverse_penalty": 1e-3, "hidden_layers": 2, "trainable_layers": 10, "learning_rate": 2e-4,
    "dropout": 0.3, "views": 2, "seed": 5, "probe_loss": 0.25, "probe_accuracy": 0.875, "best_loss": 0.2,
    "standard_error": 0.03125, "best_accuracy": 0.9375, "best_epoch": 3, "num_epochs": 4,
}  # fmt: skip
BETTER = GOOD | {"seed": 6, "best_loss": 0.1, "inverse_penalty": 0.0123, "best_epoch": 0}
BETTER |= {"trainable_layers": 0, "hidden_layers": 0}
NUM_IMAGES_G = np.array([1, 3])
FAILED = {name: GOOD[name] for name in SETTINGS} | {"seed": 7, "error": 'ValueError: "C", or\nnot'}


def losses(*pairs: tuple[dict[str, Any], list[float], list[float]]) -> dict[tuple[Any, ...], GroupLosses]:
    """Gives trials their sums by group, of the probe and of the best epoch."""
    return {
        trial_table.identity(trial): GroupLosses(probe=np.array(probe, np.float32), best=np.array(best, np.float32))
        for trial, probe, best in pairs
    }


LOSSES = losses((GOOD, [0.25, 0.75], [2.5, 3.5]), (BETTER, [1.5, 2.5], [0.5, 0.5]))


def test_the_best_comes_first_and_what_failed_last(tmp_path):
    trial_table.write_trials(str(tmp_path), [FAILED, GOOD, BETTER], LOSSES, NUM_IMAGES_G)
    # The sums differ by 2 and 3, which is 1.25 an image: the groups deviate by 0.75 and -0.75, together a square of
    # 1.125, times 2 groups over 1, and the root of that is 1.5, of 4 images.
    expected = [BETTER | {"difference_error": 0.0}, GOOD | {"difference_error": 0.375}]
    assert trial_table.read_trials(str(tmp_path)) == (expected, [FAILED["error"]])
    header, first, *_ = (tmp_path / "trials.csv").read_text().splitlines()
    assert header == ",".join([*SETTINGS, *RESULTS, "difference_error", "error"])
    assert first == "4,0.0123,0,0,0.0002,0.3,2,6,0.25,0.875,0.1,0.03125,0.9375,0,4,0,"


def test_losses_come_back(tmp_path):
    assert trial_table.read_losses(str(tmp_path)) == {}
    trial_table.write_trials(str(tmp_path), [GOOD, BETTER], LOSSES, NUM_IMAGES_G)
    found = trial_table.read_losses(str(tmp_path))
    assert list(found) == [trial_table.identity(GOOD), trial_table.identity(BETTER)]
    assert found[trial_table.identity(BETTER)].probe.tolist() == [1.5, 2.5]
    assert found[trial_table.identity(GOOD)].best.tolist() == [2.5, 3.5]


def test_a_row_without_losses_is_no_result(tmp_path):
    trial_table.write_trials(str(tmp_path), [GOOD, BETTER], LOSSES, NUM_IMAGES_G)
    table = (tmp_path / "trials.csv").read_text()
    trial_table.write_trials(str(tmp_path), [GOOD], losses((GOOD, [1.0, 1.0], [1.0, 1.0])), NUM_IMAGES_G)
    (tmp_path / "trials.csv").write_text(table)
    assert [trial["seed"] for trial in trial_table.read_trials(str(tmp_path))[0]] == [GOOD["seed"]]


def test_no_table_is_no_trials(tmp_path):
    assert trial_table.read_trials(str(tmp_path)) == ([], [])
    (tmp_path / "trials.csv").write_text("")
    assert trial_table.read_trials(str(tmp_path)) == ([], [])


def test_a_row_that_is_cut_off_is_no_result(tmp_path):
    trial_table.write_trials(str(tmp_path), [GOOD, BETTER], LOSSES, NUM_IMAGES_G)
    path = tmp_path / "trials.csv"
    whole = path.read_text()
    for num_letters in range(len(whole) - 3, whole.index("\n4,0.001,") + 1, -1):
        path.write_text(whole[:num_letters])
        assert trial_table.read_trials(str(tmp_path)) == ([BETTER | {"difference_error": 0.0}], [])


def test_the_table_of_another_version_is_refused(tmp_path):
    (tmp_path / "trials.csv").write_text("depths,loss\n1,0.5\n")
    with pytest.raises(DataError, match=r"trials\.csv' does not have the columns .* Begin anew with --overwrite"):
        trial_table.read_trials(str(tmp_path))


def test_a_trial_is_known_by_its_settings():
    assert trial_table.identity(GOOD) == (4, 1e-3, 2, 10, 2e-4, 0.3, 2, 5)
    assert trial_table.identity(GOOD) == trial_table.identity(GOOD | {"best_loss": 9.0})
    assert trial_table.identity(GOOD) != trial_table.identity(BETTER)


def test_failures_are_counted():
    assert trial_table.failure_warnings([GOOD], []) == []
    assert trial_table.failure_warnings([GOOD, BETTER], ["First.", "Second."]) == [
        "2 of 4 trials failed and were left out. The first error: First."
    ]


# The choice


TUNED = GOOD | {"best_epoch": 3}
PROBE = BETTER | {"probe_loss": 0.5, "best_loss": 0.5, "best_epoch": 0, "best_accuracy": 0.75}


def chosen(probe_sums: list[float], tuned_sums: list[float], num_images_G: list[int]) -> dict[str, Any]:
    """Chooses between fine-tuning and the probe of another trial, whose losses are what is given."""
    num_images = sum(num_images_G)
    tuned = TUNED | {"best_loss": sum(tuned_sums) / num_images, "probe_loss": 9.0}
    probe = PROBE | dict.fromkeys(("probe_loss", "best_loss"), sum(probe_sums) / num_images)
    worse = [9.0 * number for number in num_images_G]
    found = losses((tuned, worse, tuned_sums), (probe, probe_sums, probe_sums))
    return trial_table.choose([tuned, probe], found, np.array(num_images_G))


@pytest.mark.parametrize("num_slices", [1, 10, 100])
def test_slices_of_a_patient_are_no_patients(num_slices):
    """The patients' differences are 0.3, -0.1, 0.3, -0.1: a mean of 0.1, an error of sqrt(0.16 / 3 / 4) = 0.115.

    As 40 independent images, ten slices of each, the fine-tuned trial's own loss has an error of 0.016.
    """
    tuned = np.array([0.2, 0.4, 0.2, 0.4]) * num_slices
    probe = np.array([0.5, 0.3, 0.5, 0.3]) * num_slices
    assert chosen(list(probe), list(tuned), [num_slices] * 4)["best_epoch"] == 0


def test_what_is_hard_for_both_cancels_out():
    """Each patient gains 0.04 to 0.06, of losses that differ by 3: the difference has an error of 0.006, each 0.8."""
    tuned, gain = np.array([0.1, 3.0, 0.2, 3.1]), np.array([0.04, 0.06, 0.06, 0.04])
    found = chosen(list(tuned + gain), list(tuned), [1] * 4)
    assert (found["best_epoch"], found["best_loss"]) == (3, pytest.approx(1.6))


@pytest.mark.parametrize(("gain", "is_probe"), [(0.2, True), (0.1999, True), (0.2001, False)])
def test_the_probe_is_chosen_up_to_one_standard_error(gain, is_probe):
    # Deviations of 0.2 up and down for two patients: sqrt(2 / 1 * 0.08) / 2 = 0.2, in float32.
    tuned = np.array([1.0, 1.0])
    found = chosen(list(tuned + gain - 0.0000001 + [0.2, -0.2]), list(tuned), [1, 1])
    assert (found["best_epoch"] == 0) is is_probe


def test_the_probe_of_any_trial_may_be_chosen():
    # The best probe is that of the trial whose fine-tuning is the best, too.
    tuned = TUNED | {"probe_loss": 0.25, "best_loss": 0.2}
    found = losses((tuned, [0.5, 0.5], [0.2, 0.6]), (PROBE, [2.0, 0.0], [2.0, 0.0]))
    # Differences of 0.3 and -0.1 of 2 images each: a mean of 0.05, an error of 0.1.
    expected = tuned | {"best_loss": 0.25, "best_accuracy": tuned["probe_accuracy"], "best_epoch": 0}
    expected |= {"standard_error": 0.0, "difference_error": pytest.approx(0.1)}
    assert trial_table.choose([tuned, PROBE], found, np.array([2, 2])) == expected


def test_a_chosen_probe_has_its_own_standard_error():
    """The probe's losses deviate by 0.5 and -0.5 from 0.5 an image: sqrt(2 / 1 * 0.5) / 4, those of the epoch by 0."""
    tuned = TUNED | {"probe_loss": 0.5, "best_loss": 0.5, "standard_error": 0.0}
    found = losses((tuned, [1.5, 0.5], [1.0, 1.0]))
    chosen_trial = trial_table.choose([tuned], found, np.array([2, 2]))
    assert (chosen_trial["best_epoch"], chosen_trial["standard_error"]) == (0, 0.25)


def test_a_probe_that_is_the_best_is_chosen():
    found = losses((PROBE, [1.0, 1.0], [1.0, 1.0]))
    expected = PROBE | {"best_accuracy": PROBE["probe_accuracy"], "standard_error": 0.0, "difference_error": 0.0}
    assert trial_table.choose([PROBE], found, np.array([2, 2])) == expected

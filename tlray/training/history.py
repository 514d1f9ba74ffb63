"""The history of a training run, one row per epoch: the row of its probe, its best epoch, and the history as CSV."""

from collections.abc import Mapping, Sequence

from tlray.config.training import TrainConfig
from tlray.probe.regression import Probe
from tlray.training import plateau


def _start_row(start: Probe, config: TrainConfig) -> dict[str, float]:
    """Returns the history's row for epoch 0, the probe that fine-tuning starts from."""
    return {
        "epoch": 0,
        "loss": start.train_loss,
        "accuracy": start.train_accuracy,
        "valid_loss": start.best.valid_loss,
        "valid_accuracy": start.best.valid_accuracy,
        "learning_rate": config.initial_learning_rate,
        "time_s": 0.0,
        "images_per_s": 0.0,
        "num_replaced": 0.0,
    }


def exported_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """Returns the number of the epoch whose weights are exported: the first with the lowest validation loss.

    Args:
        history: One row per epoch; empty where only a probe was fitted.

    Returns:
        The number, from 1; 0: the probe is exported.
    """
    if not history:
        return 0
    return int(history[plateau.best_epoch([row["valid_loss"] for row in history])]["epoch"])


def history_csv(history: list[dict[str, float]]) -> str:
    """Returns a history as CSV, one row per epoch."""
    names = list(history[0]) if history else []
    lines = [",".join(names), *(",".join(f"{row[name]:.9g}" for name in names) for row in history)]
    return "\n".join(lines) + "\n"

"""The history of a training run, one row per epoch: the row of its probe, and the history as CSV."""

from tlray.config.training import TrainConfig
from tlray.probe.regression import Probe


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


def history_csv(history: list[dict[str, float]]) -> str:
    """Returns a history as CSV, one row per epoch."""
    names = list(history[0]) if history else []
    lines = [",".join(names), *(",".join(f"{row[name]:.9g}" for name in names) for row in history)]
    return "\n".join(lines) + "\n"

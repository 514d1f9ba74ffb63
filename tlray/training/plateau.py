"""Learning rate, best epoch and early stopping as pure functions of the validation losses so far.

The functions keep no state, so a resumed run, which has its history back, decides as an uninterrupted one would.
"""

import math
from collections.abc import Sequence


def best_epoch(valid_losses: Sequence[float]) -> int:
    """Returns the 0-based epoch with the lowest finite validation loss (the first of several), 0 if there is none."""
    return min(range(len(valid_losses)), key=lambda epoch: _comparable(valid_losses[epoch]), default=0)


def _comparable(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def learning_rate(valid_losses: Sequence[float], *, initial: float, factor: float, patience: int | None) -> float:
    """Returns the learning rate of the next epoch, reduced when the validation loss reaches a plateau.

    The rate is multiplied by `factor` whenever `patience` epochs passed since the best epoch or the last reduction
    (the rule of Keras' ReduceLROnPlateau, without its threshold and floor).

    Args:
        valid_losses: One validation loss for each finished epoch.
        initial: The rate of the first epoch.
        factor: Factor of each reduction, in (0, 1).
        patience: Epochs without improvement before a reduction; None: never reduce the rate.
    """
    rate, best, num_bad = initial, math.inf, 0
    if patience is None:
        return rate
    for loss in map(_comparable, valid_losses):
        if loss < best:
            best, num_bad = loss, 0
            continue
        num_bad += 1
        if num_bad >= patience:
            rate, num_bad = rate * factor, 0
    return rate


def should_stop(valid_losses: Sequence[float], *, patience: int | None) -> bool:
    """Tells whether `patience` epochs have passed since the best one; never if `patience` is None."""
    if patience is None or not valid_losses:
        return False
    return len(valid_losses) - 1 - best_epoch(valid_losses) >= patience

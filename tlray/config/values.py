"""Reads and checks values of options that are text with a meaning of its own."""

import math
import re
import unicodedata

from tlray.errors import ConfigError

TRAIN_PRIOR = "train"
"""Value of `--prior` for the class shares of the training images."""
UNIFORM_PRIOR = "uniform"
"""Value of `--prior` for equal class shares."""

MAX_PRIOR_ERROR = 0.002
"""Largest allowed deviation from 1 of the sum of the shares in `--prior`, so that three times 0.333 is accepted."""


MAX_ERROR = 0.05
"""Default of `--max-error`: the wished error rate of the predictions that are not referred."""

MAX_SEED = 2**32 - 1
"""Largest seed, that of NumPy's `RandomState`, which scikit-learn and Keras use."""


def require(condition: bool, message: str) -> None:
    """Raises a ConfigError with a message unless a condition holds."""
    if not condition:
        raise ConfigError(message)


def flag(name: str) -> str:
    """Returns a setting's name on the command line."""
    return "--" + name.replace("_", "-")


def check_seed(seed: int) -> None:
    """Refuses a seed that NumPy, scikit-learn or Keras would not take.

    Raises:
        ConfigError: The seed is not in [0, MAX_SEED].
    """
    require(0 <= seed <= MAX_SEED, f"--seed must lie in [0, {MAX_SEED}]. Received: {seed}")


def parse_columns(text: str | None) -> dict[str, str]:
    """Parses `--columns uri=path,label=dx` into {"uri": "path", "label": "dx"}.

    Raises:
        ConfigError: It is not a list of OURS=THEIRS pairs.
    """
    if not text:
        return {}
    pairs = [pair.partition("=") for pair in text.split(",")]
    if any(not ours or not theirs for ours, _, theirs in pairs):
        raise ConfigError(f"--columns must look like uri=path,label=dx. Received: {text}")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def parse_intensity_range(text: str) -> tuple[float, float] | None:
    """Parses `--intensity-range LO,HI`; returns None for `auto`.

    Raises:
        ConfigError: The text is neither.
    """
    if text == "auto":
        return None
    low, _, high = text.partition(",")
    try:
        limits = float(low), float(high)
    except ValueError:
        limits = (0.0, 0.0)
    is_range = -math.inf < limits[0] < limits[1] < math.inf
    require(is_range, f"--intensity-range must be 'auto' or LO,HI with LO < HI. Received: {text}")
    return limits


def parse_prior(text: str) -> dict[str, float]:
    """Parses `--prior CLASS=SHARE,...` into a share for each class; returns an empty dict for `train` and `uniform`.

    A class name may contain commas and equals signs; it is returned in Unicode's form NFC, as labels are.

    Raises:
        ConfigError: The text is none of these, a class is named twice, or the shares are not positive with a sum of 1.
    """
    if text in (TRAIN_PRIOR, UNIFORM_PRIOR):
        return {}
    found = list(re.finditer(r"(.+?)=\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(?:,|$)", text))
    is_whole = "".join(match[0] for match in found) == text
    try:
        shares = {unicodedata.normalize("NFC", match[1].strip()): float(match[2]) for match in found}
    except ValueError:  # such as 0.5.5
        shares = {}
    require(
        is_whole and len(shares) == len(found) > 0 and min(shares.values(), default=0) > 0,
        f"--prior must be train, uniform, or CLASS=SHARE,... with a positive share for each class. Received: {text}",
    )
    total = sum(shares.values())
    require(abs(total - 1) <= MAX_PRIOR_ERROR, f"The shares of --prior must sum to 1, not {total:g}. Received: {text}")
    return shares

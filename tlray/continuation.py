"""The continuation of a run with --resume: its directory keeps the settings that it was begun with."""

import json
from collections.abc import Set as AbstractSet

from tlray import storage
from tlray.config import TrainConfig, to_json
from tlray.errors import ConfigError
from tlray.jobconfig import SweepConfig

CONFIG = "config.json"

# What may differ between any run and its continuation.
_FREE = frozenset({"resume", "overwrite", "quiet"})


def check_output(
    config: TrainConfig | SweepConfig,
    *,
    kind: str,
    known_names: frozenset[str],
    free: AbstractSet[str] = frozenset(),
) -> bool:
    """Tells whether there is a run to continue; refuses an output that must not be touched.

    Settings that an earlier version of tlray did not know count as the same.

    Args:
        config: What is to be run, its locations absolute.
        kind: See `storage.check_output`.
        known_names: See there.
        free: Settings that may differ, besides `resume`, `overwrite` and `quiet`.

    Raises:
        ConfigError: It must not, or the run was begun with other settings.
    """
    location = storage.join(config.out, CONFIG)
    if not config.resume or not storage.exists(location):
        storage.check_output(config.out, kind=kind, known_names=known_names, overwrite=config.overwrite)
        if config.resume and not config.quiet:
            print(f"There is no {kind} to resume in '{config.out}': it begins anew.")
        return False
    before, now = json.loads(storage.read_bytes(location)), json.loads(to_json(config))
    changed = [name for name in before if name not in _FREE | free and now.get(name) != before[name]]
    if changed:
        listed = "; ".join(f"{name} was {before[name]!r} and is {now.get(name)!r}" for name in changed)
        raise ConfigError(
            f"--resume continues the {kind} in {config.out} with its own settings: {listed}. Give those, or another "
            "--out."
        )
    return True

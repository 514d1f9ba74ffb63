"""Checks before a run is continued with --resume, against the settings that its directory keeps."""

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from tlray.config.commands import SweepConfig
from tlray.config.training import TrainConfig, to_json
from tlray.errors import ConfigError
from tlray.files import storage

CONFIG = "config.json"
"""Name of the file with the settings of a run or a sweep, in its directory."""

# Settings that may differ between any run and its continuation.
_FREE = frozenset({"resume", "overwrite", "quiet"})


def read_settings(config: TrainConfig | SweepConfig) -> dict[str, Any] | None:
    """Returns the stored settings of the run or sweep to continue, unchecked; None if there is none to continue."""
    location = storage.join(config.out, CONFIG)
    return json.loads(storage.read_bytes(location)) if config.resume and storage.exists(location) else None


def stored_settings(
    config: TrainConfig | SweepConfig,
    *,
    kind: str,
    known_names: frozenset[str],
    free: AbstractSet[str] = frozenset(),
) -> dict[str, Any] | None:
    """Returns the stored settings of the run to continue; None if there is none. Refuses to touch another output.

    Settings that an earlier version of tlray did not know count as the same.

    Args:
        config: The config of the run, its locations absolute.
        kind: See `storage.check_output`.
        known_names: See `storage.check_output`.
        free: Settings that may differ, besides `resume`, `overwrite` and `quiet`.

    Raises:
        ConfigError: The output must not be touched, or the run was begun with other settings.
    """
    before = read_settings(config)
    if before is None:
        storage.check_output(config.out, kind=kind, known_names=known_names, overwrite=config.overwrite)
        if config.resume and not config.quiet:
            print(f"There is no {kind} to resume in '{config.out}', so it starts from the beginning.")
        return None
    now = json.loads(to_json(config))
    changed = [name for name in before if name not in _FREE | free and now.get(name) != before[name]]
    if changed:
        listed = "; ".join(f"{name} was {before[name]!r} and is {now.get(name)!r}" for name in changed)
        raise ConfigError(
            f"--resume needs the settings that the {kind} in '{config.out}' was started with: {listed}. Give those, or "
            "another --out."
        )
    return before


def check_losses(before: Mapping[str, Any], *, kind: str, out: str, has_losses: bool) -> None:
    """Refuses to continue a run whose losses an earlier version of tlray measured in another way.

    A version without --prior measured losses under the class shares that the class weights imply. Now they are measured
    under the class shares of the images. To choose the lowest among both kinds would be meaningless.

    Args:
        before: The stored settings of the run to continue.
        kind: See `storage.check_output`.
        out: The run's directory.
        has_losses: Whether the run has stored losses of a model that was trained with class weights.

    Raises:
        ConfigError: The losses of the run and those of its continuation cannot be compared.
    """
    if has_losses and "prior" not in before:
        raise ConfigError(
            f"The {kind} in '{out}' was begun by an earlier version of tlray, whose validation losses with "
            "class weights cannot be compared with those of this version. Begin anew with --overwrite."
        )


def keep_new_settings(config: TrainConfig | SweepConfig, before: Mapping[str, Any], location: str) -> None:
    """Stores the settings with which a run is continued: those that may differ, and those that are new in this version.

    `resume`, `overwrite` and `quiet` stay as the run was begun.

    Args:
        config: The settings of the continuation, which `stored_settings` has accepted.
        before: The stored settings of the run.
        location: The file in which they are stored.
    """
    now = {**before, **json.loads(to_json(config)), **{name: before[name] for name in _FREE & before.keys()}}
    if now != before:
        storage.write_text(location, json.dumps(now, indent=2) + "\n")

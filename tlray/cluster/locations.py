"""Checks the input and output locations of a command and makes them absolute, for Ray jobs and several nodes."""

import dataclasses
import os
import urllib.parse
from collections.abc import Iterable
from typing import Any

from tlray.cluster import connection
from tlray.cluster.capacity import Capacity
from tlray.config.training import TrainConfig
from tlray.config.values import parse_columns
from tlray.data import tables
from tlray.errors import ConfigError
from tlray.files import storage


def output_location(location: str) -> str:
    """Returns an output location as an absolute path or URI, so that a later process finds it again.

    Raises:
        ConfigError: The location is relative in a Ray job, so it would be in Ray's temporary copy of the job's files.
    """
    if connection.in_job() and not storage.is_uri(location) and not os.path.isabs(os.path.expanduser(location)):
        raise ConfigError(
            f"--out {location} is relative: in a Ray job it would be lost with Ray's copy of the working directory. "
            "Give an absolute path on storage that all nodes share, or a URI (s3://, gs://)."
        )
    return storage.absolute(location)


def input_location(location: str) -> str:
    """Returns an input location as an absolute path or URI; relative paths start at the working directory."""
    return storage.absolute(location)


def absolute(config: TrainConfig) -> TrainConfig:
    """Returns a config with absolute locations, which mean the same in every process.

    Raises:
        ConfigError: See `output_location`.
    """

    def if_path(location: str | None, *names: str) -> Any:
        return location if location is None or location in names else input_location(location)

    own_model = config.backbone.endswith(".keras")
    return dataclasses.replace(
        config,
        data=input_location(config.data),
        out=output_location(config.out),
        weights=if_path(config.weights, "imagenet", "none"),
        class_map=if_path(config.class_map),
        backbone=input_location(config.backbone) if own_model else config.backbone,
    )


def check_shared(location: str, available: Capacity, *, option: str = "--out") -> None:
    """Refuses a plain path if the cluster has, or may add, other nodes, which may not see it.

    A `file://` URI states that all nodes see it. Weights, a backbone and a class map need no such check: only the
    driver's node reads them (see `connection.start_here`) and passes them on.

    Args:
        location: An absolute path or a URI.
        available: Resources of the cluster.
        option: The command-line option of the location, for the message.

    Raises:
        ConfigError: The location is a plain path and the cluster has, or may add, several nodes.
    """
    if available.has_many_nodes and not storage.is_uri(location):
        raise ConfigError(
            f"{option} {location} is a path on this node, and the cluster has others. Give a URI (s3://, gs://), or "
            f"file://{urllib.parse.quote(location)} if all nodes mount that path."
        )


def check_shared_images(
    source: str,
    columns: str | None,
    available: Capacity,
    *,
    stored_uris: Iterable[str] | None = None,
    option: str = "--data",
) -> None:
    """Refuses images at plain paths if the cluster has, or may add, other nodes; see `check_shared`.

    If the source is a manifest, the images that it lists are checked: the driver alone reads the manifest. A continued
    run does not need its source any more if all its stored images are at URIs. A stored plain path may have been given
    as a `file://` URI, so the source is checked then.

    Args:
        source: See `listing.list_images`; an absolute path or a URI.
        columns: Value of the option `--columns`.
        available: Resources of the cluster.
        stored_uris: Locations of the images that a continued run has stored; None if there are none.
        option: The command-line option of the source, for the message.

    Raises:
        ConfigError: See `check_shared`.
        DataError: The manifest cannot be read.
    """
    if not available.has_many_nodes or (stored_uris is not None and all(map(storage.is_uri, stored_uris))):
        return
    location = tables.plain_path(source, columns=parse_columns(columns))
    if location is not None:
        check_shared(location, available, option=option)

"""Locations that are given to a command: what they mean in a Ray job, and on a cluster of several nodes."""

import dataclasses
import os
import urllib.parse
from collections.abc import Iterable
from typing import Any

from tlray.cluster import connection
from tlray.cluster.connection import Capacity
from tlray.config.training import TrainConfig, parse_columns
from tlray.data import listing
from tlray.errors import ConfigError
from tlray.files import storage


def output_location(location: str) -> str:
    """Returns an output location that a later process will find again.

    Raises:
        ConfigError: It would lie in Ray's temporary copy of a job's files.
    """
    if connection.in_job() and not storage.is_uri(location) and not os.path.isabs(os.path.expanduser(location)):
        raise ConfigError(
            f"--out {location} is relative: in a Ray job it would be lost with Ray's copy of the working directory. "
            "Give an absolute path on storage that all nodes share, or a URI (s3://, gs://)."
        )
    return storage.absolute(location)


def input_location(location: str) -> str:
    """Returns an input location as an absolute path or URI (relative ones are seen from the working directory)."""
    return storage.absolute(location)


def absolute(config: TrainConfig) -> TrainConfig:
    """Returns a config whose locations mean the same in every process."""

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
    """Refuses a node-local location where workers may run on other nodes.

    A `file://` URI says that all nodes see it. Weights, a backbone and a class map are not for this check: the node of
    the driver alone reads them (`cluster.start_here`) and hands them on.

    Args:
        location: An absolute path or a URI.
        available: What the cluster has.
        option: The option that it was given with.

    Raises:
        ConfigError: It is a plain path and the cluster has several nodes.
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
    """Refuses node-local images in the same way; of a manifest, which the driver reads, those count that it lists.

    A run that is continued needs its source no more. That is looked at only where one of the images is at a local path,
    which may have been given as a `file://` URI.

    Args:
        source: See `listing.list_images`; an absolute path or a URI.
        columns: The setting `--columns`.
        available: What the cluster has.
        stored_uris: The images that a continued run has stored; None: there are none.
        option: The option that the source was given with.

    Raises:
        ConfigError: See `check_shared`.
        DataError: A manifest cannot be read.
    """
    if not available.has_many_nodes or (stored_uris is not None and all(map(storage.is_uri, stored_uris))):
        return
    location = listing.plain_path(source, columns=parse_columns(columns))
    if location is not None:
        check_shared(location, available, option=option)

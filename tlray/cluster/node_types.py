"""Reads which nodes the autoscaler of a cluster may add, from the file that `ray up` puts on the head.

Ray 2.60 has no interface that tells it: its autoscaler does not report its configuration to the cluster.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt

BOOTSTRAP_FILE = "~/ray_bootstrap_config.yaml"
"""File on the head with the configuration of the autoscaler. `ray up` writes it, with all defaults filled in."""

GROUP_LABEL = "ray.io/node-group"
"""Label of a node with the name of its node type. `ray up` and KubeRay set it; `ray start` and `ray.init` do not."""


class _NodeType(BaseModel):
    """The part of a node type that tells what its nodes offer and how many workers of it there may be."""

    resources: dict[str, NonNegativeFloat] | None = None
    max_workers: NonNegativeInt = 0


class _Bootstrap(BaseModel):
    """The part of `BOOTSTRAP_FILE` that tells which nodes the cluster may have."""

    available_node_types: dict[str, _NodeType]
    head_node_type: str
    max_workers: NonNegativeInt


def nodes_at_most(group: str | None) -> list[Mapping[str, float]]:
    """Returns the resources of each node that the cluster has once its autoscaler has added all that it may.

    A node type without `resources` (`ray up` fills them in on AWS only) counts as nodes that offer nothing, because
    the autoscaler adds none of them for a task either. If the types allow more workers together than the cluster may
    have, those with the most GPUs, then the most CPUs, are returned.

    Args:
        group: Value of `GROUP_LABEL` of the node of this process; None if it has none. It tells a head that `ray up`
            has started from another Ray on a machine where an old file lies.

    Returns:
        Resources of the head and of each worker; empty if they are not known. They are known only to processes on the
        head of a cluster that `ray up` has started, such as the jobs of `ray job submit`.
    """
    config = _read()
    head = config.available_node_types.get(config.head_node_type) if config else None
    if config is None or head is None or group != config.head_node_type:
        return []
    workers = [
        node_type.resources or {}
        for node_type in config.available_node_types.values()
        for _ in range(min(node_type.max_workers, config.max_workers))
    ]
    workers.sort(key=lambda resources: (resources.get("GPU", 0.0), resources.get("CPU", 0.0)), reverse=True)
    return [head.resources or {}, *workers[: config.max_workers]]


def _read() -> _Bootstrap | None:
    """Returns the configuration of the autoscaler; None if there is no file, or one that cannot be used."""
    try:
        return _Bootstrap.model_validate(yaml.safe_load(Path(os.path.expanduser(BOOTSTRAP_FILE)).read_bytes()))
    except (OSError, ValueError, yaml.YAMLError):  # ValueError: not UTF-8, or another content
        return None

"""Which nodes may come, by the file that `ray up` leaves on the head; without a running Ray."""

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config

from tlray.cluster import node_types

ROOT = Path(__file__).parents[3]


def write_bootstrap(home: Path, types: Mapping[Any, tuple[Any, int]], max_workers: int) -> None:
    """Writes the file of `ray up`, which is JSON.

    Args:
        home: The home directory.
        types: Name of each node type, with its resources (None: without any) and its maximum number of workers. The
            first one is the head's.
        max_workers: Maximum number of workers of all types.
    """
    described = {
        str(name): {
            "node_config": {"InstanceType": "m6i.xlarge"},
            "min_workers": 0,
            "max_workers": count,
            **({} if resources is None else {"resources": resources}),
        }
        for name, (resources, count) in types.items()
    }
    config = {
        "cluster_name": "c",
        "provider": {"type": "aws", "region": "us-west-2"},
        "max_workers": max_workers,
        "available_node_types": described,
        "head_node_type": next(iter(described)),
    }
    (home / "ray_bootstrap_config.yaml").write_text(json.dumps(config))


def as_on_aws(name: str) -> dict[str, Any]:
    """Returns a cluster's file as `ray up` prepares it, with the memory that it fills in for workers on AWS."""
    config = prepare_config(yaml.safe_load((ROOT / name).read_text()))
    for node_type in config["available_node_types"]:
        if node_type != config["head_node_type"]:
            config["available_node_types"][node_type]["resources"]["memory"] = 24051816857
    return config


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_nodes_of_all_types(home):
    types = {"small head": ({"CPU": 2}, 0), "cpu": ({"CPU": 4}, 2), "gpu": ({"CPU": 8, "GPU": 1, "accelerator": 1}, 1)}
    write_bootstrap(home, types, 5)
    gpu, cpu = {"CPU": 8, "GPU": 1, "accelerator": 1}, {"CPU": 4}
    assert node_types.nodes_at_most("small head") == [{"CPU": 2}, gpu, cpu, cpu]


def test_the_head_may_be_of_a_workers_type(home):
    write_bootstrap(home, {"all": ({"CPU": 4}, 2)}, 10)
    assert node_types.nodes_at_most("all") == [{"CPU": 4}] * 3


@pytest.mark.parametrize(
    ("max_workers", "workers"),
    [(0, []), (1, [(8, 1)]), (3, [(8, 1), (8, 1), (16, 0)]), (4, [(8, 1), (8, 1), (16, 0), (4, 0)])],
)
def test_if_not_all_may_be_up_together_gpus_come_first(home, max_workers, workers):
    types = {"head": ({"CPU": 0}, 0), "a": ({"CPU": 4}, 9), "b": ({"CPU": 16}, 1), "c": ({"CPU": 8, "GPU": 1}, 2)}
    write_bootstrap(home, types, max_workers)
    found = [(each["CPU"], each.get("GPU", 0)) for each in node_types.nodes_at_most("head")[1:]]
    assert found == workers


@pytest.mark.parametrize("resources", [None, {}])
def test_nodes_of_which_ray_knows_no_resources_count_without_any(home, resources):
    """On the user's own machines, and where AWS did not tell them, `ray up` writes none."""
    write_bootstrap(home, {"head": (resources, 0), "worker": (resources, 2)}, 2)
    assert node_types.nodes_at_most("head") == [{}, {}, {}]


def test_yaml_is_read_too(home):
    types = "{h: {}, w: {resources: {CPU: 3}, max_workers: 1}}"
    text = f"head_node_type: h\nmax_workers: 1\navailable_node_types: {types}\n"
    (home / "ray_bootstrap_config.yaml").write_text(text)
    assert node_types.nodes_at_most("h") == [{}, {"CPU": 3}]


@pytest.mark.parametrize("group", [None, "", "worker", "head of another cluster"])
def test_a_file_does_not_count_for_a_ray_that_is_not_its_own(home, group):
    """As of a Ray that was started by hand where `ray up` had once started one."""
    write_bootstrap(home, {"head": ({"CPU": 0}, 0), "worker": ({"CPU": 8}, 4)}, 4)
    assert len(node_types.nodes_at_most("head")) == 5
    assert node_types.nodes_at_most(group) == []


def spoil(**changes: Any) -> bytes:
    types = {"head": {"resources": {"CPU": 0}}, "worker": {"resources": {"CPU": 8}, "max_workers": 4}}
    return json.dumps({"available_node_types": types, "head_node_type": "head", "max_workers": 4} | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"- a list",
        b"'a text'",
        b"{",
        b"\xff\xfe\xfa",
        spoil()[:-20],
        spoil(max_workers=None),
        spoil(max_workers=-1),
        spoil(head_node_type="gone"),
        spoil(available_node_types=[]),
        spoil(available_node_types={"head": None}),
        spoil(available_node_types={"head": {"resources": {"CPU": "some"}}}),
        spoil(available_node_types={"head": {}, "worker": {"max_workers": "many"}}),
    ],
)
def test_a_damaged_file_is_as_none(home, content):
    file = home / "ray_bootstrap_config.yaml"
    assert node_types.nodes_at_most("head") == []
    file.write_bytes(spoil())
    assert len(node_types.nodes_at_most("head")) == 5
    file.write_bytes(content)
    assert node_types.nodes_at_most("head") == []


def test_a_file_that_cannot_be_read_is_as_none(home):
    os.mkdir(home / "ray_bootstrap_config.yaml")
    assert node_types.nodes_at_most("head") == []


def test_the_documented_cluster_names_this_file():
    commands = "\n".join(as_on_aws("cluster.yaml")["head_start_ray_commands"])
    assert f"--autoscaling-config={node_types.BOOTSTRAP_FILE}" in commands


def test_ray_labels_a_node_with_the_type_that_ray_up_names(monkeypatch):
    """`ray up` starts Ray on the head with this variable (in `get_or_create_head_node` of Ray's launcher)."""
    spec = importlib.import_module("ray._private.resource_and_label_spec").ResourceAndLabelSpec
    monkeypatch.delenv("RAY_NODE_TYPE_NAME", raising=False)
    assert node_types.GROUP_LABEL not in spec._get_default_labels(None)
    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "head")
    assert spec._get_default_labels(None)[node_types.GROUP_LABEL] == "head"

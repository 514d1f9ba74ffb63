"""The private names of Ray: they are as few as said, exist in this version, and do what they are needed for.

If a test here fails after Ray was upgraded, read what the name does now (its reason is in `NAMES`), mend
`ray_internals`, and set `CHECKED_VERSION`. If Ray has made a public interface of it, use that and delete the name.
"""

import ast
import functools
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.data import DataContext

from tlray.cluster import ray_internals

ROOT = Path(__file__).parents[2]


def test_ray_is_of_the_version_in_which_they_were_checked():
    assert ray.__version__.rpartition(".")[0] == ray_internals.CHECKED_VERSION


@pytest.mark.parametrize("name", ray_internals.NAMES)
def test_a_name_exists(name):
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        owner = functools.reduce(getattr, parts[count:-1], found)
        assert hasattr(owner, parts[-1])
        return
    pytest.fail(f"{name} is in no module")


def test_the_list_has_all_that_the_module_takes():
    """`make check` (ruff) sees to it that no other module takes any."""
    tree = ast.parse(Path(ray_internals.__file__).read_text())
    taken = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and "._" in node.module
        for alias in node.names
    }
    modules = {name.rpartition(".")[2] for name in taken if name.count(".") == 2}
    attributes = {
        f"ray._private.{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }
    private = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    private = {name for name in private if name.startswith("_") and not name.endswith("__")}
    private -= {name.rpartition(".")[2] for name in attributes}
    names = {name for name in taken if name.rpartition(".")[2] not in modules} | attributes
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    arguments = {argument.value for call in calls for argument in call.args if isinstance(argument, ast.Constant)}
    names |= {name for name in arguments if str(name).startswith("ray._private.")}  # a logger
    names |= {f"ray.job_submission.JobSubmissionClient.{name}" for name in private}
    assert names == set(ray_internals.NAMES)
    assert len(names) <= 8


# That they do what they are there for: the free resources of nodes in test_beside_others.py, ports and addresses in
# test_localray.py, the job server's session in test_jobs.py of the endpoint.


@pytest.mark.parametrize(("found", "expected"), [(None, True), ("192.0.2.1:6379", False)])
def test_a_ray_is_started_where_none_is_found_or_named(monkeypatch, found, expected):
    monkeypatch.setattr(ray_internals.services, "canonicalize_bootstrap_address", lambda _: found)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_internals.would_start() is expected
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.2:6379")
    assert not ray_internals.would_start()


@pytest.mark.usefixtures("local_ray")
def test_the_loop_of_ray_data_rests(monkeypatch):
    rests: list[float] = []
    context = DataContext.get_current()
    monkeypatch.setattr(context, "custom_execution_callback_classes", [])
    monkeypatch.setattr(ray_internals, "time", SimpleNamespace(sleep=rests.append))
    ray_internals.rest_between_rounds(0.25)
    assert ray.data.range(8, override_num_blocks=2).map_batches(lambda batch: batch).materialize().count() == 8
    assert set(rests) == {0.25}

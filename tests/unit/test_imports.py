"""What importing brings along and does, seen in a fresh interpreter."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def modules_of(package: str) -> set[str]:
    """The modules of a package and of those in it, or the module itself."""
    path = ROOT / package.replace(".", "/")
    found = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    names = {".".join(each.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for each in found}
    return {name for name in names if not name.endswith(".__main__")}


def without(name: str) -> set[str]:
    """The modules that a contract forbids to import a package, by way of others or in a function either."""
    (contract,) = (each for each in CONTRACTS if each.get("forbidden_modules", [""])[0] == name)
    return set().union(*(modules_of(package) for package in contract["source_modules"]))


WITH_TENSORFLOW = {
    "tlray.engines.tensorflow_engine",
    "tlray.models.artifact",
    "tlray.models.backbone",
    "tlray.models.classifier",
    "tlray.models.devices",
    "tlray.models.explain",
    "tlray.models.files",
    "tlray.models.graph",
    "tlray.models.layers",
    "tlray.models.trunk",
    "tlray.tuning.trial",
    "tlray.training.batches",
    "tlray.training.own_model",
    "tlray.training.loop",
    "tlray.training.step",
    "tlray.training.strategy",
}
"""What nobody imports before the process that computes has chosen its devices."""

CORE = sorted(without("ray") - WITH_TENSORFLOW | {"tlray.cli", "tlray.commands"})
ON_RAY = sorted((modules_of("tlray") | modules_of("serve_app")) - WITH_TENSORFLOW - set(CORE))

# Imports several lists of modules, one after the other. Prints, for each module, what of its list's forbidden ones has
# come with it or with those before it, and at the end what they have started.
PROGRAM = """
import json, logging, os, signal, sys, threading
lists = json.loads(sys.argv[1])
handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
environment, mask = dict(os.environ), os.umask(0o22)
sys.argv[1:] = ["--no-such-option"]
for names, forbidden in lists:
    for name in names:
        __import__(name)
        found = [module for module in forbidden if module in sys.modules]
        if found:
            print(f"{name} imports {found}")
if logging.getLogger().handlers or logging.getLogger("tlray").handlers or logging.getLogger().level != logging.WARNING:
    print("logging was set up")
if [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != handlers:
    print("signal handlers were changed")
if os.umask(mask) != 0o22:
    print("the umask was changed")
if threading.active_count() > 1:
    print(f"threads were started: {threading.enumerate()}")
if "ray" in sys.modules and sys.modules["ray"].is_initialized():
    print("Ray was started")
print(sorted(name for name in os.environ if environment.get(name) != os.environ[name]))
"""


def run(lists: list[tuple[list[str], list[str]]], directory: str) -> str:
    """Imports lists of modules, each with what is forbidden, in a fresh interpreter; returns all that it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TF_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(lists)],
        cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_importing_brings_no_more_than_it_should_and_does_nothing(tmp_path):
    """In one interpreter, as each takes seconds: the core first, which is to come without Ray."""
    heavy = ["tensorflow", "keras", "matplotlib.pyplot"]
    *complaints, environment = run([(CORE, ["ray", *heavy]), (ON_RAY, heavy)], str(tmp_path)).splitlines()
    assert complaints == []
    # Ray sets some of its own; nobody may set TensorFlow's before the command or the worker does.
    assert "TF_" not in environment
    assert "tlray" not in environment.lower()
    assert os.listdir(tmp_path) == []


def test_a_replica_that_starts_waits_for_no_library_that_it_does_not_need(tmp_path):
    later = ["ray.data", "ray.job_submission", "scipy", "sklearn", "matplotlib", "tensorflow"]
    *complaints, _ = run([(["serve_app.app"], later)], str(tmp_path)).splitlines()
    assert complaints == []


def test_tensorflow_comes_with_each_module_that_is_said_to_bring_it():
    heavy = {"keras", "tensorflow"} | WITH_TENSORFLOW
    for name in WITH_TENSORFLOW:
        tree = ast.parse((ROOT / name.replace(".", "/")).with_suffix(".py").read_text())
        imported = {each.name for node in tree.body if isinstance(node, ast.Import) for each in node.names}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                imported |= {str(node.module), *(f"{node.module}.{each.name}" for each in node.names)}
        assert imported & heavy, name


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path):
    """As the clone does for one who works beside it: Ray puts the working directory into its workers' path."""
    (tmp_path / "tlray" / "tests").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", "import tlray; print(tlray.__version__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    from tlray import __version__

    assert done.stdout.strip() == __version__

"""What importing brings along and does, seen in a fresh interpreter."""

import os
import subprocess
import sys

import pytest

CORE = [
    "errors",
    "config.training",
    "files.storage",
    "progress",
    "data.decoding",
    "data.manifest",
    "data.listing",
    "data.labels",
    "data.audit",
    "evaluation.metrics",
]
CORE += [
    "evaluation.report",
    "bundle.spec",
    "training.checkpoint",
    "data.phantoms",
    "data.schedule",
    "training.plateau",
    "probe.regression",
    "config.recipes",
    "cli",
    "config.commands",
]
CORE += [
    "probe.learning_curves",
    "data.phantom_files",
    "evaluation.figures",
    "evaluation.glyphs",
    "config.helptext",
    "sweep.comparison",
    "features.store",
    "files.roots",
    "data.drift",
    "models.weights",
    "training.resume",
    "sweep.trial_table",
    "data.foreign_formats",
    "data.layout",
    "files.zip_archive",
    "models.outputs",
    "data.prior",
    "data.inspected",
    "cluster.ports",
    "files.spreadsheet",
    "files.file_stamps",
    "inference.score_state",
    "inference.predictions",
]
ON_RAY = [
    "data.stream",
    "cluster.ray_init",
    "cluster.local_ray",
    "cluster.connection",
    "cluster.plans",
    "cluster.locations",
    "features.cache",
    "training.task",
    "sweep.task",
    "data.dataset",
    "training.live_progress",
    "inference.score",
    "features.extraction",
    "features.update",
    "training.assembly",
    "training.probing",
    "training.fit",
    "sweep.tuner",
    "evaluation.evaluate",
    "training.wording",
    "training.run",
    "sweep.search",
]

# Prints, for each module, what of the forbidden has come with it or with those before it, and what it has started.
PROGRAM = """
import logging, os, signal, sys, threading
forbidden, names = (text.split() for text in sys.argv[1:])
handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
environment, mask = dict(os.environ), os.umask(0o22)
sys.argv[1:] = ["--no-such-option"]
for name in names:
    __import__(f"tlray.{name}")
    found = [module for module in forbidden if module in sys.modules]
    if found:
        print(f"tlray.{name} imports {found}")
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


def run(modules: list[str], forbidden: list[str], directory: str) -> str:
    """Imports modules in a fresh interpreter in an empty directory; returns all that it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TF_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, " ".join(forbidden), " ".join(modules)],
        cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [(CORE, ["ray", "tensorflow", "keras"]), (ON_RAY, ["tensorflow", "keras"])],
    ids=["core", "on Ray"],
)
def test_importing_brings_no_more_than_it_should_and_does_nothing(modules, forbidden, tmp_path):
    *complaints, environment = run(modules, forbidden, str(tmp_path)).splitlines()
    assert complaints == []
    # Ray sets some of its own; nobody may set TensorFlow's before the command or the worker does.
    assert "TF_" not in environment
    assert "tlray" not in environment.lower()
    assert os.listdir(tmp_path) == []


def test_every_module_is_known_here():
    import tlray

    (folder,) = tlray.__path__
    found = {name.removesuffix(".py") for name in os.listdir(folder) if name.endswith(".py")}
    assert found - {"__init__", "__main__"} == {
        *CORE,
        *ON_RAY,
        "artifact",
        "backbone",
        "model",
        "trunk",
        "devices",
        "predictor",
        "explain",
        "trainloop",
        "trials",
        "exporting",
    }  # with TensorFlow


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path):
    """As the clone does for one who works beside it: Ray puts the working directory into its workers' path."""
    (tmp_path / "tlray" / "tests").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", "import tlray; print(tlray.__version__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    from tlray import __version__

    assert done.stdout.strip() == __version__

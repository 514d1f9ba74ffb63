"""The command line: what is parsed, shown, refused, and with which exit code. Nothing here starts Ray."""

import ast
import contextlib
import dataclasses
import errno
import functools
import inspect
import itertools
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.processes import output_at_end
from tlray import __version__, cli
from tlray.bundle.agreement import Agreement
from tlray.config.commands import AuditConfig, FeaturesConfig, SweepConfig, VerifyConfig
from tlray.config.export import ExportConfig
from tlray.config.phantoms import PhantomConfig
from tlray.config.prediction import (
    CompareConfig,
    EnginesConfig,
    EvaluateConfig,
    ScoreConfig,
    ServeConfig,
    SuggestConfig,
)
from tlray.config.recipes import RECIPES, standard
from tlray.config.training import Augmentation, TrainConfig
from tlray.data import phantom_files
from tlray.engines.kinds import EngineKind
from tlray.errors import BundleError, ConfigError, DataError, ImageError, ImageErrorCode, TlrayError
from tlray.evaluation.checks import Check
from tlray.evaluation.compare import CompareResult
from tlray.evaluation.data_audit import AuditResult
from tlray.evaluation.verification import VerifyResult
from tlray.files import storage
from tlray.inference import score_state
from tlray.inference.suggest import SuggestResult
from tlray.training import resume
from tlray.training.paths import RunPaths

CONFIGS = {
    "audit": AuditConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "verify": VerifyConfig,
    "score": ScoreConfig,
    "suggest": SuggestConfig,
    "serve": ServeConfig,
    "features": FeaturesConfig,
    "sweep": SweepConfig,
    "export": ExportConfig,
    "engines": EnginesConfig,
    "phantoms": PhantomConfig,
}


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Wide output, and what a command changes of its process as it was before."""
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("TF_CPP_MIN_LOG_LEVEL", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def tlray(command_line: str) -> int | str | None:
    """Runs a command line and returns its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main(shlex.split(command_line))
    return caught.value.code


@pytest.fixture
def called(monkeypatch):
    """Puts stand-ins in the place of the modules that do the work; gives the configs that they were called with."""
    received: list = []
    metrics = {
        "num_images": 40, "num_failed": 2, "accuracy": 0.8125, "accuracy_ci95": (0.7, 0.9),
        "balanced_accuracy": 0.75, "balanced_accuracy_ci95": (0.625, 0.875), "log_loss": 0.5,
        "log_loss_ci95": (0.375, None),
    }  # fmt: skip
    recall, other_recall = (
        {"recall": value, "recall_ci95": [value - 0.25, value + 0.125], "support": 40} for value in (0.75, 0.5)
    )
    results = {
        ("training.run", "train"): SimpleNamespace(
            out="/o", bundle="/o/bundle", num_epochs=7, best_epoch=4, metrics={"test": metrics}, cross_validation=None,
            warnings=("Look out.",), timing_s={"starting Ray": 2.04, "computing features": 10.96},
        ),
        ("evaluation.data_audit", "audit_images"): AuditResult(
            out="/o", warnings=("The files tell the classes.",), num_fixed=12,
            findings={
                "num_images": 20, "num_readable": 19, "groups": {"across_splits": {"num_groups": 2}},
                "copies": {
                    "identical": {"num_groups": 1, "num_images": 2},
                    "series": {"num_groups": 3, "num_images": 9},
                    "copies": {
                        "num_groups": 2, "num_images": 5,
                        "across_splits": {"num_groups": 1, "num_images": 3},
                        "conflicting_labels": {"num_groups": 0, "num_images": 0},
                    },
                },
                "shortcuts": {"found": [{"family": "size"}, {"family": "file"}], "num_folds": 5},
                "split_shortcuts": {"found": [], "num_folds": 5, "given": ["train", "test"]},
                "traits_control": {
                    "accuracy": 0.75, "accuracy_ci95": [0.5, 0.875], "chance": 0.25, "split": "test", "num_images": 40,
                },
            },
        ),
        ("evaluation.evaluate", "evaluate"): SimpleNamespace(
            out="/o", split="test", engine="openvino bfloat16", metrics=metrics,
            warnings=("The metrics are too good.",),
            overlays=SimpleNamespace(text="Overlays point at what decides."),
        ),
        ("evaluation.compare", "compare"): CompareResult(
            out="/o", split="valid", warnings=("Both bundles were trained on this data.",),
            comparison={
                "num_images": 40, "num_left_out": 2, "bundle_num_known": 2, "reference_num_known": None,
                "num_by_error": {"empty": 2, "truncated": 1}, "num_unlabelled": 5,
                "accuracy_difference": 0.05, "accuracy_difference_ci95": [-0.0312, 0.125], "p_value": 0.28125,
                "conclusion": "The images do not show which is better.", "num_only_bundle_right": 3,
                "num_only_reference_right": 1, "same_label_share": 0.875, "same_label_share_ci95": [0.75, 0.9375],
                "num_refer_differs": 4,
                "bundle_metrics": metrics | {"per_class": {"a": recall, "b": {"support": 0}}},
                "reference_metrics": metrics | {"accuracy": 0.75, "per_class": {"a": other_recall, "b": {}}},
            },
        ),
        ("evaluation.verification", "verify"): VerifyResult(
            checks=(Check(name="the run", is_right=True),),
            num_files=9, num_images=22, num_figures=81, evidence_sha256="5" * 64,
        ),
        ("inference.score", "score"): SimpleNamespace(
            out="/o", engine="openvino bfloat16",
            num_images=9, num_failed=3, num_referred=1, num_by_reason={"low_confidence": 1},
            num_by_label={"a": 6, "b": 0},
            num_by_error={"empty": 2, "truncated": 1}, num_skipped=5,
        ),
        ("inference.suggest", "suggest"): SuggestResult(
            out="/o", image_ids=("1.png", "2.png"), notes=("Only 2 images are suggested.",),
            summary={
                "num_images": 16, "num_labelled": 4, "num_skipped": 5, "num_scored": 9,
                "num_by_error": {"empty": 2, "truncated": 1}, "num_foreign": 6, "num_known": 3, "num_suggested": 2,
                "num_unsure": 1, "uncertainty_range": [0.25, 0.875], "max_ood_score": 0.3,
                "engine": "openvino bfloat16",
            },
        ),
        ("features.update", "extract_features"): SimpleNamespace(
            out="/o", num_rows=12, num_reused=5, num_failed=1, shapes={"pooled": (56,), "cut_0": (7, 7, 6)},
            notes=("part-1 was damaged.",),
        ),
        ("tuning.search", "sweep"): SimpleNamespace(
            out="/o",
            trials=[
                {"depths": 4, "inverse_penalty": 1e-3, "hidden_layers": 1, "trainable_layers": 10,
                 "learning_rate": 2e-4, "dropout": 0.3, "views": 2, "seed": 5,
                 "best_loss": 0.2, "standard_error": 0.0312, "best_accuracy": 0.95, "best_epoch": 3},
                {"depths": 1, "inverse_penalty": 0.05, "hidden_layers": 0, "trainable_layers": 0, "learning_rate": 2e-4,
                 "dropout": 0.0, "views": 1, "seed": 6, "best_loss": 0.4, "standard_error": 0.05,
                 "best_accuracy": 0.875, "best_epoch": 0},
            ],
            chosen={
                "depths": 2, "inverse_penalty": 0.01, "hidden_layers": 0, "trainable_layers": 0, "learning_rate": 2e-4,
                "dropout": 0.0, "views": 1, "seed": 6, "best_loss": 0.3, "standard_error": 0.0625, "best_accuracy": 0.9,
                "best_epoch": 0,
            },
            best=SimpleNamespace(
                cross_validation=None,
                metrics={"valid": metrics}, bundle="/o/best/bundle", timing_s={"computing features": 1.25}
            ),
            timing_s={"starting Ray": 2.04, "running the trials": 90.06},
            warnings=("1 of 3 trials failed.", "Look out."),
        ),
        ("training.own_model", "export"): "5" * 64,
        ("evaluation.engine_table", "engines"): SimpleNamespace(
            agreements=(
                Agreement(
                    engine="openvino", precision="bfloat16", num_images=72, label_agreement=0.9722, num_clear=60,
                    num_clear_changed=0, max_difference=0.0327, mean_difference=0.003, log_loss_change=0.0041,
                    accuracy_change=0.0139, accuracy_change_low=-0.01, accuracy_change_high=0.04,
                    num_referrals_changed=1, images_per_s=120.6, cpu="a CPU", num_groups=30,
                ),
            ),
            is_measured=False,
            chosen=EngineKind("openvino", "bfloat16"), is_known=True, failed={"int8": "it is odd"},
        ),
    }  # fmt: skip
    for (module, function), result in results.items():
        stand_in = ModuleType(f"tlray.{module}")
        setattr(stand_in, function, lambda config, result=result: received.append(config) or result)
        monkeypatch.setitem(sys.modules, f"tlray.{module}", stand_in)
    stand_in = ModuleType("serve_app.foreground")
    stand_in.__dict__["started"] = functools.partial(started, received)
    monkeypatch.setitem(sys.modules, "serve_app.foreground", stand_in)
    return received


@contextlib.contextmanager
def started(received: list, config: ServeConfig):
    """A stand-in for an endpoint that is interrupted while it waits."""

    def wait() -> None:
        raise KeyboardInterrupt

    received.append(config)
    yield SimpleNamespace(
        address=f"http://{config.host}:{config.port}",
        options=config,
        spec=SimpleNamespace(classes=("dark", "light")),
        bundle_sha256="5" * 64,
        engine="openvino bfloat16",
        needs_key=not config.open_without_keys,
        logs="/l",
        wait=wait,
    )


def test_a_scoring_in_which_every_image_fails_is_an_error(monkeypatch, capsys):
    stand_in = ModuleType("tlray.inference.score")
    stand_in.__dict__["score"] = lambda _: SimpleNamespace(
        out="/o", engine="openvino float32", num_images=2, num_failed=2, num_referred=0, num_by_reason={},
        num_by_label={"a": 0}, num_by_error={"empty": 2}, num_skipped=0,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "tlray.inference.score", stand_in)
    assert tlray("score --bundle b --input i --out o") == 1
    shown = capsys.readouterr()
    assert "2, 2 failed (empty: 2)" in shown.out
    assert "No image of 'i' could be predicted. /o/predictions.csv has the reason for each." in shown.err


# The overview, the version, the help


@pytest.mark.parametrize("command_line", ["", "-h", "--help"])
def test_overview_lists_every_command(command_line, capsys):
    assert tlray(command_line) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^  (\w+) ", shown, re.MULTILINE) == list(CONFIGS) == list(cli.COMMANDS)
    assert "no medical device" in shown


@pytest.mark.parametrize("command_line", ["--version", "train --version", "score --bundle b --version"])
def test_version(command_line, capsys):
    assert tlray(command_line) == 0
    assert capsys.readouterr() == (f"tlray {__version__}\n", "")


def documented_fields(config: type) -> dict[str, str]:
    """Returns each field's own docstring, from the source."""
    (body,) = (
        node.body
        for node in ast.parse(inspect.getsource(sys.modules[config.__module__])).body
        if isinstance(node, ast.ClassDef) and node.name == config.__name__
    )
    return {
        ast.unparse(field.target): ast.literal_eval(text.value)
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


@pytest.mark.parametrize("command", CONFIGS)
def test_help_is_complete(command, capsys):
    assert tlray(f"{command} --help") == 0
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    fields = documented_fields(CONFIGS[command])
    assert list(fields) == [field.name for field in dataclasses.fields(CONFIGS[command])]
    if "augmentation" in fields:
        fields |= {f"augmentation.{name}": text for name, text in documented_fields(Augmentation).items()}
        assert " ".join(fields.pop("augmentation").split()) in shown
    for name, text in fields.items():
        assert re.search(rf"--{name.replace('_', '-')}[ ,]", shown), name
        assert " ".join(text.split()) in shown, name
    assert "no medical device" in shown


def ragged_lines(shown: str, width: int) -> list[str]:
    """Returns the lines on which the first word of the next line of the same paragraph would still have fitted."""
    found = []
    for line, following in itertools.pairwise(shown.splitlines()):
        is_boxed = line.startswith("│") and following.startswith("│")
        text, after = (each.strip("│")[1:].rstrip() if is_boxed else each for each in (line, following))
        indent = len(after) - len(after.lstrip())
        room = width - 4 if is_boxed else width
        # An option's help goes on in a column of its own, in which its first line begins, unless the option fills it.
        is_continued = text[indent - 2 : indent] == "  " if indent > 4 else not is_boxed and after[:1].isalpha()
        if is_continued and len(text) > indent and len(text) + 1 + len(after.split()[0]) <= room:
            found.append(line)
    return found


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("command", ["", *CONFIGS])
def test_lines_of_the_help_are_full_and_fit(command, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert tlray(f"{command} --help") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert ragged_lines(shown, width) == []


def test_a_ragged_line_is_noticed():
    box = [
        "│ --data STR   A folder, a zip of one,    │",
        "│              a CSV or Parquet manifest. │",
        "│ --a-long-option-of-many-letters         │",
        "│              Some.                      │",
        "│ --out STR    A path.                    │",
    ]
    assert ragged_lines("\n".join(box), 42) == [box[0]]
    assert ragged_lines("\n".join(box), 41) == []
    assert ragged_lines("Runs a network\nover images.", 19) == ["Runs a network"]
    assert ragged_lines("Runs a network\nover images.\n\nusage", 18) == []


def test_help_of_train_lists_the_recipes_and_shows_the_defaults_of_the_one(capsys):
    assert tlray("train article --help") == 0
    shown = capsys.readouterr().out
    for name, recipe in RECIPES.items():
        assert f"{name}: {(recipe.__doc__ or '').splitlines()[0]}" in " ".join(shown.split())
    assert "those of 'article'" in shown
    assert re.search(r"--epochs INT .*\(default: 8\)", shown)


# What is parsed


def test_train_parses_the_recipe_and_its_changes(called):
    code = tlray(
        "train article --data d --out o --epochs 3 --hidden-units 8 4 --trainable-layers all --num-workers 2 "
        "--augmentation.zoom 0.5 --no-class-weights --resume --weights none --reduce-lr-patience 2 --quiet"
    )
    assert code == 0
    expected = dataclasses.replace(
        RECIPES["article"]("d", "o"),
        epochs=3,
        hidden_units=(8, 4),
        trainable_layers="all",
        num_workers=2,
        augmentation=Augmentation(shear_deg=0.2, zoom=0.5, horizontal_flip=True),
        resume=True,
        weights="none",
        reduce_lr_patience=2,
        quiet=True,
    )
    assert called == [expected]


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("--trainable-layers 5", "trainable_layers", 5),
        ("--trainable-layers None", "trainable_layers", None),
        ("--early-stopping-patience None", "early_stopping_patience", None),
        ("--hidden-units", "hidden_units", ()),
        ("--data s3://bucket/a", "data", "s3://bucket/a"),
        ("--batch-norm local", "batch_norm", "local"),
        ("--intensity-range=-1000,400", "intensity_range", "-1000,400"),
        ("--intensity-range -1000,400", "intensity_range", "-1000,400"),
    ],
)
def test_train_without_a_name_is_the_standard_recipe(called, option, name, value):
    assert tlray(f"train --data d --out o {option}") == 0
    assert called == [dataclasses.replace(standard("d", "o"), **{name: value})]


@pytest.mark.parametrize("name", RECIPES)
def test_commands_in_the_recipes_docstrings_work(called, name):
    (command,) = re.findall(r"python jobs/(train\.py .*)", inspect.getdoc(RECIPES[name]) or "")
    assert tlray(command.replace("train.py", "train")) == 0
    (config,) = called
    changed = {"weights": "WEIGHTS", "num_workers": 2} if name == "article" else {}
    changed |= {"num_workers": 4, "use_gpu": True} if name == "full" else {}
    assert config == dataclasses.replace(RECIPES[name]("DATA", f"runs/{name}"), **changed)


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        (
            "audit --data d --out o --fix --seed 3 --no-thumbnails",
            AuditConfig(data="d", out="o", fix=True, seed=3, thumbnails=False),
        ),
        (
            "audit --data d --out o --weights w --engine openvino --precision float32",
            AuditConfig(data="d", out="o", weights="w", engine="openvino", precision="float32"),
        ),
        (
            "evaluate --bundle b --data d --out o --split all --batch-size 4 --columns uri=path --check-overlays 32",
            EvaluateConfig(
                bundle="b", data="d", out="o", split="all", batch_size=4, columns="uri=path", check_overlays=32
            ),
        ),
        (
            "compare --bundle b --reference r --data d --out o --split all --precision float32 --columns uri=path",
            CompareConfig(
                bundle="b", reference="r", data="d", out="o", split="all", precision="float32", columns="uri=path"
            ),
        ),
        ("verify runs/a", VerifyConfig(run="runs/a")),
        ("verify --run runs/a", VerifyConfig(run="runs/a")),
        ("score --bundle b --input i --out o --resume", ScoreConfig(bundle="b", input="i", out="o", resume=True)),
        (
            "score --bundle b --bundle-sha256 abc --input i --out o --roots /i s3://i",
            ScoreConfig(bundle="b", bundle_sha256="abc", input="i", out="o", roots=("/i", "s3://i")),
        ),
        (
            "suggest --bundle b --input i --out o --count 5 --precision float32 --columns uri=path",
            SuggestConfig(bundle="b", input="i", out="o", count=5, precision="float32", columns="uri=path"),
        ),
        (
            "serve --bundle b --host ::1 --port 80 --input-roots i s3://i --output-roots o --max-replicas 3",
            ServeConfig(
                bundle="b", host="::1", port=80, input_roots=("i", "s3://i"), output_roots=("o",), max_replicas=3
            ),
        ),
        (
            "features --data d --out o --level both --views 3 --augmentation.zoom 0.1 --trainable-layers 40",
            FeaturesConfig(
                data="d", out="o", level="both", views=3, augmentation=Augmentation(zoom=0.1), trainable_layers=40
            ),
        ),
        (
            "sweep --data d --out o --num-trials 7 --num-folds 4 --epochs 2 --int8 --timing --resume",
            SweepConfig(data="d", out="o", num_trials=7, num_folds=4, epochs=2, int8=True, timing=True, resume=True),
        ),
        (
            "export --model m --classes c --out o --preprocessing unit --image-size-px 64",
            ExportConfig(model="m", classes="c", out="o", preprocessing="unit", image_size_px=64),
        ),
    ],
)
def test_other_commands_parse(called, command_line, expected):
    assert tlray(command_line) == 0
    assert called == [expected]


# What is shown


def unwrapped(shown: str) -> str:
    """Returns tables without their frames, each text on one line."""
    return " ".join(re.sub(r"[│┃┏┓┗┛┌┐└┘├┤┡┩╇┯┬┴┼─━┳┻]", " ", shown).split())


@pytest.mark.parametrize(
    "command_line", ["score --bundle b --input i --out o", "sweep --data d --out o", "train --data d --out o"]
)
def test_a_table_in_a_log_has_100_columns_at_most(called, capsys, command_line):
    assert tlray(command_line) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("!")) <= 100
    assert len(called) == 1


def test_a_path_in_a_log_is_not_broken(monkeypatch, capsys):
    folder = "/data/" + "a-long-name/" * 12
    stand_in = ModuleType("tlray.training.own_model")
    stand_in.__dict__["export"] = lambda _: "5" * 64
    monkeypatch.setitem(sys.modules, "tlray.training.own_model", stand_in)
    assert tlray(f"export --model m --classes c --out {folder} --preprocessing unit") == 0
    assert f" {folder} " in capsys.readouterr().out


def test_figures_of_new_images_are_shown_before_those_of_all(called, monkeypatch, capsys):
    assert called == []
    stand_in = sys.modules["tlray.evaluation.evaluate"]
    metrics = {"accuracy": 0.9, "balanced_accuracy": 0.85, "log_loss": 0.25}
    metrics |= {f"{name}_ci95": [0.2, 1.0] for name in metrics}
    counts = {"num_images": 30, "num_failed": 2, "num_leaked": 10}
    result = SimpleNamespace(
        out="/o", split="all", engine="openvino float32", warnings=(), overlays=None,
        metrics={**metrics, **counts, "all_images": metrics},
    )  # fmt: skip
    monkeypatch.setattr(stand_in, "evaluate", lambda _: result)
    assert tlray("evaluate --bundle b --data d --out o") == 0
    shown = unwrapped(capsys.readouterr().out)
    facts = (
        "images 30 measured, 2 failed, 10 known from training", "accuracy, new images 0.900 (95 %: 0.200 to 1.000)",
        "balanced accuracy, new images 0.850", "log loss, new images 0.250", "accuracy, all images 0.900",
    )  # fmt: skip
    assert [shown.find(fact) for fact in facts] == sorted(shown.find(fact) for fact in facts)
    assert -1 not in [shown.find(fact) for fact in facts]


def test_a_probe_that_no_epoch_betters_is_told(called, monkeypatch, capsys):
    assert called == []
    stand_in = sys.modules["tlray.training.run"]
    result = SimpleNamespace(**vars(stand_in.train(None)) | {"best_epoch": 0})
    monkeypatch.setattr(stand_in, "train", lambda _: result)
    assert tlray("train --data d --out o") == 0
    assert "epochs 7, none was better than the probe, which was exported" in unwrapped(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("command_line", "facts"),
    [
        (
            "train --data d --out o",
            ["test: accuracy .* 0.812 (95 %: 0.700 to 0.900, 40 images)",
             "test: balanced accuracy .* 0.750 (95 %: 0.625 to 0.875)",
             "epochs .* 7, the best one was 4", "report .* /o/report.html", "bundle .* /o/bundle", "! Look out."],
        ),
        ("train --data d --out o --timing", ["starting Ray .* 2.0 s", "computing features .* 11.0 s"]),
        (
            "audit --data d --out o --fix",
            ["images .* 20, 1 cannot be read", "the same pixels .* 2 images in 1 group",
             "copies of a picture .* 5 images in 2 groups", "copies in several splits .* 3 images in 1 group",
             "copies with several labels .* none", "copies and neighbouring slices .* 9 images in 3 groups",
             "patients in several splits .* 2", "what tells the classes .* size, file",
             "what tells the splits .* nothing that is sure",
             "told by the files alone .* 0.750 of 40 test images (95 % interval 0.500 to 0.875; by chance 0.250)",
             "report .* /o/report.html",
             "corrected manifest .* /o/fixed.csv, 12 images (8 left out)", "! The files tell the classes."],
        ),
        (
            "evaluate --bundle b --data d --out o",
            ["images .* 40 measured, 2 failed", "accuracy .* 0.812 (95 %: 0.700 to 0.900)",
             "balanced accuracy .* 0.750 (95 %: 0.625 to 0.875)", "log loss .* 0.500 (95 %: at least 0.375)",
             "overlays .* Overlays point at what decides.", "engine .* openvino bfloat16",
             "! The metrics are too good."],
        ),
        (
            "compare --bundle b --reference r --data d --out o --split valid",
            ["Compared on valid", "images .* 40 compared, 2 known from training, 3 failed, 5 unlabelled",
             "known to the bundle .* 2 of 42 images", "known to the reference .* cannot be told",
             "accuracy of the bundle .* 0.812 (95 %: 0.700 to 0.900)", "accuracy of the reference .* 0.750 (95 %",
             "difference .* +5.0 percentage points (95 %: -3.1 to +12.5)",
             "conclusion .* The images do not show which is better.",
             "only one is right .* the bundle for 3 images, the reference for 1",
             "p value .* 0.281 (McNemar's exact test",
             "same label from both .* 87.5 % of the images (95 % interval 75.0 % to 93.8 %)",
             "sensitivity of 'a' .* bundle 0.750 (95 %: 0.500 to 0.875), reference 0.500 (95 %: 0.250 to 0.625)",
             "only one marks 'refer' .* 4 images", "all figures .* /o/comparison.json",
             "image by image .* /o/comparison.csv", "! Both bundles were trained on this data."],
        ),
        (
            "verify runs/a",
            ["files .* 9", "images compared with the manifest .* 22", "figures computed again .* 81",
             "the run .* as it says",
             f"sha256 of evidence.json .* {'5' * 64}"],
        ),
        (
            "score --bundle b --input i --out o",
            ["images .* 9, 3 failed (empty: 2, truncated: 1)", "predicted .* a: 6", "to refer .* 1",
             "hidden files and folders skipped .* 5", "engine .* openvino bfloat16"],
        ),
        (
            "suggest --bundle b --input i --out o --count 3",
            ["images .* 9 scored, 3 failed (empty: 2, truncated: 1)", "images with a label .* 4 left out",
             "unlike the training images .* 6 left out", "copies of training images .* 3 left out",
             "hidden files and folders skipped .* 5", "suggested .* 2 images; the model is unsure of 1",
             "their uncertainty .* 0.25 to 0.88 (0: one class is certain", "engine .* openvino bfloat16",
             "table to fill in .* /o/suggestions.csv", "! Only 2 images are suggested."],
        ),
        (
            "serve --bundle b",
            ["address .* http://127.0.0.1:8000 (", "model .* chest-ct: dark, light", f"bundle .* b, sha256 {'5' * 64}",
             "engine .* openvino bfloat16", "keys .* required",
             "curl -H 'Authorization: Bearer KEY' -F file=@scan.png http://127.0.0.1:8000/predict",
             "bulk scoring .* off: --input-roots and --output-roots", "log files .* /l",
             "! tlray is a research tool, no medical device.", "! Ctrl-C stops it.", "Stopping."],
        ),
        (
            "serve --bundle b --open-without-keys --input-roots /i s3://i --output-roots /o",
            ["keys .* none: all requests are answered", "curl -F file=@scan.png",
             "bulk scoring .* from /i, s3://i to /o"],
        ),
        (
            "features --data d --out o",
            ["rows .* 12, 5 of them were there already", "images that cannot be read .* 1",
             "features (float16) .* pooled: 56, cut_0: 7 x 7 x 6", "Parquet .* /o", "! part-1 was damaged."],
        ),
        (
            "sweep --data d --out o",
            ["Tried 2 settings",
             "best trial .* loss 0.200 (standard error 0.031), accuracy 0.950: 4 depths, penalty C 0.001; 3 epochs "
             "of 10 layers and 1 hidden layer at 0.0002, dropout 0.3, 2 views",
             "trial 2 .* loss 0.400 (standard error 0.050), accuracy 0.875: 1 depth, penalty C 0.05; no fine-tuning",
             "trained .* loss 0.300 (standard error 0.062), accuracy 0.900: 2 depths, penalty C 0.01; no fine-tuning",
             "trained, valid: accuracy .* 0.812", "/o/trials.csv", "bundle .* /o/best/bundle",
             "! 1 of 3 trials failed.", "! Look out."],
        ),
        (
            "sweep --data d --out o --timing",
            ["starting Ray .* 2.0 s", "running the trials .* 90.1 s", "trained, computing features .* 1.2 s"],
        ),
        (
            "engines --bundle b",
            ["Engines beside TensorFlow in float32, measured when the bundle was made: 72 images, which count as 30 "
             "groups (patients, copies, series), a CPU",
             "openvino .* bfloat16 .* yes .* 121 .* 97.2% .* 0 of 60 .* 1 .* 0.0030, 0.033 .* +0.0041 .* "
             "+0.014 (-0.010 to +0.040)",
             "OpenVINO cannot run the model in int8: it is odd",
             "By the comparison in its bundle.json it predicts with openvino bfloat16 on this machine"],
        ),
        ("export --model m --classes c --out o --preprocessing unit", ["bundle .* o ", f"sha256 .* {'5' * 64}"]),
    ],
)  # fmt: skip
def test_results_are_shown_unless_quiet(called, capsys, command_line, facts):
    assert tlray(command_line) == 0
    shown = capsys.readouterr()
    for fact in facts:
        assert re.search(re.escape(fact).replace(r"\ \.\*\ ", r"\W+"), unwrapped(shown.out)), fact
    assert shown.err == ""
    assert tlray(f"{command_line} --quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert len(called) == 2


def test_the_gravest_warning_comes_before_the_figures(monkeypatch, capsys):
    stand_in = ModuleType("tlray.evaluation.data_audit")
    result = SimpleNamespace(rows=lambda: [("images", "20")], warnings=("Grave.", "Less grave.", "Mild."))
    stand_in.__dict__["audit_images"] = lambda _: result
    monkeypatch.setitem(sys.modules, "tlray.evaluation.data_audit", stand_in)
    assert tlray("audit --data d --out o") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("! Grave.\n")
    assert shown.endswith("! Less grave.\n! Mild.\n")
    assert shown.index("Grave.") < shown.index("images") < shown.index("Less grave.")


def test_a_run_that_is_not_as_it_says_is_a_failure(monkeypatch, capsys):
    check = Check(name="test.accuracy", is_right=False, detail="metrics.json says 0.9, and it is 0.8.")
    stand_in = ModuleType("tlray.evaluation.verification")
    stand_in.__dict__["verify"] = lambda _: VerifyResult(
        checks=(check,), num_files=9, num_images=22, num_figures=81, evidence_sha256="5" * 64
    )
    monkeypatch.setitem(sys.modules, "tlray.evaluation.verification", stand_in)
    assert tlray("verify runs/a") == 1
    shown = capsys.readouterr()
    assert re.search(r"test.accuracy\W+metrics.json says 0.9, and it is 0.8.", shown.out)
    assert shown.out.startswith("Changed")
    assert shown.err == "tlray: 'runs/a' is not as it was written: test.accuracy.\n"


# Mistakes and failures


@pytest.mark.parametrize(
    ("command_line", "message"),
    [
        (
            "tain",
            "tlray: there is no command 'tain'. The commands: audit, train, evaluate, compare, verify, score, suggest, "
            "serve, features, sweep, export, engines, phantoms.",
        ),
        ("--nope", "there is no command '--nope'"),
        ("train fast --data d --out o", "There is no recipe 'fast'. The recipes: standard, probe, article, full."),
        ("train --data d", "--out"),
        ("train --data d --out o --nope 3", "--nope"),
        ("train --data d --out o --epochs many", "--epochs"),
        ("train --data d --out o --epochs 0", "--epochs must be positive. Received: 0"),
        ("train --data d --out o --num-workers 3", "Try --batch-size 33, or fewer workers."),
        ("train --data d --out o --batch-norm loose", "--batch-norm"),
        ("train --data d --out o --augmentation.zoom 2", "augmentation.zoom must lie in [0, 1). Received: 2.0"),
        (
            "score --bundle b --input i --out o --resume --overwrite",
            "--resume continues an earlier scoring and --overwrite",
        ),
        ("suggest --bundle b --input i --out o --count 0", "--count must be positive. Received: 0"),
        ("serve --name n", "--bundle"),
        ("serve --bundle b --port 65536", "--port must lie in [1, 65535]. Received: 65536"),
        ("evaluate --bundle b --data d --out o --split some", "--split"),
        ("export --model m --classes c --out o", "--preprocessing"),
        ("phantoms --out o --seed x", "--seed"),
        ("phantoms --out o --task bones", "--task"),
    ],
)
def test_a_users_mistake_is_2(called, capsys, command_line, message):
    assert tlray(command_line) == 2
    shown = capsys.readouterr()
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", shown.err + shown.out).split())
    assert "Traceback" not in shown.err + shown.out
    assert called == []


@pytest.mark.parametrize(
    ("command_line", "message"),
    [
        ("train --data d --out o --max-error 2", "--max-error must lie between 0 and 1. Received: 2.0"),
        ("train probe --data d --out o --folds 1", "--folds must be at least 2. Received: 1"),
        ("train article --data d --out o --folds 7",
         "--folds needs a linear probe. Give --method probe, or --method lp-ft with pretrained --weights."),
        ("train probe --data d --out o --dropout 0.5",
         "--dropout is for fine-tuning. Leave it out with --method probe, or give --method lp-ft."),
        ("train full --data d --out o --views 2",
         "--views is for fine-tuning on stored features. Give --method lp-ft with pretrained --weights, --cache auto"
         " and a number of --trainable-layers, or leave --views out."),
        ("train --data d --out o --augmentation.zoom 2", "--augmentation.zoom must lie in [0, 1). Received: 2.0"),
        (
            "train --data d --out o --augmentation.shear-deg 90",
            "--augmentation.shear-deg must lie in [0, 90). Received: 90.0",
        ),
        ("sweep --data d --out o --max-error 0", "--max-error must lie between 0 and 1. Received: 0.0"),
        ("audit --data d --out o --seed -1", "--seed must lie in [0, 4294967295]. Received: -1"),
        ("export --model m --classes c --out o --preprocessing unit --refer-below 2",
         "--refer-below must lie in [0, 1]. Received: 2.0"),
        ("suggest --bundle b --input i --out o --count 0", "--count must be positive. Received: 0"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_told_in_one_line(called, capsys, command_line, message):
    assert tlray(command_line) == 2
    assert capsys.readouterr() == ("", f"tlray: {message}\n")
    assert called == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("Too few."), 2, "tlray: Too few.\n"),
        (DataError("No images."), 2, "tlray: No images.\n"),
        (BundleError("No bundle."), 2, "tlray: No bundle.\n"),
        (TlrayError("It failed."), 1, "tlray: It failed.\n"),
        (ImageError(ImageErrorCode.EMPTY, "Empty."), 1, "tlray: Empty.\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            1,
            "tlray: [Errno 28] No space left on device: '/data/x'. Fix the cause. Continue with the same command and "
            "--resume (not --overwrite).\n",
        ),
        (
            KeyboardInterrupt(),
            130,
            "tlray: interrupted. Continue with the same command and --resume (not --overwrite).\n",
        ),
    ],
)
def test_exit_codes_and_messages(monkeypatch, capsys, error, code, message):
    def fail(_arguments: list[str]) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "score", (fail, ""))
    assert tlray("score") == code
    assert capsys.readouterr() == ("", message)


@pytest.mark.usefixtures("called")
def test_the_table_of_engines_of_an_earlier_version_says_that_images_count(capsys):
    stand_in = sys.modules["tlray.evaluation.engine_table"]
    result = stand_in.engines(None)
    (row,) = result.agreements
    result.agreements = (dataclasses.replace(row, num_groups=None),)
    assert tlray("engines --bundle b") == 0
    assert "72 images, each counted by itself, a CPU" in capsys.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("is_written", [False, True])
@pytest.mark.parametrize("overwrite", ["", " --overwrite"])
def test_the_remedy_names_options_that_the_command_has(
    monkeypatch, capsys, tmp_path, *, command, error, is_written, overwrite
):
    """Whether or not the output has something, and the command was given --overwrite."""

    def fail(_arguments: list[str]) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, command, (fail, ""))
    if is_written:
        (tmp_path / "config.json").touch()
        (tmp_path / "predictions").mkdir()
    assert tlray(f"{command} --out {tmp_path}{overwrite}") != 0
    told = capsys.readouterr().err.replace("(not --overwrite)", "")
    options = {field.name for field in dataclasses.fields(CONFIGS[command])}
    assert {name.replace("-", "_") for name in re.findall(r"--([\w-]+)", told)} <= options
    assert "same command" in told


def test_a_command_that_cannot_resume_is_begun_anew(monkeypatch, capsys):
    def interrupted(_arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "evaluate", (interrupted, ""))
    assert tlray("evaluate") == 130
    assert capsys.readouterr().err == "tlray: interrupted. Run the same command again with --overwrite.\n"
    for command in ("engines", "features", "serve", "verify"):
        monkeypatch.setitem(cli.COMMANDS, command, (interrupted, ""))
        assert tlray(command) == 130
        assert capsys.readouterr().err == "tlray: interrupted. Run the same command again.\n"


@pytest.fixture
def interrupted(monkeypatch):
    """Commands that are interrupted at once."""

    def interrupt(_arguments: list[str]) -> None:
        raise KeyboardInterrupt

    for command in ("train", "sweep", "score", "suggest"):
        monkeypatch.setitem(cli.COMMANDS, command, (interrupt, ""))


FROM_THE_START = "Nothing was written yet: run the same command again."
RESUME, OVERWRITE = (
    "Continue with the same command and --resume (not --overwrite).",
    "Run the same command again with --overwrite.",
)


@pytest.mark.parametrize(
    ("command", "names", "remedy"),
    [
        ("score", [], FROM_THE_START),
        ("score", [".tlray"], FROM_THE_START),
        ("score", [".tlray", "_state"], OVERWRITE),
        ("score", [".tlray", "_state", "predictions"], RESUME),
        ("train", [".tlray", "_inspected"], FROM_THE_START),
        ("train", [".tlray", "config.json"], RESUME),
        ("sweep", [".tlray", "config.json"], RESUME),
        ("suggest", [], FROM_THE_START),
        ("suggest", [".tlray"], FROM_THE_START),
        ("suggest", [".tlray", "suggestions.csv"], OVERWRITE),
    ],
)
@pytest.mark.usefixtures("interrupted")
def test_the_remedy_of_an_interruption_fits_what_was_written(capsys, tmp_path, command, names, remedy):
    for name in names:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).touch()
    for option in (f"--out {tmp_path}/out", f"--out={tmp_path}/out"):
        assert tlray(f"{command} --bundle b {option}") == 130
        assert capsys.readouterr().err == f"tlray: interrupted. {remedy}\n"


BEGINNINGS = {"train": "config.json", "sweep": "config.json", "score": "_state/scoring.json"}
"""The file that each command writes first."""

SAME = "Run the same command again."


@pytest.mark.parametrize("command", BEGINNINGS)
@pytest.mark.parametrize(
    ("is_begun", "options", "remedy"),
    [
        (False, "--overwrite", SAME),
        (True, "--overwrite", RESUME),
        (False, "--resume", RESUME),
        (True, "--resume", RESUME),
    ],
)
def test_the_run_that_was_to_be_replaced_is_not_resumed(
    monkeypatch, capsys, tmp_path, *, command, is_begun, options, remedy
):
    """A finished run is there, and the command ends before or after it has begun another in its place."""

    def write(text: str) -> None:
        storage.write_text(f"{tmp_path}/out/predictions/part-0.parquet", text)
        storage.write_text(f"{tmp_path}/out/{BEGINNINGS[command]}", text)

    def run(_arguments: list[str]) -> None:
        if is_begun:
            storage.delete(f"{tmp_path}/out")
            write("the new one")
        raise OSError(errno.ENOSPC, "No space left on device")

    write("the old one")
    monkeypatch.setitem(cli.COMMANDS, command, (run, ""))
    assert tlray(f"{command} --out {tmp_path}/out {options}") == 1
    assert capsys.readouterr().err.endswith(f"Fix the cause. {remedy}\n")


@pytest.mark.parametrize("command", BEGINNINGS)
def test_a_new_run_with_overwrite_is_resumed_where_none_was(monkeypatch, capsys, tmp_path, command):
    def run(_arguments: list[str]) -> None:
        storage.write_text(f"{tmp_path}/out/predictions/part-0.parquet", "new")
        storage.write_text(f"{tmp_path}/out/{BEGINNINGS[command]}", "new")
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, command, (run, ""))
    assert tlray(f"{command} --overwrite --out={tmp_path}/out") == 130
    assert capsys.readouterr().err == f"tlray: interrupted. {RESUME}\n"


@pytest.mark.parametrize("command", BEGINNINGS)
def test_an_output_that_cannot_be_looked_at_is_not_resumed_where_it_was_to_be_replaced(monkeypatch, capsys, command):
    def fail(*_: object) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(storage, "list_names", fail)
    monkeypatch.setattr(storage, "file_info", fail)
    monkeypatch.setitem(cli.COMMANDS, command, (fail, ""))
    assert tlray(f"{command} --out s3://bucket/out --overwrite") == 1
    assert capsys.readouterr().err == f"tlray: no connection. Fix the cause. {SAME}\n"


def test_the_files_that_tell_a_new_run_are_those_that_it_writes_first():
    names = (storage.join(score_state.FOLDER, score_state.IDENTITY), resume.CONFIG, RunPaths("out").config)
    assert (cli.BEGUN_BY["score"], cli.BEGUN_BY["sweep"], f"out/{cli.BEGUN_BY['train']}") == names
    assert cli.BEGUN_BY.keys() == cli.RESUMED_BY.keys()


@pytest.mark.parametrize("error", [RuntimeError("odd"), ValueError("odd"), FileNotFoundError("odd")])
def test_what_should_not_happen_is_1_with_its_traceback(monkeypatch, capsys, error):
    def fail(_arguments: list[str]) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "score", (fail, ""))
    assert tlray("score") == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert f"{type(error).__name__}: odd\n" in shown
    assert shown.endswith("tlray: this should not have happened; the lines above say where.\n")


def test_an_error_while_an_interruption_is_handled_is_an_interruption(monkeypatch, capsys):
    """A second Ctrl-C can break a lock that is being given back: `RuntimeError: release unlocked lock`."""

    def fail(_arguments: list[str]) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("release unlocked lock")

    monkeypatch.setitem(cli.COMMANDS, "audit", (fail, ""))
    assert tlray("audit") == 130
    assert capsys.readouterr().err == "tlray: interrupted. Run the same command again with --overwrite.\n"


def test_termination_is_an_interruption(monkeypatch, capsys):
    """SIGTERM itself is not sent: if it were not handled, it would end this process and with it all tests."""
    handlers = []

    def interrupted(_arguments: list[str]) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))
        handlers[0](signal.SIGTERM, None)

    monkeypatch.setitem(cli.COMMANDS, "score", (interrupted, ""))
    assert tlray("score") == 130
    assert handlers == [signal.default_int_handler]
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "job",
    ["audit", "train", "evaluate", "compare", "verify", "score", "suggest", "features", "sweep", "export"],
)
def test_jobs_run_their_command(monkeypatch, job):
    received: list[list[str]] = []
    monkeypatch.setitem(cli.COMMANDS, job, (received.append, ""))
    monkeypatch.setattr(sys, "argv", ["job.py", "--some", "thing"])
    path = os.path.join(os.path.dirname(cli.__file__), "..", "jobs", f"{job}.py")
    with open(path, encoding="utf-8") as file, pytest.raises(SystemExit) as caught:
        exec(compile(file.read(), path, "exec"), {"__name__": "__main__"})  # noqa: S102
    assert caught.value.code == 0
    assert received == [["--some", "thing"]]


@pytest.mark.parametrize("weights", ["none", "imagenet", "/of/my own.h5"])
def test_steps_of_the_demo_parse(monkeypatch, called, weights):
    sets = []
    monkeypatch.setattr(storage, "prepare_output", lambda *_, **__: None)
    monkeypatch.setattr(storage, "write_text", lambda *_: None)
    monkeypatch.setattr(phantom_files, "write_data_set", lambda location, **settings: sets.append((location, settings)))
    demo = runpy.run_path(os.path.join(os.path.dirname(cli.__file__), "..", "jobs", "demo.py"))
    for command in demo["commands"](weights):
        assert tlray(command) == 0
    splits = [f"runs/demo/nodules/{split}" for split in ("train", "valid", "test")]
    assert [location for location, _ in sets] == ["runs/demo/images", *splits]
    assert len({settings["seed"] for _, settings in sets}) == 4
    training, scoring, reused, random = called
    assert (training.weights, scoring.bundle) == (weights, "runs/demo/run/bundle")
    # The same images, recipe and size: the start alone differs.
    assert (reused.method, reused.data, reused.weights) == ("probe", "runs/demo/nodules", scoring.bundle)
    assert random == dataclasses.replace(reused, weights="none", out="runs/demo/random")
    assert all(each.overwrite for each in called)


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """Runs the demo in an empty directory; each step only makes its output, as the command would."""
    module = runpy.run_path(os.path.join(os.path.dirname(cli.__file__), "..", "jobs", "demo.py"))
    steps: list[str] = []

    def execute(command: str, arguments: list[str]) -> int:
        out = arguments[arguments.index("--out") + 1]
        storage.prepare_output(
            out, kind=command, known_names=frozenset(["metrics.json"]), overwrite="--overwrite" in arguments
        )
        metrics = {"accuracy": 0.5, "accuracy_ci95": [0.4, 0.6], "num_images": 150}
        storage.write_text(f"{out}/metrics.json", json.dumps(metrics))
        steps.append(out)
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    monkeypatch.setitem(module["main"].__globals__, "execute", execute)
    return module["main"], steps


@pytest.mark.parametrize("kind", [None, "training"])
def test_the_demo_deletes_nothing_that_no_demo_has_made(demo, tmp_path, capsys, kind):
    main, steps = demo
    out = tmp_path / "runs" / "demo"
    out.mkdir(parents=True)
    (out / "thesis.doc").write_bytes(b"mine")
    if kind is not None:  # `tlray train --out runs/demo`
        storage.mark_output(str(out), kind=kind)
    with pytest.raises(SystemExit) as caught:
        main()
    assert (caught.value.code, steps) == (2, [])
    assert (out / "thesis.doc").read_bytes() == b"mine"
    assert "runs/demo holds files that no demo has made. Move or delete it" in capsys.readouterr().err


def test_the_demo_works_again_and_keeps_what_was_scored_with_its_model(demo, tmp_path):
    main, steps = demo
    main()
    batch = tmp_path / "runs" / "demo" / "batches" / "1" / "predictions.csv"  # of `make serve`
    batch.parent.mkdir(parents=True)
    batch.write_bytes(b"scored")
    first = list(steps)
    main()
    assert steps == first * 2
    assert len(first) == 8
    assert batch.read_bytes() == b"scored"


def test_the_demo_compares_what_it_measured(monkeypatch, tmp_path):
    demo = runpy.run_path(os.path.join(os.path.dirname(cli.__file__), "..", "jobs", "demo.py"))
    monkeypatch.chdir(tmp_path)
    for name, accuracy in (("reused", 0.75), ("random", 0.5)):
        out = tmp_path / demo["OUT"] / name
        out.mkdir(parents=True)
        metrics = {"accuracy": accuracy, "accuracy_ci95": [accuracy - 0.1, accuracy + 0.1], "num_images": 150}
        (out / "metrics.json").write_text(json.dumps(metrics))
    shown = demo["comparison"]()
    assert re.search(r"trained above +0\.750 \(95 %: 0\.650 to 0\.850, 150 images\)", shown)
    assert re.search(r"random weights +0\.500 \(95 %: 0\.400 to 0\.600, 150 images\)", shown)


def test_phantoms_are_made_and_replaced_only_on_demand(tmp_path, capsys):
    out = tmp_path / "set"
    small = f"phantoms --out {out} --patients-per-class 2 --slices-per-patient 3 --image-size-px 16 --num-unreadable 1"
    assert tlray(small) == 0
    files = sorted(out.glob("*/patient_*/*"))
    num_files = 4 * 2 * 3 + 1  # classes, patients, slices; and the unreadable one
    assert len(files) == num_files
    assert re.search(rf"files\W+{num_files}\b", capsys.readouterr().out)
    assert tlray(small) == 2
    assert "is not empty. Give another one, or --overwrite" in capsys.readouterr().err
    files[0].write_bytes(b"changed")
    assert tlray(f"{small} --overwrite --quiet") == 0
    assert files[0].read_bytes() != b"changed"
    (out / "thesis.doc").write_bytes(b"")
    assert tlray(f"{small} --overwrite") == 2
    assert "(thesis.doc), so --overwrite does not delete them" in capsys.readouterr().err
    (out / "thesis.doc").unlink()
    nodules = f"{small} --overwrite --task nodules --first-patient 1000"
    assert tlray(nodules) == 0
    assert {path.name for path in out.glob("*/")} == {"granuloma", "metastases", "normal"}
    assert {path.name for path in out.glob("*/*/")} == {f"patient_{number}" for number in range(1000, 1006)}
    num_files = 3 * 2 * 3 + 1
    # Real data has the same class folders: without the mark of this command they stay.
    (out / ".tlray").unlink()
    assert tlray(f"{small} --overwrite") == 2
    assert "so --overwrite does not delete them" in capsys.readouterr().err
    assert len(list(out.glob("*/patient_*/*"))) == num_files


def test_a_reader_of_the_output_that_has_gone_is_no_fault():
    command = [sys.executable, "-m", "tlray", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None  # noqa: PT018
        process.stdout.close()  # as `| head` does when it has enough
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize("hang", ["atexit.register(wait)", "threading.Thread(target=wait).start()"])
def test_a_process_ends_although_a_library_hangs_at_its_end(hang):
    program = (
        "import atexit, threading; from tlray import cli; cli.EXIT_S = 0.2; cli.execute = lambda *_: 130; "
        f"wait = threading.Event().wait; {hang}; cli.run('sweep', [])"
    )
    with subprocess.Popen([sys.executable, "-c", program], text=True, stdout=subprocess.PIPE) as process:
        assert output_at_end(process, timeout_s=60) == ""
    assert process.returncode == 130


def test_a_caller_that_catches_the_exit_goes_on():
    program = (
        "import time; from tlray import cli; cli.EXIT_S = 0.01; cli.execute = lambda *_: 1\n"
        "try:\n    cli.run('sweep', [])\nexcept SystemExit:\n    time.sleep(0.5)\nprint('went on')"
    )
    with subprocess.Popen([sys.executable, "-c", program], text=True, stdout=subprocess.PIPE) as process:
        assert output_at_end(process, timeout_s=60) == "went on\n"
    assert process.returncode == 0

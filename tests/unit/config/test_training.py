import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any, get_args

import pytest

from tlray.config.commands import AuditConfig, FeaturesConfig, SweepConfig
from tlray.config.export import ExportConfig
from tlray.config.phantoms import PhantomConfig
from tlray.config.prediction import EvaluateConfig, ScoreConfig, ServeConfig
from tlray.config.training import Augmentation, TrainConfig, to_json
from tlray.config.values import parse_columns, parse_intensity_range, parse_prior
from tlray.data import phantoms
from tlray.errors import ConfigError


def with_defaults(config: Callable[..., Any], **defaults: str) -> Callable[..., Any]:
    """Returns a config's constructor with values for what it demands."""
    return lambda **settings: config(**(defaults | settings))


CONFIGS = {
    "audit": with_defaults(AuditConfig, data="d", out="o"),
    "train": with_defaults(TrainConfig, data="d", out="o"),
    "evaluate": with_defaults(EvaluateConfig, bundle="b", data="d", out="o"),
    "score": with_defaults(ScoreConfig, bundle="b", input="i", out="o"),
    "serve": with_defaults(ServeConfig, bundle="b"),
    "features": with_defaults(FeaturesConfig, data="d", out="o"),
    "sweep": with_defaults(SweepConfig, data="d", out="o"),
    "export": with_defaults(ExportConfig, model="m", classes="c", out="o", preprocessing="unit"),
    "phantoms": with_defaults(PhantomConfig, out="o"),
    "augmentation": with_defaults(Augmentation),
}


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        *(
            ("train", {name: value}, f"--{name.replace('_', '-')} must be positive. Received: {value}")
            for name in ("image_size_px", "epochs", "batch_size", "num_workers", "views")
            for value in (0, -1)
        ),
        ("train", {"reduce_lr_patience": 0}, "--reduce-lr-patience must be positive. Received: 0"),
        ("train", {"early_stopping_patience": -2}, "--early-stopping-patience must be positive. Received: -2"),
        ("train", {"dropout": 1.0}, "--dropout must lie in [0, 1). Received: 1.0"),
        ("train", {"dropout": -0.1}, "--dropout must lie in [0, 1). Received: -0.1"),
        ("train", {"dropout": float("nan")}, "--dropout must lie in [0, 1). Received: nan"),
        ("train", {"learning_rate": float("nan")}, "--learning-rate must be a positive number. Received: nan"),
        ("train", {"reduce_lr_factor": 1.0}, "--reduce-lr-factor must lie in (0, 1). Received: 1.0"),
        ("train", {"reduce_lr_factor": 0.0}, "--reduce-lr-factor must lie in (0, 1). Received: 0.0"),
        ("train", {"refer_below": 1.01}, "--refer-below must lie in [0, 1]. Received: 1.01"),
        ("train", {"refer_below": -0.01}, "--refer-below must lie in [0, 1]. Received: -0.01"),
        *(
            (name, {"seed": seed}, f"--seed must lie in [0, 4294967295]. Received: {seed}")
            for name in ("audit", "train", "sweep", "features", "phantoms")
            for seed in (-1, 2**32)
        ),
        ("train", {"max_failures": -1}, "--max-failures must not be negative. Received: -1"),
        ("train", {"hidden_units": (8, 0)}, "--hidden-units must be positive. Received: (8, 0)"),
        ("train", {"batch_norm_momentum": 1.0}, "--batch-norm-momentum must lie in [0, 1). Received: 1.0"),
        ("train", {"batch_norm_momentum": -0.1}, "--batch-norm-momentum must lie in [0, 1). Received: -0.1"),
        *(
            ("sweep", {name: 0}, f"--{name.replace('_', '-')} must be positive. Received: 0")
            for name in ("num_trials", "epochs", "trainable_layers", "hidden_units", "views")
        ),
        ("sweep", {"num_folds": 1}, "--num-folds must be at least 2. Received: 1"),
        ("sweep", {"resume": True, "overwrite": True}, "--resume continues a run and --overwrite deletes it. Give only"
            " one of them."),
        ("sweep", {"weights": "none"}, "--weights none: features of random weights are of no use. Give other"
            " --weights."),
        ("train", {"depths": 6}, "--depths must lie in [1, 5]. Received: 6"),
        ("train", {"inverse_penalty": -1.0}, "--inverse-penalty must be a positive number. Received: -1.0"),
        ("train", {"learning_rate": 0.0}, "--learning-rate must be a positive number. Received: 0.0"),
        ("train", {"views": 2, "method": "lp-ft"}, "--views 2 without augmentation would compute the same image 2"
            " times. Give an augmentation, such as --augmentation.zoom 0.1, or --views 1."),
        *(
            (
                "train",
                {"views": 2, "augmentation": Augmentation(zoom=0.1)} | settings,
                "--views is for fine-tuning on stored features. Give --method lp-ft with pretrained --weights, --cache "
                "auto and a number of --trainable-layers, or leave --views out.",
            )
            for settings in (
                {},
                {"method": "probe"},
                {"method": "lp-ft", "weights": "none"},
                {"method": "lp-ft", "cache": "off"},
                {"method": "lp-ft", "trainable_layers": "all"},
            )
        ),
        *(
            (
                "train",
                {name: value} | settings,
                f"--{name.replace('_', '-')} needs a linear probe. Give --method probe, or --method lp-ft with "
                "pretrained --weights.",
            )
            for name, value in (("depths", 4), ("inverse_penalty", 0.1))
            for settings in ({}, {"method": "lp-ft", "weights": "none"})
        ),
        *(
            (
                "train",
                {name: value, "method": "probe"},
                f"--{name.replace('_', '-')} is for fine-tuning. Leave it out with --method probe, or give --method "
                "lp-ft.",
            )
            for name, value in (("hidden_units", (8,)), ("dropout", 0.0))
        ),
        *(
            ("train", {"batch_norm_momentum": 0.9} | settings, "--batch-norm-momentum changes nothing while"
                " BatchNormalization is frozen. Give --batch-norm synchronized or local, or leave it out.")
            for settings in ({}, {"batch_norm": "frozen"}, {"method": "lp-ft"})
        ),
        *(
            (
                "train",
                {"learning_curve": True} | settings,
                "--learning-curve needs a linear probe. Give --method probe, or --method lp-ft with pretrained "
                "--weights.",
            )
            for settings in ({}, {"weights": "none"}, {"method": "lp-ft", "weights": "none"})
        ),
        *(
            (
                "train",
                {"folds": 7} | settings,
                "--folds needs a linear probe. Give --method probe, or --method lp-ft with pretrained --weights.",
            )
            for settings in ({}, {"trainable_layers": "all"}, {"method": "lp-ft", "weights": "none"})
        ),
        ("train", {"learning_rate": float("inf")}, "--learning-rate must be a positive number. Received: inf"),
        ("train", {"columns": "path"}, "--columns must look like uri=path,label=dx. Received: path"),
        ("train", {"intensity_range": "5,1"}, "--intensity-range must be 'auto' or LO,HI with LO < HI. Received: 5,1"),
        ("score", {"columns": "path"}, "--columns must look like uri=path,label=dx. Received: path"),
        ("evaluate", {"columns": "path"}, "--columns must look like uri=path,label=dx. Received: path"),
        ("train", {"trainable_layers": -1}, "--trainable-layers must not be negative. Received: -1"),
        # The next multiple of 3 after 32 is 33.
        ("train", {"num_workers": 3}, "--batch-size 32 must be divisible by --num-workers 3, which share it. Try"
            " --batch-size 33, or fewer workers."),
        ("train", {"num_workers": 5, "batch_size": 4}, "Try --batch-size 5, or fewer workers."),
        ("train", {"resume": True, "overwrite": True}, "--resume continues a run and --overwrite deletes it. Give only"
            " one of them."),
        ("train", {"backbone": "my.keras"}, "--backbone my.keras is your own model, so tlray does not know the pixels"
            " that it was trained on. Give --preprocessing"),
        ("train", {"backbone": "my.keras", "preprocessing": "unit", "weights": "none"}, "--weights none is for random"
            " weights, but your own network keeps its weights: those in my.keras. Leave --weights out;"),
        ("train", {"cut": "mixed7"}, "--cut works with your own .keras --backbone only. Leave it out with"
            " InceptionV3."),
        ("train", {"weights": "none", "trainable_layers": 15}, "--trainable-layers 15 with --weights none would freeze"
            " layers with random weights"),
        ("train", {"weights": "none", "trainable_layers": 0}, "--trainable-layers 0 with --weights none would freeze"
            " layers with random weights"),
        ("train", {"weights": "none", "batch_norm": "frozen"}, "--batch-norm frozen needs the stored statistics of"),
        ("evaluate", {"batch_size": 0}, "--batch-size must be positive. Received: 0"),
        ("evaluate", {"check_overlays": -1}, "--check-overlays must be 0 or positive. Received: -1"),
        ("score", {"batch_size": -3}, "--batch-size must be positive. Received: -3"),
        ("score", {"resume": True, "overwrite": True}, "--resume continues an earlier scoring and --overwrite deletes"
            " it. Give only one of them."),
        *(
            ("serve", {"port": port}, f"--port must lie in [1, 65535]. Received: {port}") for port in (0, -1, 65536)
        ),
        ("features", {"views": 0}, "--views must be positive. Received: 0"),
        ("features", {"batch_size": 0}, "--batch-size must be positive. Received: 0"),
        ("features", {"views": 2}, "--views 2 without augmentation would compute the same image 2 times."),
        *(
            (kind, {"augmentation": Augmentation(zoom=0.1)}, "--augmentation changes nothing with --views 1")
            for kind in ("features", "sweep")
        ),
        ("features", {"weights": "none"}, "--weights none: features of random weights are of no use."),
        ("features", {"backbone": "my.keras"}, "--backbone my.keras is your own model, so tlray does not know the"
            " pixels that it was trained on. Give --preprocessing"),
        ("features", {"trainable_layers": -1}, "--trainable-layers must not be negative. Received: -1"),
        ("features", {"image_size_px": 0}, "--image-size-px must be positive. Received: 0"),
        ("export", {"refer_below": 2.0}, "--refer-below must lie in [0, 1]. Received: 2.0"),
        ("export", {"image_size_px": 0}, "--image-size-px must be positive. Received: 0"),
        ("export", {"data": "d", "max_error": 1.0}, "--max-error must lie between 0 and 1. Received: 1.0"),
        *(
            ("export", {name: value}, f"--{name.replace('_', '-')} says how labelled images are used. Give them with"
                " --data, or leave it out.")
            for name, value in (("max_error", 0.1), ("columns", "label=dx"), ("class_map", "m.json"))
        ),
        ("export", {"data": "d", "columns": "label"}, "--columns"),
        ("export", {"data": "d", "max_error": 0.1, "refer_below": 0.5}, "--refer-below sets the threshold, and"
            " --max-error chooses it. Give only one of them."),
        ("audit", {"image_size_px": 0}, "--image-size-px must be positive. Received: 0"),
        *(
            ("phantoms", {name: 0}, f"--{name.replace('_', '-')} must be positive. Received: 0")
            for name in ("patients_per_class", "slices_per_patient", "image_size_px")
        ),
        *(
            ("phantoms", {name: -1}, f"--{name.replace('_', '-')} must not be negative. Received: -1")
            for name in ("num_unreadable", "first_patient")
        ),
        *(
            ("augmentation", {name: value}, f"--augmentation.{name} must lie in [0, 1). Received: {value}")
            for name in ("zoom", "shift", "brightness", "contrast")
            for value in (1.0, -0.1)
        ),
        ("augmentation", {"rotation_deg": 180.5}, "--augmentation.rotation-deg must lie in [0, 180]. Received: 180.5"),
        ("augmentation", {"rotation_deg": -1.0}, "--augmentation.rotation-deg must lie in [0, 180]. Received: -1.0"),
        ("augmentation", {"shear_deg": 90.0}, "--augmentation.shear-deg must lie in [0, 90). Received: 90.0"),
        ("augmentation", {"shear_deg": -1.0}, "--augmentation.shear-deg must lie in [0, 90). Received: -1.0"),
    ],
)  # fmt: skip
def test_refusals(config, settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        CONFIGS[config](**settings)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("train", {"dropout": 0.0, "refer_below": 0.0, "seed": 0, "max_failures": 0}),
        ("train", {"batch_norm_momentum": 0.0, "batch_norm": "local"}),
        ("train", {"batch_norm_momentum": 0.0, "weights": "none"}),
        ("train", {"views": 3, "method": "lp-ft", "augmentation": Augmentation(zoom=0.1), "trainable_layers": 0}),
        ("train", {"depths": 1, "inverse_penalty": 0.1, "method": "probe", "weights": "none"}),
        ("train", {"depths": 1, "inverse_penalty": 0.1, "method": "lp-ft", "hidden_units": (8,), "dropout": 0.0}),
        ("train", {"refer_below": 1.0, "trainable_layers": 0, "num_workers": 32, "batch_size": 32}),
        ("train", {"backbone": "my.keras", "preprocessing": "raw", "cut": "mixed7"}),
        ("train", {"weights": "none", "trainable_layers": "all", "batch_norm": "synchronized"}),
        ("train", {"learning_curve": True, "method": "lp-ft", "hidden_units": (8,)}),
        ("train", {"learning_curve": True, "method": "probe", "weights": "none"}),
        ("train", {"folds": 7, "method": "lp-ft"}),
        ("train", {"folds": 7, "method": "probe", "weights": "none"}),
        ("train", {"folds": 5}),
        ("serve", {"port": 65535}),
        ("phantoms", {"num_unreadable": 0, "first_patient": 0}),
        ("augmentation", {"rotation_deg": 180.0, "shear_deg": 89.9, "zoom": 0.99}),
    ],
)
def test_limits_themselves_are_allowed(config, settings):
    made = CONFIGS[config](**settings)
    assert {name: getattr(made, name) for name in settings} == settings


@pytest.mark.parametrize("config", CONFIGS)
def test_configs_are_frozen(config):
    made = CONFIGS[config]()
    name = dataclasses.fields(made)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, name, "other")


DEPENDENT = ("trainable_layers", "batch_norm", "batch_norm_momentum", "precision")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (15, "frozen", None, "float32")),
        ({"use_gpu": True}, (15, "frozen", None, "bfloat16")),
        ({"use_gpu": True, "precision": "float32"}, (15, "frozen", None, "float32")),
        ({"precision": "bfloat16"}, (15, "frozen", None, "bfloat16")),
        ({"weights": "none"}, ("all", "synchronized", 0.9, "float32")),
        ({"weights": "none", "batch_norm_momentum": 0.5}, ("all", "synchronized", 0.5, "float32")),
        ({"weights": "none", "batch_norm_momentum": 0.0}, ("all", "synchronized", 0.0, "float32")),
        ({"trainable_layers": 0}, (0, "frozen", None, "float32")),
        ({"trainable_layers": "all", "batch_norm": "synchronized"}, ("all", "synchronized", None, "float32")),
    ],
)
def test_resolved_fills_in_what_depends_on_others(settings, expected):
    config = CONFIGS["train"](**settings)
    resolved = config.resolved()
    assert tuple(getattr(resolved, name) for name in DEPENDENT) == expected
    assert resolved.resolved() == resolved
    assert resolved.learning_rate == 1e-3
    rest = {field.name for field in dataclasses.fields(config)} - {*DEPENDENT, "learning_rate"}
    assert all(getattr(resolved, name) == getattr(config, name) for name in rest)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("", {}),
        ("uri=path", {"uri": "path"}),
        ("uri=path,label=dx", {"uri": "path", "label": "dx"}),
        (" uri = the path , label=dx", {"uri": "the path", "label": "dx"}),
        ("uri=a=b", {"uri": "a=b"}),
    ],
)
def test_columns(text, expected):
    assert parse_columns(text) == expected


@pytest.mark.parametrize("text", ["path", "uri=", "=path", "uri=path,", "uri=path,dx"])
def test_columns_refused(text):
    with pytest.raises(ConfigError, match=f"--columns must look like uri=path,label=dx. Received: {text}"):
        parse_columns(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", None), ("0,65535", (0.0, 65535.0)), ("-1000,400.5", (-1000.0, 400.5)), ("1e2, 1e3", (100.0, 1000.0))],
)
def test_intensity_range(text, expected):
    assert parse_intensity_range(text) == expected


@pytest.mark.parametrize("text", ["", "5", "5,", "a,b", "5,5", "6,5", "1,2,3", "nan,5", "-inf,5", "0,inf", "Auto"])
def test_intensity_range_refused(text):
    with pytest.raises(ConfigError, match=f"must be 'auto' or LO,HI with LO < HI. Received: {text}"):
        parse_intensity_range(text)


def test_tasks_of_phantoms_are_those_that_can_be_painted():
    (field,) = (field for field in dataclasses.fields(PhantomConfig) if field.name == "task")
    assert get_args(field.type) == tuple(phantoms.TASKS)
    assert CONFIGS["phantoms"]().task == "cancer-type"


def test_json_has_every_setting():
    config = CONFIGS["train"](hidden_units=(4, 2), augmentation=Augmentation(zoom=0.5))
    content = json.loads(to_json(config))
    assert set(content) == {field.name for field in dataclasses.fields(config)}
    assert (content["hidden_units"], content["augmentation"]["zoom"], content["weights"]) == ([4, 2], 0.5, "imagenet")
    assert to_json(config).endswith("}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", {}),
        ("uniform", {}),
        ("normal=0.9,ill=0.1", {"normal": 0.9, "ill": 0.1}),
        ("normal = 0.9, ill=1e-1", {"normal": 0.9, "ill": 0.1}),
        ("T=two, N0=0.25,böse, sehr=.75", {"T=two, N0": 0.25, "böse, sehr": 0.75}),
        ("bo\u0308se=0.5,a=0.5", {"b\u00f6se": 0.5, "a": 0.5}),
        ("a=0.333,b=0.333,c=0.333", {"a": 0.333, "b": 0.333, "c": 0.333}),
    ],
)
def test_priors(text, expected):
    assert parse_prior(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, f"--prior must be train, uniform, or CLASS=SHARE,... with a positive share for each class. {end}")
            for text in (
                "",
                "even",
                "a=0.5,b",
                "a=0.5,b=-0.5",
                "a=0,b=1",
                "a=0.5,a=0.5",
                "a=0.5.5,b=0.5",
                "=1",
                "a=nan",
            )
            for end in (f"Received: {text}",)
        ),
        ("a=0.5,b=0.4", "The shares of --prior must sum to 1, not 0.9. Received: a=0.5,b=0.4"),
        ("a=9,b=1", "The shares of --prior must sum to 1, not 10. Received: a=9,b=1"),
    ],
)
@pytest.mark.parametrize("config", ["train", "sweep"])
def test_what_is_no_prior(config, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        CONFIGS[config](prior=text)


def test_the_network_of_an_audit_runs_as_it_is_told():
    found = AuditConfig(data="d", out="o", weights="w", engine="tensorflow", precision="float32").features()
    assert found is not None
    assert (found.engine, found.precision) == ("tensorflow", "float32")
    assert AuditConfig(data="d", out="o", engine="tensorflow").features() is None


def test_the_prior_of_a_sweep_is_that_of_its_trainings():
    assert SweepConfig(data="d", out="o", prior="uniform").training().prior == "uniform"


@pytest.mark.parametrize("name", ["int8", "timing"])
def test_a_sweep_trains_with_an_int8_model_and_the_times_if_they_are_wanted(name):
    found = [CONFIGS["sweep"](**{name: wanted}).training() for wanted in (True, False)]
    assert [getattr(each, name) for each in found] == [True, False]


@pytest.mark.parametrize("thumbnails", [True, False])
def test_a_sweep_of_private_images_trains_without_their_pictures(thumbnails):
    assert SweepConfig(data="d", out="o", thumbnails=thumbnails).training().thumbnails is thumbnails

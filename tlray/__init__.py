"""Distributed transfer learning on Ray for chest-CT images.

A research tool, not a medical device. What the command `tlray` does can be called from Python, too:

    from tlray import TrainConfig, train
    result = train(TrainConfig(data="images", out="runs/first", weights="imagenet"))

Importing `tlray` loads neither Ray nor TensorFlow: each name is looked up when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlray.config.commands import ExportConfig, FeaturesConfig, SweepConfig
    from tlray.config.prediction import EvaluateConfig, ScoreConfig
    from tlray.config.recipes import RECIPES
    from tlray.config.training import Augmentation, TrainConfig
    from tlray.errors import BundleError, ConfigError, DataError, ImageError, TlrayError
    from tlray.evaluation.evaluate import EvaluateResult, evaluate
    from tlray.features.update import FeaturesResult, extract_features
    from tlray.inference.predictor import Predictor
    from tlray.inference.score import ScoreResult, score
    from tlray.training.own_model import export
    from tlray.training.run import train
    from tlray.training.stages import TrainResult
    from tlray.tuning.search import SweepResult, sweep

__version__ = "0.2.0"

__all__ = [
    "RECIPES",
    "Augmentation",
    "BundleError",
    "ConfigError",
    "DataError",
    "EvaluateConfig",
    "EvaluateResult",
    "ExportConfig",
    "FeaturesConfig",
    "FeaturesResult",
    "ImageError",
    "Predictor",
    "ScoreConfig",
    "ScoreResult",
    "SweepConfig",
    "SweepResult",
    "TlrayError",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "export",
    "extract_features",
    "score",
    "sweep",
    "train",
]

_MODULES = {
    "tlray.config.commands": ("ExportConfig", "FeaturesConfig", "SweepConfig"),
    "tlray.config.prediction": ("EvaluateConfig", "ScoreConfig"),
    "tlray.config.recipes": ("RECIPES",),
    "tlray.config.training": ("Augmentation", "TrainConfig"),
    "tlray.errors": ("BundleError", "ConfigError", "DataError", "ImageError", "TlrayError"),
    "tlray.evaluation.evaluate": ("EvaluateResult", "evaluate"),
    "tlray.features.update": ("FeaturesResult", "extract_features"),
    "tlray.inference.predictor": ("Predictor",),
    "tlray.inference.score": ("ScoreResult", "score"),
    "tlray.training.own_model": ("export",),
    "tlray.training.run": ("train",),
    "tlray.training.stages": ("TrainResult",),
    "tlray.tuning.search": ("SweepResult", "sweep"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

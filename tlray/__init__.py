"""Distributed transfer learning on Ray for chest-CT images.

A research tool, not a medical device. What the command `tlray` does can be called from Python, too:

    from tlray import TrainConfig, train
    result = train(TrainConfig(data="images", out="runs/first", weights="imagenet"))

Importing `tlray` loads neither Ray nor TensorFlow: each name is looked up when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlray.config.commands import AuditConfig, FeaturesConfig, SweepConfig, VerifyConfig
    from tlray.config.export import ExportConfig
    from tlray.config.prediction import CompareConfig, EvaluateConfig, ScoreConfig, SuggestConfig
    from tlray.config.recipes import RECIPES
    from tlray.config.training import Augmentation, TrainConfig
    from tlray.errors import BundleError, ConfigError, DataError, ImageError, TlrayError
    from tlray.evaluation.compare import CompareResult, compare
    from tlray.evaluation.data_audit import AuditResult, audit_images
    from tlray.evaluation.evaluate import EvaluateResult, evaluate
    from tlray.evaluation.verification import VerifyResult, verify
    from tlray.features.update import FeaturesResult, extract_features
    from tlray.inference.predictor import Predictor
    from tlray.inference.score import ScoreResult, score
    from tlray.inference.suggest import SuggestResult, suggest
    from tlray.training.own_model import export
    from tlray.training.run import train
    from tlray.training.stages import TrainResult
    from tlray.tuning.search import SweepResult, sweep

__version__ = "0.2.0"

__all__ = [
    "RECIPES",
    "AuditConfig",
    "AuditResult",
    "Augmentation",
    "BundleError",
    "CompareConfig",
    "CompareResult",
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
    "SuggestConfig",
    "SuggestResult",
    "SweepConfig",
    "SweepResult",
    "TlrayError",
    "TrainConfig",
    "TrainResult",
    "VerifyConfig",
    "VerifyResult",
    "audit_images",
    "compare",
    "evaluate",
    "export",
    "extract_features",
    "score",
    "suggest",
    "sweep",
    "train",
    "verify",
]

_MODULES = {
    "tlray.config.commands": ("AuditConfig", "FeaturesConfig", "SweepConfig", "VerifyConfig"),
    "tlray.config.export": ("ExportConfig",),
    "tlray.config.prediction": ("CompareConfig", "EvaluateConfig", "ScoreConfig", "SuggestConfig"),
    "tlray.config.recipes": ("RECIPES",),
    "tlray.config.training": ("Augmentation", "TrainConfig"),
    "tlray.errors": ("BundleError", "ConfigError", "DataError", "ImageError", "TlrayError"),
    "tlray.evaluation.compare": ("CompareResult", "compare"),
    "tlray.evaluation.data_audit": ("AuditResult", "audit_images"),
    "tlray.evaluation.evaluate": ("EvaluateResult", "evaluate"),
    "tlray.evaluation.verification": ("VerifyResult", "verify"),
    "tlray.features.update": ("FeaturesResult", "extract_features"),
    "tlray.inference.predictor": ("Predictor",),
    "tlray.inference.score": ("ScoreResult", "score"),
    "tlray.inference.suggest": ("SuggestResult", "suggest"),
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

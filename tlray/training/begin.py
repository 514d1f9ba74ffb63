"""The first step of a training run: finds the run to continue, or the images for a new one. It needs no Ray."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from tlray.cluster import locations
from tlray.config.training import TrainConfig
from tlray.data import dataset, prior
from tlray.engines import quantization
from tlray.errors import ConfigError
from tlray.files import storage
from tlray.models.weights import check_weights, trained_preprocessing
from tlray.training import fit, resume
from tlray.training.paths import KIND, NAMES, RunPaths
from tlray.training.stages import Begun, TrainResult

FREE_ON_RESUME = frozenset({"epochs", "num_workers", "max_failures", "learning_curve", "timing", "int8"})
FREE_ON_RESUME |= {"refer_below", "max_error", "folds"}
"""Settings that may differ between a training run and its continuation."""


def resume_or_begin(config: TrainConfig) -> Begun | TrainResult:
    """Checks the settings of a run, and finds what its directory holds already.

    Returns:
        What the run begins with, or its result if it had already finished.

    Raises:
        ConfigError: A setting cannot work, or the output must not be touched.
        DataError: The data cannot be used.
    """
    config = locations.absolute(config.resolved())
    if config.int8:
        quantization.check_installed()
    paths = RunPaths(config.out)
    before = stored_settings(config)
    if config.preprocessing is None:  # noted with the run, so that it is continued with the same
        stored = trained_preprocessing(config.weights) if before is None else before.get("preprocessing")
        config = dataclasses.replace(config, preprocessing=stored)
    if before is None:
        check_weights(config.weights, config.preprocessing)
        source = dataset.list_trainable(config)
    else:
        finished = finished_result(config, paths)
        if finished is not None:
            return finished
        has_losses = config.class_weights and fit.has_checkpoint(paths)
        resume.check_losses(before, kind=KIND, out=config.out, has_losses=has_losses)
        check_weights(config.weights, config.preprocessing)
        if config.preprocessing is None and trained_preprocessing(config.weights) is not None:
            raise ConfigError(
                "--resume: an earlier version of tlray began this run, and did not give the network of the bundle "
                f"'{config.weights}' the pixels that it was trained on. Begin anew with --overwrite."
            )
        source = dataset.stored_dataset(config.out) or dataset.list_trainable(config)
    prior.check_classes(config.prior, source.table["label"].drop_null().unique().to_pylist())
    if before is not None and before.get("cache") == "off":
        if config.views > 1 and not config.quiet:
            print(f"The run was begun without stored features, so that --views {config.views} is not used.")
        config = config.streamed()
    return Begun(config=config, paths=paths, source=source, before=before)


def stored_settings(config: TrainConfig) -> Mapping[str, Any] | None:
    """Returns the stored settings of the run to continue; None if there is none. See `resume.stored_settings`."""
    # An earlier version took settings that changed nothing, which are refused now, and stored them.
    free = FREE_ON_RESUME | config.unused().keys()
    if config.preprocessing is None:
        free |= {"preprocessing"}
    if config.cache == "auto" and (resume.read_settings(config) or {}).get("cache") == "off":
        free |= {"cache", "views"}  # the features did not fit into memory: the run was stored without them
    if config.method == "fine-tune":  # there are no stored features, which another precision would not fit
        free |= {"inference_precision"}
    return resume.stored_settings(config, kind=KIND, known_names=NAMES, free=free)


def finished_result(config: TrainConfig, paths: RunPaths) -> TrainResult | None:
    """Returns the result of a finished run; None: not finished. Fine-tuning is not if it has now got more epochs."""
    if not storage.exists(paths.metrics):
        return None
    content = json.loads(storage.read_bytes(paths.metrics))
    if config.method != "probe" and content["epochs"] < config.epochs:
        return None
    return TrainResult(
        out=config.out,
        bundle=paths.bundle,
        num_epochs=content["num_epochs"],
        best_epoch=content["best_epoch"],
        metrics=content["splits"],
        cross_validation=content.get("cross_validation"),
        warnings=(*content.get("warnings", ()), "The run had already finished: nothing was done."),
    )

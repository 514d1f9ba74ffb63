"""Texts about a training run for its report and messages: what it was trained on, and warnings."""

import dataclasses
import math
from typing import Any

from tlray.cluster.capacity import Capacity
from tlray.config.recipes import RECIPES
from tlray.config.training import Augmentation, TrainConfig
from tlray.data.dataset import Dataset
from tlray.errors import times
from tlray.features.preparation import Network
from tlray.probe.regression import Probe, variation_warning
from tlray.training import model, probing

_OF_FINE_TUNING = frozenset(
    {
        *("trainable_layers", "batch_norm", "epochs", "learning_rate", "early_stopping_patience", "reduce_lr_patience"),
        *("num_workers", "precision", "max_failures"),
    }
)
"""Names of settings that a run with `--method probe` does not use, beside those that it refuses."""


def describe_misfit(config: TrainConfig, available: Capacity, images: Dataset, network: Network) -> str:
    """Returns the message that features do not fit into memory, with their size and what is done instead."""
    needed, there = probing.cache_bytes(config, images, network), available.smallest_object_store_bytes
    without_views = f", without --views {config.views}" if config.views > 1 else ""
    return (
        f"The stored features for training would take {needed / 1e9:.1f} GB, more than half of Ray's object store "
        f"({there / 1e9:.1f} GB on its smallest node). Training uses "
        f"{trained_on(config.streamed())} instead{without_views}."
    )


def unused_augmentation(config: TrainConfig) -> str | None:
    """Returns the message that the user's augmentation is not used; None where it is, or where it is a recipe's own.

    Args:
        config: A resolved config.
    """
    of_recipes = [recipe(config.data, config.out).augmentation for recipe in RECIPES.values()]  # also that of none
    if config.augmentation in of_recipes or not _sees_plain_images_only(config):
        return None
    remedy = "Give --method lp-ft with --views V." if config.method == "probe" else "Give --views V, or --cache off."
    return f"The augmentation is not used: training is on {trained_on(config)}. {remedy}"


def _sees_plain_images_only(config: TrainConfig) -> bool:
    """Tells whether a resolved config trains on stored features of the images as they are."""
    return config.method == "probe" or (model.is_cached(config) and config.views == 1)


def network_warnings(config: TrainConfig, probe: Probe | None) -> list[str]:
    """Returns warnings about the features that a probe was fitted on."""
    found = []
    if probe and config.weights == "none":
        found.append("The probe uses features of random weights (--weights none), which have learned nothing yet.")
    return found + (variation_warning(probe.variation) if probe else [])


def training_warnings(history: list[dict[str, float]]) -> list[str]:
    """Returns warnings about what went wrong in training.

    Args:
        history: See `fit.fit`.
    """
    found = []
    if history and not math.isfinite(history[-1]["loss"]):
        found.append(
            f"Training diverged in epoch {history[-1]['epoch']:g} (its loss is not a number), so an earlier epoch was "
            "exported. Try a lower --learning-rate."
        )
    if history and history[-1]["num_replaced"]:
        found.append(
            "Images that could be read before training could not be read later, and were replaced by others of their "
            f"batch {times(int(history[-1]['num_replaced']))}. Check the storage."
        )
    return found


def describe_probe(fitted: Probe | None) -> dict[str, Any] | None:
    """Returns the penalties that were tried and the best one, None without a probe."""
    if fitted is None:
        return None
    return {"best": dataclasses.asdict(fitted.best), "trials": list(map(dataclasses.asdict, fitted.trials))}


def trained_on(config: TrainConfig) -> str:
    """Returns what the model was trained on."""
    if _sees_plain_images_only(config):
        return "stored features of the images as they are, without augmentation"
    if model.is_cached(config):
        return f"stored features of {config.views} views of each image: as it is, and augmented"
    if config.augmentation == Augmentation():
        return "images that are read in every epoch, without augmentation"
    return "images that are read and augmented in every epoch"


def starting_weights(config: TrainConfig) -> str:
    """Returns what the backbone's weights were at the start: --weights, or the file of an own backbone with its own."""
    is_own = config.backbone.endswith(".keras") and config.weights == "imagenet"
    return config.backbone if is_own else config.weights


def settings(config: TrainConfig, preprocessing: str, probe: Probe | None) -> dict[str, Any]:
    """Returns the settings of a run for its report, with those that were found and what the model was trained on.

    Settings that changed nothing in the run are left out.

    Args:
        config: A resolved config.
        preprocessing: The scaling of the pixels that the network was given.
        probe: The run's probe; None without one.
    """
    found = {"weights": starting_weights(config), "preprocessing": preprocessing, "probe": describe_probe(probe)}
    unused = _unused(config)
    used = {name: value for name, value in dataclasses.asdict(config).items() if name not in unused}
    return {"trained_on": trained_on(config)} | used | found


def _unused(config: TrainConfig) -> set[str]:
    """Returns the names of the settings that change nothing in a run with a resolved config."""
    names = set(config.unused())
    if config.method == "probe":
        names |= _OF_FINE_TUNING
    if config.method != "lp-ft":
        names.add("cache")
    if config.method == "probe" or config.reduce_lr_patience is None:
        names.add("reduce_lr_factor")
    if _sees_plain_images_only(config):
        names.add("augmentation")
    return names


def verb(config: TrainConfig) -> str:
    """Returns the verb for what was done with the network."""
    if config.method == "probe":
        return "probed"
    if config.method == "lp-ft":
        return "probed, then fine-tuned,"
    return "trained from random weights" if config.weights == "none" else "fine-tuned"


def weights_notice(config: TrainConfig) -> tuple[str, ...]:
    """Returns the notice to show above the metrics of a network that was not pretrained."""
    if config.weights != "none":
        return ()
    return ("Trained from random weights: this shows how the software works and means nothing clinically.",)

import dataclasses
import inspect
import re

import pytest

from tlray.config.recipes import RECIPES, article, full, probe, standard
from tlray.config.training import Augmentation, TrainConfig

MILD = Augmentation(rotation_deg=10, zoom=0.1, shift=0.05, brightness=0.1, contrast=0.1, horizontal_flip=True)


def test_recipes_are_named_like_their_functions():
    assert {"standard": standard, "probe": probe, "article": article, "full": full} == RECIPES
    assert next(iter(RECIPES)) == "standard"  # the default comes first in the help


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_complete(name):
    config = RECIPES[name]("some/data", "some/out")
    assert (config.data, config.out) == ("some/data", "some/out")
    resolved = config.resolved()
    assert None not in (resolved.trainable_layers, resolved.batch_norm)
    assert resolved.precision == "float32"
    assert (config.resume, config.overwrite, config.num_workers, config.use_gpu) == (False, False, 1, False)
    # The same with two workers and from random weights, as the demonstration does.
    assert dataclasses.replace(config, num_workers=2).batch_size == 32


def test_the_article_as_it_stands():
    config = article("d", "o").resolved()
    assert config == TrainConfig(
        data="d",
        out="o",
        weights="imagenet",
        backbone="InceptionV3",
        preprocessing="unit",
        image_size_px=224,
        trainable_layers=15,
        batch_norm="synchronized",
        hidden_units=(512, 512),
        dropout=0.3,
        epochs=8,
        batch_size=32,
        learning_rate=0.001,
        reduce_lr_patience=None,
        early_stopping_patience=None,
        class_weights=False,
        augmentation=Augmentation(shear_deg=0.2, zoom=0.2, horizontal_flip=True),
        precision="float32",
    )


@pytest.mark.parametrize(
    ("recipe", "trainable_layers", "batch_norm", "learning_rate"),
    [(standard, 15, "frozen", 1e-4), (full, "all", "synchronized", 3e-5)],
)
def test_fine_tuning_recipes(recipe, trainable_layers, batch_norm, learning_rate):
    config = recipe("d", "o").resolved()
    assert (config.trainable_layers, config.batch_norm) == (trainable_layers, batch_norm)
    assert config.learning_rate == learning_rate
    assert config.preprocessing is None  # that of the backbone
    assert (config.reduce_lr_patience, config.early_stopping_patience, config.epochs) == (3, 8, 30)
    assert config.class_weights is True
    assert config.augmentation == MILD


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("method", ["probe", "lp-ft", "fine-tune"])
@pytest.mark.parametrize("weights", ["imagenet", "none"])
def test_what_a_recipe_sets_may_stand_where_it_is_not_used(name, method, weights):
    config = dataclasses.replace(RECIPES[name]("d", "o"), method=method, weights=weights)
    assert config.hidden_units == ((512, 512) if name == "article" else ())
    assert config.resolved().weights == weights


def test_without_pretrained_weights_there_is_nothing_to_probe():
    assert standard("d", "o").resolved().method == "lp-ft"
    scratch = dataclasses.replace(standard("d", "o"), weights="none").resolved()
    assert (scratch.method, scratch.learning_rate, scratch.trainable_layers) == ("fine-tune", 1e-3, "all")


@pytest.mark.parametrize("name", RECIPES)
def test_docstring_gives_the_command(name):
    (command,) = re.findall(r"python jobs/train\.py .*", inspect.getdoc(RECIPES[name]) or "")
    assert "--data DATA" in command
    assert f"--out runs/{name}" in command
    assert command.split()[2] == (name if name != "standard" else "--data")

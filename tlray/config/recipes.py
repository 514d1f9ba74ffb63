"""Recipes: named configurations of a training run that set all options but the data and the output."""

from collections.abc import Callable

from tlray.config.training import ARTICLE_HIDDEN_UNITS, Augmentation, TrainConfig


def article(data: str, out: str) -> TrainConfig:
    """The settings of the article that this project started from: a baseline, not a recommendation.

    Its pixels lie in [0, 1], but the pretrained InceptionV3 was trained with [-1, 1]. BatchNormalization among the last
    15 layers is trained, and the learning rate stays the same.

        python jobs/train.py article --data DATA --weights WEIGHTS --num-workers 2 --out runs/article

    On the public chest-CT set's train and valid folders, with incomplete ImageNet weights of 2015, two CPU cores (AMD
    EPYC): validation accuracy 0.71 (72 images: 0.60 to 0.80), test 0.73 (96 images), in three minutes.
    """
    return TrainConfig(
        data=data,
        out=out,
        backbone="InceptionV3",
        preprocessing="unit",
        image_size_px=224,
        batch_norm="synchronized",
        hidden_units=ARTICLE_HIDDEN_UNITS,
        dropout=0.3,
        epochs=8,
        batch_size=32,
        learning_rate=1e-3,
        augmentation=Augmentation(shear_deg=0.2, zoom=0.2, horizontal_flip=True),
    )


def standard(data: str, out: str) -> TrainConfig:
    """The default: a linear probe, then fine-tuning from it. Keeps what has the lowest validation loss.

    The frozen layers of the backbone run once over the images. A logistic regression on features from five depths is
    the start, from which the head and the last 15 layers are fine-tuned at a low learning rate (arXiv:2202.10054). It
    uses frozen BatchNormalization, class weights, a learning rate that is reduced on plateaus, and early stopping. With
    --weights none there is no probe: all layers are trained from random weights.

        python jobs/train.py --data DATA --out runs/standard

    On the public chest-CT set's train and valid folders, with incomplete ImageNet weights of 2015, two CPU cores (AMD
    EPYC): validation accuracy 0.90 (72 images: 0.81 to 0.95), test 0.94 (96 images), in 54 seconds.
    """
    return TrainConfig(
        data=data,
        out=out,
        method="lp-ft",
        dropout=0.3,
        epochs=30,
        batch_size=32,
        reduce_lr_patience=3,
        early_stopping_patience=8,
        class_weights=True,
        augmentation=Augmentation(
            rotation_deg=10, zoom=0.1, shift=0.05, brightness=0.1, contrast=0.1, horizontal_flip=True
        ),
    )


def probe(data: str, out: str) -> TrainConfig:
    """The fastest: one pass of the pretrained network over the images, and a logistic regression on its features.

    The features are averages over height and width from five depths of the backbone, standardized. The penalty is the
    one with the lowest validation loss. There is no augmentation.

        python jobs/train.py probe --data DATA --out runs/probe

    On the public chest-CT set's train and valid folders, with incomplete ImageNet weights of 2015, two CPU cores (AMD
    EPYC): validation accuracy 0.88 (72 images: 0.78 to 0.93), test 0.95 (96 images), in 41 seconds.
    """
    return TrainConfig(data=data, out=out, method="probe", class_weights=True)


def full(data: str, out: str) -> TrainConfig:
    """Trains all layers at a low learning rate, for thousands of images and GPUs. BatchNormalization is synchronized.

    python jobs/train.py full --data DATA --out runs/full --num-workers 4 --use-gpu
    """
    return TrainConfig(
        data=data,
        out=out,
        trainable_layers="all",
        batch_norm="synchronized",
        dropout=0.3,
        epochs=30,
        batch_size=32,
        learning_rate=3e-5,
        reduce_lr_patience=3,
        early_stopping_patience=8,
        class_weights=True,
        augmentation=Augmentation(
            rotation_deg=10, zoom=0.1, shift=0.05, brightness=0.1, contrast=0.1, horizontal_flip=True
        ),
    )


RECIPES: dict[str, Callable[[str, str], TrainConfig]] = {
    "standard": standard,
    "probe": probe,
    "article": article,
    "full": full,
}

"""The Keras model of a training run before it is trained, and the network that computes its features."""

from dataclasses import dataclass, replace

import numpy as np

from tlray.config.training import TrainConfig
from tlray.engines import choice
from tlray.features.preparation import Network, as_network
from tlray.features.store import POOLED
from tlray.models.weights import trained_preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class Untrained:
    """A classifier before training, with the network that computes its features.

    It holds arrays, not references to the object store: an object there is lost when the process that put it ends, and
    the process that builds models may end at any time. A process that passes the arrays on puts them there itself.

    Attributes:
        architecture: The classifier (uint8 in, logits out, float32) as JSON.
        weights: The classifier's weights.
        preprocessing: The pixel preprocessing that the backbone expects.
        network: Computes the features for a probe or for training on a cache; None where no features are needed.
        depth_sizes: Number of columns of the pooled features from each depth, the last depth last.
        tail_layers: Names of the backbone's last layers, as many as are trained, in order.
        tail: The part of the classifier that is trained on features, as JSON; None where it is trained on images.
        tail_weights: The tail's weights; None without a tail.
    """

    architecture: str
    weights: list[np.ndarray]
    preprocessing: str
    network: Network | None = None
    depth_sizes: tuple[int, ...] = ()
    tail_layers: tuple[str, ...] = ()
    tail: str | None = None
    tail_weights: list[np.ndarray] | None = None

    @property
    def tail_inputs(self) -> list[str]:
        """The names of the features that the tail takes, in order."""
        names = self.network.names if self.network else []
        return [name for name in names if name != POOLED] or names


def build(config: TrainConfig, num_classes: int) -> Untrained:
    """Builds the classifier of a resolved config and the network of its features; run by `connection.start_here`.

    Args:
        config: A resolved config.
        num_classes: At least 2.

    Raises:
        BundleError: The bundle that --weights names is damaged.
        ConfigError: The model or its weights are not available, or do not fit together.
    """
    import keras  # noqa: PLC0415 (TensorFlow only in this process)

    from tlray.models import classifier as models  # noqa: PLC0415
    from tlray.models import devices, trunk  # noqa: PLC0415
    from tlray.models.backbone import application_preprocessing, build_backbone  # noqa: PLC0415

    kind = choice.for_features("auto", config.inference_precision, use_gpu=config.use_gpu, flag="--inference-precision")
    devices.use_cpus()  # leaves all GPUs to the workers
    keras.utils.clear_session()  # Keras numbers layers per process, and this one may have built others before
    keras.utils.set_random_seed(config.seed)
    of_weights = trained_preprocessing(config.weights)
    preprocessing = config.preprocessing or of_weights or application_preprocessing(config.backbone)
    backbone = build_backbone(config)
    models.set_trainable(backbone, config)
    if config.method == "probe":
        backbone.trainable = False
    if config.method == "fine-tune":
        classifier = models.build_classifier(backbone, config, preprocessing=preprocessing, num_classes=num_classes)
        weights = models.get_weights(classifier)
        return Untrained(architecture=classifier.to_json(), weights=weights, preprocessing=preprocessing)
    extractor, _ = trunk.extractor(backbone, preprocessing, pooled=True, cut=False, depths=config.depths)
    is_tuned = config.method == "lp-ft"
    classifier = models.with_linear_head(
        extractor, num_classes=num_classes, dropout=config.dropout if is_tuned else 0.0
    )
    if is_tuned:
        classifier = models.with_hidden_layers(classifier, hidden_units=config.hidden_units, dropout=config.dropout)
    prepared = Untrained(
        architecture=classifier.to_json(), weights=models.get_weights(classifier), preprocessing=preprocessing
    )
    first, tail = trunk.split(classifier)
    pooled = trunk.up_to(tail, models.STANDARDISATION_LAYER)(first.outputs)
    if config.method == "probe" or (is_cached(config) and config.trainable_layers == 0):
        outputs = {POOLED: pooled}
    elif is_cached(config):
        outputs = {POOLED: pooled} | {f"cut_{number}": tensor for number, tensor in enumerate(first.outputs)}
    else:
        network = as_network(keras.Model(first.inputs[0], [pooled]), [POOLED], kind)
        return replace(prepared, network=network)
    tail_architecture = tail.to_json()  # before its layers, which the network shares, are frozen
    return replace(
        prepared,
        depth_sizes=tuple(trunk.level_sizes(backbone)[-config.depths :]),
        tail_layers=tuple(layer.name for layer in models.trained_layers(backbone, config)),
        tail=tail_architecture,
        tail_weights=models.get_weights(tail),
        network=as_network(keras.Model(first.inputs[0], list(outputs.values())), list(outputs), kind),
    )


def is_cached(config: TrainConfig) -> bool:
    """Tells whether a resolved config trains on features instead of images, if they fit into memory."""
    return config.method == "lp-ft" and config.cache == "auto" and config.trainable_layers != "all"


def num_views(config: TrainConfig) -> int:
    """Returns the number of views of each training image for which a resolved config needs features."""
    return config.views if is_cached(config) else 1

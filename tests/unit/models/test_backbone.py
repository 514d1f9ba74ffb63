import contextlib
from pathlib import Path

import keras
import numpy as np
import pytest

from tlray.config.training import TrainConfig
from tlray.errors import ConfigError
from tlray.models import backbone as backbones
from tlray.models.backbone import application_preprocessing, build_backbone, preprocess


def make_config(**changes) -> TrainConfig:
    return TrainConfig(**({"data": "d", "out": "o", "weights": "none", "image_size_px": 75} | changes)).resolved()


@pytest.mark.parametrize(
    ("backbone", "mode"),
    [
        ("InceptionV3", "symmetric"),
        ("MobileNetV2", "symmetric"),
        ("EfficientNetB0", "raw"),
        ("ResNet50", "caffe"),
        ("DenseNet121", "imagenet"),
    ],
)
def test_preprocessing_is_that_of_keras_applications(backbone, mode):
    assert application_preprocessing(backbone) == mode


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("unit", [0.0, 0.2, 1.0]),  # x / 255
        ("symmetric", [-1.0, -0.6, 1.0]),  # x / 127.5 - 1
        ("imagenet", [-2.117904, -1.142857, 2.64]),  # (x / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        ("caffe", [151.061, -65.779, -123.68]),  # blue 255 - 103.939, green 51 - 116.779, red 0 - 123.68
        ("raw", [0.0, 51.0, 255.0]),
    ],
)
def test_preprocess_by_hand(mode, expected):
    pixel = np.array([[[[0, 51, 255]]]], dtype=np.uint8)
    assert np.asarray(preprocess(pixel, mode))[0, 0, 0] == pytest.approx(expected, abs=1e-4)


def test_own_model_is_cut_at_its_last_feature_map(own_model):
    path, model = own_model
    config = make_config(backbone=path, weights="imagenet", preprocessing="unit", image_size_px=32)
    backbone = build_backbone(config)
    images = np.random.default_rng(1).random((1, 32, 32, 3), dtype=np.float32)
    expected = np.asarray(keras.Model(model.input, model.get_layer("second").output)(images))
    assert np.asarray(backbone(images)) == pytest.approx(expected, abs=1e-6)
    earlier = build_backbone(
        make_config(backbone=path, weights="imagenet", preprocessing="unit", image_size_px=32, cut="first")
    )
    assert earlier.output_shape == (None, 30, 30, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "Inception"}, "neither a .keras file nor a model of keras.applications.*MobileNetV2"),
        ({"image_size_px": 32}, "InceptionV3 cannot be built for --image-size-px 32"),
        ({"weights": "nowhere.h5"}, "no weights at 'nowhere.h5'"),
    ],
)
def test_backbones_that_cannot_be_built(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_backbone(make_config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cut": "third"}, "--cut 'third' is not a layer.*first, norm, second"),
        ({"image_size_px": 64}, "32 x 32 px images.*Give --image-size-px 32"),
    ],
)
def test_own_models_that_do_not_fit(own_model, changes, message):
    config = {"backbone": own_model[0], "weights": "imagenet", "preprocessing": "unit", "image_size_px": 32} | changes
    with pytest.raises(ConfigError, match=message):
        build_backbone(make_config(**config))


@pytest.mark.parametrize("shape", [(32, 32, 1), (32, 32, None), (3, 32, 32), (32,)])
def test_own_models_that_take_no_rgb_images_are_refused(tmp_path, shape):
    pixels = keras.Input(shape)
    keras.Model(pixels, keras.layers.Activation("relu")(pixels)).save(tmp_path / "own.keras")
    config = make_config(
        backbone=str(tmp_path / "own.keras"), weights="imagenet", preprocessing="unit", image_size_px=32
    )
    given = ", ".join(map(str, (None, *shape)))
    with pytest.raises(ConfigError) as raised:
        build_backbone(config)
    assert str(raised.value) == (
        f"'{config.backbone}' has the input ({given}), but tlray needs square RGB images [batch, size, size, 3]. Give "
        "another --backbone."
    )


def test_weights_of_another_model_are_refused(tmp_path):
    keras.applications.MobileNet(include_top=False, weights=None, input_shape=(75, 75, 3)).save_weights(  # pyright: ignore[reportArgumentType]
        tmp_path / "other.weights.h5"
    )
    weights = tmp_path / "other.weights.h5"
    with pytest.raises(ConfigError, match=r"does not fit the backbone MobileNetV2.*Name the --backbone.*\(.*[^:]\)$"):
        build_backbone(make_config(backbone="MobileNetV2", weights=str(weights)))
    cut_off = tmp_path / "cut_off.weights.h5"
    cut_off.write_bytes(weights.read_bytes()[:1_000_000])
    with pytest.raises(ConfigError, match=r"is damaged or incomplete. Copy or download it again"):
        build_backbone(make_config(backbone="MobileNetV2", weights=str(cut_off)))


@pytest.fixture(scope="module")
def efficient_net(tmp_path_factory) -> tuple[Path, keras.Model]:
    """A file of weights with the statistics of ImageNet, and the network that Keras builds for its own weights."""
    path = tmp_path_factory.mktemp("efficient_net") / "w.weights.h5"
    plain = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(75, 75, 3))  # pyright: ignore[reportArgumentType]
    normalization = next(layer for layer in plain.layers if isinstance(layer, keras.layers.Normalization))
    # The published files have the deviations where the variances should be: TensorFlow issue 49930.
    normalization.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.array(0)])
    plain.save_weights(path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("keras.src.applications.efficientnet.file_utils.get_file", lambda *_, **__: str(path))
        original = build_backbone(make_config(backbone="EfficientNetB0", weights="imagenet"))
    assert len(original.layers) == len(plain.layers) + 1
    return path, original


def test_a_weights_file_of_efficient_net_gives_the_network_that_the_download_gives(efficient_net):
    path, original = efficient_net
    images = np.random.default_rng(0).uniform(0, 255, (1, 75, 75, 3)).astype(np.float32)
    found = build_backbone(make_config(backbone="EfficientNetB0", weights=str(path)))
    assert np.asarray(found(images)) == pytest.approx(np.asarray(original(images)), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("times", [1, 2])
def test_the_efficient_net_of_a_bundle_stays_what_it_was_however_often_it_is_reused(efficient_net, monkeypatch, times):
    _, original = efficient_net
    images = np.random.default_rng(0).uniform(0, 255, (1, 75, 75, 3)).astype(np.float32)
    found = original
    for _ in range(times):
        monkeypatch.setattr(backbones, "check_weights", lambda _: None)
        monkeypatch.setattr(backbones, "has_bundle", lambda _: True)
        monkeypatch.setattr(backbones.storage, "local_copy", contextlib.nullcontext)
        monkeypatch.setattr(backbones, "_bundle_backbone", lambda _, source=found: source)
        found = build_backbone(make_config(backbone="EfficientNetB0", weights="bundle"))
    assert len(found.layers) == len(original.layers) - 1
    assert np.asarray(found(images)) == pytest.approx(np.asarray(original(images)), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("variance", [(1, 1, 1), (0.229**2, 0.224**2, 0.225**2)])
def test_weights_of_efficient_net_that_are_not_those_of_keras_are_taken_as_they_are(tmp_path, variance):
    plain = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(75, 75, 3))  # pyright: ignore[reportArgumentType]
    normalization = next(layer for layer in plain.layers if isinstance(layer, keras.layers.Normalization))
    normalization.set_weights([np.array([0.485, 0.456, 0.406]), np.array(variance), np.array(0)])
    normalization.finalize_state()
    plain.save_weights(tmp_path / "own.weights.h5")
    images = np.random.default_rng(0).uniform(0, 255, (1, 75, 75, 3)).astype(np.float32)
    found = build_backbone(make_config(backbone="EfficientNetB0", weights=str(tmp_path / "own.weights.h5")))
    assert np.array_equal(np.asarray(found(images)), np.asarray(plain(images)))


def test_failed_download_names_the_remedy(monkeypatch):
    def fail(*args, **kwargs):  # noqa: ARG001
        raise Exception("URL fetch failure: timed out")

    monkeypatch.setattr("keras.src.applications.inception_v3.file_utils.get_file", fail)
    with pytest.raises(ConfigError, match=r"could not be downloaded \(URL fetch failure: timed out\).*--weights PATH"):
        build_backbone(make_config(weights="imagenet"))

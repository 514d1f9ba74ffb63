"""The engines on one small network: the same numbers, what each machine takes, and what is refused."""

import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tlray import cli
from tlray.bundle import store
from tlray.bundle.agreement import AccuracyChange, Agreement
from tlray.bundle.spec import BundleSpec
from tlray.config.training import TrainConfig
from tlray.engines import choice, comparison, converted, networks, openvino_engine, quantization
from tlray.engines.kinds import REFERENCE, EngineKind, Precision
from tlray.errors import BundleError, ConfigError
from tlray.inference import score_state
from tlray.inference.predictor import Predictor
from tlray.models.artifact import save_artifact
from tlray.training import begin

SIZE_PX = 24
SPEC = BundleSpec(
    classes=("a", "b", "c"), image_size_px=SIZE_PX, preprocessing="unit", backbone="b", weights="w",
    thresholds={"refer_below": 0.5},
)  # fmt: skip
HAS_BFLOAT16 = "bfloat16" in openvino_engine.cpu_precisions()
PRECISIONS: list[Precision] = ["float32", "bfloat16"] if HAS_BFLOAT16 else ["float32"]


def build_network() -> keras.Model:
    keras.utils.set_random_seed(3)
    images = keras.Input((SIZE_PX, SIZE_PX, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(6, 3, strides=2, activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(images, keras.layers.Softmax()(x * 10))


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return build_network()


@pytest.fixture(scope="module")
def bundle(network, tmp_path_factory) -> str:
    """A bundle of this version."""
    directory = tmp_path_factory.mktemp("bundle") / "bundle"
    save_artifact(network, directory)
    assert converted.add_to(str(directory))[1] == ()
    store.seal(str(directory), SPEC)
    return str(directory)


@pytest.fixture(scope="module")
def earlier(bundle, tmp_path_factory) -> str:
    """The same as an earlier version wrote it, without files for OpenVINO."""
    directory = tmp_path_factory.mktemp("earlier") / "bundle"
    shutil.copytree(bundle, directory)
    shutil.rmtree(directory / "openvino")
    text = (directory / "bundle.json").read_text()
    lines = text.replace('"schema_version": 3', '"schema_version": 1').splitlines()
    lines = [line for line in lines if not any(name in line for name in ('"openvino/', '"engines"', '"decoding"'))]
    (directory / "bundle.json").write_text("\n".join(lines).replace('",\n  }', '"\n  }'))
    return str(directory)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def test_both_engines_compute_what_the_network_does(bundle, network, images):
    expected = np.asarray(network(images))
    assert expected.max(axis=1).std() > 1e-3  # not all alike
    for engine in ("openvino", "tensorflow"):
        predictor = Predictor(bundle, engine=engine, precision="float32")
        assert predictor.kind == EngineKind(engine, "float32")
        found = predictor.predict(images)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
        for size in (1, 3):  # batches of any size, in turns
            np.testing.assert_allclose(predictor.predict(images[:size]), expected[:size], atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("num_threads", [1, 2, 3, None])
def test_parts_that_are_computed_side_by_side_are_the_same_in_order(bundle, images, precision, num_threads):
    """The endpoint has `batch_size=1`, bulk scoring 32: both give the same probabilities, but for rounding."""
    expected = Predictor(bundle, precision=precision).predict(images)
    assert len(np.unique(expected.round(6), axis=0)) == len(images)  # a wrong order would show in float32
    predictor = Predictor(bundle, precision=precision, num_threads=num_threads, batch_size=32)
    # bfloat16 has 8 significant bits: a sum in another order can round a value of the network the other way.
    atol = {"float32": 1e-6}.get(precision, 5e-3)
    for size in (40, 32, 13, 4, 1, 40):
        np.testing.assert_allclose(predictor.predict(images[:size]), expected[:size], atol=atol)


def test_a_call_that_is_interrupted_leaves_the_engine_usable(bundle, images):
    """Ctrl-C while the second part is started: the first one still runs, and a request that is busy refuses work."""
    predictor = Predictor(bundle, precision="float32", num_threads=2, batch_size=32)
    expected = predictor.predict(images)
    requests = predictor._engine._requests  # pyright: ignore[reportAttributeAccessIssue]

    class Interrupted:
        def start_async(self, *_: object, **__: object) -> None:
            raise KeyboardInterrupt

    kept, requests[1] = requests[1], Interrupted()
    with pytest.raises(KeyboardInterrupt):
        predictor.predict(images)
    requests[1] = kept
    np.testing.assert_allclose(predictor.predict(images), expected, atol=1e-6)


@pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no bfloat16")
def test_bfloat16_is_near_and_not_the_same(bundle, images):
    exact = Predictor(bundle, precision="float32").predict(images)
    found = Predictor(bundle, precision="bfloat16").predict(images)
    difference = np.abs(found - exact).max()
    # bfloat16 has 8 significant bits; the logits are of the size of 10.
    assert 1e-6 < difference < 0.1


def test_the_answer_is_a_copy(bundle, images):
    predictor = Predictor(bundle, engine="openvino")
    first = predictor.predict(images[:2])
    kept = first.copy()
    predictor.predict(images[2:4])
    assert np.array_equal(first, kept)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_bundle_of_an_earlier_version_is_converted_once(bundle, earlier, images, cache, caplog):
    expected = Predictor(bundle, precision="float32").predict(images)
    for _ in range(2):
        np.testing.assert_array_equal(Predictor(earlier).predict(images), expected)
    (message,) = [each for each in caplog.messages if not each.endswith(DECODED)]
    sha256 = store.read_spec(earlier)[1]
    assert message == f"Converting the bundle {sha256[:12]}, of an earlier version, for OpenVINO: only once"
    (name,) = os.listdir(cache / "tlray/bundles")
    assert name.startswith(f"{sha256}-{openvino_engine.version()}-")


@pytest.mark.usefixtures("cache")
def test_a_converted_bundle_that_is_removed_while_it_is_loaded_is_converted_again(bundle, earlier, images, monkeypatch):
    expected = Predictor(bundle, precision="float32").predict(images)
    kept, directories = networks.cache.kept, []

    def keep_and_remove(*arguments: Any) -> str:
        directories.append(kept(*arguments))
        if len(directories) == 2:  # the first call only looks whether it can be converted
            shutil.rmtree(directories[-1])
        return directories[-1]

    monkeypatch.setattr(networks.cache, "kept", keep_and_remove)
    np.testing.assert_array_equal(Predictor(earlier).predict(images), expected)
    assert len(directories) == 3


def test_a_cache_that_cannot_be_written_is_no_obstacle(bundle, earlier, images, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    expected = Predictor(bundle, precision="float32").predict(images)
    np.testing.assert_array_equal(Predictor(earlier).predict(images), expected)


def test_a_changed_file_of_an_engine_is_a_line_and_2(bundle, tmp_path, capsys):
    shutil.copytree(bundle, tmp_path / "bundle")
    path = tmp_path / "bundle/openvino/model.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    said = r"was changed after its export: the sha256 of openvino/model\.bin is"
    with pytest.raises(BundleError, match=said):
        Predictor(str(tmp_path / "bundle"))
    arguments = ["--bundle", str(tmp_path / "bundle"), "--input", str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.execute("score", arguments) == 2
    assert re.fullmatch(rf"tlray: .*{said}.*\n", capsys.readouterr().err)


@pytest.fixture(scope="module")
def unknown(tmp_path_factory) -> tuple[keras.Model, str]:
    """A network with an operation that OpenVINO does not know, and its bundle."""
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(pixels))
    x = keras.ops.erfinv(x)
    network = keras.Model(pixels, keras.layers.Softmax()(x))
    directory = tmp_path_factory.mktemp("unknown") / "bundle"
    save_artifact(network, directory)
    directories, warnings = converted.add_to(str(directory))
    assert directories == {}
    assert warnings[0].startswith("OpenVINO cannot convert the model, so TensorFlow will predict")
    store.seal(str(directory), SPEC)
    return network, str(directory)


def test_a_network_that_openvino_does_not_know_is_run_by_tensorflow(unknown, images):
    network, bundle = unknown
    predictor = Predictor(bundle)
    assert predictor.kind == REFERENCE
    np.testing.assert_allclose(predictor.predict(images), np.asarray(network(images)), atol=1e-5)
    with pytest.raises(ConfigError, match="--engine openvino: OpenVINO cannot run this model"):
        Predictor(bundle, engine="openvino")


DECODED = "If it learned from such images, train or export it again."
SLOWER = "TensorFlow predicts with the bundle {}, in float32 and more slowly than OpenVINO would: "


def test_tensorflow_in_the_place_of_openvino_is_told_once_and_why(unknown, caplog):
    bundle = store.load(unknown[1])
    assert choice.for_bundle(bundle, "auto", "auto", use_gpu=False) == REFERENCE
    (message,) = caplog.messages
    why = "it has no files for OpenVINO, which could not convert or run the model when it was exported."
    assert message == SLOWER.format(bundle.sha256[:12]) + why
    # As it was asked for.
    assert choice.for_bundle(bundle, "tensorflow", "auto", use_gpu=False) == REFERENCE
    assert choice.for_bundle(bundle, "auto", "auto", use_gpu=True) == REFERENCE
    assert len(caplog.messages) == 1


@pytest.mark.usefixtures("cache")
def test_an_earlier_bundle_that_cannot_be_converted_is_told_once(earlier, caplog, monkeypatch):
    def fail(*_: object) -> None:
        raise openvino_engine.ConversionError("it is odd")

    monkeypatch.setattr(openvino_engine, "convert", fail)
    bundle = store.load(earlier)
    assert choice.for_bundle(bundle, "auto", "auto", use_gpu=False) == REFERENCE
    decoded, converting, message = caplog.messages
    assert decoded.startswith(
        f"The bundle {bundle.sha256[:12]} was made by an earlier version of tlray, which decoded "
    )
    assert decoded.endswith(DECODED)
    assert converting.startswith("Converting the bundle ")
    assert message == SLOWER.format(bundle.sha256[:12]) + "OpenVINO cannot convert the model (it is odd)."


@pytest.fixture
def wrong_conversion(tmp_path, monkeypatch) -> None:
    """Makes OpenVINO convert every network into one with other weights."""
    other = build_network()
    other.set_weights([values + 0.3 for values in other.get_weights()])
    save_artifact(other, tmp_path / "other")
    convert = openvino_engine.convert
    other_model = str(tmp_path / "other/saved_model")
    monkeypatch.setattr(openvino_engine, "convert", lambda _, directory: convert(other_model, directory))


@pytest.mark.usefixtures("wrong_conversion")
def test_an_earlier_bundle_that_openvino_computes_otherwise_is_run_by_tensorflow(
    earlier, network, images, cache, caplog
):
    predictor = Predictor(earlier)
    assert predictor.kind == REFERENCE
    np.testing.assert_allclose(predictor.predict(images), np.asarray(network(images)), atol=1e-5)
    why = r"OpenVINO cannot convert the model \(its outputs differ from TensorFlow's by up to 0\.\d+, and the limit is "
    beginning = re.escape(SLOWER.format(predictor.bundle.sha256[:12]))
    assert re.fullmatch(beginning + why + r"0\.001\)\.", caplog.messages[-1])
    assert os.listdir(cache / "tlray/bundles") == []
    with pytest.raises(ConfigError, match="--engine openvino: OpenVINO cannot run this model"):
        Predictor(earlier, engine="openvino")


@pytest.mark.usefixtures("wrong_conversion", "cache")
def test_features_that_openvino_computes_otherwise_are_computed_by_tensorflow(network, images):
    packed = networks.pack(network, EngineKind("openvino", "float32"), fingerprint="f")
    assert packed.kind == REFERENCE
    assert packed.note.startswith(
        "OpenVINO cannot convert the network, so TensorFlow computes its features, more slowly: its outputs differ "
    )
    assert networks.kept("f", EngineKind("openvino", "float32")) is None
    engine = networks.load(packed, num_threads=1, use_gpu=False, is_long=False)
    np.testing.assert_allclose(engine.run(images)[0], np.asarray(network(images)), atol=1e-5)


@pytest.mark.parametrize(
    ("wanted", "found", "is_right"),
    [
        ([0.5, 0.5], [0.5009, 0.4991], True),
        ([0.5, 0.5], [0.5011, 0.4989], False),
        ([0.5, 0.5], [0.5, math.nan], False),
        ([math.nan, 0.5], [math.nan, 0.5], False),
        ([-2000.0, 0.0], [-2001.0, 0.0], True),  # features
        ([-2000.0, 0.0], [-2000.0, 3.0], False),
    ],
)
def test_an_output_may_differ_by_a_thousandth(monkeypatch, wanted, found, is_right):
    class FakeEngine:
        def __init__(self, _directory: str, *, precision: Precision) -> None:
            assert precision == "float32"

        def run(self, batch: np.ndarray) -> list[np.ndarray]:
            return [np.zeros((len(batch), 2)), np.array([found] * len(batch))]

    monkeypatch.setattr(openvino_engine, "OpenVinoEngine", FakeEngine)
    images_BHWC = comparison.trial_images(8)
    assert (images_BHWC.shape, images_BHWC.dtype) == ((4, 8, 8, 3), np.uint8)
    assert len(np.unique(images_BHWC, axis=0)) == 4
    expected = [np.zeros((4, 2)), np.array([wanted] * 4)]
    if is_right:
        comparison.check("d", images_BHWC, expected)
        return
    with pytest.raises(openvino_engine.ConversionError, match="its outputs differ from TensorFlow's by up to"):
        comparison.check("d", images_BHWC, expected)


def test_a_model_that_tensorflow_cannot_run_is_not_converted(tmp_path):
    with pytest.raises(openvino_engine.ConversionError, match=r"TensorFlow cannot run it to compare .*nowhere"):
        converted._reference_outputs(tmp_path / "nowhere", comparison.trial_images(8))


def test_a_bundle_that_openvino_computes_otherwise_is_told(bundle, caplog):
    loaded = store.load(bundle)
    inexact = replace(loaded, spec=replace(loaded.spec, engines=(agreement("float32", log_loss_change=0.02),)))
    assert choice.for_bundle(inexact, "auto", "auto", use_gpu=False) == REFERENCE
    (message,) = caplog.messages
    said = "OpenVINO computes other probabilities than TensorFlow in float32 with this model."
    assert message == SLOWER.format(loaded.sha256[:12]) + said
    assert choice.for_bundle(inexact, "openvino", "auto", use_gpu=False) == EngineKind("openvino", "float32")
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"precision": "int8"}, "--precision int8: this bundle has no int8 model"),
        ({"engine": "tensorflow", "precision": "bfloat16"}, "the engine tensorflow predicts in float32"),
        ({"engine": "openvino", "use_gpu": True}, "--engine openvino predicts on CPUs. Leave out --use-gpu"),
    ],
)
def test_what_cannot_be_is_refused(bundle, wanted, message):
    with pytest.raises(ConfigError, match=message):
        Predictor(bundle, **wanted)


def test_a_precision_that_the_cpu_lacks(bundle, monkeypatch):
    monkeypatch.setattr(openvino_engine, "cpu_precisions", lambda: frozenset({"float32"}))
    monkeypatch.setattr(openvino_engine, "cpu_name", lambda: "Old CPU")
    message = (
        r"--precision bfloat16: this machine's CPU \(Old CPU\) has no instructions for it. Give --precision float32"
    )
    with pytest.raises(ConfigError, match=message):
        Predictor(bundle, precision="bfloat16")
    assert Predictor(bundle).kind == EngineKind("openvino", "float32")


def no_change(predicted: np.ndarray, reference: np.ndarray) -> AccuracyChange:
    assert predicted.shape == reference.shape
    return AccuracyChange(value=0.0, low=-1.0, high=1.0, num_groups=1)


def compared(network, bundle, images):
    directory = os.path.join(bundle, "openvino")
    labels = np.asarray(network(images)).argmax(axis=1)
    found, failed = comparison.compare(
        {"float32": directory, "bfloat16": directory},
        lambda batch: [np.asarray(network(batch))],
        images,
        labels,
        compare_accuracy=no_change,
        decide=lambda outputs: outputs[0].max(axis=1) < 0.5,
    )
    assert failed == {}
    return found


class Clock:
    """A clock, and engines that take 0.2 s for 16 images in float32 and half of that in bfloat16.

    Attributes:
        now_s: The time.
        slowdown: By how much other work of the machine slows the engines at a time.
        called: Each call of an engine: its precision and the number of images.
    """

    def __init__(self, monkeypatch, slowdown=lambda _: 1) -> None:
        self.now_s, self.slowdown, self.called = 0.0, slowdown, []
        clock = self

        class FakeEngine:
            def __init__(self, _directory: str, *, precision: Precision) -> None:
                self.precision = precision

            def run(self, batch: np.ndarray) -> list[np.ndarray]:
                return clock.run(self.precision, batch)

        monkeypatch.setattr(comparison.time, "perf_counter", lambda: self.now_s)
        monkeypatch.setattr(openvino_engine, "OpenVinoEngine", FakeEngine)
        monkeypatch.setattr(openvino_engine, "cpu_precisions", lambda: frozenset({"float32", "bfloat16"}))

    def run(self, precision: str, batch: np.ndarray) -> list[np.ndarray]:
        self.called.append((precision, len(batch)))
        left_s = {"tensorflow": 0.3, "float32": 0.2, "bfloat16": 0.1}[precision] * len(batch) / 16
        if precision not in [name for name, _ in self.called[:-1]]:
            left_s += 1  # the first call prepares the engine
        while left_s > 0:
            step_s = min(left_s, 0.01)
            self.now_s += step_s * self.slowdown(self.now_s)
            left_s -= step_s
        probs_BK = np.tile(np.array([0.9, 0.1], np.float32), (len(batch), 1))
        return [probs_BK, batch.astype(np.float32)]

    def compare(self, num_images: int) -> dict[EngineKind, comparison.Compared]:
        self.called.clear()
        found, failed = comparison.compare(
            {"float32": "f", "bfloat16": "f"},
            lambda batch: self.run("tensorflow", batch),
            np.zeros((num_images, 1, 1, 3), np.uint8),
            np.zeros(num_images, np.int64),
            compare_accuracy=no_change,
            decide=lambda outputs: outputs[0].argmax(axis=1),
        )
        assert failed == {}
        return found


@pytest.mark.parametrize("num_images", [72, 40, 16, 5])
def test_speeds_are_measured_in_turns_and_without_the_first_batch(monkeypatch, num_images):
    clock = Clock(monkeypatch)
    found = clock.compare(num_images)
    assert {str(kind): each.agreement.images_per_s for kind, each in found.items()} == pytest.approx(
        {"tensorflow float32": 16 / 0.3, "openvino float32": 16 / 0.2, "openvino bfloat16": 16 / 0.1}
    )
    assert {len(each.probs_BK) for each in found.values()} == {num_images}
    by_openvino = [precision for precision, _ in clock.called if precision != "tensorflow"]
    assert by_openvino == ["float32", "bfloat16"] * (len(by_openvino) // 2)
    # At least the first batch and five rounds; for small batches a second of work.
    seconds = (0.2 + 0.1) * min(num_images, 16) / 16
    num_whole = max(5, math.ceil(1 / seconds)) + 1
    assert len(by_openvino) == 2 * (num_whole + (num_images % 16 > 0 and num_images > 16))


@pytest.mark.parametrize("start", range(15))
@pytest.mark.parametrize("period_s", [1.0, 3.0])
def test_a_machine_that_is_busy_now_and_then_does_not_change_the_precision(monkeypatch, start, period_s):
    """Other processes take two thirds of the CPUs, half of the time."""
    clock = Clock(monkeypatch, lambda now_s: 3 if (now_s / period_s + start / 15) % 1 < 0.5 else 1)
    agreements = [each.agreement for each in clock.compare(72).values()]
    assert choice.choose("auto", "auto", use_gpu=False, agreements=agreements) == EngineKind("openvino", "bfloat16")


def test_a_large_network_is_not_measured_for_long(monkeypatch):
    clock = Clock(monkeypatch, lambda _: 60)  # 12 s and 6 s for a batch
    found = clock.compare(16)
    assert clock.called == [("tensorflow", 16)] * 2 + [("float32", 16), ("bfloat16", 16)] * 2
    assert found[EngineKind("openvino", "bfloat16")].agreement.images_per_s == pytest.approx(16 / 6)


def test_a_precision_that_fails_while_it_runs_is_left_out(monkeypatch):
    clock = Clock(monkeypatch)
    run = clock.run

    def fail(precision: str, batch: np.ndarray) -> list[np.ndarray]:
        if precision == "bfloat16" and len(clock.called) > 15:
            raise openvino_engine.ConversionError("no memory")
        return run(precision, batch)

    monkeypatch.setattr(clock, "run", fail)
    found, failed = comparison.compare(
        {"float32": "f", "bfloat16": "f"},
        lambda batch: run("tensorflow", batch),
        np.zeros((72, 1, 1, 3), np.uint8),
        np.zeros(72, np.int64),
        compare_accuracy=no_change,
        decide=lambda outputs: outputs[0].argmax(axis=1),
    )
    assert (list(found), failed) == ([REFERENCE, EngineKind("openvino", "float32")], {"bfloat16": "no memory"})
    assert found[EngineKind("openvino", "float32")].agreement.images_per_s == pytest.approx(16 / 0.2)


def test_the_engines_of_a_new_model_are_compared(network, bundle, images):
    predicted = compared(network, bundle, images)
    assert list(predicted) == [REFERENCE, *(EngineKind("openvino", precision) for precision in PRECISIONS)]
    for kind, each in predicted.items():
        expected = Predictor(bundle, engine=kind.engine, precision=kind.precision).predict(images)
        np.testing.assert_allclose(each.probs_BK, expected, atol=1e-5)
        assert (each.agreement.engine, each.agreement.precision) == (kind.engine, kind.precision)
    found = {str(kind): each.agreement for kind, each in predicted.items()}
    exact = found["openvino float32"]
    assert (exact.num_images, exact.label_agreement, exact.num_clear_changed) == (40, 1.0, 0)
    assert exact.max_difference < 1e-5
    assert exact.is_fit
    assert exact.images_per_s > 0
    if HAS_BFLOAT16:
        assert found["openvino bfloat16"].max_difference > exact.max_difference


def agreement(precision: Precision, **changes) -> Agreement:
    """One that is fit, unless it is changed."""
    values = {
        "num_images": 72, "label_agreement": 1.0, "num_clear": 60, "num_clear_changed": 0, "max_difference": 0.01,
        "mean_difference": 0.001, "log_loss_change": 0.001, "accuracy_change": 0.0, "accuracy_change_low": -0.03,
        "accuracy_change_high": 0.03, "num_referrals_changed": 0, "images_per_s": 50.0, "cpu": "a CPU",
    }  # fmt: skip
    return Agreement(engine="openvino", precision=precision, **(values | changes))


EXACT, NEAR = agreement("float32"), agreement("bfloat16")


@pytest.mark.parametrize(
    ("agreements", "has", "chosen"),
    [
        ([EXACT, NEAR], {"float32", "bfloat16"}, EngineKind("openvino", "bfloat16")),
        ([EXACT, NEAR], {"float32"}, EngineKind("openvino", "float32")),
        ([EXACT, agreement("bfloat16", num_clear_changed=1)], {"float32", "bfloat16"},
         EngineKind("openvino", "float32")),
        ([EXACT, agreement("bfloat16", num_clear=19)], {"float32", "bfloat16"}, EngineKind("openvino", "float32")),
        ([EXACT, NEAR, agreement("int8")], {"float32", "bfloat16", "int8"}, EngineKind("openvino", "int8")),
        ([EXACT, NEAR, agreement("int8", accuracy_change=-0.02)], {"float32", "bfloat16", "int8"},
         EngineKind("openvino", "bfloat16")),
        ([agreement("float32", log_loss_change=float("nan")), NEAR], {"float32", "bfloat16"}, REFERENCE),
        ([], {"float32", "bfloat16"}, EngineKind("openvino", "float32")),
    ],
    ids=["both fit", "old CPU", "a label changed", "too few", "int8", "worse int8", "wrong in float32", "not compared"],
)  # fmt: skip
def test_auto_takes_the_fastest_fit_precision_of_this_cpu(agreements, has, chosen, monkeypatch):
    monkeypatch.setattr(openvino_engine, "cpu_precisions", lambda: frozenset(has))
    everything: list[Precision] = ["float32", "bfloat16", "int8"]
    found = choice.choose("auto", "auto", use_gpu=False, agreements=agreements, converted_to=everything)
    assert found == chosen
    assert choice.choose("auto", "auto", use_gpu=True, agreements=agreements) == REFERENCE
    # Whatever is asked for, OpenVINO is taken only if it is right in float32.
    exact = choice.choose("auto", "float32", use_gpu=False, agreements=agreements, converted_to=everything)
    assert exact == (REFERENCE if chosen == REFERENCE else EngineKind("openvino", "float32"))
    if chosen == REFERENCE:
        with pytest.raises(ConfigError, match="Give --engine openvino to take it all the same"):
            choice.choose("auto", "bfloat16", use_gpu=False, agreements=agreements, converted_to=everything)
        named = choice.choose("openvino", "bfloat16", use_gpu=False, agreements=agreements, converted_to=everything)
        assert named == EngineKind("openvino", "bfloat16")


@pytest.mark.parametrize(
    ("images_per_s", "cpu", "chosen"),
    [
        ({"float32": 584, "bfloat16": 889, "int8": 177}, "this CPU", "bfloat16"),  # EfficientNetB0 on an AMD EPYC
        ({"float32": 584, "bfloat16": 889, "int8": 177}, "another CPU", "int8"),
        ({"float32": 99, "bfloat16": 50, "int8": 80}, "this CPU", "int8"),  # 1.24 times as fast: noise
        ({"float32": 100, "bfloat16": 50, "int8": 80}, "this CPU", "float32"),  # 1.25 times as fast
        ({"float32": 100, "bfloat16": 90, "int8": 80}, "this CPU", "bfloat16"),  # the order decides among the rest
        ({"float32": 584, "int8": 177}, "this CPU", "float32"),
    ],
    ids=["int8 is slow", "on another CPU", "noise", "no noise", "two are quick", "two precisions"],
)
@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_auto_skips_a_precision_that_was_measured_to_be_slow(engine, images_per_s, cpu, chosen, monkeypatch):
    everything: list[Precision] = ["float32", "bfloat16", "int8"]
    monkeypatch.setattr(openvino_engine, "cpu_precisions", lambda: frozenset(everything))
    monkeypatch.setattr(openvino_engine, "cpu_name", lambda: "this CPU")
    agreements = [agreement(each, images_per_s=float(rate), cpu=cpu) for each, rate in images_per_s.items()]

    def choose(agreements: list[Agreement], *, on_this_cpu: bool = True) -> Precision:
        kind = choice.choose(
            engine, "auto", use_gpu=False, agreements=agreements, converted_to=everything, on_this_cpu=on_this_cpu
        )
        assert kind.engine == "openvino"
        return kind.precision

    assert choose(agreements) == chosen
    # What runs elsewhere is not known, and TensorFlow is no precision of OpenVINO.
    assert choose(agreements, on_this_cpu=False) == "int8"
    reference = replace(agreement("float32", images_per_s=9e9, cpu="this CPU"), engine="tensorflow")
    assert choose([reference, *agreements]) == chosen


@pytest.mark.parametrize(
    ("changes", "has", "converted_to"),
    [
        ({"num_clear_changed": 1}, {"float32", "bfloat16", "int8"}, ["float32", "bfloat16", "int8"]),
        ({}, {"float32", "int8"}, ["float32", "bfloat16", "int8"]),
        ({}, {"float32", "bfloat16", "int8"}, ["float32", "int8"]),
    ],
    ids=["not fit", "not of this CPU", "not in the bundle"],
)
def test_the_speed_of_a_precision_that_cannot_be_used_decides_nothing(changes, has, converted_to, monkeypatch):
    monkeypatch.setattr(openvino_engine, "cpu_name", lambda: "a CPU")
    monkeypatch.setattr(openvino_engine, "cpu_precisions", lambda: frozenset(has))
    agreements = [EXACT, agreement("bfloat16", images_per_s=500.0, **changes), agreement("int8")]
    found = choice.choose("auto", "auto", use_gpu=False, agreements=agreements, converted_to=converted_to)
    assert found == EngineKind("openvino", "int8")


@pytest.fixture
def plain_cpu(monkeypatch) -> None:
    """A CPU without bfloat16 and int8."""
    monkeypatch.setattr(openvino_engine, "cpu_precisions", lambda: frozenset({"float32"}))


@pytest.mark.usefixtures("plain_cpu")
def test_another_machine_may_have_what_this_cpu_lacks():
    with pytest.raises(ConfigError, match=r"this machine's CPU .* has no instructions for it"):
        choice.choose("auto", "bfloat16", use_gpu=False)
    assert choice.choose("auto", "bfloat16", use_gpu=False, on_this_cpu=False) == EngineKind("openvino", "bfloat16")
    with pytest.raises(ConfigError, match="this bundle has no int8 model"):
        choice.choose("auto", "int8", use_gpu=False, on_this_cpu=False)


@pytest.mark.parametrize(
    ("flags", "has_int8"), [("fpu avx512f avx512_vnni", True), ("fpu avx2 avx512f", False), (None, True)]
)
def test_int8_needs_instructions_for_it(tmp_path, monkeypatch, flags, has_int8):
    """OpenVINO names int8 among the capabilities of every CPU."""
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(openvino_engine, "_CPU_INFO", tmp_path / "cpuinfo")
    found = openvino_engine.cpu_precisions.__wrapped__()
    assert ("int8" in found) == has_int8
    assert "float32" in found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--precision", "bfloat16"), r"--precision bfloat16: this machine's CPU \(.+\) has no instructions for it\. "
         r"Give --precision float32, which every machine has\."),
        (("--precision", "int8"), r"--precision int8: this bundle has no int8 model\. Give --precision float32, .+"),
        (("--engine", "tensorflow", "--precision", "bfloat16"), "--precision bfloat16: the engine tensorflow .+"),
        (("--engine", "openvino", "--use-gpu"), r"--engine openvino predicts on CPUs\. Leave out --use-gpu, or .+"),
    ],
    ids=["a CPU without it", "a bundle without it", "an engine without it", "a GPU"],
)  # fmt: skip
@pytest.mark.usefixtures("plain_cpu")
def test_what_cannot_be_had_is_a_line_and_2(bundle, tmp_path, capsys, options, said):
    arguments = ["--bundle", bundle, "--input", str(tmp_path), "--out", str(tmp_path / "out"), *options]
    assert cli.execute("score", arguments) == 2
    assert re.fullmatch(rf"tlray: {said}\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("plain_cpu")
def test_a_scoring_that_cannot_be_continued_here_says_so(bundle, tmp_path, capsys):
    """It goes on in the precision that it began with, which the user has not asked for by name."""
    out = tmp_path / "out"
    score_state.write_identity(str(out), {"engine": "openvino bfloat16"})
    assert cli.execute("score", ["--bundle", bundle, "--input", str(tmp_path), "--out", str(out), "--resume"]) == 2
    said = (
        f"tlray: --resume: '{out}' was begun with openvino in bfloat16, which cannot be had now (--precision bfloat16: "
        "this machine's CPU (CPU) has no instructions for it). Continue with the bundle and options of then on a "
        "machine like that one, or begin anew with another --out.\n"
    )
    assert capsys.readouterr().err == said.replace("(CPU)", f"({openvino_engine.cpu_name()})")


@pytest.mark.parametrize("command", ["engines --bundle B", "score --bundle B --input I --out O", "serve --bundle B"])
def test_a_library_that_is_not_installed_is_a_line_and_2(tmp_path, command):
    program = "import sys; sys.modules['openvino'] = None; from tlray import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *command.split()],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2, "tlray: the Python package 'openvino' is not installed. Install tlray again with all that it needs (`make "
        "setup`).\n",
    )  # fmt: skip


def test_a_converted_model_that_does_not_run_is_left_out(network, bundle, images, tmp_path):
    shutil.copytree(Path(bundle) / "openvino", tmp_path / "openvino")
    (tmp_path / "openvino/model.xml").write_text("<net/>")
    directory = str(tmp_path / "openvino")
    directories: dict[Precision, str] = {"float32": directory, "bfloat16": directory}
    labels = np.zeros(len(images), np.int64)
    found, failed = comparison.compare(
        directories,
        lambda batch: [np.asarray(network(batch))],
        images,
        labels,
        compare_accuracy=no_change,
        decide=lambda outputs: outputs[0].max(axis=1) < 0.5,
    )
    assert list(found) == [REFERENCE]
    left, warnings = converted.keep_working(directories, failed)
    assert left == {}
    assert not (tmp_path / "openvino").exists()
    assert warnings[0].startswith("OpenVINO cannot run the model in float32: ")


def test_a_model_that_another_process_removes_while_the_reference_runs_is_compared(network, bundle, images, tmp_path):
    directory = str(shutil.copytree(Path(bundle) / "openvino", tmp_path / "openvino"))

    def reference(batch: np.ndarray) -> list[np.ndarray]:
        shutil.rmtree(directory, ignore_errors=True)
        return [np.asarray(network(batch))]

    found, failed = comparison.compare(
        {"float32": directory},
        reference,
        images,
        np.zeros(len(images), np.int64),
        compare_accuracy=no_change,
        decide=lambda outputs: outputs[0].max(axis=1) < 0.5,
    )
    assert (list(found), failed) == ([REFERENCE, EngineKind("openvino", "float32")], {})


def test_what_was_made_of_a_model_that_does_not_run_is_left_out(tmp_path):
    exact, small = str(tmp_path / "openvino"), str(tmp_path / "openvino-int8")
    directories: dict[Precision, str] = {"float32": exact, "bfloat16": exact, "int8": small}
    for name in ("openvino", "openvino-int8"):
        (tmp_path / name).mkdir()
    assert converted.keep_working(directories, {"int8": "no"})[0].keys() == {"float32", "bfloat16"}
    assert [path.name for path in tmp_path.iterdir()] == ["openvino"]
    (tmp_path / "openvino-int8").mkdir()
    assert converted.keep_working(directories, {"float32": "no"})[0] == {}
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_network_in_the_cache_is_made_again(network, cache, images):
    packed = networks.pack(network, EngineKind("openvino", "float32"), fingerprint="f")
    (weights,) = (cache / "tlray/networks").glob(f"f-{openvino_engine.version()}-*/model.bin")
    content = weights.read_bytes()
    weights.write_bytes(content[:-8])
    again = networks.pack(network, EngineKind("openvino", "float32"), fingerprint="f")
    assert weights.read_bytes() == content
    for each in (packed, again):
        engine = networks.load(each, num_threads=1, use_gpu=False, is_long=False)
        np.testing.assert_allclose(engine.run(images)[0], np.asarray(network(images)), atol=1e-5)


def test_a_process_that_predicts_loads_no_tensorflow_and_talks_to_nobody(bundle, tmp_path):
    """OpenVINO would report its import to its makers, and note it in the user's folder."""
    program = """
import sys
import numpy as np
from tlray import Predictor
predictor = Predictor(sys.argv[1])
size = predictor.bundle.spec.image_size_px
print(predictor.predict(np.zeros((1, size, size, 3), np.uint8)).shape)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"tensorflow", "keras", "ray", "matplotlib", "scipy"}))
from tlray.engines import converted
converted.add_to(sys.argv[2])
converted.try_int8(sys.argv[2], [np.zeros((size, size, 3), np.uint8)] * 2)
print([name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module])
"""
    shutil.copytree(Path(bundle) / "saved_model", tmp_path / "artifact/saved_model")
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program, bundle, str(tmp_path / "artifact")],
        env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert (lines[0], lines[1], lines[-1]) == ("(1, 3)", "[]", "[]")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert {path.name for path in (tmp_path / "artifact").iterdir()} == {"saved_model", "openvino", "openvino-int8"}


@pytest.mark.skipif("int8" not in openvino_engine.cpu_precisions(), reason="this CPU has no 8-bit arithmetic")
def test_an_int8_model_is_near(network, bundle, images, tmp_path, monkeypatch):
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle/bundle.json").unlink()
    directories, warnings = converted.try_int8(str(tmp_path / "bundle"), [*images])
    assert (list(directories), warnings) == (["int8"], ())
    store.seal(str(tmp_path / "bundle"), SPEC)
    monkeypatch.setitem(sys.modules, "nncf", None)  # it makes the model, and is not needed to run it
    expected = np.asarray(network(images))
    difference = np.abs(Predictor(str(tmp_path / "bundle"), precision="int8").predict(images) - expected).max()
    assert 1e-5 < difference < 0.2
    # float32 stays exact, and the choice where nothing was compared.
    predictor = Predictor(str(tmp_path / "bundle"))
    assert predictor.kind.precision == "float32"
    np.testing.assert_allclose(predictor.predict(images), expected, atol=1e-5)


def test_int8_without_nncf_is_refused_before_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"--int8 needs NNCF: pip install 'tlray\[int8\]'"):
        begin.resume_or_begin(TrainConfig(data=str(tmp_path), out=str(tmp_path / "out"), int8=True))
    assert not (tmp_path / "out").exists()

"""Weights that are no weights, told by one look at them."""

import h5py
import keras
import pytest

from tlray.bundle import store
from tlray.bundle.spec import BundleSpec
from tlray.errors import BundleError, ConfigError
from tlray.models.weights import check_weights, has_bundle, trained_preprocessing


@pytest.mark.parametrize("name", ["imagenet", "none"])
def test_names_are_no_locations(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_weights(name) is None


@pytest.mark.parametrize("name", ["a.weights.h5", "a.keras"])
def test_what_keras_writes_is_taken(name, tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    path = str(tmp_path / name)
    model.save(path) if name.endswith(".keras") else model.save_weights(path)
    assert check_weights(path) is None
    assert check_weights(f"file://{path}") is None


def test_what_keras_wrote_years_ago_is_taken(tmp_path):
    for name in ("a_notop.h5", "a.hdf5"):
        h5py.File(tmp_path / name, "w").close()
        assert check_weights(str(tmp_path / name)) is None


def test_a_bundle_is_taken_and_its_run_is_not(tmp_path):
    (tmp_path / "run/bundle").mkdir(parents=True)
    (tmp_path / "run/bundle/bundle.json").write_text("{}")
    bundle = str(tmp_path / "run/bundle")
    assert has_bundle(bundle)
    assert check_weights(bundle) is None
    with pytest.raises(ConfigError, match=r"/run' is a folder but not a bundle .* it has no bundle\.json.*RUN/bundle"):
        check_weights(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.h5", b"<html>404</html>", r"/a\.h5' is not a Keras weights file .*its first bytes are not those of such"),
        ("a.h5", b"", "its first bytes"),
        ("a.keras", b"\x89HDF\r\n\x1a\n", "its first bytes"),
        ("a.pth", b"PK\x03\x04", "its ending is not one of these"),
        ("a.h5", None, "There are no weights at '.*a.h5'. Give 'imagenet', 'none', a Keras weights file, or a bundle"),
    ],
)
def test_what_cannot_be_weights_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        check_weights(str(tmp_path / name))


def make_bundle(location: str, preprocessing: str) -> str:
    """Writes a bundle that has nothing but its description."""
    spec = BundleSpec(classes=("a", "b"), image_size_px=8, preprocessing=preprocessing, backbone="b", weights="w")
    store.seal(location, spec)
    return location


def test_a_bundle_tells_the_pixels_that_its_network_was_trained_on(tmp_path):
    bundle = make_bundle(str(tmp_path / "bundle"), "unit")
    assert trained_preprocessing(bundle) == "unit"
    assert check_weights(bundle) is None
    assert check_weights(bundle, "unit") is None
    message = r"was trained with --preprocessing unit, and would .*preprocessing caffe\. Give --preprocessing unit\.$"
    with pytest.raises(ConfigError, match=message):
        check_weights(bundle, "caffe")


def test_other_weights_do_not_tell_the_pixels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_bundle("imagenet", "unit")  # a name is no location
    path = str(tmp_path / "a.hdf5")
    h5py.File(path, "w").close()
    for weights in ("imagenet", "none", path):
        assert trained_preprocessing(weights) is None
        assert check_weights(weights, "caffe") is None


def test_a_preprocessing_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"names the preprocessing 'sepia', which is none of unit, .*Restore it or"):
        trained_preprocessing(make_bundle(str(tmp_path), "sepia"))

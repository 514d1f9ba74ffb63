import dataclasses
import hashlib
import json
import os
import uuid
from pathlib import Path

import pytest

from tlray import __version__
from tlray.bundle import card, store
from tlray.bundle import spec as bundle
from tlray.bundle.agreement import Agreement
from tlray.bundle.spec import BundleSpec
from tlray.data.decoding import DECODING
from tlray.data.drift import Distribution, TrainingImages, ValidationPredictions
from tlray.errors import BundleError
from tlray.files import storage

AGREEMENT = Agreement(
    engine="openvino", precision="bfloat16", num_images=40, label_agreement=0.975, num_clear=30, num_clear_changed=0,
    max_difference=0.03, mean_difference=0.002, log_loss_change=0.001, accuracy_change=0.0, accuracy_change_low=-0.05,
    accuracy_change_high=0.05, num_referrals_changed=0, images_per_s=120.5, cpu="a CPU",
)  # fmt: skip
SPEC = BundleSpec(
    classes=("normal", "cancer", "böse"),
    image_size_px=96,
    preprocessing="symmetric",
    intensity_range=(-1000.0, 400.0),
    temperature=1.5,
    thresholds={"refer_below": 0.6},
    backbone="InceptionV3",
    weights="imagenet",
    data_fingerprint="d" * 64,
    split_fingerprint="e" * 64,
    id_fingerprint="f" * 64,
    given_split_fingerprint="a" * 64,
    file_fingerprints={"all": "b" * 64},
    training_images=TrainingImages(
        grey_mean=Distribution(edges=(80.5, 90.25), counts=(3, 4, 3)),
        grey_deviation=Distribution(edges=(40.0,), counts=(5, 5)),
    ),
    prior=(0.4, 0.5, 0.1),
    validation_predictions=ValidationPredictions(
        class_counts=(3, 7, 0), confidence=Distribution(edges=(0.5, 0.75), counts=(3, 4, 3))
    ),
    metrics={"valid": {"num_images": 40, "accuracy": 0.8125, "balanced_accuracy": 0.75}},
    engines=(AGREEMENT,),
    leaks=("3 images are copies.", "Patients in two splits: 2."),
)
FILES = {
    "model.keras": b"keras",
    "model_card.md": b"# card",
    "openvino/model.xml": b"<net/>",
    "saved_model/saved_model.pb": b"graph",
    "saved_model/variables/variables.index": b"",
}


@pytest.fixture(params=["local", "mock"])
def location(request, tmp_path):
    """A directory with a model's files, not yet sealed."""
    location = str(tmp_path / "bundle") if request.param == "local" else f"mock://{uuid.uuid4().hex}/bundle"
    for name, data in FILES.items():
        storage.make_directory(os.path.dirname(storage.join(location, name)))
        storage.write_bytes(storage.join(location, name), data)
    return location


def edit(location: str, **changes: object) -> None:
    """Changes entries of bundle.json; None removes one."""
    raw = json.loads(storage.read_bytes(storage.join(location, "bundle.json")))
    raw = {name: value for name, value in (raw | changes).items() if value is not None or name not in changes}
    storage.write_text(storage.join(location, "bundle.json"), json.dumps(raw))


def test_sealed_bundle_comes_back(location):
    sha256 = store.seal(location, SPEC)
    content = storage.read_bytes(storage.join(location, "bundle.json"))
    assert sha256 == hashlib.sha256(content).hexdigest()
    raw = json.loads(content)
    assert raw["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert (raw["schema_version"], raw["classes"]) == (3, ["normal", "cancer", "böse"])

    loaded = store.load(location)
    assert loaded.sha256 == sha256
    assert loaded.model_path.read_bytes() == b"keras"
    assert (loaded.saved_model_path / "saved_model.pb").read_bytes() == b"graph"
    expected = dataclasses.replace(SPEC, files=raw["files"], library_versions=bundle.library_versions())
    assert loaded.spec == expected
    assert store.read_spec(location) == (expected, sha256)


def test_sealing_again_gives_the_same_name(location):
    first = store.seal(location, SPEC)
    assert store.seal(location, SPEC) == first
    assert store.seal(location, dataclasses.replace(SPEC, temperature=2.0)) != first
    assert store.load(location).spec.temperature == 2.0


def test_checksums_that_are_known_are_kept_and_new_files_get_theirs(location):
    """A run seals its bundle twice, first without its report."""
    store.seal(location, SPEC)
    known = store.read_spec(location)[0].files
    storage.write_text(storage.join(location, "report.html"), "report")
    sha256 = store.seal(location, SPEC, known=known)
    assert store.seal(location, SPEC) == sha256
    assert "report.html" in store.read_spec(location)[0].files


def test_copy_has_the_same_name(location, tmp_path):
    sha256 = store.seal(location, SPEC)
    storage.copy_tree(location, str(tmp_path / "copy"))
    assert store.load(str(tmp_path / "copy")).sha256 == sha256


def test_copy_of_a_remote_bundle_lives_as_long_as_it_is_used(location):
    store.seal(location, SPEC)
    loaded = store.load(location)
    directory = loaded.directory
    assert (directory / "model.keras").is_file()
    del loaded
    assert directory.exists() == storage.is_local(location)


def test_only_the_files_of_a_remote_bundle_are_copied(location):
    store.seal(location, SPEC)
    storage.write_text(storage.join(location, "beside.bin"), "somebody else's")
    loaded = store.load(location)
    beside = set() if not storage.is_local(location) else {"beside.bin"}
    assert {*storage.walk(str(loaded.directory))} == {"bundle.json", *FILES, *beside}


@pytest.mark.parametrize(("changes", "expected"), [
    ({"schema_version": 1, "decoding": None}, 1),
    ({"schema_version": 2, "decoding": None}, 2),
    ({"decoding": None}, 2),
    ({"decoding": 7}, 7),
    ({}, DECODING),
])  # fmt: skip
def test_a_bundle_says_how_its_images_were_decoded(location, changes, expected):
    """Those of earlier versions say it by the version of their format."""
    store.seal(location, SPEC)
    edit(location, **changes)
    assert store.read_spec(location)[0].decoding == expected


def test_no_range_and_no_threshold(location):
    store.seal(location, dataclasses.replace(SPEC, intensity_range=None, thresholds={}))
    spec = store.load(location).spec
    assert (spec.intensity_range, spec.refer_below) == (None, 0.0)
    assert SPEC.refer_below == 0.6


def test_a_bundle_that_knows_nothing_of_its_training_images(location):
    """As earlier versions made them, and `tlray export` does."""
    store.seal(location, SPEC)
    edit(location, training_images=None, validation_predictions=None, prior=None, leaks=None, id_fingerprint=None)
    edit(location, given_split_fingerprint=None, file_fingerprints=None)
    spec = store.load(location).spec
    assert (spec.given_split_fingerprint, spec.file_fingerprints) == (None, {})
    assert (spec.training_images, spec.validation_predictions, spec.prior) == (None, None, None)
    assert spec.id_fingerprint is None
    assert spec.leaks == ()
    assert "- Class shares that the probabilities assume: unknown" in card.model_card(spec)


def test_a_bundle_that_counts_the_classes_of_its_training_images(location):
    """As earlier versions made them."""
    store.seal(location, SPEC)
    edit(location, training_images=dataclasses.asdict(SPEC)["training_images"] | {"class_counts": [4, 5, 1]})
    assert store.load(location).spec.training_images == SPEC.training_images


@pytest.mark.parametrize("name", FILES)
def test_changed_file_is_refused(location, name):
    store.seal(location, SPEC)
    data = bytearray(FILES[name] or b"\0")
    data[-1] ^= 1
    storage.write_bytes(storage.join(location, name), bytes(data))
    found, wanted = hashlib.sha256(data).hexdigest()[:12], hashlib.sha256(FILES[name]).hexdigest()[:12]
    message = f"changed after its export: the sha256 of {name} is {found}…, not {wanted}… as in"
    with pytest.raises(BundleError, match=message):
        store.load(location)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused(location, name):
    store.seal(location, SPEC)
    storage.delete(storage.join(location, name))
    with pytest.raises(BundleError, match=f"has no file {name}, which its bundle.json lists"):
        store.load(location)


def test_directory_without_description_is_no_bundle(location):
    with pytest.raises(BundleError, match=r"is not a bundle: it has no bundle.json. .*`tlray export`"):
        store.load(location)
    with pytest.raises(BundleError, match="is not a bundle"):
        store.load(f"{location}/nowhere")
    with pytest.raises(BundleError, match="is not a bundle"):
        store.load(storage.join(location, "model.keras"))


@pytest.mark.parametrize("version", [0, 4, "1"])
def test_other_schema_version_is_refused(location, version):
    store.seal(location, SPEC)
    edit(location, schema_version=version)
    with pytest.raises(
        BundleError, match=f"has schema version {version}, but this tlray reads 1 to 3. Export it again"
    ):
        store.load(location)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"{}", b'{"schema_version": 1}', b"\xff\xfe"])
def test_damaged_description_is_refused(location, content):
    storage.write_bytes(storage.join(location, "bundle.json"), content)
    with pytest.raises(BundleError, match=r"bundle.json of '.*' is damaged: .* Restore the bundle."):
        store.load(location)


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": None},
        {"classes": None},
        {"invented": 1},
        {"classes": 7},
        {"training_images": {}},
        {"training_images": {"grey_mean": dataclasses.asdict(SPEC)["training_images"]["grey_mean"]}},
        {"validation_predictions": {}},
        {"validation_predictions": dataclasses.asdict(SPEC)["validation_predictions"] | {"class_counts": [4, 5]}},
        {"prior": [0.5, 0.5]},
        {"prior": "train"},
        {"decoding": "new"},
        {"file_fingerprints": ["f"]},
    ],
)
def test_description_with_other_entries_is_refused(location, changes):
    store.seal(location, SPEC)
    edit(location, **changes)
    with pytest.raises(BundleError, match="is damaged"):
        store.load(location)


@pytest.mark.parametrize("name", ["../outside", "saved_model/../../outside"])
def test_path_out_of_the_bundle_is_refused(location, name):
    store.seal(location, SPEC)
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in FILES.items()}
    edit(location, files={**digests, name: "0" * 64})
    with pytest.raises(BundleError, match="lists a file outside of the bundle: "):
        store.load(location)


def test_absolute_path_is_refused(location, tmp_path):
    (tmp_path / "passwd").write_bytes(b"root")
    store.seal(location, SPEC)
    edit(location, files={str(tmp_path / "passwd"): hashlib.sha256(b"root").hexdigest()})
    with pytest.raises(BundleError, match="lists a file outside of the bundle: "):
        store.load(location)


@pytest.mark.parametrize("name", ["model.keras", "saved_model/saved_model.pb"])
def test_model_files_must_be_listed(location, name):
    storage.delete(storage.join(location, name))
    store.seal(location, SPEC)
    with pytest.raises(BundleError, match=rf"does not list {name}\."):
        store.load(location)


def test_files_beside_are_not_a_bundles(tmp_path):
    # The directory's sibling has its name as a prefix: still outside.
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle2").mkdir()
    Path(tmp_path / "bundle2" / "x").write_bytes(b"1")
    location = str(tmp_path / "bundle")
    store.seal(location, SPEC)
    edit(location, files={"../bundle2/x": hashlib.sha256(b"1").hexdigest()})
    with pytest.raises(BundleError, match="outside of the bundle"):
        store.load(location)


def test_library_versions():
    versions = bundle.library_versions()
    assert versions["tlray"] == __version__
    assert set(versions) == {"tlray", "python", "ray", "tensorflow", "keras", "numpy", "openvino", "pillow", "pyarrow"}
    assert versions["numpy"] == __import__("numpy").__version__


def test_model_card():
    lines = card.model_card(SPEC).splitlines()
    assert lines[:6] == [
        "# Model card",
        "",
        "> **The metrics below may be too good.**",
        "> 3 images are copies.",
        "> Patients in two splits: 2.",
        "",
    ]
    assert "no medical device, not for diagnosis" in lines[6]
    assert "Classes, in the order of the outputs: `normal`, `cancer`, `böse`" in lines
    for fact in (
        "- Backbone: InceptionV3",
        "- Starting weights: imagenet",
        "- Input: uint8 [batch, 96, 96, 3], RGB",
        "- Preprocessing (in the model): symmetric",
        "- 16-bit pixel values that become 0 to 255: -1000 to 400",
        "- Calibration: temperature 1.5",
        "- Refer when confidence is below: 0.6",
        f"- Data fingerprint: {'d' * 64}",
        "| valid | 40 | 0.812 | unknown | 0.750 | unknown |",  # 0.8125 is exact in binary: rounded to the even digit
    ):
        assert fact in lines


def test_model_card_has_the_cross_validation_after_the_splits():
    crossed = {"num_images": 90, "accuracy": 0.75, "accuracy_ci95": [0.5, 0.875], "balanced_accuracy": 0.625}
    lines = card.model_card(dataclasses.replace(SPEC, trust={"cross_validation": crossed})).splitlines()
    row = "| probes, cross-validated | 90 | 0.750 | 0.500 to 0.875 | 0.625 | unknown |"
    assert lines[lines.index(row) - 1].startswith("| valid | 40 |")
    assert card.CROSS_VALIDATED in lines
    assert card.CROSS_VALIDATED not in card.model_card(SPEC).splitlines()


def test_model_card_says_on_which_images_a_model_was_calibrated():
    found = {"num_images": 584, "ece": 0.0625, "ece_before": 0.125}
    line = "- Calibration: temperature 1.5, fitted on 584 {}; expected calibration error 0.062, before 0.125"
    origin = "training and validation images, each predicted by a probe that was fitted without it"
    for trust, images in (({}, "images"), ({"origin": origin}, origin)):
        spec = dataclasses.replace(SPEC, trust=trust | {"calibration": found})
        assert line.format(images) in card.model_card(spec).splitlines()


def test_model_card_tells_calibration_error_and_brier_score_before_and_after():
    errors = {"ece": 0.0625, "ece_before": 0.125, "brier": 0.25, "brier_before": 0.375}
    errors |= {"brier_ci95": [0.125, 0.5], "brier_before_ci95": [0.25, 0.75]}
    spec = dataclasses.replace(SPEC, trust={"calibration": {"num_images": 40, **errors}})
    lines = card.model_card(spec).splitlines()
    assert (
        "- Calibration: temperature 1.5, fitted on 40 images; expected calibration error 0.062, before 0.125" in lines
    )
    assert (
        "- Brier score: 0.250 (95 %: 0.125 to 0.500), before calibration 0.375 (95 %: 0.250 to 0.750); it is the mean "
        "squared distance of the probabilities from the true class, so lower is better"
    ) in lines
    for other in (SPEC, dataclasses.replace(spec, temperature=1.0)):
        assert "Brier" not in card.model_card(other)


def test_model_card_says_what_may_be_believed_in_order_and_once():
    new = {
        "num_images": 30, "accuracy": 0.8, "accuracy_ci95": [0.625, 0.9], "balanced_accuracy": 0.75,
        "balanced_accuracy_ci95": [0.5, 0.875], "ece": 0.125, "ece_ci95": [0.0, 0.25],
        "num_referred": 3, "referred_share_ci95": [0.0625, 0.25],
        "accepted_error_rate": 0.125, "accepted_error_rate_ci95": [0.05, 0.25],
        "set_coverage": 0.875, "set_coverage_ci95": [0.75, 0.95], "mean_set_size": 1.5,
        "mean_set_size_ci95": [1.25, 2.0],
    }  # fmt: skip
    test = new | {"num_images": 40, "accuracy": 0.9, "num_leaked": 10, "leak_free": new}
    test["subgroups"] = {"num_looked_at": 0, "lowest": []}
    control = {"accuracy": 0.6, "chance": 0.25, "split": "test", "is_above_chance": True}
    data = {"controls": {"traits_control": control}, "neighbours": {"test": 0}, "has_patients": True}
    spec = dataclasses.replace(
        SPEC,
        metrics={**SPEC.metrics, "test": test},
        trust={"referral": {"max_error": 0.05, "note": ""}, "sets": {"alpha": 0.1}, "data": data},
    )
    lines = card.model_card(spec).splitlines()
    start = lines.index("## May I believe this?")
    told = " ".join(lines)
    for figure in (
        "Within about 12.5 percentage points (95 % interval 0.0 to 25.0):",
        "It refers 3 of 30 images to a person (95 % interval 6.2 % to 25.0 %).",
        "with 1.5 classes on average (95 % interval 1.2 to 2.0)",
    ):
        assert figure in told
    assert lines[start + 4 : start + 7] == [
        "| test, new images | 30 | 0.800 | 0.625 to 0.900 | 0.750 | 0.500 to 0.875 |",
        "| test, all images | 40 | 0.900 | 0.625 to 0.900 | 0.750 | 0.500 to 0.875 |",
        "| valid | 40 | 0.812 | unknown | 0.750 | unknown |",
    ]
    beginnings = [line.split("**")[1] for line in lines[start:] if line.startswith("- **")]
    assert beginnings == [
        "Has the model seen these images before?",
        "Does it need the anatomy?",
        "Can its confidence be read as a probability?",
        "Does it know when it is wrong?",
        "Do its prediction sets have the true class?",
        "Are there images for which it is worse?",
    ]
    assert start < lines.index("The figures cannot tell:") < lines.index("## How it was made")
    told = [line for line in lines if line]
    assert len(told) == len(set(told))


def test_no_name_in_a_model_card_is_markup():
    classes = ("<img src=x onerror=alert(1)>", "a`b``<i>", "`", "x\n\n<script>", "=1+1")
    spec = dataclasses.replace(SPEC, classes=classes, prior=None, backbone="own<b>.keras")
    spec = dataclasses.replace(spec, weights="[w](javascript:x).h5")
    lines = card.model_card(spec).splitlines()
    assert (
        "Classes, in the order of the outputs: `<img src=x onerror=alert(1)>`, ```a`b``<i>```, `` ` ``, `x <script>`, "
        "`=1+1`"
    ) in lines
    assert "- Backbone: `own<b>.keras`" in lines
    assert "- Starting weights: `[w](javascript:x).h5`" in lines


def test_model_card_of_a_model_that_little_is_known_of():
    bare = dataclasses.replace(SPEC, metrics={}, leaks=(), intensity_range=None, data_fingerprint=None)
    lines = card.model_card(bare).splitlines()
    assert "no medical device, not for diagnosis" in lines[2]
    assert "The model has not been evaluated." in lines
    assert not [line for line in lines if line.startswith("|")]
    assert "- 16-bit pixel values that become 0 to 255: 0 to 65535" in lines
    assert "- Data fingerprint: unknown" in lines

import dataclasses
import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tlray import phantoms
from tlray.errors import ConfigError

ADENO, LARGE, NORMAL, SQUAMOUS = phantoms.CLASSES
MM_PER_PX = 300.0 / 128


def draw_patient(label: str, seed: int) -> tuple[phantoms.Anatomy, phantoms.Lesion | None]:
    rng = np.random.default_rng(seed)
    anatomy = phantoms.sample_anatomy(rng)
    return anatomy, phantoms.sample_lesion(label, anatomy, rng)


def lesion_mask(label: str, seed: int) -> np.ndarray:
    """Returns which pixels of a slice the lesion makes solid (or hollow, over a vessel), bool [128, 128]."""
    anatomy, lesion = draw_patient(label, seed)
    with_lesion, without = (
        phantoms.render_slice(anatomy, what, rng=np.random.default_rng(seed), size_px=128) for what in (lesion, None)
    )
    return np.abs(with_lesion.astype(int) - without.astype(int)) > 100


@pytest.fixture(scope="module")
def masks() -> dict[str, list[np.ndarray]]:
    return {label: [lesion_mask(label, seed) for seed in range(12)] for label in phantoms.CLASSES}


def median_area_mm2(masks: list[np.ndarray]) -> float:
    return float(np.median([mask.sum() * MM_PER_PX**2 for mask in masks]))


def median_distance_to_midline_mm(masks: list[np.ndarray]) -> float:
    return float(np.median([abs(np.nonzero(mask)[1].mean() - 63.5) * MM_PER_PX for mask in masks]))


def compactness(mask: np.ndarray) -> float:
    """Returns the share of a mask's pixels whose four neighbours belong to it: near 1 for a large smooth disc."""
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return float(inner.sum() / mask.sum())


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def file_hashes(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files_of(root)}


def write_small(root: Path, seed: int, num_unreadable: int = 4) -> int:
    return phantoms.write_data_set(
        str(root),
        num_patients_per_class=5,
        num_slices_per_patient=3,
        size_px=48,
        seed=seed,
        num_unreadable=num_unreadable,
    )


@pytest.mark.parametrize("label", phantoms.CLASSES)
@pytest.mark.parametrize("size_px", [75, 128])
def test_slice_is_grey_bytes_of_the_size_asked_for(label: str, size_px: int):
    anatomy, lesion = draw_patient(label, 3)
    image = phantoms.render_slice(anatomy, lesion, rng=np.random.default_rng(0), size_px=size_px)
    assert image.dtype == np.uint8
    assert image.shape == (size_px, size_px)
    # The air around the body is dark, bone is bright.
    assert image[0].mean() < 100 < np.percentile(image, 99)


def test_same_state_gives_the_same_slice_and_another_state_another():
    anatomy, lesion = draw_patient(SQUAMOUS, 1)
    first, again, other = (
        phantoms.render_slice(anatomy, lesion, rng=np.random.default_rng(seed), size_px=64) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_rendering_leaves_the_patient_as_it_was():
    anatomy, lesion = draw_patient(ADENO, 2)
    assert lesion is not None
    arrays = [lesion.centre_mm, *(outline for outline, _ in lesion.regions)]
    before = [array.copy() for array in arrays]
    anatomy_before = dataclasses.replace(anatomy)
    phantoms.render_slice(anatomy, lesion, rng=np.random.default_rng(0), size_px=64)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert anatomy == anatomy_before


def test_normal_has_no_lesion(masks: dict[str, list[np.ndarray]]):
    assert draw_patient(NORMAL, 0)[1] is None
    assert not any(mask.any() for mask in masks[NORMAL])


def test_every_cancer_shows_in_every_patient(masks: dict[str, list[np.ndarray]]):
    for label in (ADENO, LARGE, SQUAMOUS):
        # A nodule of 15 mm radius, its rim hazy and cut off its middle, still has a core of 200 mm2.
        assert min(mask.sum() for mask in masks[label]) * MM_PER_PX**2 > 200


def test_lesion_stays_in_one_lung(masks: dict[str, list[np.ndarray]]):
    for label in (ADENO, LARGE, SQUAMOUS):
        for mask in masks[label]:
            left, right = mask[:, :60].sum(), mask[:, 68:].sum()
            assert min(left, right) == 0


def test_sizes_differ_as_the_diseases_do(masks: dict[str, list[np.ndarray]]):
    disc_of_4_cm_mm2 = np.pi * 20**2
    assert median_area_mm2(masks[ADENO]) < disc_of_4_cm_mm2 < median_area_mm2(masks[LARGE])
    assert median_area_mm2(masks[SQUAMOUS]) < median_area_mm2(masks[LARGE])


def test_squamous_cell_carcinoma_is_central_and_the_others_peripheral(masks: dict[str, list[np.ndarray]]):
    central = median_distance_to_midline_mm(masks[SQUAMOUS])
    assert central < 60 < min(median_distance_to_midline_mm(masks[label]) for label in (ADENO, LARGE))


def test_adenocarcinoma_is_spiculated_and_large_cell_carcinoma_smooth(masks: dict[str, list[np.ndarray]]):
    assert np.median([compactness(mask) for mask in masks[ADENO]]) < 0.65
    assert np.median([compactness(mask) for mask in masks[LARGE]]) > 0.8


def test_only_squamous_cell_carcinoma_cavitates():
    def share_hollow(label: str) -> float:
        lesions = [draw_patient(label, seed)[1] for seed in range(60)]
        return float(np.mean([any(hu < -900 for _, hu in lesion.regions) for lesion in lesions if lesion]))

    assert share_hollow(ADENO) == share_hollow(LARGE) == 0
    assert 0.6 < share_hollow(SQUAMOUS) < 0.95


def test_both_lungs_are_hit_alike():
    for label in (ADENO, LARGE, SQUAMOUS):
        lesions = [draw_patient(label, seed)[1] for seed in range(60)]
        assert 0.3 < np.mean([lesion.centre_mm[0] > 0 for lesion in lesions if lesion]) < 0.7


def test_unknown_label_is_refused():
    anatomy, _ = draw_patient(NORMAL, 0)
    with pytest.raises(ConfigError, match=r"no class 'cyst'.*adenocarcinoma"):
        phantoms.sample_lesion("cyst", anatomy, np.random.default_rng(0))


def test_brightness_and_contrast_alone_do_not_tell_the_class():
    features, labels = [], []
    for label in phantoms.CLASSES:
        for seed in range(50):
            anatomy, lesion = draw_patient(label, seed)
            image = phantoms.render_slice(anatomy, lesion, rng=np.random.default_rng(seed), size_px=48)
            features.append([image.mean(), image.std()])
            labels.append(label)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    assert cross_val_score(model, np.array(features), np.array(labels), cv=5).mean() < 0.5


def test_data_set_has_the_layout_of_the_manifest_contract(tmp_path: Path):
    assert write_small(tmp_path, seed=0) == 4 * 5 * 3 + 4
    paths = [path.relative_to(tmp_path) for path in files_of(tmp_path)]
    assert len(paths) == 64
    assert {len(path.parts) for path in paths} == {3}
    assert {path.parts[0] for path in paths} == set(phantoms.CLASSES)
    patients = {path.parts[:2] for path in paths}
    assert Counter(label for label, _ in patients) == dict.fromkeys(phantoms.CLASSES, 5)
    assert len({patient for _, patient in patients}) == 20


def test_data_set_mixes_formats_all_of_the_size_asked_for(tmp_path: Path):
    write_small(tmp_path, seed=0, num_unreadable=0)
    kinds = Counter()
    for path in files_of(tmp_path):
        with Image.open(path) as image:
            assert image.size == (48, 48)
            kinds[path.suffix, image.format, image.mode] += 1
    assert set(kinds) == {(".png", "PNG", "L"), (".png", "PNG", "RGBA"), (".jpg", "JPEG", "L")}
    assert kinds[".png", "PNG", "L"] > 60 / 2


def test_unreadable_files_are_unreadable_each_in_its_way(tmp_path: Path):
    write_small(tmp_path, seed=0, num_unreadable=4)
    errors = {}
    for path in files_of(tmp_path):
        try:
            Image.open(io.BytesIO(path.read_bytes())).load()
        except OSError as error:
            errors[path.name] = str(error)
    assert len(errors) == 4
    assert "cannot identify" in errors["slice_003.png"]
    assert "truncated" in errors["slice_004.png"]
    assert "cannot identify" in errors["slice_005.png"]
    assert "broken data stream" in errors["slice_006.png"]


def test_same_seed_gives_the_same_bytes(tmp_path: Path):
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        write_small(tmp_path / name, seed=seed, num_unreadable=4 if name != "other" else 0)
    first, again, other = (file_hashes(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert not set(first.values()) & set(other.values())


@pytest.mark.parametrize(("patients", "slices", "unreadable"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_impossible_numbers_are_refused(tmp_path: Path, patients: int, slices: int, unreadable: int):
    with pytest.raises(ConfigError, match=f"{patients} patients per class with {slices} slices"):
        phantoms.write_data_set(
            str(tmp_path),
            num_patients_per_class=patients,
            num_slices_per_patient=slices,
            size_px=48,
            seed=0,
            num_unreadable=unreadable,
        )
    assert not list(tmp_path.iterdir())

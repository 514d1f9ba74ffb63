import dataclasses

import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tlray.data import phantom_drawing, phantoms
from tlray.errors import ConfigError

ADENO, LARGE, NORMAL, SQUAMOUS = phantoms.CLASSES
GRANULOMA, METASTASES, _ = phantoms.TASKS["nodules"]
LABELS = sorted(set().union(*phantoms.TASKS.values()))
MM_PER_PX = 300.0 / 128


def draw_patient(label: str, seed: int) -> tuple[phantom_drawing.Anatomy, phantom_drawing.Lesion | None]:
    rng = np.random.default_rng(seed)
    anatomy = phantoms.sample_anatomy(rng)
    return anatomy, phantoms.sample_lesion(label, anatomy, rng)


def lesion_mask(label: str, seed: int) -> np.ndarray:
    """Returns which pixels of a slice the lesion makes solid (or hollow, over a vessel), bool [128, 128]."""
    anatomy, lesion = draw_patient(label, seed)
    with_lesion, without = (
        phantom_drawing.render_slice(anatomy, what, rng=np.random.default_rng(seed), size_px=128)
        for what in (lesion, None)
    )
    return np.abs(with_lesion.astype(int) - without.astype(int)) > 100


@pytest.fixture(scope="module")
def masks() -> dict[str, list[np.ndarray]]:
    return {label: [lesion_mask(label, seed) for seed in range(12)] for label in LABELS}


def median_area_mm2(masks: list[np.ndarray]) -> float:
    return float(np.median([mask.sum() * MM_PER_PX**2 for mask in masks]))


def median_distance_to_midline_mm(masks: list[np.ndarray]) -> float:
    return float(np.median([abs(np.nonzero(mask)[1].mean() - 63.5) * MM_PER_PX for mask in masks]))


def compactness(mask: np.ndarray) -> float:
    """Returns the share of a mask's pixels whose four neighbours belong to it: near 1 for a large smooth disc."""
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return float(inner.sum() / mask.sum())


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("size_px", [75, 128])
def test_slice_is_grey_bytes_of_the_size_asked_for(label: str, size_px: int):
    anatomy, lesion = draw_patient(label, 3)
    image = phantom_drawing.render_slice(anatomy, lesion, rng=np.random.default_rng(0), size_px=size_px)
    assert image.dtype == np.uint8
    assert image.shape == (size_px, size_px)
    # The air around the body is dark, bone is bright.
    assert image[0].mean() < 100 < np.percentile(image, 99)


def test_same_state_gives_the_same_slice_and_another_state_another():
    anatomy, lesion = draw_patient(SQUAMOUS, 1)
    first, again, other = (
        phantom_drawing.render_slice(anatomy, lesion, rng=np.random.default_rng(seed), size_px=64) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_rendering_leaves_the_patient_as_it_was():
    anatomy, lesion = draw_patient(ADENO, 2)
    assert lesion is not None
    arrays = [lesion.centre_mm, *(outline for outline, _ in lesion.regions)]
    before = [array.copy() for array in arrays]
    anatomy_before = dataclasses.replace(anatomy)
    phantom_drawing.render_slice(anatomy, lesion, rng=np.random.default_rng(0), size_px=64)
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
    for label in (ADENO, LARGE, SQUAMOUS, GRANULOMA):
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


def test_nodules_are_smaller_than_3_cm_one_granuloma_and_several_metastases(masks: dict[str, list[np.ndarray]]):
    for label, fewest, most in ((GRANULOMA, 1, 1), (METASTASES, 4, 8)):
        for mask in masks[label]:
            components = np.zeros(mask.shape, int)
            ndimage.label(mask, output=components)
            areas_mm2 = np.bincount(components.ravel())[1:] * MM_PER_PX**2
            # A nodule of 6 mm radius, cut off its middle, is some 90 mm2; its rim shows half. Two may touch.
            nodules_mm2 = areas_mm2[areas_mm2 > 40]
            assert fewest <= len(nodules_mm2) <= most
            assert nodules_mm2.max() < np.pi * 15**2


def test_metastases_are_in_both_lungs_and_peripheral(masks: dict[str, list[np.ndarray]]):
    for mask in masks[METASTASES]:
        assert min(mask[:, :60].sum(), mask[:, 68:].sum()) > 0
        assert np.median(np.abs(np.nonzero(mask)[1] - 63.5)) * MM_PER_PX > 60


def test_only_a_granuloma_is_calcified():
    def share_calcified(label: str) -> float:
        lesions = [draw_patient(label, seed)[1] for seed in range(20)]
        return float(np.mean([any(hu > 300 for _, hu in lesion.regions) for lesion in lesions if lesion]))

    assert {label: share_calcified(label) for label in LABELS if label != NORMAL} == {
        ADENO: 0, GRANULOMA: 1, LARGE: 0, METASTASES: 0, SQUAMOUS: 0,
    }  # fmt: skip


def test_both_lungs_are_hit_alike():
    for label in (ADENO, LARGE, SQUAMOUS, GRANULOMA):
        lesions = [draw_patient(label, seed)[1] for seed in range(60)]
        assert 0.3 < np.mean([lesion.centre_mm[0] > 0 for lesion in lesions if lesion]) < 0.7


def test_unknown_label_is_refused():
    anatomy, _ = draw_patient(NORMAL, 0)
    with pytest.raises(ConfigError, match=r"no class 'cyst'.*adenocarcinoma, granuloma, .*metastases, normal"):
        phantoms.sample_lesion("cyst", anatomy, np.random.default_rng(0))


@pytest.mark.parametrize("task", phantoms.TASKS)
def test_brightness_and_contrast_alone_do_not_tell_the_class(task: str):
    features, labels = [], []
    for label in phantoms.TASKS[task]:
        for seed in range(50):
            anatomy, lesion = draw_patient(label, seed)
            image = phantom_drawing.render_slice(anatomy, lesion, rng=np.random.default_rng(seed), size_px=48)
            features.append([image.mean(), image.std()])
            labels.append(label)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    assert cross_val_score(model, np.array(features), np.array(labels), cv=5).mean() < 0.5

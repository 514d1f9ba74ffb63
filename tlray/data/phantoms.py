"""Draws random anatomies and lesions for synthetic chest-CT slices, used in the demo and tests without patients' data.

A slice is painted from polygons in Hounsfield units (HU) and shown through a wide lung window. Coordinates are in mm
from the middle of the chest, x to the right of the image (the patient's left), y to the back. Body, vessels, side,
noise and window have the same distribution for all classes; only the lesion differs. There are two tasks. The first is
to tell types of cancer by place, size and outline:

- Adenocarcinoma: a peripheral nodule, mostly under 4 cm, lobulated or spiculated, often with a tail to the pleura, and
  with ground glass where it grows along the alveoli [1, 2].
- Squamous cell carcinoma: at the hilum; the type that most often hollows out [1, 3].
- Large cell carcinoma: a peripheral mass, mostly over 4 cm, smooth or lobulated, often with dead tissue inside [1, 3].

The second is to tell smooth round nodules under 3 cm by number and density:

- Granuloma: a single nodule, calcified except for its rim [4].
- Metastases: several nodules of soft tissue, of various sizes, in both lungs, mostly in their outer parts [5].

The images are caricatures for testing software. A model trained on them knows nothing about patients.

[1] Rosado-de-Christenson, Templeton, Moran. Bronchogenic carcinoma: radiologic-pathologic correlation.
    RadioGraphics 1994;14(2):429-446.
[2] Aoki et al. Evolution of peripheral lung adenocarcinomas: CT findings correlated with histology and tumor doubling
    time. AJR 2000;174(3):763-768.
[3] Byrd et al. Radiographic abnormalities in carcinoma of the lung as related to histological cell type.
    Thorax 1969;24(5):573-575.
[4] Erasmus et al. Solitary pulmonary nodules: part I. Morphologic evaluation for differentiation of benign and
    malignant lesions. RadioGraphics 2000;20(1):43-58.
[5] Seo et al. Atypical pulmonary metastases: spectrum of radiologic findings. RadioGraphics 2001;21(2):403-417.
"""

import numpy as np

from tlray.data.phantom_drawing import Anatomy, Lesion, Region, hilum_mm, lobulated_mm, pleura_point
from tlray.errors import ConfigError

CLASSES: tuple[str, ...] = ("adenocarcinoma", "large.cell.carcinoma", "normal", "squamous.cell.carcinoma")
"""Labels of the task `cancer-type`, sorted."""

TASKS: dict[str, tuple[str, ...]] = {"cancer-type": CLASSES, "nodules": ("granuloma", "metastases", "normal")}
"""Labels of each task, sorted, by the task's name."""


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """Returns a random anatomy of a patient; its distribution is the same for every class."""
    half_width_mm = rng.uniform(143.0, 151.0)
    return Anatomy(
        half_width_mm=half_width_mm,
        half_depth_mm=half_width_mm * rng.uniform(0.82, 0.88),
        fat_mm=rng.uniform(5.0, 13.0),
        breast_mm=rng.uniform(0.0, 14.0),
        heart_scale=rng.uniform(0.85, 1.12),
        level=rng.uniform(0.25, 0.75),
        rotation_deg=rng.uniform(-3.0, 3.0),
        shift_mm=(rng.uniform(-3.0, 3.0), rng.uniform(-4.0, 4.0)),
        table_mm=rng.uniform(3.0, 60.0),
        lung_hu=rng.uniform(-900.0, -820.0),
        blood_hu=rng.uniform(45.0, 200.0),
        noise_hu=rng.uniform(10.0, 30.0),
        window_centre_hu=rng.uniform(-300.0, -240.0),
        window_width_hu=rng.uniform(1500.0, 1750.0),
    )


def sample_lesion(label: str, anatomy: Anatomy, rng: np.random.Generator) -> Lesion | None:
    """Returns the random tumour or nodules of a patient.

    Args:
        label: A class of one of the `TASKS`.
        anatomy: The patient's anatomy, which determines where the lesion can be.
        rng: Source of randomness.

    Returns:
        The lesion; None for `normal`.

    Raises:
        ConfigError: No task has this class.
    """
    side = int(rng.choice([-1, 1]))
    pleura, inwards = pleura_point(anatomy, side, rng.uniform(-65.0, 65.0))
    density_hu = rng.uniform(20.0, 60.0)
    regions: list[Region] = []
    match label:
        case "normal":
            return None
        case "adenocarcinoma":
            radius_mm = rng.uniform(15.0, 19.0)
            centre = pleura + inwards * (radius_mm + rng.uniform(3.0, 9.0))
            regions += _spiculated(radius_mm, pleura - centre, density_hu, rng)
        case "large.cell.carcinoma":
            radius_mm = rng.uniform(32.0, 40.0)
            centre = pleura + inwards * radius_mm * rng.uniform(0.7, 0.95)
            regions.append((lobulated_mm(radius_mm, 0.06, rng), density_hu))
            if rng.random() < 0.5:  # dead tissue
                regions.append((lobulated_mm(0.5 * radius_mm, 0.1, rng), density_hu - 40.0))
        case "squamous.cell.carcinoma":
            radius_mm = rng.uniform(23.0, 29.0)
            centre = hilum_mm(side, anatomy.level) + np.array([side * 0.7 * radius_mm, rng.uniform(-12.0, 12.0)])
            regions.append((lobulated_mm(radius_mm, 0.1, rng), density_hu))
            if rng.random() < 0.8:
                cavity = lobulated_mm(radius_mm * rng.uniform(0.4, 0.6), 0.12, rng)
                regions.append((cavity + np.array([0.2 * side * radius_mm, 0.0]), -930.0))
        case "granuloma":
            radius_mm = rng.uniform(8.0, 12.0)
            centre = pleura + inwards * (radius_mm + rng.uniform(3.0, 25.0))
            regions.append((lobulated_mm(radius_mm, 0.03, rng), density_hu))
            regions.append((lobulated_mm(0.8 * radius_mm, 0.03, rng), rng.uniform(500.0, 900.0)))
        case "metastases":
            centre = np.zeros(2)
            # Alternately left and right, from the front to the back, so that they do not overlap.
            for angle_deg in np.linspace(-60.0, 60.0, int(rng.integers(5, 9))):
                radius_mm, side = rng.uniform(6.0, 12.0), -side
                pleura, inwards = pleura_point(anatomy, side, angle_deg + rng.normal(0.0, 4.0))
                place = pleura + inwards * (radius_mm + rng.uniform(3.0, 25.0))
                regions.append((place + lobulated_mm(radius_mm, 0.03, rng), density_hu))
        case _:
            known = sorted(set().union(*TASKS.values()))
            raise ConfigError(f"There is no class '{label}'. Use one of {', '.join(known)}.")
    return Lesion(centre_mm=centre, regions=tuple(regions))


def _spiculated(radius_mm: float, tail_mm: np.ndarray, density_hu: float, rng: np.random.Generator) -> list[Region]:
    """Returns the regions of a spiculated nodule, mostly with ground glass and a tail to `tail_mm`, float64 [2]."""
    regions: list[Region] = []
    outline = lobulated_mm(radius_mm, 0.12, rng)
    if rng.random() < 0.8:  # ground glass about a smaller core
        outline = 0.9 * outline
        regions += [(outline * scale, -350.0 * scale) for scale in np.linspace(1.7, 1.1, 5)]
    regions.append((outline, density_hu))
    # Spicules are spikes on the outline; the tail is a spike that reaches the pleura.
    spikes = rng.choice(len(outline), 14, replace=False)
    tips = [outline[spike] * rng.uniform(1.6, 2.2) for spike in spikes]
    if rng.random() < 0.6:
        spikes, tips = [*spikes, np.argmax(outline @ tail_mm)], [*tips, tail_mm]
    regions += [(np.stack([outline[k - 3], tip, outline[k]]), 20.0) for k, tip in zip(spikes, tips, strict=True)]
    return regions

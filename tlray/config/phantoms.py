"""Settings of `tlray phantoms`: the dataclass that defines its options and help text."""

from dataclasses import dataclass
from typing import Literal

from tlray.config.values import check_seed, flag, require


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomConfig:
    """Make a synthetic data set of chest-CT-like images for trying things out."""

    out: str
    """The data set's folder: OUT/CLASS/PATIENT/*."""
    task: Literal["cancer-type", "nodules"] = "cancer-type"
    """cancer-type: three types of cancer, and none. nodules: a calcified granuloma, metastases, and none."""
    patients_per_class: int = 50
    """Number of patients of each class. Each has its own anatomy."""
    slices_per_patient: int = 4
    """Number of readable images of each patient."""
    image_size_px: int = 96
    """Height and width of the images."""
    num_unreadable: int = 4
    """Number of further files that cannot be read, as real data sets have some."""
    seed: int = 0
    """The same seed makes the same files."""
    first_patient: int = 0
    """Lowest number in a patient's name. Patients with the same name in two splits count as the same patient."""
    overwrite: bool = False
    """Replace an earlier data set in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        for name in ("patients_per_class", "slices_per_patient", "image_size_px"):
            value = getattr(self, name)
            require(value > 0, f"{flag(name)} must be positive. Received: {value}")
        for name in ("num_unreadable", "first_patient"):
            value = getattr(self, name)
            require(value >= 0, f"{flag(name)} must not be negative. Received: {value}")
        check_seed(self.seed)

"""Draws a synthetic CT slice (a phantom) of an anatomy and a lesion, in Hounsfield units and then in grey levels."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

FIELD_OF_VIEW_MM = 300.0  # width and height of a slice
AIR_HU, FAT_HU, MUSCLE_HU, MARROW_HU, CORTEX_HU = -1000.0, -100.0, 45.0, 180.0, 600.0
# Factor by which the painted canvas is finer than the slice that is returned, to smooth edges.
_SUPERSAMPLING = 3
_ANGLES_RAD = np.linspace(0.0, 2.0 * np.pi, 72, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES_RAD), np.sin(_ANGLES_RAD)], axis=-1)
_HOLE_HU = -9999.0  # marks the area of the lungs inside the chest wall; no tissue has this value


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """Properties that all slices of one patient share: those of the body and of the scan."""

    half_width_mm: float  # skin to skin, from side to side
    half_depth_mm: float  # skin to skin, from front to back
    fat_mm: float  # under the skin
    breast_mm: float  # by how much the front bulges on both sides
    heart_scale: float  # 1 is average
    level: float  # height of the slice: 0 at the aortic arch, 1 at the ventricles
    rotation_deg: float  # rotation of the patient in the image
    shift_mm: tuple[float, float]  # (x, y) of the patient from the middle of the image
    table_mm: float  # from the back to the scanner's table, which is often outside the image
    lung_hu: float
    blood_hu: float  # higher with contrast medium
    noise_hu: float  # standard deviation
    window_centre_hu: float  # shown as middle grey
    window_width_hu: float  # from black to white


Pair: TypeAlias = tuple[float, float]


Region: TypeAlias = tuple[np.ndarray, float]
"""An area of one density: its outline, float64 [num_points, 2 (x, y)] in mm from the lesion's centre, and its HU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesion:
    """The lesion of one patient: its centre, float64 [2 (x, y)], and its regions in the order of painting."""

    centre_mm: np.ndarray
    regions: tuple[Region, ...]


def render_slice(anatomy: Anatomy, lesion: Lesion | None, *, rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Returns one slice of a patient; each call cuts at a slightly different level.

    Painting the lesion draws nothing from `rng`: with the same random state, a slice with a lesion and one without
    differ only in the lesion.

    Args:
        anatomy: The patient's anatomy.
        lesion: The patient's tumour or nodules; None for none.
        rng: Source of randomness for the level, the breath, the vessels and the noise.
        size_px: Width and height of the slice.

    Returns:
        Grey values, uint8 [size_px, size_px].
    """
    level = float(np.clip(anatomy.level + rng.normal(0.0, 0.06), 0.0, 1.0))
    lesion_scale = rng.uniform(0.9, 1.0)  # a ball cut beside its middle looks smaller
    breath_mm = rng.normal(0.0, 1.5)
    canvas = _Canvas(anatomy, breath_mm, size_px * _SUPERSAMPLING, AIR_HU)
    inside = _Canvas(anatomy, breath_mm, size_px * _SUPERSAMPLING, anatomy.lung_hu)
    for side in (-1, 1):
        _paint_vessels(inside, anatomy, side, level, rng)
    if lesion:
        for outline_mm, density_hu in lesion.regions:
            inside.polygon(lesion.centre_mm + lesion_scale * outline_mm, density_hu)
    _paint_wall(canvas, anatomy, level)
    for side in (-1, 1):
        canvas.polygon(_lung_outline_mm(anatomy, side), _HOLE_HU)
    canvas.image.paste(inside.image, mask=Image.fromarray(np.asarray(canvas.image) == _HOLE_HU))
    _paint_mediastinum(canvas, anatomy, level)

    noise_hu = rng.normal(0.0, anatomy.noise_hu, (size_px, size_px))
    density_hu = np.asarray(canvas.image.reduce(_SUPERSAMPLING)) + noise_hu
    grey = (density_hu - anatomy.window_centre_hu) / anatomy.window_width_hu + 0.5
    return np.rint(np.clip(grey, 0.0, 1.0) * 255.0).astype(np.uint8)


class _Canvas:
    """Density image of one slice, painted in the patient's coordinates in mm; `image` is float32 [size_px, size_px]."""

    def __init__(self, anatomy: Anatomy, breath_mm: float, size_px: int, density_hu: float) -> None:
        self._px_per_mm = size_px / FIELD_OF_VIEW_MM
        self._rotation_deg = anatomy.rotation_deg
        self._origin_mm = np.array(anatomy.shift_mm) + [0.0, breath_mm] + FIELD_OF_VIEW_MM / 2.0
        self.image = Image.new("F", (size_px, size_px), density_hu)
        self._draw = ImageDraw.Draw(self.image)

    def _to_px(self, points_mm: np.ndarray) -> list[tuple[float, float]]:
        points_px = (_rotated(points_mm, self._rotation_deg) + self._origin_mm) * self._px_per_mm
        return [(x, y) for x, y in points_px.tolist()]

    def polygon(self, points_mm: np.ndarray, hu: float) -> None:
        self._draw.polygon(self._to_px(points_mm), fill=hu)

    def ellipse(self, x_mm: float, y_mm: float, half_mm: Pair, hu: float, tilt_deg: float = 0.0) -> None:
        self.polygon(_ellipse_mm((x_mm, y_mm), half_mm, tilt_deg=tilt_deg), hu)

    def line(self, points_mm: np.ndarray, hu: float, *, width_mm: float) -> None:
        self._draw.line(self._to_px(points_mm), fill=hu, width=max(1, round(width_mm * self._px_per_mm)))


def _rotated(points: np.ndarray, angle_deg: float) -> np.ndarray:
    """Returns points, float64 [..., 2 (x, y)], rotated about the origin, clockwise as seen in the image."""
    cos, sin = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return points @ np.array([[cos, sin], [-sin, cos]])


def _ellipse_mm(centre_mm: Pair, half_mm: Pair, *, tilt_deg: float = 0.0, exponent: float = 2.0) -> np.ndarray:
    """Returns the outline of a superellipse, float64 [num_points, 2]; exponents above 2 are boxier."""
    points_mm = np.sign(_CIRCLE) * np.abs(_CIRCLE) ** (2.0 / exponent) * half_mm
    return _rotated(points_mm, tilt_deg) + centre_mm


def _lung_outline_mm(anatomy: Anatomy, side: int) -> np.ndarray:
    """Returns the pleura of a lung, float64 [num_points, 2]; the mediastinum covers its inner edge."""
    room_mm = anatomy.half_width_mm - anatomy.fat_mm - 19.0
    half_mm = (0.49 * room_mm, anatomy.half_depth_mm - anatomy.fat_mm - 19.0)
    return _ellipse_mm((side * 0.52 * room_mm, -3.0), half_mm, tilt_deg=9.0 * side, exponent=2.25)


def pleura_point(anatomy: Anatomy, side: int, angle_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns a point of a lung's pleura and the unit vector from it to the lung's centre, each float64 [2].

    Args:
        anatomy: The patient's anatomy.
        side: -1 for the lung on the left of the image, 1 for that on the right.
        angle_deg: Direction of the point: 0 to the side, -90 to the front, 90 to the back.
    """
    lung = _lung_outline_mm(anatomy, side)
    pleura = _at_angle(lung, side, angle_deg)
    return pleura, (lung.mean(axis=0) - pleura) / np.linalg.norm(lung.mean(axis=0) - pleura)


def hilum_mm(side: int, level: float) -> np.ndarray:
    """Returns the point where bronchus and vessels enter a lung, float64 [2]; the heart shifts the left one out."""
    return np.array([side * 31.0 + (18.0 * level if side > 0 else 0.0), 6.0])


def _paint_wall(canvas: _Canvas, anatomy: Anatomy, level: float) -> None:
    """Paints skin, fat, muscles, ribs, shoulder blades, breastbone and the table."""
    a, b, fat = anatomy.half_width_mm, anatomy.half_depth_mm, anatomy.fat_mm
    x_mm = np.linspace(-a, a, 24)
    canvas.line(np.stack([x_mm, b + anatomy.table_mm - 16.0 * (x_mm / a) ** 2], axis=-1), -250.0, width_mm=3.0)
    canvas.polygon(_ellipse_mm((0.0, 0.0), (a, b), exponent=2.25), FAT_HU)
    for side in (-1, 1):
        canvas.ellipse(side * 0.48 * a, -0.62 * b, (0.36 * a, 0.26 * b + anatomy.breast_mm), FAT_HU)
    canvas.polygon(_ellipse_mm((0.0, 0.0), (a - fat, b - fat), exponent=2.25), MUSCLE_HU)
    for side in (-1, 1):
        lung = _lung_outline_mm(anatomy, side)
        for angle_deg in np.linspace(-75.0, 60.0, 7) + 15.0 * level:
            point = _at_angle(lung, side, angle_deg)
            outwards = (point - lung.mean(axis=0)) / np.linalg.norm(point - lung.mean(axis=0))
            x_mm, y_mm = point + 5.0 * outwards
            tilt_deg = 90.0 + np.rad2deg(np.arctan2(outwards[1] * (a / b), outwards[0]))
            canvas.ellipse(x_mm, y_mm, (11.0, 4.2), CORTEX_HU, tilt_deg=tilt_deg)
            canvas.ellipse(x_mm, y_mm, (8.5, 2.0), MARROW_HU, tilt_deg=tilt_deg)
        if level < 0.6:
            canvas.ellipse(side * 0.80 * a, 0.52 * b, (3.0, 20.0), CORTEX_HU, tilt_deg=30.0 * side)
    canvas.ellipse(0.0, fat + 8.0 - b, (17.0, 6.0), CORTEX_HU)
    canvas.ellipse(0.0, fat + 8.0 - b, (14.5, 3.8), MARROW_HU)


def _at_angle(lung_mm: np.ndarray, side: int, angle_deg: float) -> np.ndarray:
    """Returns the point of a lung's outline in a direction: 0 to the side, -90 to the front, 90 to the back."""
    offset = lung_mm - lung_mm.mean(axis=0)
    angles_deg = np.rad2deg(np.arctan2(offset[:, 1], side * offset[:, 0]))
    return lung_mm[np.argmin(np.abs(angles_deg - angle_deg))]


def _paint_vessels(canvas: _Canvas, anatomy: Anatomy, side: int, level: float, rng: np.random.Generator) -> None:
    """Paints the vessels of a lung: trees that fan out from the hilum, and dots where others cross the slice."""
    lung, hilum = _lung_outline_mm(anatomy, side), hilum_mm(side, level)
    for angle_deg in np.linspace(-100.0, 100.0, int(rng.integers(4, 6))) + rng.normal(0.0, 9.0):
        end = _at_angle(lung, side, angle_deg + rng.normal(0.0, 8.0))
        path = hilum + np.linspace(0.0, rng.uniform(0.55, 0.9), 6)[:, None] * (end - hilum)
        path[1:] += rng.normal(0.0, 2.5, (5, 2))
        width_mm = rng.uniform(2.0, 4.0)
        for step in range(5):
            canvas.line(path[step : step + 2], -200.0, width_mm=width_mm * (1.0 - 0.17 * step))
            branch = _rotated(path[step + 1] - path[step], rng.choice([-1, 1]) * rng.uniform(25.0, 60.0))
            twig = np.stack([path[step + 1], path[step + 1] + branch * rng.uniform(0.2, 1.2)])
            canvas.line(twig, -450.0, width_mm=width_mm * 0.4)
    num_dots = int(rng.integers(6, 14))
    spread = np.sqrt(rng.uniform(0.02, 0.85, num_dots))[:, None]
    centres = hilum + spread * (lung[rng.integers(0, len(lung), num_dots)] - hilum)
    for (x_mm, y_mm), radius_mm in zip(centres, 2.6 - 1.6 * spread[:, 0], strict=True):  # thinner to the outside
        canvas.ellipse(x_mm, y_mm, (radius_mm, radius_mm * rng.uniform(0.7, 1.3)), -200.0)


def _paint_mediastinum(canvas: _Canvas, anatomy: Anatomy, level: float) -> None:
    """Paints the organs between the lungs: heart or great vessels, aorta, hila, airways and the spine."""
    blood, scale = anatomy.blood_hu, anatomy.heart_scale
    front_mm = anatomy.fat_mm + 20.0 - anatomy.half_depth_mm
    heart_mm = (3.0 + 15.0 * level, front_mm / 2.0 + 4.0)
    half_mm = ((29.0 + 21.0 * level) * scale, 34.0 + 6.0 * level)
    canvas.ellipse(0.0, front_mm + 12.0, (13.0, 24.0), -60.0)
    canvas.ellipse(0.0, 14.0, (27.0, 36.0), MUSCLE_HU)
    canvas.ellipse(0.0, 52.0, (27.0, 24.0), MUSCLE_HU)
    canvas.ellipse(*heart_mm, half_mm, MUSCLE_HU, tilt_deg=-25.0 * level)
    for side in (-1, 1):
        x_mm, y_mm = hilum_mm(side, level)
        canvas.ellipse(x_mm - 4.0 * side, y_mm, (11.0, 8.0), 0.6 * blood, tilt_deg=20.0 * side)
        canvas.ellipse(side * 20.0, 74.0, (15.0, 4.0), 0.6 * CORTEX_HU, tilt_deg=-18.0 * side)
    if level > 0.5:
        canvas.ellipse(*heart_mm, (0.8 * half_mm[0], 0.75 * half_mm[1]), 0.8 * blood, tilt_deg=-25.0)
    else:
        canvas.ellipse(-9.0, heart_mm[1] + 6.0, (15.0 * scale, 14.0 * scale), blood)
        canvas.ellipse(17.0, heart_mm[1] + 2.0, (12.0 * scale, 14.0 * scale), 0.85 * blood, tilt_deg=30.0)
    canvas.ellipse(21.0, 34.0, (12.0 * scale, 12.0 * scale), blood)
    if level < 0.35:
        canvas.ellipse(-1.0, 7.0, (8.0, 9.0), AIR_HU)
    else:
        for side in (-1, 1):
            canvas.ellipse(side * (9.0 + 16.0 * level), 8.0, (7.0 - 2.0 * level, 5.5 - 1.5 * level), AIR_HU)
    canvas.ellipse(0.0, 54.0, (18.0, 14.0), CORTEX_HU)
    canvas.ellipse(0.0, 54.0, (15.5, 11.5), MARROW_HU)
    canvas.ellipse(0.0, 74.0, (10.0, 9.0), CORTEX_HU)
    canvas.ellipse(0.0, 72.0, (7.0, 6.5), 30.0)
    canvas.ellipse(0.0, 88.0, (3.0, 8.0), CORTEX_HU)


def lobulated_mm(radius_mm: float, roughness: float, rng: np.random.Generator) -> np.ndarray:
    """Returns a closed outline about the origin, float64 [num_points, 2], with random lobes.

    Args:
        radius_mm: Mean radius, approximately.
        roughness: Typical size of the lobes, as a fraction of the radius.
        rng: Source of randomness.
    """
    orders = np.arange(2, 8)
    amplitudes = roughness * rng.normal(0.0, 1.0, len(orders)) / np.sqrt(orders)
    lobes = np.cos(np.outer(_ANGLES_RAD, orders) + rng.uniform(0.0, 2.0 * np.pi, len(orders))) @ amplitudes
    radii_mm = radius_mm * np.clip(1.0 + lobes, 0.6, 1.4)
    return radii_mm[:, None] * _CIRCLE

"""Makes images that are no chest CT, to find out whether a model knows that they are foreign to it.

    python benchmarks/foreign_images.py --run RUN --out DIR

It writes a folder of PNG files for each set into DIR, for `tlray features --data DIR`:

- `photographs`, `documents`, `microscopy`: crops of the samples in scikit-image's package (`peers/scikit_image.txt`)
  and, of photographs, of scikit-learn's. SciPy's samples would have to be downloaded, so they are left out.
- `textures`: procedural ones, and crops of scikit-image's; `noise`: of several kinds.
- `heads`, `abdomens`: phantoms of other anatomy (`other_anatomy.py`), and Shepp and Logan's among the heads.
- `inverted`, `rotated-90`, `rotated-180`, `rotated-270`: the slices of the test split of RUN, a finished run. Without
  --run these are left out.
"""

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageOps
from scipy import ndimage
from scipy.spatial import KDTree
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).parent))
from other_anatomy import abdomen, head
from servers import PEERS, make_environment

from tlray.data import dataset, decoding, stream

PHOTOGRAPHS = (
    "astronaut", "camera", "chelsea", "clock", "coffee", "coins", "hubble_deep_field", "moon", "rocket",
    "stereo_motorcycle",
)  # fmt: skip
DOCUMENTS = ("colorwheel", "horse", "logo", "page", "text")
MICROSCOPY = ("cell", "immunohistochemistry", "microaneurysms", "retina")
TEXTURES = ("brick", "grass", "gravel")
"""Names of scikit-image's samples by set."""

SHEPP_LOGAN = "shepp_logan_phantom"
SHARE_SHEPP_LOGAN = 0.1
"""Share of Shepp and Logan's phantom among the heads."""
SHARE_SAMPLED = 0.4
"""Share of crops of photographs among the textures."""
SIZE_PX = 256
"""Height and width of drawn images."""
ROTATIONS = {
    "rotated-90": Image.Transpose.ROTATE_90,
    "rotated-180": Image.Transpose.ROTATE_180,
    "rotated-270": Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Make images that are foreign to a model of chest CT."""

    out: str = "runs/foreign/images"
    """The folder for the images; it must be new or empty."""
    run: str = ""
    """A finished run on chest CT, whose test images are inverted and rotated; empty: these sets are left out."""
    num_images: int = 120
    """Number of images of each other set."""
    image_size_px: int = 224
    """Height and width of the inverted and rotated slices: that of the run."""
    seed: int = 0
    """Seed of all that is drawn."""


def samples() -> dict[str, Image.Image]:
    """Returns scikit-image's samples by name, read by an environment of their own, and scikit-learn's photographs."""
    with tempfile.TemporaryDirectory(prefix="tlray-samples-") as directory:
        python = make_environment("scikit_image")
        subprocess.run([python, PEERS / "scikit_image_samples.py", directory], check=True)
        found = {path.stem: _loaded(path) for path in sorted(Path(directory).glob("*.png"))}
    more = load_sample_images()
    names = [Path(name).stem for name in more["filenames"]]
    return found | {
        f"sklearn {name}": Image.fromarray(pixels) for name, pixels in zip(names, more["images"], strict=True)
    }


def _loaded(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


def crops(images: Sequence[Image.Image], num_images: int, rng: np.random.Generator) -> Iterator[Image.Image]:
    """Yields crops of images, in turns, with 0.4 to 1 of their smaller side."""
    for image in itertools.islice(itertools.cycle(images), num_images):
        side = round(min(image.size) * rng.uniform(0.4, 1.0))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        yield image.crop((left, top, left + side, top + side))


def texture(rng: np.random.Generator, number: int) -> Image.Image:
    """Draws a procedural texture, grey, of the kinds in turns."""
    y, x = np.mgrid[0 : 1 : SIZE_PX * 1j, 0 : 1 : SIZE_PX * 1j]
    turn, waves = rng.uniform(0, np.pi), rng.uniform(4, 40)
    along, beside = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    rough = ndimage.gaussian_filter(rng.normal(size=x.shape), rng.uniform(3, 12))
    rough /= rough.std()
    kinds = (
        lambda: np.sin(2 * np.pi * waves * along),  # stripes
        lambda: np.sign(np.sin(2 * np.pi * waves * along) * np.sin(2 * np.pi * waves * beside)),  # checks
        lambda: np.sin(2 * np.pi * (0.3 * waves * along + 0.5 * rough)),  # marble
        lambda: np.sin(2 * np.pi * waves * np.hypot(x - rng.random(), y - rng.random())),  # rings
        lambda: np.tanh(4 * (rough - rng.uniform(0, 1))),  # spots
        lambda: _cells(x, y, rng),
        lambda: rough,  # clouds
        lambda: along + rng.uniform(-0.5, 0.5) * beside,  # a slope
    )
    return _grey(kinds[number % len(kinds)]())


def _cells(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the distance of points to the edges of Voronoi cells."""
    tree = KDTree(rng.random((int(rng.integers(20, 120)), 2)))
    nearest, _ = tree.query(np.stack([x.ravel(), y.ravel()], axis=1), k=2)
    return (nearest[:, 1] - nearest[:, 0]).reshape(x.shape)


def noise(rng: np.random.Generator, number: int) -> Image.Image:
    """Draws noise of the kinds in turns."""
    shape = (SIZE_PX, SIZE_PX)
    frequency = np.hypot(np.fft.fftfreq(SIZE_PX)[:, None], np.fft.fftfreq(SIZE_PX)[None])
    frequency[0, 0] = 1.0
    kinds = (
        lambda: rng.uniform(0, 255, shape),
        lambda: rng.normal(rng.uniform(60, 190), rng.uniform(10, 80), shape),
        lambda: 255.0 * (rng.random(shape) < rng.uniform(0.05, 0.95)),  # salt and pepper
        lambda: rng.uniform(0, 255, (*shape, 3)),
        lambda: rng.uniform(0, 255, (SIZE_PX // 8, SIZE_PX // 8)).repeat(8, axis=0).repeat(8, axis=1),
        lambda: _stretched(np.fft.ifft2(np.fft.fft2(rng.normal(size=shape)) / frequency).real),  # pink
    )
    pixels = kinds[number % len(kinds)]()
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (1, 99))
    return 255 * (values - low) / max(high - low, 1e-9)


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(_stretched(values), 0, 255).astype(np.uint8))


def drawn(found: dict[str, Image.Image], settings: Settings) -> Iterator[tuple[str, Iterator[Image.Image]]]:
    """Yields the sets that need no run: a name and images."""
    rng, number = np.random.default_rng(settings.seed), settings.num_images
    more = [image for name, image in found.items() if name.startswith("sklearn ")]
    for name, names in (("photographs", PHOTOGRAPHS), ("documents", DOCUMENTS), ("microscopy", MICROSCOPY)):
        originals = [found[each] for each in names] + (more if name == "photographs" else [])
        yield name, crops(originals, number, rng)
    num_sampled = round(SHARE_SAMPLED * number)
    sampled = crops([found[each] for each in TEXTURES], num_sampled, rng)
    yield "textures", itertools.chain(sampled, (texture(rng, each) for each in range(number - num_sampled)))
    yield "noise", (noise(rng, each) for each in range(number))
    num_logan = round(SHARE_SHEPP_LOGAN * number)
    logan = (_varied(found[SHEPP_LOGAN], rng) for _ in range(num_logan))
    heads = (Image.fromarray(head(rng, SIZE_PX)) for _ in range(number - num_logan))
    yield "heads", itertools.chain(logan, heads)
    yield "abdomens", (Image.fromarray(abdomen(rng, SIZE_PX)) for _ in range(number))


def _varied(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turns, enlarges and windows a picture a little, and adds noise."""
    turned = image.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
    edge = round(min(image.size) * rng.uniform(0, 0.1))
    values = np.asarray(turned.crop((edge, edge, image.width - edge, image.height - edge)), np.float64)
    values = values * rng.uniform(0.8, 2.0) + rng.normal(0, rng.uniform(1, 6), values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def of_the_run(settings: Settings) -> Iterator[tuple[str, Iterator[Image.Image]]]:
    """Yields the sets of changed slices of the run's test split."""
    images = dataset.stored_dataset(settings.run)
    if images is None:
        sys.exit(f"'{settings.run}' is no finished run. Give one as --run, or leave it out.")
    slices = [
        decoding.decode(stream.read_file(uri), size_px=settings.image_size_px, intensity_range=images.intensity_range)
        for uri in images.split("test")["uri"].to_pylist()
    ]
    yield "inverted", (ImageOps.invert(each) for each in slices)
    for name, rotation in ROTATIONS.items():
        yield name, (each.transpose(rotation) for each in slices)


def main() -> None:
    """Writes all sets."""
    settings = tyro.cli(Settings, prog="foreign_images.py", description=__doc__)
    out = Path(settings.out)
    if out.exists() and any(out.iterdir()):
        sys.exit(f"'{out}' is not empty. Delete it, or give another --out.")
    sets = itertools.chain(drawn(samples(), settings), of_the_run(settings) if settings.run else ())
    for name, images in sets:
        (out / name).mkdir(parents=True)
        number = 0
        for number, image in enumerate(images, start=1):
            image.save(out / name / f"{number:04d}.png")
        print(f"{number} {name}", flush=True)
    print(f"Written: {out}")


if __name__ == "__main__":
    main()

"""How many planted copies of CT slices does `tlray.trust.copies` find, and what else does it take for copies?

    python benchmarks/planted_copies.py --data DIR --weights FILE

DIR is the public chest-CT set. The originals are its slices without repeated pixels, and phantoms, several slices of
each patient. Some are changed in one of eight ways and added. Two images are truly copies if they come from the same
picture; `picture_of` knows which files of the set itself do. All other pairs are of different pictures, those of
neighbouring slices among them. The series are cut in halves. The thresholds were chosen on the half `tune`, with other
phantoms and other changes; the figures are of the half `report`.

Copies are searched for twice: with the pooled features of the network, as a training from pretrained weights does, and
without features, by thumbnails alone, as `tlray audit` without `--weights` and a training from random weights do. It
writes `planted_copies_DATE.md` into --out, with a table of each.
"""

import dataclasses
import hashlib
import io
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageDraw
from scipy.sparse import csgraph

sys.path.insert(0, str(Path(__file__).parent))
from result_page import Goal, write_goals

from tlray.config.commands import FeaturesConfig
from tlray.data import looks, phantom_drawing, phantoms
from tlray.data.decoding import decode, to_array
from tlray.engines import choice, networks
from tlray.features import preparation
from tlray.trust import copies
from tlray.trust.pixel_match import Kind

NUM_PATIENTS, NUM_SLICES = 24, 3
"""Number of phantom patients, and of slices of each."""
MAX_LISTED = 40
"""Maximum number of wrong pairs that are listed for each search."""
MIN_RECALL, MIN_PRECISION, MIN_PAIRS = 0.97, 0.97, 300
"""Wanted of each search; the number of pairs is that of true pairs of which at least one image is a planted copy."""
PLANTED = "at least one planted copy"
"""Name of the pairs that the goals are about."""


SAME_PICTURES = (
    "normal 10 16", "normal 11 18", "normal 12 21 4", "normal 17 6 n8", "normal 20 3",
    "adenocarcinoma ad1 ad17", "adenocarcinoma ad10 ad3", "adenocarcinoma ad11 ad15 ad6", "adenocarcinoma ad12 ad18",
    "adenocarcinoma ad14 ad4 ad8", "adenocarcinoma ad16 ad21", "adenocarcinoma ad20 ad22",
    "large.cell.carcinoma di1 l1", "large.cell.carcinoma l3 l6", "squamous.cell.carcinoma sq3 sq4",
    "squamous.cell.carcinoma sq5 sq6",
)  # fmt: skip
"""Files of the public set that show one picture, as seen by eye on 2026-11-29: the class and the names' beginnings."""

SAME_SUFFIXES = ("large.cell.carcinoma 3 4", "squamous.cell.carcinoma 5 7")
"""Class, and numbers in brackets that mark two versions of a picture, as in `000003 (3).png` and `000003 (4).png`. By
eye all of these 21 and 22 pairs are copies."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Plant copies in a data set and look for them."""

    data: str = ""
    """The public chest-CT set, a local folder `SPLIT/CLASS/*`."""
    weights: str = ""
    """The weights of InceptionV3 without its top."""
    num_originals: int = 90
    """Number of real slices that are copied; each phantom is copied, too."""
    num_copies: int = 3
    """Number of copies of each original, all changed differently."""
    seed: int = 2
    """Seed of the choice of originals, of the phantoms and of all changes."""
    out: str = "benchmarks/results"
    """The folder for the results."""


def picture_of(path: Path) -> str:
    """Returns a name for the picture that a file of the public set shows; the same for copies."""
    label = path.parent.name.split("_")[0]
    stem = re.sub(r"( - Copy.*| \(2\).*)", "", path.stem) if label == "normal" else path.stem
    for line in SAME_PICTURES:
        name, *stems = line.split()
        if name == label and stem in stems:
            return f"{label} {stems[0]}"
    for line in SAME_SUFFIXES:
        name, first, second = line.split()
        if name == label and stem.endswith(f"({second})"):
            stem = stem.replace(f"({second})", f"({first})")
    is_bracketed = any(stem.endswith(f"({line.split()[1]})") for line in SAME_SUFFIXES if line.startswith(label))
    return f"{label} {stem}" if label == "normal" or is_bracketed else "/".join(path.parts[-3:])


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def jpeg(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Saves as JPEG with a quality of 30 to 90."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(rng.integers(30, 91)))
    return stream.getvalue()


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    cut = rng.uniform(0.02, 0.1, 2) * image.size
    left, top = rng.uniform(0.0, cut)
    box = (left, top, left + image.width - cut[0], top + image.height - cut[1])
    return image.crop(tuple(round(x) for x in box))  # pyright: ignore[reportArgumentType]


def crop(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Cuts off 2 to 10 % of the width and of the height, at any sides."""
    return _png(_crop(image, rng))


def _window(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    gain, shift = np.exp(rng.uniform(-0.4, 0.4)), rng.uniform(-35.0, 35.0)
    values = (np.asarray(image, np.float32) - 128.0) * gain + 128.0 + shift
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def window(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Changes contrast by a factor of 0.67 to 1.5 and brightness by up to 35 of 255, and clips."""
    return _png(_window(image, rng))


def mirror(image: Image.Image, _: np.random.Generator) -> bytes:
    """Swaps left and right."""
    return _png(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def scribble(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Draws one to three lines of four points, white, black or red, 0.5 to 1.5 % of the width thick."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 4)):
        points = np.cumsum(np.vstack([rng.uniform(0.1, 0.9, 2), rng.normal(0.0, 0.15, (3, 2))]), axis=0) * image.size
        colour = ((255, 255, 255), (0, 0, 0), (220, 30, 30))[rng.integers(3)]
        width_px = max(1, round(image.width * rng.uniform(0.005, 0.015)))
        draw.line([tuple(point) for point in points.tolist()], fill=colour, width=width_px)
    return _png(image)


def _resize(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = 2.0 ** rng.uniform(-1.0, 1.0)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def resize(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Resizes to 0.5 to 2 times the size."""
    return _png(_resize(image, rng))


def noise(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Adds Gaussian noise with a standard deviation of 3 to 15 of 255."""
    values = np.asarray(image, np.float32)
    noisy = values + rng.normal(0.0, rng.uniform(3.0, 15.0), values.shape[:2])[..., None]
    return _png(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)))


def mixed(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Crops, windows, resizes and saves as JPEG."""
    return jpeg(_resize(_window(_crop(image, rng), rng), rng), rng)


CHANGES: tuple[Callable[[Image.Image, np.random.Generator], bytes], ...] = (
    jpeg, crop, window, mirror, scribble, resize, noise, mixed,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An image of the set that is searched.

    Attributes:
        data: The file.
        picture: Name of the picture that it shows.
        series: Name of its patient, for phantoms; else empty.
        change: Name of the change that made it; `original` for none.
    """

    data: bytes
    picture: str
    series: str = ""
    change: str = "original"


def real_slices(root: Path) -> list[Item]:
    """Returns the files of the public set, the first one of each group with the same pixels."""
    found: dict[str, Item] = {}
    for path in sorted(root.glob("*/*/*")):
        data = path.read_bytes()
        pixels = hashlib.sha256(to_array(decode(data, size_px=224)).tobytes()).hexdigest()
        found.setdefault(pixels, Item(data=data, picture=picture_of(path)))
    return list(found.values())


def phantom_slices(rng: np.random.Generator) -> list[Item]:
    """Returns slices of phantom patients."""
    items = []
    for patient in range(NUM_PATIENTS):
        anatomy = phantoms.sample_anatomy(rng)
        lesion = phantoms.sample_lesion(phantoms.CLASSES[patient % 4], anatomy, rng)
        for index in range(NUM_SLICES):
            image = Image.fromarray(phantom_drawing.render_slice(anatomy, lesion, rng=rng, size_px=256))
            items.append(Item(data=_png(image), picture=f"phantom {patient} {index}", series=f"phantom {patient}"))
    return items


def plant(original: Item, num_copies: int, rng: np.random.Generator) -> list[Item]:
    """Returns changed copies of an image, of different kinds."""
    image = Image.open(io.BytesIO(original.data)).convert("RGB")
    changes = [CHANGES[index] for index in rng.choice(len(CHANGES), num_copies, replace=False)]
    return [dataclasses.replace(original, data=change(image, rng), change=change.__name__) for change in changes]


def pooled_features(items: list[Item], weights: str) -> np.ndarray:
    """Returns the pooled features of images, float32 [images, 5632]."""
    config = FeaturesConfig(data="", out="", weights=weights).training()
    kind = choice.for_features("auto", "auto", use_gpu=False, flag="--precision")
    engine = networks.load(
        preparation.prepare(config, "pooled", kind).packed, num_threads=1, use_gpu=False, is_long=False
    )
    found = []
    for start in range(0, len(items), 16):
        images = np.stack([to_array(decode(item.data, size_px=224)) for item in items[start : start + 16]])
        found.append(np.array(engine.run(images)[0], dtype=np.float32))
    return np.concatenate(found)


def report_half(features: np.ndarray) -> np.ndarray:
    """Returns which real slices are in the half `report`, bool [images]; slices of one series are in one half.

    A series here is what features connect with a cosine above 0.95.
    """
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    num_series, series = csgraph.connected_components(rows @ rows.T > 0.95)
    return (np.random.default_rng(0).permutation(num_series) % 2)[series] == 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Counts of pairs of images.

    Attributes:
        num_true: Number of pairs that show the same picture.
        num_right: Number of these that are found.
        num_wrong: Number of pairs that are found, but show other pictures.
    """

    num_true: int
    num_right: int
    num_wrong: int

    @property
    def recall(self) -> float:
        """The share of the true pairs that is found; 0 if there are none."""
        return self.num_right / max(self.num_true, 1)

    @property
    def precision(self) -> float:
        """The share of the found pairs that is true; 0 if there are none."""
        return self.num_right / max(self.num_right + self.num_wrong, 1)

    def row(self, name: str) -> str:
        """Returns a row of a Markdown table."""
        figures = (self.num_true, self.num_right, f"{self.recall:.3f}", self.num_wrong, f"{self.precision:.3f}")
        return f"| {name} | {' | '.join(map(str, figures))} |"


def count(items: list[Item], found: copies.Copies) -> dict[str, Count]:
    """Returns the counts of pairs by the change of either image, of those with a planted copy, and of all."""
    first, second = np.triu_indices(len(items), 1)
    pictures, changes = (np.array([getattr(item, name) for item in items]) for name in ("picture", "change"))
    is_true = pictures[first] == pictures[second]
    is_found = found.group_of[first] == found.group_of[second]
    is_first, is_second = changes[first] == "original", changes[second] == "original"
    chosen: dict[str, np.ndarray] = {}
    for change in CHANGES:
        # An original and its copy, or this copy and any other picture.
        is_changed = (changes[first] == change.__name__) | (changes[second] == change.__name__)
        chosen[change.__name__] = is_changed & (is_first | is_second)
    chosen["copies with one another"] = ~is_first & ~is_second
    chosen[PLANTED] = ~(is_first & is_second)
    chosen["in the data set itself"] = is_first & is_second
    chosen["all"] = np.ones(len(first), bool)
    return {
        name: Count(
            num_true=int(np.sum(is_true & each)),
            num_right=int(np.sum(is_true & is_found & each)),
            num_wrong=int(np.sum(~is_true & is_found & each)),
        )
        for name, each in chosen.items()
    }


def judge(route: str, planted: Count) -> list[Goal]:
    """Returns the goals of a search.

    Args:
        route: Name of the search.
        planted: Its pairs with a planted copy.
    """
    is_enough = planted.num_true >= MIN_PAIRS
    wanted = f"over at least {MIN_PAIRS} pairs with a planted copy"
    num_found = planted.num_right + planted.num_wrong
    return [
        Goal(
            wanted=f"{route}: recall at least {MIN_RECALL:g} {wanted}",
            found=f"{planted.recall:.3f} ({planted.num_right} of {planted.num_true} pairs)",
            is_met=is_enough and planted.recall >= MIN_RECALL,
        ),
        Goal(
            wanted=f"{route}: precision at least {MIN_PRECISION:g} {wanted}",
            found=f"{planted.precision:.3f} ({planted.num_right} of {num_found} found)",
            is_met=is_enough and planted.precision >= MIN_PRECISION,
        ),
    ]


def neighbours(items: list[Item], found: copies.Copies) -> str:
    """Returns a sentence on the neighbouring slices found among the phantoms that were not changed."""
    series, changes = (np.array([getattr(item, name) for item in items]) for name in ("series", "change"))
    is_phantom = (series != "") & (changes == "original")
    pairs = found.pairs[is_phantom[found.pairs].all(axis=1) & (found.kinds == Kind.NEIGHBOUR)]
    num_same = int(np.sum(series[pairs[:, 0]] == series[pairs[:, 1]]))
    num_pairs = NUM_PATIENTS * NUM_SLICES * (NUM_SLICES - 1) // 2
    return (
        f"Neighbours among the phantoms: {num_same} of {num_pairs} pairs of slices of one patient, and "
        f"{len(pairs) - num_same} pairs of different patients."
    )


def wrong_pairs(items: list[Item], found: copies.Copies) -> list[str]:
    """Returns the first pairs that were missed, or found though they show other pictures."""
    names = np.array([item.picture for item in items])
    first, second = np.triu_indices(len(items), 1)
    is_true = names[first] == names[second]
    wrong = np.flatnonzero((found.group_of[first] == found.group_of[second]) != is_true)[:MAX_LISTED]
    return [
        f"- {'missed' if is_true[place] else 'no copies'}: {names[first[place]]} ({items[first[place]].change}) and "
        f"{names[second[place]]} ({items[second[place]].change})"
        for place in wrong
    ]


def measure(route: str, items: list[Item], features: np.ndarray | None) -> tuple[list[Goal], list[str]]:
    """Looks for copies, and returns what was wanted and found, and the lines of the page on it.

    Args:
        route: Name of the search.
        items: The images.
        features: Their pooled features, float32 [images, values]; None: copies are found by thumbnails alone.
    """
    pictures = [looks.look(item.data) for item in items]
    thumbnails = np.stack([picture.thumbnail for picture in pictures])
    begin_s = time.process_time()
    found = copies.find_copies(features, thumbnails, [picture.pixels_sha256 for picture in pictures])
    used_s = time.process_time() - begin_s
    counts = count(items, found)
    return judge(route, counts[PLANTED]), [
        f"## {route.capitalize()}",
        "",
        "| change | true pairs | found | recall | found, but other pictures | precision |",
        "| --- " + "| ---: " * 5 + "|",
        *(counted.row(name) for name, counted in counts.items()),
        "",
        neighbours(items, found),
        f"Search and comparison took {used_s / len(items) * 1000:.0f} CPU-seconds per 1,000 images.",
        "",
        f"The first wrong pairs, at most {MAX_LISTED}:",
        "",
        *(wrong_pairs(items, found) or ["- none"]),
        "",
    ]


def main(settings: Settings) -> None:
    """Plants copies, looks for them with and without features, and writes the tables."""
    rng = np.random.default_rng(settings.seed)
    real = real_slices(Path(settings.data))
    features = pooled_features(real, settings.weights)
    chosen = np.flatnonzero(report_half(features))
    real, features = [real[index] for index in chosen], features[chosen]
    artificial = phantom_slices(rng)
    originals = [real[index] for index in rng.choice(len(real), min(settings.num_originals, len(real)), replace=False)]
    planted = [item for original in [*originals, *artificial] for item in plant(original, settings.num_copies, rng)]
    items = [*real, *artificial, *planted]
    features = np.concatenate([features, pooled_features([*artificial, *planted], settings.weights)])
    goals, lines = [], []
    for route, given in (("with features", features), ("without features", None)):
        more, told = measure(route, items, given)
        goals, lines = goals + more, lines + told
    write_goals(
        "planted_copies",
        "Planted copies of CT slices",
        "python benchmarks/planted_copies.py --data DIR --weights FILE "
        f"--num-originals {settings.num_originals} --num-copies {settings.num_copies} --seed {settings.seed}",
        goals=goals,
        lines=[
            f"{len(real)} real slices, {len(artificial)} slices of phantoms, {len(planted)} planted copies.",
            "",
            *lines[:-1],
        ],
        out=settings.out,
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, prog="planted_copies.py", description=__doc__))

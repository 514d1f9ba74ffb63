import hashlib
import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tlray.data import listing, phantom_files, phantoms
from tlray.errors import ConfigError


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def file_hashes(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files_of(root)}


def write_small(root: Path, seed: int, num_unreadable: int = 4) -> int:
    return phantom_files.write_data_set(
        str(root),
        num_patients_per_class=5,
        num_slices_per_patient=3,
        size_px=48,
        seed=seed,
        num_unreadable=num_unreadable,
    )


def test_data_set_has_the_layout_of_the_manifest_contract(tmp_path: Path):
    assert write_small(tmp_path, seed=0) == 4 * 5 * 3 + 4
    paths = [path.relative_to(tmp_path) for path in files_of(tmp_path)]
    assert len(paths) == 64
    assert {len(path.parts) for path in paths} == {3}
    assert {path.parts[0] for path in paths} == set(phantoms.CLASSES)
    patients = {path.parts[:2] for path in paths}
    assert Counter(label for label, _ in patients) == dict.fromkeys(phantoms.CLASSES, 5)
    assert len({patient for _, patient in patients}) == 20


def test_sets_with_patients_of_their_own_are_splits_of_one(tmp_path: Path):
    classes = phantoms.TASKS["nodules"]
    for number, split in enumerate(("train", "valid", "test")):
        num_files = phantom_files.write_data_set(
            str(tmp_path / split),
            num_patients_per_class=2,
            num_slices_per_patient=1,
            size_px=16,
            seed=number,
            num_unreadable=0,
            classes=classes,
            first_patient=100 * number,
        )
        assert num_files == 6
    rows = listing.list_images(str(tmp_path)).table.to_pylist()
    assert Counter((row["split"], row["label"]) for row in rows) == {
        (split, label): 2 for split in ("train", "valid", "test") for label in classes
    }
    assert {row["group_id"] for row in rows if row["split"] == "valid"} == {f"patient_{n:04d}" for n in range(100, 106)}
    assert len({row["group_id"] for row in rows}) == 18


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
        phantom_files.write_data_set(
            str(tmp_path),
            num_patients_per_class=patients,
            num_slices_per_patient=slices,
            size_px=48,
            seed=0,
            num_unreadable=unreadable,
        )
    assert not list(tmp_path.iterdir())

"""Infers a folder's layout from the paths in it: which folders are splits, which are classes, which are patients."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from tlray.errors import DataError, some

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""Endings of file names, in lower case, that mark a file as an image that tlray reads."""

MAX_COMMON_FOLDERS = 10
"""Maximum number of different folder names below the classes for which shared names are ambiguous.

With so few names, folders that several classes have may be grades or other classes rather than patients."""

_SPLIT_WORDS = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid", "development": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
_SPLIT_NAME = re.compile(rf"({'|'.join(_SPLIT_WORDS)})[ _.-]*(set|data|dataset|split|images|imgs)?", re.IGNORECASE)

_CLUTTER = frozenset({
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__", "lost+found",
    "$recycle.bin", "system volume information",  # Windows
    "@eadir", "#recycle", "@recycle", "@recently-snapshot",  # network drives of Synology and QNAP
})  # fmt: skip

_IMAGE_KINDS = frozenset({
    "image", "images", "imagestr", "imagests", "img", "imgs", "picture", "pictures", "slices",
    "png", "jpg", "jpeg", "tif", "tiff",
})  # fmt: skip
"""Folder names, in lower case, that mean images, not a class or a patient."""

_KINDS = _IMAGE_KINDS | frozenset({
    "mask", "masks", "lung mask", "lung masks", "lung_mask", "lung_masks", "infection mask", "infection masks",
    "segmentation", "segmentations", "annotation", "annotations", "label", "labels", "labelstr", "labelsts",
    "thumbs", "thumbnails",
})  # fmt: skip
"""Folder names, in lower case, that mean a kind of file such as images or masks, not a class or a patient."""

_GROUPS = "a CSV manifest with the columns uri, label and group_id"
_CSV = "or list the images in a CSV manifest (columns uri, label and, for patients, group_id)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An image's path and what the folders in it mean.

    Attributes:
        path: Path of the image relative to the source folder.
        image_id: The path without the wrapping folders.
        label: Name of the class folder; None if there is none.
        split: One of train, valid and test; None if there is no split folder.
        group_id: Name of the patient's folder; None if there is none.
    """

    path: str
    image_id: str
    label: str | None = None
    split: str | None = None
    group_id: str | None = None


@dataclass(slots=True, kw_only=True)
class _Folder:
    """Content of a class folder.

    Attributes:
        groups: Names of the folders in it.
        num_images: Number of files directly in it that are named like images.
        num_bare: Number of files directly in it whose names have no ending: images, or a LICENSE.
        num_inner_images: Number of files in its folders that are named like images.
    """

    groups: set[str] = field(default_factory=set)
    num_images: int = 0
    num_bare: int = 0
    num_inner_images: int = 0

    @property
    def has_images(self) -> bool:
        """True if images are directly in the folder; names without an ending count if its folders hold no images."""
        return self.num_images > 0 or (self.num_bare > 0 and not self.num_inner_images)


def split_of(name: str) -> str | None:
    """Returns the split that a name means, for example `valid` for `Dev_set`; None if the name means no split."""
    found = _SPLIT_NAME.fullmatch(name.strip())
    return _SPLIT_WORDS[found[1].lower()] if found else None


def read_layout(paths: Sequence[str], name: str, *, labels_needed: bool) -> list[Place]:
    """Infers splits, labels and patients from the paths of the files in a folder; see `listing.list_images` for rules.

    Args:
        paths: Relative paths, with `/` between their parts.
        name: Name of the folder itself.
        labels_needed: Refuse an ambiguous layout. Otherwise images in such a layout get no labels, splits and patients.

    Returns:
        The images, without hidden files, system files and loose files.

    Raises:
        DataError: The layout is ambiguous, and labels are needed.
    """
    visible = [parts for path in paths if not is_hidden(parts := path.split("/"))]
    depth = 0
    while _is_wrapped(visible, depth, name):
        depth += 1
    try:
        return _read_places(visible, depth, name)
    except DataError:
        if labels_needed:
            raise
        return [Place(path="/".join(parts), image_id="/".join(parts[depth:])) for parts in visible]


def is_hidden(parts: Sequence[str]) -> bool:
    """Tells whether a path, given by its parts, is hidden, or is a system file or in a system folder."""
    return any(part.startswith(".") or part.lower() in _CLUTTER for part in parts)


def _is_wrapped(visible: Sequence[Sequence[str]], depth: int, name: str) -> bool:
    entries = {parts[depth] for parts in visible}
    if len(entries) != 1 or any(len(parts) == depth + 1 for parts in visible):
        return False
    (entry,) = entries
    holds_folders = any(len(parts) > depth + 2 for parts in visible)
    return not split_of(entry) and (holds_folders or entry == name)


def _read_places(visible: Sequence[Sequence[str]], depth: int, name: str) -> list[Place]:
    below = [parts[depth:] for parts in visible]
    folders = {parts[0] for parts in below if len(parts) > 1}
    splits = {folder: split for folder in folders if (split := split_of(folder))}
    if splits and len(splits) < len(folders):
        raise DataError(
            f"'{name}' has split folders ({some(splits)}) beside others ({some(folders - splits.keys())}). "
            f"Move the others away, {_CSV}."
        )
    if splits:
        labelled = {parts[0] for parts in below if len(parts) > 2}
    else:
        has_loose_images = any(len(parts) == 1 and is_image_name(parts[0]) for parts in below)
        labelled = set() if has_loose_images else folders
    places = []
    for parts, whole in zip(below, visible, strict=True):
        split = splits.get(parts[0]) if len(parts) > 1 else None
        inner = parts[1:] if split else parts
        is_labelled = parts[0] in labelled if split else bool(labelled)
        if (splits and not split) or (is_labelled and len(inner) == 1):
            continue  # a loose file
        places.append(
            Place(
                path="/".join(whole),
                image_id="/".join(parts),
                label=inner[0] if is_labelled else None,
                split=split,
                group_id=inner[1] if is_labelled and len(inner) > 2 else None,
            )
        )
    _refuse_kinds_as_classes(places, name)
    return _check_groups(places, name)


def is_image_name(file_name: str) -> bool:
    """Tells whether a file is named like an image that tlray reads."""
    return file_name.lower().endswith(IMAGE_SUFFIXES)


def _check_groups(places: list[Place], name: str, depth: int = 1) -> list[Place]:
    """Checks that the folders below the classes are patients.

    Args:
        places: The images, with `group_id` from the folders at `depth`.
        name: Name of the source folder.
        depth: Index of the patient's folder below a split; the class folder has index 0.

    Returns:
        The images. If every class holds just one folder such as `images`, `group_id` comes from the folders in that.

    Raises:
        DataError: The folders may be something other than patients.
    """
    classes: dict[tuple[str | None, str], _Folder] = defaultdict(_Folder)
    for place in places:
        if place.label is not None:
            folder = classes[place.split, place.label]
            if place.group_id is not None:
                folder.groups.add(place.group_id)
                folder.num_inner_images += is_image_name(place.path)
            else:
                folder.num_images += is_image_name(place.path)
                folder.num_bare += "." not in place.path.rpartition("/")[2]
    groups = set().union(*(folder.groups for folder in classes.values()))
    is_kind = len(groups) == 1 and min(groups).lower() in _KINDS
    if is_kind and all(folder.groups and not folder.has_images for folder in classes.values()):
        below = [replace(place, group_id=_group_at(place, depth + 1)) for place in places]
        return _check_groups(below, name, depth + 1)
    _refuse_no_patients(classes, groups, name, depth)
    _refuse_kinds_below_patients(places, name, depth)
    _refuse_classes_below(classes, name)
    _refuse_common_folders(classes, name)
    return places


def _inner_folders(place: Place) -> list[str]:
    """Returns the names of the folders from the class to the image, the class first."""
    return place.image_id.split("/")[1 if place.split else 0 : -1]


def _group_at(place: Place, depth: int) -> str | None:
    folders = _inner_folders(place)
    return folders[depth] if place.label is not None and len(folders) > depth else None


def _refuse_kinds_as_classes(places: Sequence[Place], name: str) -> None:
    """Refuses class folders that are named like kinds of files: `images` and `masks` are no classes."""
    labels = {place.label for place in places if place.label is not None}
    kinds = {label for label in labels if label.lower() in _KINDS}
    if not kinds:
        return
    image_kind = _image_kind(kinds)
    inner = {place.split for place in places if place.label == image_kind and place.group_id is not None}
    if kinds < labels:
        remedy = "Move them away"
    elif image_kind and inner == {None}:
        remedy = f"Give the one that holds the class folders as --data (ROOT/{image_kind})"
    else:
        remedy = "Put the images into class folders (CLASS/*)"
    raise DataError(
        f"In '{name}' the folders {some(kinds)} are named like kinds of files, not like classes. {remedy}, {_CSV}."
    )


def _image_kind(kinds: AbstractSet[str]) -> str | None:
    """Returns the first of some folder names that means images; None if there is none."""
    return min((kind for kind in kinds if kind.lower() in _IMAGE_KINDS), default=None)


def _refuse_kinds_below_patients(places: Sequence[Place], name: str, depth: int) -> None:
    """Refuses patients' folders that hold several kinds of files, or masks beside images."""
    kinds_of = [
        tuple(folder for folder in _inner_folders(place)[depth + 1 :] if folder.lower() in _KINDS)
        for place in places
        if place.group_id is not None
    ]
    kinds = {kind for each in kinds_of for kind in each}
    num_sorts = len({tuple(kind.lower() for kind in each) for each in kinds_of if each})
    is_beside_images = () in kinds_of and any(kind.lower() not in _IMAGE_KINDS for kind in kinds)
    if num_sorts > 1 or is_beside_images:
        raise _kinds_error(name, "the patients", kinds, "**")


def _kinds_error(name: str, above: str, kinds: AbstractSet[str], stars: str) -> DataError:
    image_kind = _image_kind(kinds)
    choice = f"Choose one with a glob (--data 'ROOT/{stars}/{image_kind}/**')" if image_kind else "Move them away"
    return DataError(
        f"In '{name}' the folders below {above} ({some(kinds)}) hold kinds of files, not patients. {choice}, {_CSV}."
    )


def _refuse_no_patients(
    classes: dict[tuple[str | None, str], _Folder], groups: set[str], name: str, depth: int
) -> None:
    splits = {group for group in groups if split_of(group)}
    if splits:
        raise DataError(
            f"In '{name}' the folders {some({label for _, label in classes})} hold split folders ({some(splits)}). "
            f"Give the folder that holds the splits as --data, put splits above classes (SPLIT/CLASS/*), {_CSV}."
        )
    kinds = {group for group in groups if group.lower() in _KINDS}
    if kinds:
        num_stars = depth + any(split for split, _ in classes)
        raise _kinds_error(name, "the classes", kinds, "/".join("*" * num_stars))


def _refuse_common_folders(classes: dict[tuple[str | None, str], _Folder], name: str) -> None:
    if any(folder.has_images for folder in classes.values()):
        return
    groups_of: dict[str, set[str]] = defaultdict(set)
    for (_, label), folder in classes.items():
        groups_of[label] |= folder.groups
    num_classes = Counter(group for groups in groups_of.values() for group in groups)
    common = {group for group, number in num_classes.items() if number > 1}
    if len(num_classes) <= MAX_COMMON_FOLDERS and len(common) > len(num_classes) / 2:
        raise DataError(
            f"In '{name}' the folders {some(groups_of)} have subfolders of the same names ({some(common)}), which may "
            f"be patients or classes. Give {_GROUPS}; leave out group_id if they are classes."
        )


def _refuse_classes_below(classes: dict[tuple[str | None, str], _Folder], name: str) -> None:
    """Refuses class folders that hold only folders, and these are not named like patients.

    Names of patients have digits. A folder inside a folder of the same name usually comes from unpacking an archive.
    """
    for (split, label), folder in classes.items():
        if folder.has_images:
            continue
        path = f"{split}/{label}" if split else label
        nested = min((group for group in folder.groups if group.lower() == label.lower()), default=None)
        if nested is not None:
            raise DataError(
                f"In '{name}' the folder '{path}' holds a folder of the same name. If that holds the class folders, "
                f"give it as --data (ROOT/{path}/{nested}); otherwise move its images up into '{path}', {_CSV}."
            )
        num_words = sum(not re.search(r"\d", group) for group in folder.groups)
        if num_words > len(folder.groups) / 2:
            raise DataError(
                f"In '{name}' the folders below '{path}' ({some(folder.groups)}) look like classes, not like patients. "
                f"If they are classes, give the folder that holds them as --data; if they are parts of '{path}', move "
                f"their images up; if they are patients, give {_GROUPS}."
            )

"""Groups of copies in small sets of phantoms, and the report on them."""

import numpy as np
import pyarrow as pa
import pytest

from tlray.data.looks import THUMBNAIL_PX
from tlray.errors import DataError
from tlray.trust import copies, pixel_match
from tlray.trust.copies import Copies, describe, find_copies

NUM_PATIENTS = 6


def names(thumbnails):
    return [str(hash(thumbnail.tobytes())) for thumbnail in thumbnails]


def test_groups_of_identical_mirrored_and_scribbled_pictures(thumbnails):
    scribbled = thumbnails[3].copy()
    scribbled[20:22, 10:80] = 255
    images = np.concatenate([thumbnails, thumbnails[[1, 1]], thumbnails[2:3, :, ::-1], scribbled[None]])
    features = np.random.default_rng(0).normal(size=(10, 40)).astype(np.float16)
    for given in (None, features):
        found = find_copies(given, images, names(images))
        assert found.group_of.tolist() == [*range(6), 1, 1, 2, 3]
        assert found.identical_of.tolist() == [*range(6), 1, 1, 8, 9]
        is_copy = found.kinds != "neighbour"
        assert found.pairs[is_copy].tolist() == [[1, 6], [1, 7], [2, 8], [3, 9]]
        assert found.kinds[is_copy].tolist() == ["identical", "identical", "copy", "copy"]
        assert found.is_mirrored[is_copy].tolist() == [False, False, True, False]
        assert found.scores[:3] == pytest.approx([1.0, 1.0, 1.0], abs=1e-3)
        assert 0.94 < found.scores[is_copy][3] < 1.0


def test_a_chain_of_copies_is_one_group():
    pairs = np.array([[0, 2], [2, 4], [3, 5]])
    assert copies._components(pairs, 6).tolist() == [0, 1, 0, 3, 0, 3]
    assert copies._components(np.empty((0, 2), np.int64), 3).tolist() == [0, 1, 2]


def test_the_same_thumbnail_with_other_pixels_is_a_copy(thumbnails):
    images = thumbnails[[0, 1, 0]]
    found = find_copies(None, images, ["a", "b", "c"])
    assert found.pairs[0].tolist() == [0, 2]
    assert (found.kinds[0], found.scores[0]) == ("copy", 1.0)
    assert found.identical_of.tolist() == [0, 1, 2]


def test_far_candidates_are_compared_only_of_images_with_a_relative():
    """0 and 1 are copies, so their next candidates are compared. So are 1 and 5: the last one of 5 is compared."""
    near, far, farthest = [[0, 1], [2, 3], [4, 5]], [[0, 2], [1, 5], [3, 4]], [[0, 3], [0, 4], [3, 5]]
    calls = []

    def compare(_, pairs):
        calls.append(pairs.tolist())
        kinds = np.array(["copy" if pair in ([0, 1], [1, 5]) else "other" for pair in pairs.tolist()])
        return pixel_match.Match(kinds=kinds, scores=np.ones(len(pairs)), is_mirrored=np.zeros(len(pairs), bool))

    rank_of = {tuple(pair): rank for rank, pairs in ((1, near), (2, far), (5, farthest)) for pair in pairs}
    pairs = np.array(sorted(rank_of))
    ranks = np.array([rank_of[tuple(pair)] for pair in pairs.tolist()])
    compared, match = copies._compare_in_turns(np.zeros((6, 2, 2)), pairs, ranks, compare)
    assert calls == [near, far[:2], farthest[2:]]
    assert compared[match.kinds == "copy"].tolist() == [[0, 1], [1, 5]]


def test_a_copy_whose_next_candidates_are_known_already_stays_in_the_rounds():
    """0 has three copies that are each other's nearest ones, and nothing new before rank 4."""
    pairs, ranks = np.array([[0, 1], [0, 2], [0, 3], [0, 4]]), np.array([1, 1, 1, 4])

    def compare(_, pairs):
        return pixel_match.Match(
            kinds=np.full(len(pairs), "copy"), scores=np.ones(len(pairs)), is_mirrored=np.zeros(len(pairs), bool)
        )

    compared, _ = copies._compare_in_turns(np.zeros((5, 2, 2)), pairs, ranks, compare)
    assert compared.tolist() == pairs.tolist()


def test_without_candidates_nothing_is_found():
    compared, match = copies._compare_in_turns(
        np.zeros((3, 96, 96), np.uint8), np.empty((0, 2), int), np.empty(0, int), pixel_match.compare
    )
    assert (compared.shape, match.kinds.shape) == ((0, 2), (0,))


def test_known_images_are_compared_with_others_only(thumbnails):
    """The last three: a mirrored copy of the first image, and two copies of each other, which are known to be none."""
    images = np.concatenate([thumbnails[:3], thumbnails[:1, :, ::-1], thumbnails[3:4], thumbnails[3:4, :, ::-1]])
    compared = []

    def compare(thumbnails_BHW, pairs):
        compared.extend(map(tuple, pairs.tolist()))
        return pixel_match.compare(thumbnails_BHW, pairs)

    found = find_copies(None, images, names(images), num_known=3, compare=compare)
    assert found.group_of.tolist() == [0, 1, 2, 0, 4, 5]
    assert compared
    assert not {(3, 4), (3, 5), (4, 5)} & set(compared)
    assert find_copies(None, images, names(images)).group_of.tolist() == [0, 1, 2, 0, 4, 4]


def test_all_candidates_with_known_images_are_compared_first(thumbnails, monkeypatch):
    """The last two are known. No pair is one of nearest images, and 1 and 2 are copies of known ones."""
    monkeypatch.setattr(copies, "find_candidates", lambda *_, **__: (candidates, np.full(len(candidates), 2)))
    candidates = np.array([[0, 1], [0, 3], [1, 3], [2, 4], [3, 4]])
    calls = []

    def compare(_, pairs):
        calls.append(pairs.tolist())
        kinds = np.array(["copy" if pair in ([1, 3], [2, 4]) else "other" for pair in pairs.tolist()])
        return pixel_match.Match(kinds=kinds, scores=np.ones(len(pairs)), is_mirrored=np.zeros(len(pairs), bool))

    found = find_copies(None, thumbnails[:5], names(thumbnails[:5]), num_known=2, compare=compare)
    assert calls == [[[0, 3], [1, 3], [2, 4]], [[0, 1]]]
    assert found.group_of.tolist() == [0, 1, 2, 1, 2]


@pytest.mark.parametrize("num_images", [0, 1])
def test_sets_without_pairs(thumbnails, num_images):
    found = find_copies(None, thumbnails[:num_images], names(thumbnails[:num_images]))
    assert found.group_of.tolist() == list(range(num_images))
    assert len(found.pairs) == len(found.kinds) == 0


def test_blank_images_are_copies_of_none(thumbnails):
    """Each patient may have one: they would join all patients to one group."""
    images = np.zeros((6, THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
    images[2:4] = 9
    images[4:] = thumbnails[0]
    found = find_copies(np.zeros((6, 3)), images, names(images))
    assert found.group_of.tolist() == [0, 1, 2, 3, 4, 4]
    assert found.pairs.tolist() == [[4, 5]]


def test_numbers_that_do_not_fit_are_refused(thumbnails):
    with pytest.raises(DataError, match="2 digests and 6 thumbnails"):
        find_copies(None, thumbnails, ["a", "b"])
    with pytest.raises(DataError, match="features of 3 images and 6 thumbnails"):
        find_copies(np.ones((3, 2)), thumbnails, names(thumbnails))


TABLE = pa.table(
    {
        "image_id": list("abcdefg"),
        "split": ["train", "train", "test", "train", None, "train", "test"],
        "label": ["x", "x", "x", "y", None, "x", "y"],
    }
)


def test_a_report_by_hand():
    found = Copies(
        identical_of=np.array([0, 0, 2, 3, 4, 5, 6]),
        group_of=np.array([0, 0, 0, 3, 4, 3, 4]),
        series_of=np.array([0, 0, 0, 0, 4, 0, 4]),
        pairs=np.array([[0, 1], [0, 2], [3, 5], [4, 6], [0, 3]]),
        kinds=np.array(["identical", "copy", "copy", "copy", "neighbour"]),
        scores=np.ones(5, np.float32),
        is_mirrored=np.zeros(5, bool),
    )
    report = describe(found, TABLE)
    assert report["num_pairs"] == {"identical": 1, "copy": 3, "neighbour": 1}

    def figures(group):
        finding = [
            report[group],
            *(report[group][name] for name in ("within_split", "across_splits", "conflicting_labels")),
        ]
        return [(found["num_groups"], found["num_images"]) for found in finding]

    assert figures("identical") == [(1, 2), (1, 2), (0, 0), (0, 0)]
    assert figures("copies") == [(3, 7), (2, 5), (1, 3), (1, 2)]  # a null label contradicts none, and a null split
    assert figures("series") == [(2, 7), (1, 5), (1, 5), (1, 5)]
    assert [image["image_id"] for image in report["copies"]["across_splits"]["examples"][0]["images"]] == list("acb")
    assert report["copies"]["conflicting_labels"]["examples"] == [
        {
            "images": [
                {"image_id": "d", "split": "train", "label": "y"},
                {"image_id": "f", "split": "train", "label": "x"},
            ]
        }
    ]


def test_a_report_on_other_images_is_refused(thumbnails):
    found = find_copies(None, thumbnails[:1], ["a"])
    with pytest.raises(DataError, match="has 7 images, the copies are of 1"):
        describe(found, TABLE)

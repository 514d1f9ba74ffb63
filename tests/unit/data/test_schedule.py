from collections import Counter

import numpy as np
import pytest

from tlray.data.schedule import EvalSchedule, PlainSchedule, Rows, TrainSchedule, ViewSchedule, permutation, view_of


def schedule(**settings) -> TrainSchedule:
    return TrainSchedule(
        **({"num_images": 10, "batch_size": 4, "num_workers": 1, "rank": 0, "seed": 5, "num_epochs": 1} | settings)
    )


def everything(one: TrainSchedule | EvalSchedule | PlainSchedule) -> Rows:
    return one.rows(np.arange(one.num_rows))


def global_batches(num_workers: int, **settings) -> list[list[tuple[int, int, float]]]:
    """Returns each step's (epoch, index, weight) over all ranks, sorted."""
    batches: list[list[tuple[int, int, float]]] = []
    for rank in range(num_workers):
        one = schedule(num_workers=num_workers, rank=rank, **settings)
        rows = everything(one)
        triples = list(zip(rows.epoch.tolist(), rows.index.tolist(), rows.weight.tolist(), strict=True))
        for step, start in enumerate(range(0, one.num_rows, one.rank_batch_size)):
            if rank == 0:
                batches.append([])
            batches[step] += triples[start : start + one.rank_batch_size]
    return [sorted(batch) for batch in batches]


def test_permutation_is_of_seed_and_epoch_and_read_only():
    order = permutation(3, 1, 50)
    assert sorted(order.tolist()) == list(range(50))
    assert np.array_equal(order, np.random.default_rng([3, 1]).permutation(50))
    assert not np.array_equal(order, permutation(3, 2, 50))
    assert not np.array_equal(order, permutation(4, 1, 50))
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 1


def test_five_images_in_batches_of_four_by_hand():
    order = permutation(5, 0, 5).tolist()
    # Two steps of four: the second holds the last image and, at weight 0, the epoch's first three.
    rows = everything(schedule(num_images=5))
    assert rows.index.tolist() == [*order, *order[:3]]
    assert rows.weight.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert rows.weight.dtype == np.float32
    # Of two ranks each has one half of every batch.
    first, second = (everything(schedule(num_images=5, num_workers=2, rank=rank)) for rank in (0, 1))
    assert first.index.tolist() == [order[0], order[1], order[4], order[0]]
    assert first.weight.tolist() == [1, 1, 1, 0]
    assert second.index.tolist() == [order[2], order[3], order[1], order[2]]
    assert second.weight.tolist() == [1, 1, 0, 0]


def test_fewer_images_than_a_batch_by_hand():
    order = permutation(5, 0, 3).tolist()
    one = schedule(num_images=3, batch_size=8, num_workers=2, rank=1)
    assert (one.steps_per_epoch, one.rank_batch_size, one.num_rows) == (1, 4, 4)
    # Places 4 to 7 of 0 1 2 | 0 1 2 | 0 1: all of them only fill up.
    assert everything(one).index.tolist() == [order[1], order[2], order[0], order[1]]
    assert everything(one).weight.tolist() == [0, 0, 0, 0]
    assert everything(schedule(num_images=3, batch_size=8, num_workers=2)).weight.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("num_images", "steps", "in_steps"),
    [(10, 3, [4, 4, 2]), (8, 2, [4, 4]), (3, 1, [3]), (1, 1, [1])],
)
def test_steps_and_images_in_them(num_images, steps, in_steps):
    one = schedule(num_images=num_images)
    assert one.steps_per_epoch == steps
    assert [one.num_images_in_step(step) for step in range(steps)] == in_steps
    weights = everything(one).weight.reshape(steps, 4)
    assert weights.sum(axis=1).tolist() == in_steps


@pytest.mark.parametrize("num_images", [1, 3, 7, 8, 9, 37])
def test_global_batches_do_not_depend_on_the_number_of_workers(num_images):
    settings = {"num_images": num_images, "batch_size": 8, "num_epochs": 3}
    alone = global_batches(1, **settings)
    assert global_batches(2, **settings) == alone
    assert global_batches(4, **settings) == alone
    assert global_batches(8, **settings) == alone


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("num_images", [1, 3, 8, 37])
def test_every_image_counts_once_an_epoch(num_images, num_workers):
    batches = global_batches(num_workers, num_images=num_images, batch_size=8, num_epochs=3)
    assert {len(batch) for batch in batches} == {8}
    counted = Counter((epoch, index) for batch in batches for epoch, index, weight in batch if weight)
    assert counted == dict.fromkeys([(epoch, index) for epoch in range(3) for index in range(num_images)], 1)


def test_all_ranks_have_the_same_number_of_steps():
    for num_images in range(1, 40):
        ranks = [schedule(num_images=num_images, batch_size=12, num_workers=3, rank=rank) for rank in range(3)]
        assert {one.num_rows for one in ranks} == {-(-num_images // 12) * 4}


@pytest.mark.parametrize("first_epoch", [0, 1, 3, 4])
def test_resuming_gives_the_tail(first_epoch):
    settings = {"num_workers": 2, "rank": 1, "num_epochs": 4}
    whole, resumed = everything(schedule(**settings)), everything(schedule(**settings, first_epoch=first_epoch))
    num_skipped = first_epoch * 3 * 2  # 3 steps an epoch, 2 rows of this rank in each
    assert len(resumed.index) == len(whole.index) - num_skipped
    for name in ("index", "epoch", "weight"):
        assert np.array_equal(getattr(resumed, name), getattr(whole, name)[num_skipped:])


def test_any_block_of_positions_gives_its_own_rows():
    one = schedule(num_workers=2, num_epochs=3)
    whole = everything(one)
    positions = np.array([17, 0, 6, 5])  # across epochs, out of order
    part = one.rows(positions)
    assert np.array_equal(part.index, whole.index[positions])
    assert part.epoch.tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize("num_workers", range(1, 9))
@pytest.mark.parametrize("num_images", [1, 2, 5, 8, 13])
def test_validation_covers_every_image_once(num_images, num_workers):
    ranks = [EvalSchedule(num_images=num_images, num_workers=num_workers, rank=rank) for rank in range(num_workers)]
    assert len({one.num_rows for one in ranks}) == 1
    rows = [everything(one) for one in ranks]
    counted = [index for one in rows for index in one.index[one.weight == 1].tolist()]
    assert sorted(counted) == list(range(num_images))
    assert all(0 <= index < num_images for one in rows for index in one.index)
    assert {float(weight) for one in rows for weight in one.weight} <= {0.0, 1.0}


def test_validation_by_hand():
    # Five images for two ranks: 0 2 4 and 1 3, filled up with image 0.
    first, second = (everything(EvalSchedule(num_images=5, num_workers=2, rank=rank)) for rank in (0, 1))
    assert (first.index.tolist(), first.weight.tolist()) == ([0, 2, 4], [1, 1, 1])
    assert (second.index.tolist(), second.weight.tolist()) == ([1, 3, 0], [1, 1, 0])
    assert second.epoch.tolist() == [0, 0, 0]


def test_plain_is_the_manifests_order():
    rows = PlainSchedule(num_rows=9).rows(np.array([4, 5, 6]))
    assert (rows.index.tolist(), rows.epoch.tolist(), rows.weight.tolist()) == ([4, 5, 6], [0, 0, 0], [1, 1, 1])


def test_views_are_epochs_and_the_first_is_plain():
    schedule = ViewSchedule(views=np.array([0, 1, 2, 0], dtype=np.int32))
    rows = schedule.rows(np.array([1, 2, 3]))
    assert schedule.num_rows == 4
    assert (rows.index.tolist(), rows.epoch.tolist(), rows.weight.tolist()) == ([1, 2, 3], [0, 1, -1], [1, 1, 1])


def test_every_image_takes_all_of_its_views_in_turn():
    one = schedule(num_images=30, num_epochs=3)
    rows = everything(one)
    views = view_of(rows, num_images=30, num_views=3, seed=1)
    seen = {image: views[(rows.index == image) & (rows.weight > 0)].tolist() for image in range(30)}
    assert all(sorted(turns) == [0, 1, 2] for turns in seen.values())
    assert {turns[0] for turns in seen.values()} == {0, 1, 2}  # an epoch has all kinds
    assert all((turns[0] + 1) % 3 == turns[1] for turns in seen.values())
    assert view_of(rows, num_images=30, num_views=1, seed=1).tolist() == [0] * len(rows.index)

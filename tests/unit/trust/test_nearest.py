"""The nearest rows are those that scikit-learn finds."""

import threading

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from tlray.trust import nearest
from tlray.trust.nearest import find_nearest


def unit_rows(num_rows: int, num_values: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num_rows, num_values)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("num_rows", "num_nearest"), [(1, 1), (1, 9), (5, 9), (255, 9), (256, 2), (257, 9), (600, 1), (5000, 9)]
)
def test_the_same_as_scikit_learn(num_rows, num_nearest):
    rows, queries = unit_rows(num_rows, 24), unit_rows(300, 24, seed=1)
    distances, found = find_nearest(queries, rows, num_nearest)
    search = NearestNeighbors(n_neighbors=min(num_nearest, num_rows), algorithm="brute").fit(rows.astype(np.float64))
    expected_distances, expected = search.kneighbors(queries.astype(np.float64))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(distances, expected_distances, atol=1e-5)


def test_rows_of_different_lengths():
    rows = np.array([[0.0], [0.1], [0.5], [-0.2], [1.0]], np.float32)
    distances, found = find_nearest(np.array([[0.09], [0.6]], np.float32), rows, 3)
    assert found.tolist() == [[1, 0, 3], [2, 4, 1]]
    np.testing.assert_allclose(distances, [[0.01, 0.09, 0.29], [0.1, 0.4, 0.5]], atol=1e-6)


def test_a_row_is_nearest_to_itself_at_no_distance():
    rows = unit_rows(700, 96)
    distances, found = find_nearest(rows, rows, 2)
    assert found[:, 0].tolist() == list(range(700))
    assert distances[:, 0].max() < 1e-3


def test_chunks_of_queries_make_no_difference(monkeypatch):
    rows = unit_rows(1000, 16)
    whole = find_nearest(rows, rows, 5)[1]
    monkeypatch.setattr(nearest, "_MAX_PRODUCTS", 3 * 1024)
    np.testing.assert_array_equal(find_nearest(rows, rows, 5)[1], whole)


@pytest.mark.parametrize("num_threads", [1, 3, 50])
def test_threads_make_no_difference(monkeypatch, num_threads):
    rows = unit_rows(1000, 16)
    whole = find_nearest(rows, rows, 5)
    monkeypatch.setattr(nearest, "_count_threads", lambda: num_threads)
    distances, found = find_nearest(rows, rows, 5)
    np.testing.assert_array_equal(found, whole[1])
    np.testing.assert_allclose(distances, whole[0], atol=1e-3)


def test_afterwards_products_take_as_many_threads_as_before():
    before = nearest._count_threads()
    with threadpool_limits(2, "blas"):
        assert nearest._count_threads() == 2
        find_nearest(unit_rows(300, 4), unit_rows(300, 4), 1)
        assert nearest._count_threads() == 2
    assert nearest._count_threads() == before


@pytest.mark.parametrize("failing", ["nearest_0", "nearest_1"])
def test_an_error_ends_all_threads_at_once(monkeypatch, failing):
    """Whichever thread it is in; as Ctrl-C does, which only the main thread sees."""
    num_chunks = 0

    def fail_once(values: np.ndarray, number: int) -> np.ndarray:
        nonlocal num_chunks
        num_chunks += 1
        if threading.current_thread().name == failing:
            raise KeyboardInterrupt
        pause.wait(0.01)
        return largest(values, number)

    largest, pause = nearest._largest, threading.Event()
    monkeypatch.setattr(nearest, "_largest", fail_once)
    monkeypatch.setattr(nearest, "_count_threads", lambda: 2)
    monkeypatch.setattr(nearest, "_MAX_QUERIES", 4)
    with pytest.raises(KeyboardInterrupt):
        find_nearest(unit_rows(2000, 4), unit_rows(300, 4), 1)  # 500 chunks
    assert num_chunks < 100

"""Chooses TensorFlow's devices and threads in a process; must be called before TensorFlow's first operation."""

import contextlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def use_gpus() -> None:
    """Makes TensorFlow allocate the memory of the visible GPUs as it is needed, not all at once."""
    for device in tf.config.list_physical_devices("GPU"):
        _unless_started(tf.config.experimental.set_memory_growth, device, True)


def use_cpus(num_threads: int | None = None, *, num_parallel: int = 1) -> None:
    """Hides the GPUs, which Ray shows to every process of a node, and limits TensorFlow's thread pool.

    Args:
        num_threads: Threads of an operation; None: all CPUs. Ray's OMP_NUM_THREADS does not limit TensorFlow's own
            pool: without a limit, processes on one node compete for its cores.
        num_parallel: Operations at a time, if `num_threads` is given.
    """
    _unless_started(tf.config.set_visible_devices, [], "GPU")
    if num_threads is not None:
        _unless_started(tf.config.threading.set_intra_op_parallelism_threads, num_threads)
        _unless_started(tf.config.threading.set_inter_op_parallelism_threads, num_parallel)


def _unless_started(change: Callable[..., None], *arguments: Any) -> None:
    # Where TensorFlow runs already, the earlier choice stays.
    with contextlib.suppress(RuntimeError):
        change(*arguments)

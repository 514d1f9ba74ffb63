"""TensorFlow in a training worker: its devices, its threads, and the strategy over all workers."""

import os

import tensorflow as tf

from tlray.models import devices


def set_up_devices(*, use_gpu: bool, workers_on_node: int) -> None:
    """Chooses TensorFlow's threads and devices; must be called before its first operation."""
    if use_gpu:
        devices.use_gpus()
    else:
        devices.use_cpus(max(1, num_node_cpus() // workers_on_node), num_parallel=2)


def num_node_cpus() -> int:
    """Returns the number of CPUs that this process may use, whatever Ray counts."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_strategy(*, use_gpu: bool) -> tf.distribute.MultiWorkerMirroredStrategy:
    """Returns the strategy over the workers that TF_CONFIG names: NCCL on GPUs, ring over gRPC on CPUs."""
    implementation = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=implementation.NCCL if use_gpu else implementation.RING
    )
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)

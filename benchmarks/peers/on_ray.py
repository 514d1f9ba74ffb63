"""Runs a Ray Serve application on a Ray of its own until SIGINT comes."""

import signal
import sys
import threading

import ray
from model import PORT
from ray import serve
from ray.serve import Application

from tlray.cluster import WORKER_ENVIRONMENT

OBJECT_STORE_BYTES = 512 * 2**20


def run(application: Application) -> None:
    """Serves an application on PORT of this machine."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit())
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        runtime_env={"env_vars": WORKER_ENVIRONMENT},
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(application)
        threading.Event().wait()
    finally:
        serve.shutdown()
        ray.shutdown()

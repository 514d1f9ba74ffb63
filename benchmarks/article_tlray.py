"""tlray's `article` recipe on a Ray of its own: the other side of `train_step.py`.

    python benchmarks/article_tlray.py DATA WEIGHTS EPOCHS OUT_DIR

The rates of the epochs are in `OUT_DIR/history.csv`, as of every run.
"""

import dataclasses
import logging
import os
import sys

import ray

from tlray.cluster import connection, plans
from tlray.config import recipes
from tlray.training import run

OBJECT_STORE_BYTES = 4 * plans.MIN_OBJECT_STORE_BYTES
"""Of this Ray: so little that images are decoded at most some 450 ahead. With Ray's default (30 % of the memory) all of
a short run would be decoded while the first epoch, which does not count, is traced."""


def main(data: str, weights: str, epochs: str, out: str) -> None:
    """Trains with one worker."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(connection.LOCAL_RAY_ENVIRONMENT)
    ray.init(
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": connection.WORKER_ENVIRONMENT | connection.NO_API_SERVER},
    )
    recipe = recipes.article(data, out)
    run.train(dataclasses.replace(recipe, weights=weights, epochs=int(epochs), num_workers=1, quiet=True))


if __name__ == "__main__":
    main(*sys.argv[1:])

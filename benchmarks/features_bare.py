"""The bare network that feature extraction runs: the limit for `features_pass.py`.

    python benchmarks/features_bare.py WEIGHTS SECONDS OUT.json

Batches of 32 random images that lie in memory, all cores, no Ray, in the engine and precision that `tlray features`
takes on this machine; `OUT.json` gets the images per second and the engine.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from tlray.config.commands import FeaturesConfig
from tlray.engines import choice, networks
from tlray.features import preparation

BATCH_SIZE = 32


def main(weights: str, seconds: str, out: str) -> None:
    """Runs for some seconds, after a warm-up."""
    config = FeaturesConfig(data="", out="", weights=weights).training()
    kind = choice.for_features("auto", "auto", use_gpu=False, flag="--precision")
    packed = preparation.prepare(config, "pooled", kind).packed
    engine = networks.load(packed, num_threads=None, use_gpu=False, is_long=True)
    shape = (BATCH_SIZE, config.image_size_px, config.image_size_px, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for _ in range(3):
        engine.run(images)
    num_batches, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < float(seconds):
        engine.run(images)
        num_batches += 1
    rate_per_s = num_batches * BATCH_SIZE / (time.perf_counter() - start_s)
    Path(out).write_text(json.dumps({"images_per_s": rate_per_s, "engine": str(packed.kind)}))


if __name__ == "__main__":
    main(*sys.argv[1:])

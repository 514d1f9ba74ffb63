"""The bare network that feature extraction runs: the limit for `features_pass.py`.

    python benchmarks/features_bare.py WEIGHTS SECONDS OUT.json

Batches of 32 random images that lie in memory, all cores, no Ray; `OUT.json` gets the images per second.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from tlray.config.commands import FeaturesConfig
from tlray.models import classifier as models
from tlray.models import trunk
from tlray.models.backbone import build_backbone

BATCH_SIZE = 32


def main(weights: str, seconds: str, out: str) -> None:
    """Runs for some seconds, after a warm-up."""
    config = FeaturesConfig(data="", out="", weights=weights).training()
    backbone = build_backbone(config)
    models.set_trainable(backbone, config)
    extractor, _ = trunk.extractor(backbone, "symmetric", pooled=True, cut=False)
    run = trunk.as_constant(extractor)
    shape = (BATCH_SIZE, config.image_size_px, config.image_size_px, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for _ in range(3):
        run(images)
    num_batches, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < float(seconds):
        run(images)
        num_batches += 1
    Path(out).write_text(json.dumps(num_batches * BATCH_SIZE / (time.perf_counter() - start_s)))


if __name__ == "__main__":
    main(*sys.argv[1:])

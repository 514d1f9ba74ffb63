"""The model alone, without a server: `python bare.py BUNDLE ENGINE IMAGES SECONDS [PRECISION]` prints JSON."""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from tlray.data import decoding
from tlray.inference.predictor import Predictor

BATCH_SIZE = 32


def call_on(predictor: Predictor, images_BHWC: np.ndarray, duration_s: float) -> list[float]:
    """Returns the seconds of each call, after one that does not count."""
    predictor.predict(images_BHWC)
    calls_s: list[float] = []
    end_s = time.perf_counter() + duration_s
    while (start_s := time.perf_counter()) < end_s:
        predictor.predict(images_BHWC)
        calls_s.append(time.perf_counter() - start_s)
    return calls_s


def main() -> None:
    """Measures images per second in full batches, the time of a single image, and that of decoding one."""
    bundle, engine, directory, duration_s = sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
    precision = sys.argv[5] if len(sys.argv) > 5 else "auto"
    predictor = Predictor(bundle, engine=cast("Any", engine), precision=cast("Any", precision))
    size_px = predictor.bundle.spec.image_size_px
    decoded: list[np.ndarray] = []
    decode_s: list[float] = []
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        start_s = time.perf_counter()
        decoded.append(decoding.to_array(decoding.decode(content, size_px=size_px)))
        decode_s.append(time.perf_counter() - start_s)
    batch_BHWC = np.stack([decoded[place % len(decoded)] for place in range(BATCH_SIZE)])
    batches_s = call_on(predictor, batch_BHWC, duration_s)
    singles_s = call_on(predictor, batch_BHWC[:1], duration_s)
    result: dict[str, Any] = {
        "images_per_s": BATCH_SIZE * len(batches_s) / sum(batches_s),
        "single_ms": statistics.median(singles_s) * 1e3,
        "decode_ms": statistics.median(decode_s) * 1e3,
        "precision": predictor.kind.precision,
        "probabilities": predictor.predict(batch_BHWC[:1])[0].tolist(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

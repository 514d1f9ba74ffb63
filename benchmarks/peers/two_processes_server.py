"""`tlray serve` with the model in a process of its own, as it is where there may be several: nothing else differs."""

import signal
import sys

from model import BUNDLE, PORT, PRECISION

from serve_app import foreground
from serve_app.options import Options
from tlray.config.prediction import ServeConfig

read_options = foreground.read_options


def with_two_processes(config: ServeConfig) -> Options:
    """Returns the settings of `tlray serve` with the model apart from the ingress."""
    return read_options(config).model_copy(update={"one_process": False})


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: sys.exit())
    foreground.read_options = with_two_processes
    with foreground.started(ServeConfig(bundle=str(BUNDLE), port=PORT, precision=PRECISION, quiet=True)) as endpoint:
        endpoint.wait()

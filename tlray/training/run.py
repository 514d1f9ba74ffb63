"""A training run, from images to an evaluated and exported model, in four steps."""

from tlray.cluster.capacity import Capacity
from tlray.config.training import TrainConfig
from tlray.timing import Timing
from tlray.training.begin import resume_or_begin
from tlray.training.finish import finish
from tlray.training.learn import learn
from tlray.training.prepare import prepare
from tlray.training.stages import TrainResult


def train(config: TrainConfig, available: Capacity | None = None) -> TrainResult:
    """Trains a classifier on a folder of labelled images, evaluates it, and exports it as a bundle.

    `metrics.json` is written last: a run without it is not finished and can be continued with `resume`.

    Args:
        config: The settings of the run.
        available: Resources of the connected cluster; None: connect, and measure them.

    Raises:
        ConfigError: A setting cannot work.
        DataError: The data cannot be used.
        TlrayError: Training failed; the message says what to do.
    """
    timing = Timing()
    with timing.phase("checking settings, listing images"):
        begun = resume_or_begin(config)
    if isinstance(begun, TrainResult):
        return begun
    run = prepare(begun, timing, available)
    return finish(run, learn(run, timing), timing)

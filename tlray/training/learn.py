"""The third step of a training run: fits the linear probe on its features, and fine-tunes the model."""

from tlray.cluster import plans
from tlray.data import manifest
from tlray.timing import Timing
from tlray.training import fit, probing
from tlray.training.export import Trained
from tlray.training.history import exported_epoch
from tlray.training.model import num_views
from tlray.training.stages import Learned, Run


def learn(run: Run, timing: Timing) -> Learned:
    """Fits a probe, fine-tunes, or does one after the other, as the run's method says; continues from a checkpoint.

    Args:
        run: The run.
        timing: Gets the time of each phase.

    Raises:
        DataError: Images have changed since the run began.
        TlrayError: Training failed or diverged; the message says what to do.
    """
    config, images, model = run.config, run.images, run.model
    if model.network is None:
        with timing.phase("fine-tuning"):
            history, weights = fit.fit(run)
        return Learned(trained=Trained(weights=weights), history=history)
    plan = plans.plan_scoring(run.available, use_gpu=config.use_gpu)
    with timing.phase("computing features"):
        probing.compute(config, run.paths.features, images, model.network, plan=plan, views=num_views(config))
    with timing.phase("fitting the probe"):
        pooled = probing.read_pooled(run.paths.features)
        probe = probing.fit(config, images, pooled)
        unseen = probing.out_of_fold(config, images, pooled, probe)
        curve = probing.learning_curve(config, images, pooled) if config.learning_curve else ()
    del pooled  # training takes long and needs the memory
    cache = None
    if run.is_cached:
        splits = {split: images.split(split) for split in manifest.SPLITS}
        cache = probing.load(run.paths.features, model.tail_inputs, splits, views=num_views(config))
    out_of_fold = None if probing.has_enough_validation(images) else unseen
    if config.method == "probe":
        trained = Trained(probe=probe, out_of_fold=out_of_fold)
        return Learned(trained=trained, cache=cache, learning_curve=curve, unseen=unseen)
    with timing.phase("fine-tuning"):
        history, weights = fit.fit(run, start=probe, cache=cache)
    # Predictions of probes say nothing about a fine-tuned model. They do if no epoch is better than the probe itself.
    is_probe = exported_epoch(history) == 0
    trained = Trained(probe=probe, weights=weights, out_of_fold=out_of_fold if is_probe else None)
    return Learned(trained=trained, history=history, cache=cache, learning_curve=curve, unseen=unseen)

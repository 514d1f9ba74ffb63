"""The second step of a training run: plans its resources, reads its images, builds its model, writes its directory."""

import dataclasses
from collections.abc import Callable
from functools import cache, partial

from tlray.cluster import capacity, connection, locations, plans
from tlray.cluster.capacity import Capacity
from tlray.config.training import TrainConfig, to_json
from tlray.data import dataset
from tlray.data.dataset import Dataset
from tlray.data.listing import Listing
from tlray.errors import ConfigError
from tlray.files import storage
from tlray.timing import Timing
from tlray.training import probing, resume, wording
from tlray.training.model import Untrained, build, is_cached
from tlray.training.paths import KIND, NAMES, RunPaths
from tlray.training.stages import Begun, Run


def prepare(begun: Begun, timing: Timing, available: Capacity | None = None) -> Run:
    """Makes a run ready to learn: its part of the cluster, its images, its model, and its directory.

    Args:
        begun: The run, see `begin.resume_or_begin`.
        timing: Gets the time of each phase.
        available: Resources of the connected cluster; None: connect, and measure them.

    Raises:
        ConfigError: A setting cannot work on this cluster.
        DataError: The images cannot be trained on.
    """
    config = begun.config
    with timing.phase("starting Ray"):
        if available is None:
            connection.connect()
            available = capacity.measure()
    locations.check_shared(config.out, available)
    stored_uris = begun.source.table["uri"].to_pylist() if isinstance(begun.source, Dataset) else None
    locations.check_shared_images(config.data, config.columns, available, stored_uris=stored_uris)
    plan = plans.plan_training(available, num_workers=config.num_workers, use_gpu=config.use_gpu)
    capacity.tell_shortage(available, num_gpus=config.num_workers * config.use_gpu, quiet=config.quiet)
    refuse = partial(_check_memory, available)
    with timing.phase("reading images, building the model"):
        images, model = read_and_build(config, begun.source, available, kind=KIND, refuse=refuse)
    if model.network and is_cached(config) and not probing.fits_cache(config, available, images, model.network):
        if begun.before is not None:
            raise ConfigError(
                "The features that this run is trained on no longer fit into Ray's object store. Give Ray the memory "
                "that it had, or begin anew with --overwrite."
            )
        if not config.quiet:
            print(wording.describe_misfit(config, available, images, model.network))
        config = dataclasses.replace(config, cache="off")
        with timing.phase("reading images, building the model"):
            images, model = read_and_build(config, images, available, kind=KIND, refuse=refuse)
    # An earlier run is replaced only now that all of the user's input has been checked.
    if begun.before is None:
        create(config, begun.paths, images)
    else:
        resume.keep_new_settings(config, begun.before, begun.paths.config)
        dataset.write_dataset(images, config.out)
    storage.delete(begun.paths.metrics)
    if not config.quiet:
        print(dataset.describe(images))
    return Run(
        config=config,
        paths=begun.paths,
        available=available,
        plan=plan,
        images=images,
        model=model,
        measuring=dataset.measure(config, images),
    )


def create(config: TrainConfig, paths: RunPaths, images: Dataset) -> None:
    """Creates the directory of a run, with its settings and its images that have been read.

    Args:
        config: The settings, resolved, locations absolute.
        paths: The files of the directory.
        images: The images.

    Raises:
        ConfigError: The directory must not be overwritten.
    """
    storage.prepare_output(paths.out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
    storage.write_text(paths.config, to_json(config))  # first: from now on the run can be continued
    dataset.write_dataset(images, paths.out)


def read_and_build(
    config: TrainConfig,
    source: Dataset | Listing,
    available: Capacity,
    *,
    kind: str,
    refuse: Callable[[Dataset, Untrained], None],
) -> tuple[Dataset, Untrained]:
    """Reads the images of a run while its model is built.

    Args:
        config: A resolved config.
        source: The run's images, listed or already read.
        available: Resources of the cluster.
        kind: See `dataset.read_images`.
        refuse: Raises an error where the images and the model do not go together. It is called as soon as the model is
            built, with the images as they are listed, and again with those that could be read.

    Raises:
        ConfigError: The model cannot be built. Raised as soon as that is known.
        DataError: The images cannot be trained on.
    """
    num_classes = max(2, len(source.table["label"].drop_null().unique()))
    preparing = connection.start_here(build, config, num_classes)
    if isinstance(source, Listing):
        listed = dataset.as_listed(config, source)

        @cache  # `check` is called after every part of the images
        def check_listed() -> None:
            prepared = connection.get(preparing)
            if listed is not None:
                refuse(listed, prepared)

        def check() -> None:
            if connection.is_done(preparing):
                check_listed()

        source = dataset.read_dataset(config, source, kind=kind, task_cpus=available.task_cpus, meanwhile=check)
    prepared = connection.get(preparing)
    refuse(source, prepared)
    return source, prepared


def _check_memory(available: Capacity, images: Dataset, model: Untrained) -> None:
    if model.network:
        probing.check_memory(available, images, model.network)

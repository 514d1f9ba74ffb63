"""The second step of a training run: plans its resources, reads its images, builds its model, writes its directory."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pyarrow as pa

from tlray.cluster import capacity, connection, locations, plans
from tlray.cluster.capacity import Capacity
from tlray.config.training import TrainConfig, to_json
from tlray.data import dataset, splits
from tlray.data.dataset import Dataset
from tlray.data.listing import Listing
from tlray.errors import ConfigError
from tlray.features import store
from tlray.files import storage
from tlray.screen import show_table
from tlray.timing import Timing
from tlray.training import lookalikes, probing, resume, wording
from tlray.training.model import Untrained, build, is_cached, num_views
from tlray.training.paths import KIND, NAMES, RunPaths
from tlray.training.stages import Begun, Run
from tlray.trust import finding_warnings, findings, pictures
from tlray.trust.gallery import make_gallery


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
    refuse = partial(_check_memory, config, available)
    with timing.phase("reading images, building the model"):
        read = read_and_build(config, begun.source, available, kind=KIND, refuse=refuse)
    images, network = read.images, read.model.network
    has_room = network is not None and probing.fits_cache(config, available, images, network)
    if network and is_cached(config) and not has_room:
        if begun.before is not None:
            raise ConfigError(
                "The features that this run is trained on no longer fit into Ray's object store. Give Ray the memory "
                "that it had, or begin anew with --overwrite."
            )
        if not config.quiet:
            print(wording.describe_misfit(config, available, images, network))
        config = config.streamed()
        with timing.phase("reading images, building the model"):
            model = read_and_build(config, images, available, kind=KIND, refuse=refuse).model
            read, has_room = dataclasses.replace(read, model=model), False
    # An earlier run is replaced only now that all of the user's input has been checked.
    if begun.before is None:
        message = wording.unused_augmentation(config)
        if message and not config.quiet:
            print(message)
        create(config, begun.paths)
    else:
        resume.keep_new_settings(config, begun.before, begun.paths.config)
    storage.delete(begun.paths.metrics)
    with timing.phase("computing features"):
        pooled = first_features(config, read, begun.paths.features, available)
    with timing.phase("looking for copies and shortcuts"):
        images = look(config, read, pooled, task_cpus=available.task_cpus, for_bundle=True)
    del pooled  # training needs the memory
    dataset.write_dataset(images, config.out)
    if not config.quiet:
        print(dataset.describe(images))
        show_table("Audited", findings.rows(images.findings))
        for warning in finding_warnings.intensity_warnings(images.findings):
            print(warning)
    return Run(
        config=config,
        paths=begun.paths,
        available=available,
        plan=plan,
        images=images,
        model=read.model,
        is_cached=has_room and read.model.tail is not None,
        measuring=dataset.measure(config, images),
    )


def create(config: TrainConfig, paths: RunPaths) -> None:
    """Creates the directory of a run, with its settings: from now on it can be continued.

    Args:
        config: The settings, resolved, locations absolute.
        paths: The files of the directory.

    Raises:
        ConfigError: The directory must not be overwritten.
    """
    storage.prepare_output(paths.out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
    storage.write_text(paths.config, to_json(config))


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """The images of a run, read, and its untrained model.

    Attributes:
        images: The images. As long as nobody has looked for copies, `table` is there, and the splits are preliminary.
        model: The model.
        table: The images as `dataset.read_images` returns them; None: a run to continue had stored its images.
    """

    images: Dataset
    model: Untrained
    table: pa.Table | None = None


def read_and_build(
    config: TrainConfig,
    source: Dataset | Listing,
    available: Capacity,
    *,
    kind: str,
    refuse: Callable[[Dataset, Untrained], None],
) -> Read:
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
    table = None
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

        table = dataset.read_images(
            source.table, out=config.out, kind=kind, task_cpus=available.task_cpus, meanwhile=check, quiet=config.quiet
        )
        source = dataset.assemble(config, dataset.without_looks(table), num_skipped=source.num_skipped)
    prepared = connection.get(preparing)
    refuse(source, prepared)
    return Read(images=source, model=prepared, table=table)


def first_features(config: TrainConfig, read: Read, directory: str, available: Capacity) -> np.ndarray | None:
    """Computes the features that tell which images are copies, before the splits are cut.

    Args:
        config: A resolved config.
        read: The images and the model.
        directory: The directory for the features. Learning computes there what is left: other views, if the splits are
            yet to be cut.
        available: Resources of the cluster.

    Returns:
        The pooled features of the readable images, float16 [images, features]; None where none are needed, or where
        nothing computes them: a classifier that is trained on images only.

    Raises:
        DataError: An image has changed since it was read.
    """
    network = read.model.network
    if read.table is None or network is None:
        return None
    readable = read.table.filter(read.table["error_code"].is_null())
    plan = plans.plan_scoring(available, use_gpu=config.use_gpu)
    views = 1 if splits.missing(readable) else num_views(config)
    title = "Computing features for audit and training"
    probing.compute(config, directory, read.images, network, plan=plan, views=views, title=title)
    return store.look_up(probing.read_pooled(directory), readable)


def look(
    config: TrainConfig, read: Read, pooled_BD: np.ndarray | None, *, task_cpus: float, for_bundle: bool
) -> Dataset:
    """Returns the data set of a run, with its splits, and with what its pictures and files tell.

    Args:
        config: A resolved config.
        read: The images that have been read.
        pooled_BD: Their features, see `first_features`.
        task_cpus: CPUs that a task asks for, see `pictures.look`.
        for_bundle: Whether a bundle is made of this very data set, so that the thumbnails for it are encoded.

    Raises:
        DataError: The images cannot be trained on.
    """
    if read.table is None:  # an earlier version, without --thumbnails, may have begun the run
        return read.images if config.thumbnails else dataclasses.replace(read.images, gallery=())
    seen = pictures.look(read.table, pooled_BD, task_cpus=task_cpus, quiet=config.quiet)
    num_skipped = read.images.findings["num_skipped"]
    images = dataset.assemble(config, seen.table, num_skipped=num_skipped, before=read.images)
    in_tasks = partial(connection.call_in_tasks, task_cpus=task_cpus)
    found = findings.find(images.table, seen, pooled_BD, seed=config.seed, call=in_tasks)
    images = dataclasses.replace(images, findings=images.findings | found)
    if not config.thumbnails:
        return images
    readable = images.table.filter(images.table["error_code"].is_null())
    images = dataclasses.replace(images, gallery=make_gallery(seen.copies, readable, seen.thumbnails_BHW))
    if not for_bundle:
        return images
    image_ids = readable["image_id"].to_pylist()
    encoded = lookalikes.encode(images.split("train"), image_ids, seen.thumbnails_BHW)
    return dataclasses.replace(images, thumbnails=encoded)


def _check_memory(config: TrainConfig, available: Capacity, images: Dataset, model: Untrained) -> None:
    if model.network:
        probing.check_memory(config, available, images, model.network)

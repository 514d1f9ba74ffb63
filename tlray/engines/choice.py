"""Decides which engine and precision run a network, and loads it: the only place that tells engines apart."""

import logging
from collections.abc import Collection, Sequence

from tlray.bundle import decodings
from tlray.bundle.agreement import Agreement
from tlray.bundle.spec import NOVELTY
from tlray.bundle.store import Bundle
from tlray.config.training import EngineChoice, PrecisionChoice
from tlray.engines import converted, openvino_engine, quantization
from tlray.engines.kinds import REFERENCE, Engine, EngineKind, Precision
from tlray.errors import BundleError, ConfigError

_LOG = logging.getLogger(__name__)

INEXACT = "OpenVINO computes other probabilities than TensorFlow in float32 with this model"
"""Why TensorFlow predicts though OpenVINO has the model."""

FASTEST_FIRST: tuple[Precision, ...] = ("int8", "bfloat16", "float32")
"""The precisions, the one first that is the fastest with most networks, on CPUs that have it in hardware."""

MIN_SPEEDUP = 1.25
"""Ratio of measured speeds from which a precision is taken in place of one that stands before it in `FASTEST_FIRST`.

Below it the difference may be noise: OpenVINO's precisions are measured in turns for some seconds (see
`tlray.engines.comparison`), and what else runs on the machine may slow one more than another.
"""

FLAG = "--precision"
"""The option that chooses the precision, in most commands."""


def choose(
    engine: EngineChoice,
    precision: PrecisionChoice,
    *,
    use_gpu: bool,
    agreements: Sequence[Agreement] = (),
    converted_to: Collection[Precision] = ("float32", "bfloat16"),
    on_this_cpu: bool = True,
    flag: str = FLAG,
) -> EngineKind:
    """Decides which engine runs a network on this machine, and in which precision.

    Args:
        engine: The wanted engine. auto: TensorFlow on GPUs, and for networks that OpenVINO does not know or that it
            computes otherwise in float32; else OpenVINO.
        precision: The wanted precision. auto: the fastest that is fit for the network (see `agreement.Agreement`) and
            that this machine's CPU has, see `_fastest`; float32 where nothing is known about the network.
        use_gpu: Whether the network runs on a GPU.
        agreements: What is known about the network's precisions.
        converted_to: The precisions in which OpenVINO has the network; empty if it cannot be converted.
        on_this_cpu: Whether this machine's CPU is to run it; otherwise any precision of the network will do.
        flag: The option that chose the precision, for messages.

    Raises:
        ConfigError: This machine, the engine or the network does not have what is wanted.
    """
    remedy = f"Give {flag} float32, which every machine has."
    fit = _fit(agreements)
    if engine == "auto":
        can_run, is_right = bool(converted_to) and not use_gpu, "float32" in fit
        if can_run and not is_right:
            _refuse_inexact(precision, flag)
        engine = "openvino" if can_run and is_right else "tensorflow"
    if engine == "tensorflow":
        if precision not in ("auto", "float32"):
            raise ConfigError(f"{flag} {precision}: the engine tensorflow predicts in float32. {remedy}")
        return REFERENCE
    if use_gpu:
        raise ConfigError("--engine openvino predicts on CPUs. Leave out --use-gpu, or give --engine tensorflow.")
    if not converted_to:
        raise ConfigError("--engine openvino: OpenVINO cannot run this model. Give --engine tensorflow, or auto.")
    available = openvino_engine.cpu_precisions() if on_this_cpu else frozenset(FASTEST_FIRST)
    available &= set(converted_to)
    if precision == "auto":
        fit |= {"float32"}  # with --engine openvino
        cpu = openvino_engine.cpu_name() if on_this_cpu else None
        return EngineKind("openvino", _fastest(fit & available, agreements, cpu))
    if precision not in converted_to:
        raise ConfigError(f"{flag} {precision}: this bundle has no {precision} model. {remedy}")
    if precision not in available:
        name = openvino_engine.cpu_name()
        raise ConfigError(f"{flag} {precision}: this machine's CPU ({name}) has no instructions for it. {remedy}")
    return EngineKind("openvino", precision)


def _fit(agreements: Sequence[Agreement]) -> set[Precision]:
    """Returns the precisions in which OpenVINO may run a network: float32 where nothing is known about it."""
    known = [each for each in agreements if each.engine == "openvino"]
    found: set[Precision] = {
        each for each in FASTEST_FIRST if any(row.precision == each and row.is_fit for row in known)
    }
    return found if known else {"float32"}


def _fastest(usable: Collection[Precision], agreements: Sequence[Agreement], cpu: str | None) -> Precision:
    """Returns the first usable precision of `FASTEST_FIRST` that was not measured to be slow.

    Slow: another usable one was measured at least `MIN_SPEEDUP` times as fast. Measurements on other CPUs decide
    nothing, as their instructions and caches differ.

    Args:
        usable: The precisions to choose from, at least one.
        agreements: What is known about the network's precisions.
        cpu: Name of the CPU that is to run the network; None: it is not known.
    """
    measured = {
        row.precision: row.images_per_s
        for row in agreements
        if (row.engine, row.cpu) == ("openvino", cpu) and row.precision in usable and row.images_per_s > 0
    }
    best = max(measured.values(), default=0.0)
    slow = {precision for precision, images_per_s in measured.items() if best >= MIN_SPEEDUP * images_per_s}
    return next(each for each in FASTEST_FIRST if each in usable and each not in slow)


def _refuse_inexact(precision: PrecisionChoice, flag: str) -> None:
    """Raises a ConfigError if OpenVINO is wanted, by a precision that only it has, though it is wrong in float32."""
    if precision not in ("auto", "float32"):
        raise ConfigError(
            f"{flag} {precision}: {INEXACT}, so TensorFlow predicts, in float32. Give --engine openvino to take it "
            "all the same."
        )


def for_features(engine: EngineChoice, precision: PrecisionChoice, *, use_gpu: bool, flag: str = FLAG) -> EngineKind:
    """Decides which engine computes features; see `choose`. auto: bfloat16 where this machine's CPU has it.

    Rounding a feature to bfloat16 matters less than to a prediction: the classifier is trained on the rounded ones.

    Raises:
        ConfigError: See `choose`; or int8 is wanted, and what quantizes is not installed.
    """
    if precision == "auto" and engine != "tensorflow" and not use_gpu:
        precision = "bfloat16" if "bfloat16" in openvino_engine.cpu_precisions() else "float32"
    kind = choose(engine, precision, use_gpu=use_gpu, flag=flag, converted_to=FASTEST_FIRST)
    if precision == "int8":  # last: installing it must not be advised where int8 cannot be had
        quantization.check_installed(f"{flag} int8")
    return kind


def wish_for_openvino(engine: EngineChoice, precision: PrecisionChoice) -> str:
    """Returns the options by which a user asks for what only OpenVINO does, such as --precision int8; empty: none."""
    wishes = [
        *(["--engine openvino"] if engine == "openvino" else []),
        *([] if precision in ("auto", "float32") else [f"{FLAG} {precision}"]),
    ]
    return " ".join(wishes)


def for_bundle(
    bundle: Bundle, engine: EngineChoice, precision: PrecisionChoice, *, use_gpu: bool, on_this_cpu: bool = True
) -> EngineKind:
    """Decides which engine runs a bundle's model on this machine, and in which precision; see `choose`.

    A bundle of an earlier version is converted for OpenVINO, unless TensorFlow is to run it. If TensorFlow runs the
    model though neither the user nor a GPU asks for it, one warning in the log says so, and why. Another one says if
    the model learned from images that were decoded otherwise, see `decodings.describe_difference`.
    """
    difference = decodings.describe_difference(bundle.spec, bundle.sha256)
    if difference:
        _LOG.warning("%s", difference)
    is_for_tensorflow = engine == "tensorflow" or (engine == "auto" and use_gpu)
    converted_to, why_none = ((), "") if is_for_tensorflow else converted.ensure(bundle)
    kind = choose(
        engine,
        precision,
        use_gpu=use_gpu,
        agreements=bundle.spec.engines,
        converted_to=converted_to,
        on_this_cpu=on_this_cpu,
    )
    if kind == REFERENCE and not is_for_tensorflow:
        _LOG.warning(
            "TensorFlow predicts with the bundle %s, in float32 and more slowly than OpenVINO would: %s.",
            bundle.sha256[:12],
            why_none or INEXACT,
        )
    return kind


def load(
    bundle: Bundle, kind: EngineKind, *, num_threads: int | None = None, use_gpu: bool = False, batch_size: int = 1
) -> Engine:
    """Loads a bundle's model.

    Args:
        bundle: The bundle.
        kind: See `choose`.
        num_threads: Threads to compute with; None: all CPUs.
        use_gpu: Compute on the visible GPU.
        batch_size: Number of images in most calls; see `openvino_engine.OpenVinoEngine`.

    Raises:
        BundleError: The model cannot be loaded, or the bundle's novelty score does not fit it.
    """
    engine = _load(bundle, kind, num_threads=num_threads, use_gpu=use_gpu, batch_size=batch_size)
    _check_features(bundle, engine)
    return engine


def _load(bundle: Bundle, kind: EngineKind, *, num_threads: int | None, use_gpu: bool, batch_size: int) -> Engine:
    try:
        if kind.engine == "openvino":
            return converted.load(bundle, kind.precision, num_threads=num_threads, batch_size=batch_size)
        from tlray.engines import tensorflow_engine  # noqa: PLC0415 (TensorFlow only where it predicts)

        return tensorflow_engine.load_saved_model(bundle.saved_model_path, num_threads=num_threads, use_gpu=use_gpu)
    except openvino_engine.ConversionError as error:
        raise BundleError(
            f"OpenVINO cannot load the model of this bundle: {error}. Give --engine tensorflow."
        ) from error
    except ValueError as error:
        raise BundleError(f"The SavedModel of this bundle cannot be loaded: {error}") from error


def _check_features(bundle: Bundle, engine: Engine) -> None:
    """Raises a BundleError if the model gives another number of features than the bundle's novelty score takes."""
    novelty, shapes = bundle.novelty(), engine.output_shapes
    if novelty is None or len(shapes) < 2 or len(shapes[1]) != 1 or shapes[1][0] is None:
        return
    if shapes[1] != novelty.mean.shape:
        raise BundleError(
            f"{NOVELTY} of the bundle is for images with {len(novelty.mean)} features, but the bundle's model gives "
            f"{shapes[1][0]}. Restore the bundle, or export it again."
        )

"""The commands of `tlray`: each parses its options, calls what it stands for, and shows the result."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console
from rich.table import Table

from tlray.bundle.wording import estimate
from tlray.config import helptext
from tlray.config.commands import (
    AuditConfig,
    FeaturesConfig,
    SweepConfig,
    VerifyConfig,
)
from tlray.config.export import ExportConfig
from tlray.config.helptext import Config
from tlray.config.phantoms import PhantomConfig
from tlray.config.prediction import (
    CompareConfig,
    EnginesConfig,
    EvaluateConfig,
    ScoreConfig,
    ServeConfig,
    SuggestConfig,
)
from tlray.config.recipes import RECIPES
from tlray.config.training import TrainConfig
from tlray.data import phantom_files
from tlray.errors import ConfigError, TlrayError, counted
from tlray.screen import held_back, show_table

if TYPE_CHECKING:
    from tlray.evaluation.engine_table import EnginesResult

NOTICE = "tlray is a research tool, no medical device."

SHOWN_TRIALS = 5
"""Number of trials that `tlray sweep` shows, the best ones."""


def _train(arguments: list[str]) -> None:
    name = "standard"
    if arguments and not arguments[0].startswith("-"):
        name, arguments = arguments[0], arguments[1:]
        if name not in RECIPES:
            raise ConfigError(f"There is no recipe '{name}'. The recipes: {', '.join(RECIPES)}.")
    recipe = RECIPES[name]
    listed = "\n".join(f"  {each}: {_first_line(function)}" for each, function in RECIPES.items())
    config = helptext.parse(
        TrainConfig,
        arguments,
        prog=f"tlray train {name}",
        description="Fine-tune a classifier on labelled images, evaluate it and export it.\n\nusage: tlray train "
        f"[RECIPE] --data URI --out URI. Recipes:\n{listed}\n\nThe defaults below are those of '{name}'. {NOTICE}",
        default=recipe(tyro.MISSING, tyro.MISSING),
    )
    from tlray.evaluation.measurement import accuracy_rows  # noqa: PLC0415 (Ray only when something is run)
    from tlray.training.run import train  # noqa: PLC0415

    result = train(config)
    rows = accuracy_rows(result.metrics, result.cross_validation)
    if result.num_epochs:
        best, probe = f"the best one was {result.best_epoch}", "none was better than the probe, which was exported"
        rows.append(("epochs", f"{result.num_epochs}, {best if result.best_epoch else probe}"))
    rows += [("report", f"{result.out}/report.html"), ("bundle", result.bundle)]
    rows += [(phase, f"{seconds:.1f} s") for phase, seconds in result.timing_s.items() if config.timing]
    _show("Trained", rows, warnings=result.warnings, quiet=config.quiet)


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().split("\n", 1)[0]


def _audit(arguments: list[str]) -> None:
    config = _parse(AuditConfig, "audit", arguments)
    from tlray.evaluation.data_audit import audit_images  # noqa: PLC0415

    result = audit_images(config)
    _show("Audited", result.rows(), warnings=result.warnings, quiet=config.quiet)


def _evaluate(arguments: list[str]) -> None:
    config = _parse(EvaluateConfig, "evaluate", arguments)
    from tlray.evaluation.evaluate import evaluate  # noqa: PLC0415

    result = evaluate(config)
    metrics = result.metrics
    everything = metrics.get("all_images")
    which = ", new images" if everything else ""
    left_out = f", {metrics['num_leaked']} known from training" if everything else ""
    figures = {"accuracy": "accuracy", "balanced accuracy": "balanced_accuracy", "log loss": "log_loss"}
    rows = [
        ("images", f"{metrics['num_images']} measured, {metrics['num_failed']} failed{left_out}"),
        *((f"{text}{which}", estimate(metrics[name], metrics[f"{name}_ci95"])) for text, name in figures.items()),
        *(
            [("accuracy, all images", estimate(everything["accuracy"], everything["accuracy_ci95"]))]
            if everything
            else []
        ),
        *([("overlays", result.overlays.text)] if result.overlays else []),
        ("engine", result.engine),
        ("report", f"{result.out}/report.html"),
        ("predictions", f"{result.out}/predictions.csv"),
        ("predictions as Parquet", f"{result.out}/predictions"),
    ]
    _show(f"Evaluated on {result.split}", rows, warnings=result.warnings, quiet=config.quiet)


def _compare(arguments: list[str]) -> None:
    config = _parse(CompareConfig, "compare", arguments)
    from tlray.evaluation.compare import compare  # noqa: PLC0415

    result = compare(config)
    _show(f"Compared on {result.split}", result.rows(), warnings=result.warnings, quiet=config.quiet)


def _verify(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):  # `tlray verify RUN`
        arguments = ["--run", *arguments]
    config = _parse(VerifyConfig, "verify", arguments)
    from tlray.evaluation.verification import verify  # noqa: PLC0415

    result = verify(config)
    _show("Verified" if result.is_right else "Changed", result.rows(), quiet=config.quiet)
    if not result.is_right:
        raise TlrayError(f"'{config.run}' is not as it was written: {', '.join(result.wrong())}.")


def _score(arguments: list[str]) -> None:
    config = _parse(ScoreConfig, "score", arguments)
    from tlray.inference.score import score  # noqa: PLC0415

    result = score(config)
    rows = [
        ("images", f"{result.num_images}, {result.num_failed} failed{_counted(result.num_by_error)}"),
        ("predicted", _counted(result.num_by_label).strip(" ()") or "none"),
        ("to refer", f"{result.num_referred}{_counted(result.num_by_reason)}"),
        *([("hidden files and folders skipped", str(result.num_skipped))] if result.num_skipped else []),
        ("engine", result.engine),
        ("predictions", f"{result.out}/predictions.csv"),
        ("predictions as Parquet", f"{result.out}/predictions"),
    ]
    _show("Scored", rows, quiet=config.quiet)
    if result.num_failed == result.num_images:
        raise TlrayError(
            f"No image of '{config.input}' could be predicted. {result.out}/predictions.csv has the reason for each."
        )


def _counted(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name}: {count}" for name, count in counts.items() if count)
    return f" ({shown})" if shown else ""


def _suggest(arguments: list[str]) -> None:
    config = _parse(SuggestConfig, "suggest", arguments)
    from tlray.inference.suggest import suggest  # noqa: PLC0415

    result = suggest(config)
    _show("Suggested", result.rows(), result.notes, quiet=config.quiet)


def _serve(arguments: list[str]) -> None:
    config = _parse(ServeConfig, "serve", arguments)
    from serve_app.foreground import started  # noqa: PLC0415

    with started(config) as endpoint:
        options = endpoint.options
        key = "-H 'Authorization: Bearer KEY' " if endpoint.needs_key else ""
        who = "all requests" if options.open_without_keys else "only requests from this machine"
        batches = "off: --input-roots and --output-roots turn it on"
        if options.input_roots and options.output_roots:
            batches = f"from {', '.join(options.input_roots)} to {', '.join(options.output_roots)}"
        rows = [
            ("address", f"{endpoint.address} (a page for trying it; /docs describes the API)"),
            ("model", f"{options.name}: {', '.join(endpoint.spec.classes)}"),
            ("bundle", f"{options.bundle}, sha256 {endpoint.bundle_sha256}"),
            ("engine", endpoint.engine),
            ("keys", "required" if endpoint.needs_key else f"none: {who} are answered"),
            ("bulk scoring", batches),
            ("log files", endpoint.logs),
        ]
        example = f"Try it: curl {key}-F file=@scan.png {endpoint.address}/predict"  # no row, as it is to be copied
        _show("Serving", rows, [example, NOTICE, "Ctrl-C stops it."], quiet=config.quiet)
        try:
            endpoint.wait()
        except KeyboardInterrupt:  # as it is meant to end
            if not config.quiet:
                print("Stopping.", flush=True)


def _features(arguments: list[str]) -> None:
    config = _parse(FeaturesConfig, "features", arguments)
    from tlray.features.update import extract_features  # noqa: PLC0415

    result = extract_features(config)
    shapes = ", ".join(f"{name}: {' x '.join(map(str, shape))}" for name, shape in result.shapes.items())
    rows = [
        ("rows", f"{result.num_rows}, {result.num_reused} of them were there already"),
        ("images that cannot be read", f"{result.num_failed} (listed with their errors in _manifest.parquet)"),
        ("features (float16)", shapes),
        ("Parquet", result.out),
    ]
    _show("Features", rows, result.notes, quiet=config.quiet)


def _sweep(arguments: list[str]) -> None:
    config = _parse(SweepConfig, "sweep", arguments)
    from tlray.evaluation.measurement import accuracy_rows  # noqa: PLC0415
    from tlray.tuning.search import sweep  # noqa: PLC0415

    result = sweep(config)
    rows = [
        (f"trial {number}" if number > 1 else "best trial", _trial_line(trial))
        for number, trial in enumerate(result.trials[:SHOWN_TRIALS], start=1)
    ]
    rows.append(("trained", _trial_line(result.chosen)))
    figures = accuracy_rows(result.best.metrics, result.best.cross_validation)
    rows += [(f"trained, {name}", text) for name, text in figures]
    rows += [("all trials", f"{result.out}/trials.csv and trials.png"), ("bundle", result.best.bundle)]
    if config.timing:
        rows += [(phase, f"{seconds:.1f} s") for phase, seconds in result.timing_s.items()]
        rows += [(f"trained, {phase}", f"{seconds:.1f} s") for phase, seconds in result.best.timing_s.items()]
    _show(f"Tried {len(result.trials)} settings", rows, warnings=result.warnings, quiet=config.quiet)


def _trial_line(trial: Mapping[str, Any]) -> str:
    probe = f"{counted(trial['depths'], 'depth')}, penalty C {trial['inverse_penalty']:.2g}"
    tuned = (
        f"{counted(trial['best_epoch'], 'epoch')} of {counted(trial['trainable_layers'], 'layer')} and "
        f"{counted(trial['hidden_layers'], 'hidden layer')} at {trial['learning_rate']:.2g}, "
        f"dropout {trial['dropout']:g}, {counted(trial['views'], 'view')}"
        if trial["best_epoch"]
        else "no fine-tuning"
    )
    loss = f"loss {trial['best_loss']:.3f} (standard error {trial['standard_error']:.3f})"
    return f"{loss}, accuracy {trial['best_accuracy']:.3f}: {probe}; {tuned}"


def _export(arguments: list[str]) -> None:
    config = _parse(ExportConfig, "export", arguments)
    with held_back():
        from tlray.training.own_model import export  # noqa: PLC0415

    sha256 = export(config)
    _show("Exported", [("bundle", config.out), ("sha256", sha256)], quiet=config.quiet)


def _engines(arguments: list[str]) -> None:
    config = _parse(EnginesConfig, "engines", arguments)
    from tlray.evaluation.engine_table import engines  # noqa: PLC0415

    result = engines(config)
    columns = ("engine", "precision", "fit", "images/s", "same label", "clear ones changed", "decisions changed")
    changes = ("mean, largest difference", "change of log loss", "change of accuracy (95 %)")
    table = Table(*columns, *changes, title_justify="left", title=_about_engines(result))
    for row in result.agreements:
        table.add_row(
            *(row.engine, row.precision, "yes" if row.is_fit else "no", f"{row.images_per_s:.0f}"),
            *(f"{row.label_agreement:.1%}", f"{row.num_clear_changed} of {row.num_clear}"),
            *(str(row.num_referrals_changed), f"{row.mean_difference:.4f}, {row.max_difference:.3f}"),
            f"{row.log_loss_change:+.4f}",
            f"{row.accuracy_change:+.3f} ({row.accuracy_change_low:+.3f} to {row.accuracy_change_high:+.3f})",
        )
    if not config.quiet:
        Console(width=None if sys.stdout.isatty() else 200).print(table, highlight=False, markup=False)
        for precision, why in result.failed.items():
            print(f"OpenVINO cannot run the model in {precision}: {why}")
        why = "By the comparison in its bundle.json" if result.is_known else "As its bundle.json has no comparison,"
        print(
            f"{why} it predicts with {result.chosen} on this machine, unless --engine or --precision says otherwise. "
            "docs/engines.md says what is fit."
        )


def _about_engines(result: "EnginesResult") -> str:
    if not result.agreements:
        return "The bundle was not compared when it was made. Give --data to do it now."
    first = result.agreements[0]
    when = "measured now" if result.is_measured else "measured when the bundle was made"
    groups = "each counted by itself"
    if first.num_groups is not None:
        groups = f"which count as {counted(first.num_groups, 'group')} (patients, copies, series)"
    images = counted(first.num_images, "image")
    return f"Engines beside TensorFlow in float32, {when}: {images}, {groups}, {first.cpu}"


def _phantoms(arguments: list[str]) -> None:
    config = _parse(PhantomConfig, "phantoms", arguments)
    num_files = phantom_files.make(config)
    _show("Made", [("files", str(num_files)), ("data set", config.out)], quiet=config.quiet)


def _parse(config: type[Config], command: str, arguments: list[str]) -> Config:
    description = f"{inspect.cleandoc(config.__doc__ or '')}\n\n{NOTICE}"
    return helptext.parse(config, arguments, prog=f"tlray {command}", description=description)


def _show(
    title: str,
    rows: Sequence[tuple[str, str]],
    notes: Sequence[str] = (),
    *,
    warnings: Sequence[str] = (),
    quiet: bool,
) -> None:
    """Prints a table, and below it warnings and remarks; the first warning, the gravest one, comes before the table."""
    if quiet:
        return
    for warning in warnings[:1]:
        print(f"! {warning}", flush=True)
    show_table(title, rows)
    for note in (*warnings[1:], *notes):
        print(f"! {note}", flush=True)


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "audit": (_audit, "look for copies, leaks and shortcuts in labelled images"),
    "train": (_train, "train a classifier on labelled images, evaluate and export it"),
    "evaluate": (_evaluate, "measure a bundle on labelled images"),
    "compare": (_compare, "tell which of two bundles is better on the same labelled images"),
    "verify": (_verify, "check the figures and files of a finished training run"),
    "score": (_score, "score a file, folder, zip or manifest of images"),
    "suggest": (_suggest, "list the unlabelled images whose labels would help a model most"),
    "serve": (_serve, "serve a bundle over HTTP: predictions, bulk scoring, a page"),
    "features": (_features, "compute features of images with a pretrained network"),
    "sweep": (_sweep, "try many settings on features that are computed once"),
    "export": (_export, "make a bundle from your own Keras model"),
    "engines": (_engines, "show how fast and how exactly a bundle predicts in each precision"),
    "phantoms": (_phantoms, "make a synthetic data set for trying things out"),
}

"""The command `tlray` and the scripts in jobs/: parse, configure, call, show, exit code."""

import importlib.util
import io
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from tlray import __version__
from tlray.commands import COMMANDS, NOTICE
from tlray.config import helptext
from tlray.errors import BundleError, TlrayError
from tlray.files import file_stamps, storage

EXIT_OK, EXIT_FAILURE, EXIT_USER, EXIT_INTERRUPTED = 0, 1, 2, 130

INSTALL = "Install tlray again with all that it needs (`make setup`)."

EXIT_S = 30.0
"""Seconds in which the process ends once its command has ended. Ray usually needs 4; once a driver that was interrupted
was still there after a minute. The processes of a local Ray end with their driver."""

RESUMED_BY = {"train": "config.json", "score": "predictions", "sweep": "config.json"}
"""Commands with `--resume`; and for each the name in its output directory without which there is nothing to resume."""

BEGUN_BY = {"train": "config.json", "score": "_state/scoring.json", "sweep": "config.json"}
"""The same commands; and for each the file that it writes first where it begins anew, so that a file of an earlier run
that is still the same tells that this run was not begun."""

WITHOUT_OVERWRITE = ("engines", "features", "serve", "verify")
"""Commands that are given again as they are: they have no `--overwrite`, or keep what is done without it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `tlray COMMAND ...` and exits."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(EXIT_OK)
    if arguments[0] == "--version":
        print(f"tlray {__version__}")
        sys.exit(EXIT_OK)
    if arguments[0] not in COMMANDS:
        print(f"tlray: there is no command '{arguments[0]}'. The commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(EXIT_USER)
    run(arguments[0], arguments[1:])


def run(command: str, arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--version" in arguments:
        print(f"tlray {__version__}")
        sys.exit(EXIT_OK)
    # `ray job stop` and a closing terminal: leave as on Ctrl-C, so that Ray's processes end too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a log shows each line as it is printed, not all at the end
        sys.stdout.reconfigure(line_buffering=True)
    _exit(execute(command, arguments))


def _exit(code: int) -> NoReturn:
    """Exits with a code. The process ends within `EXIT_S`, even if a library waits for ever for its own processes."""

    def end() -> None:
        threading.main_thread().join()  # if a caller catches SystemExit and goes on, so does the process
        time.sleep(EXIT_S)
        os._exit(code)

    threading.Thread(target=end, daemon=True).start()
    sys.exit(code)


def execute(command: str, arguments: list[str]) -> int:
    """Runs one command, shows its result, and returns 0: done, 1: failed, 2: a user's mistake, 130: interrupted."""
    _quieten()
    before: str | None = None

    def remedy() -> str:
        return _how_to_continue(command, arguments, before)

    try:
        before = _stamp(command, arguments)
        COMMANDS[command][0](arguments)
    except TlrayError as error:
        print(f"tlray: {error}", file=sys.stderr)
        return EXIT_USER if isinstance(error, ValueError | BundleError) else EXIT_FAILURE
    except BrokenPipeError:  # whoever read the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return _say_interrupted(remedy())
    except Exception as error:
        return _fail(error, remedy)
    return EXIT_OK


def _fail(error: Exception, remedy: Callable[[], str]) -> int:
    """Says what went wrong that is no `TlrayError`, and returns the exit code.

    Args:
        error: The error.
        remedy: Returns what to do where the cause lies outside of this program.
    """
    if _follows_interruption(error):
        return _say_interrupted(remedy())
    if package := _missing_package(error):
        print(f"tlray: the Python package '{package}' is not installed. {INSTALL}", file=sys.stderr)
        return EXIT_USER
    # A full disk, a folder that may not be written, a store that does not answer: not a fault of this program.
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        print(f"tlray: {error}. Fix the cause. {remedy()}", file=sys.stderr)
        return EXIT_FAILURE
    traceback.print_exception(error)
    print("tlray: this should not have happened; the lines above say where.", file=sys.stderr)
    return EXIT_FAILURE


def _say_interrupted(remedy: str) -> int:
    print(f"tlray: interrupted. {remedy}", file=sys.stderr)
    return EXIT_INTERRUPTED


def _follows_interruption(error: BaseException | None) -> bool:
    """Tells whether an error came up while an interruption was handled, as at a second Ctrl-C within a lock."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _missing_package(error: Exception) -> str | None:
    """Returns the name of the package that is not installed, if that is what went wrong."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return package if package and importlib.util.find_spec(package) is None else None


def _how_to_continue(command: str, arguments: Sequence[str], before: str | None) -> str:
    """Returns how to go on with a command that has ended early.

    Args:
        command: Name of the command.
        arguments: Its arguments.
        before: What `_stamp` gave before the command ran; None: the command ended before that was known.
    """
    if command in WITHOUT_OVERWRITE:
        return "Run the same command again."
    names = _names_in_output(arguments)
    if names is not None and names <= {storage.MARK, storage.UNFINISHED}:
        return "Nothing was written yet: run the same command again."
    if command in RESUMED_BY and (names is None or RESUMED_BY[command] in names):
        if "--overwrite" in arguments and before in (None, _stamp(command, arguments)):
            return "Run the same command again."  # --resume would continue the run that was to be replaced
        return "Continue with the same command and --resume (not --overwrite)."
    return "Run the same command again with --overwrite."


def _stamp(command: str, arguments: Sequence[str]) -> str:
    """Returns the stamp of the file of `BEGUN_BY`; empty where there is none, or nothing is to be overwritten."""
    out = _output(arguments)
    if out is None or command not in BEGUN_BY or "--overwrite" not in arguments:
        return ""
    return file_stamps.stamps([storage.join(out, BEGUN_BY[command])])[0]


def _names_in_output(arguments: Sequence[str]) -> set[str] | None:
    """Returns the names in the directory that a command line gives as `--out`; None where that cannot be told."""
    out = _output(arguments)
    try:
        return None if out is None else set(storage.list_names(out))
    except (OSError, ValueError):
        return None


def _output(arguments: Sequence[str]) -> str | None:
    """Returns what a command line gives as `--out`; None where it does not."""
    for place, argument in enumerate(arguments):
        name, _, out = argument.partition("=")
        if name == "--out":
            return out or next(iter(arguments[place + 1 :]), None)
    return None


def _quieten() -> None:
    """Silences the start-up noise of Ray and TensorFlow; their warnings of what goes wrong stay."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _overview() -> str:
    commands = "\n".join(f"  {name:10s}{summary}" for name, (_, summary) in COMMANDS.items())
    codes = "Exit codes: 0 done, 1 failed, 2 wrong options, data or bundle, 130 interrupted."
    return helptext.fill(
        "usage: tlray COMMAND [OPTIONS]\n\nDistributed transfer learning on Ray for chest-CT images.\n\n"
        f"{commands}\n\n`tlray COMMAND --help` explains a command. `tlray --version` prints the version. {codes}\n\n"
        f"{NOTICE}"
    )

"""`bgpt-fast`: runs a command and turns its result or error into an exit code."""

from __future__ import annotations

import functools
import importlib
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from bgpt_fast.cli.errors import report_error
from bgpt_fast.memory import is_out_of_memory
from bgpt_fast.terminal import accept_all_text, flush_output, print_error, print_text

COMMANDS = {
    "train": "train a model on files, or on random programs of the CPU-state machine",
    "generate": "continue files, or generate new ones from an extension alone",
    "convert": "convert files to another kind, by a model trained on pairs of both kinds",
    "simulate": "simulate programs of the toy CPU with a model, and score it against the true traces",
    "evaluate": "bits per byte on files, or accuracy on CPU states",
    "classify": "predict the class of each file with a trained classifier",
    "export": "write a model as a folder of its own, also for transformers, and upload it to a hub",
    "data": "make data sets of media, music and CPU states; check generated files; baselines",
    "migrate-config": "turn the released code's config.py into options of train",
    "bench": "measure every op and the engine against baselines and the machine's peak",
    "env": "print this machine, this build and the package versions",
}

_USAGE = """usage: bgpt-fast COMMAND [OPTIONS]

The fast engine for bGPT byte models (arXiv 2402.19155).

commands:
{commands}

bgpt-fast COMMAND --help explains a command's options; long lists are complete with --help-all.

exit codes: 0 done · 1 a failure, named on standard error · 2 a wrong option, value or file name, named there ·
  130 (SIGINT) and 143 (SIGTERM) stopped by a signal; training has then saved, and is resumed when run again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        arguments: without the program's name; None means those of the process.

    Returns:
        The exit code, as `bgpt-fast --help` lists them.
    """
    accept_all_text()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print_text(_USAGE.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())))
        return 0 if words else 2
    if words[0] == "--version":
        from bgpt_fast.version import __version__

        print_text(f"bgpt-fast {__version__}")
        return 0
    if words[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        print_error(f"bgpt-fast: expected a command, one of {known}; got {words[0]!r}")
        return 2
    module = importlib.import_module(f"bgpt_fast.cli.{words[0].replace('-', '_')}")
    if threading.current_thread() is threading.main_thread():
        # Incomplete files are removed as the exception propagates. Training handles its signals itself and saves first.
        signal.signal(signal.SIGTERM, _terminated)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("default", category=DeprecationWarning, module="bgpt_fast")
            warnings.showwarning = functools.partial(_show_warning, words[0])
            code = module.run(words[1:])
        flush_output()
        return code
    except SystemExit as stop:  # raised by tyro: 0 after --help, 2 after wrong usage
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:  # the reader closed the pipe (`| head`)
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (ValueError, TypeError, OSError, ImportError, MemoryError, FloatingPointError) as error:
        return report_error(words[0], error, _options(module, words[1:]))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return report_error(words[0], error)


def _options(module: ModuleType, words: Sequence[str]) -> type | None:
    """The dataclass of a command's options."""
    if hasattr(module, "KINDS") and words and words[0] in module.KINDS:
        module = importlib.import_module(f"{module.__name__}_{words[0].replace('-', '_')}")
    return getattr(module, "OPTIONS", None)


def _show_warning(command: str, message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
    print_error(f"bgpt-fast {command}: {category.__name__}: {message}")


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())

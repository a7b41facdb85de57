"""The command line: a thin layer, one public call for each verb.

`options` says what can be given, `jobs` how inputs are read and long work is resumed; `paths`,
`surfaces`, `instability`, `layers`, `curvature`, `dynamics`, `lottery` and `files` hold the verbs.
Nothing heavy is imported before a verb runs.
Standard output carries the result (a path, or text that was asked for); progress, summaries and
errors go to standard error.
"""

import argparse
import signal
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from landscape.cli import (
    curvature,
    dynamics,
    files,
    instability,
    layers,
    lottery,
    options as o,
    paths,
    surfaces,
)
from landscape.cli.jobs import say

DONE, INTERNAL, USAGE, REFUSED, INCOMPLETE = 0, 1, 2, 3, 4
INTERRUPTED, TERMINATED = 130, 143


class Terminated(BaseException):
    """SIGTERM came: end as for Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and give its exit code.

    0 done; 1 internal error; 2 usage; 3 input refused; 4 finished with failed or non-finite points;
    130 and 143 interrupted, to be resumed by the same command.
    """
    options = _parser().parse_args(arguments)
    previous = signal.signal(signal.SIGTERM, _terminate)
    shown = warnings.showwarning
    warnings.showwarning = lambda message, *rest, **more: say(f"warning: {message}")
    try:
        return DONE if options.run(options) else INCOMPLETE
    except (KeyboardInterrupt, Terminated) as stop:
        say("interrupted; what was finished is on disk, and the same command goes on from there")
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        if options.debug:
            traceback.print_exc()
        say(f"error: {error}")
        return REFUSED
    except Exception as error:
        traceback.print_exc()
        say(f"internal error: {type(error).__name__}: {error}")
        return INTERNAL
    finally:
        signal.signal(signal.SIGTERM, previous)
        warnings.showwarning = shown


def _parser() -> argparse.ArgumentParser:
    from landscape import __version__

    parser = argparse.ArgumentParser(
        prog="landscape",
        description="What happened during training, and why does the network end where it does? "
        "Reads checkpoints, writes HDF5 results, draws figures.",
        epilog="Exit codes: 0 done, 1 internal error, 2 usage, 3 input refused, 4 finished with "
        "failed or non-finite points, 130/143 interrupted (the same command resumes).",
    )
    parser.add_argument("--version", action="version", version=f"landscape {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    o.demo(_verb(verbs, "demo", files.demo))
    o.interpolate(_verb(verbs, "interpolate", paths.interpolate))
    o.connect(_verb(verbs, "connect", paths.connect))
    o.surface(_verb(verbs, "surface", surfaces.surface))
    o.trajectory(_verb(verbs, "trajectory", surfaces.trajectory))
    o.instability(_verb(verbs, "instability", instability.instability))
    o.align(_verb(verbs, "align", paths.align))
    o.layers(_verb(verbs, "layers", layers.layers))
    o.fisher(_verb(verbs, "fisher", curvature.fisher))
    o.hessian(_verb(verbs, "hessian", curvature.hessian))
    o.dynamics(_verb(verbs, "dynamics", dynamics.dynamics))
    o.lottery(_verb(verbs, "lottery", lottery.lottery))
    o.plot(_verb(verbs, "plot", files.plot))
    o.info(_verb(verbs, "info", files.info))
    o.validate(_verb(verbs, "validate", files.validate))
    return parser


def _verb(verbs: Any, name: str, run: Any) -> argparse.ArgumentParser:
    text = " ".join(str(run.__doc__).split())
    verb: argparse.ArgumentParser = verbs.add_parser(
        name, help=text.partition(". ")[0].rstrip("."), description=text
    )
    verb.set_defaults(run=run)
    verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verb.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")
    return verb


def _terminate(signum: int, frame: Any) -> NoReturn:
    raise Terminated

"""The command line: a thin layer, one public call for each verb.

Nothing heavy is imported before a verb runs. Standard output carries the result (a path, or text
that was asked for); progress, summaries and errors go to standard error.
"""

import argparse
import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from landscape.evaluation import Prepared
    from landscape.states import State
    from landscape.task import Task

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
    try:
        return options.run(options)
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


def say(text: str) -> None:
    """A line for people, on standard error."""
    print(f"landscape: {text}", file=sys.stderr, flush=True)


# --- verbs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineJob:
    """All that a point on a line is computed from, for this process or a worker."""

    task: str
    task_args: str
    a: str
    b: str
    loading: str
    device: str
    dtype: str
    batch_norm: str | None
    batch_norm_examples: int | None
    keep_examples: bool


def interpolate(options: argparse.Namespace) -> int:
    """Evaluate a task on the straight line between two checkpoints, into a results file."""
    output = _writable(options.output)
    job = _line_job(options)
    import numpy as np

    first, last = options.range
    t = np.linspace(first, last, options.points)
    tasks, _ = _inputs(job)  # wrong input shows before anything is written
    if options.dry_run:
        print(_cost(job, len(t)))
        return DONE
    from landscape import execution, results, tables

    plan = _line_plan(job, tasks)
    resumed = output.exists() and not options.overwrite
    strategy = results.load(output).attrs.get("strategy") if resumed else None
    with execution.open_executor(workers=options.workers, scheduler=options.scheduler) as executor:
        if executor is not None and strategy is None:  # the workers must not choose each their own
            strategy = json.dumps(asdict(_prepared(job, None).strategy))
        used = json.loads(strategy or "{}")
        result = results.sweep(
            partial(line_points, job, strategy),
            {"t": t},
            output=output,
            plan=plan,
            title=f"Linear interpolation at {len(t)} points",
            analysis="interpolation",
            chunk=used["points"] if used.get("vectorised") else 1,
            executor=executor,
            progress=False if options.quiet else None,
            overwrite=options.overwrite,
            a=job.a,
            b=job.b,
        )
    if {0.0, 1.0} <= set(t.tolist()) and not options.quiet:
        print(tables.barrier_table(result), file=sys.stderr)
    print(output)
    return _finished(result)


def line_points(job: LineJob, strategy: str | None, t: "np.ndarray") -> "xr.Dataset":
    """Some points of a line; on a worker, the inputs are read once and kept."""
    from landscape.analyses.interpolation import interpolate

    _, (a, b) = _inputs(job)
    return interpolate(
        _prepared(job, strategy),
        a,
        b,
        points=t,
        batch_norm=job.batch_norm,
        batch_norm_examples=job.batch_norm_examples,
        keep_examples=job.keep_examples,
    )


def plot(options: argparse.Namespace) -> int:
    """Draw the figure that suits a results file."""
    output = _writable(options.output)
    from landscape import plots, results

    result = results.load(options.results)
    fig = plots.figure(result, y=options.y, venue=options.venue, style=options.style)
    subject = f"{options.results}: {result.attrs.get('command', '')}"
    print(plots.save_figure(fig, output, subject=subject, style=options.style))
    return DONE


def info(options: argparse.Namespace) -> int:
    """Say what is in a results file, a checkpoint or a folder of checkpoints."""
    from landscape import results, tables

    path = Path(options.path)
    if path.suffix in (".h5", ".hdf5", ".nc"):
        print(tables.result_text(results.load(path)))
        return DONE
    from landscape.checkpoints import CheckpointError, checkpoints, describe

    try:
        found = checkpoints(path) if path.is_dir() else []
    except CheckpointError:
        found = []  # a folder that is itself a checkpoint
    if found:
        rows = [[str(one.step), one.path.name] for one in found]
        print(tables.table([["step", "checkpoint"], *rows]))
    else:
        print(tables.mapping_text(describe(path, key=options.state_key)))
    return DONE


def validate(options: argparse.Namespace) -> int:
    """Check that results files are complete and keep to the schema."""
    from landscape import results

    code = DONE
    for path in options.results:
        found = results.problems(results.load(path))
        print(f"{path}: {'; '.join(found) or 'ok'}")
        code = INCOMPLETE if found else code
    return code


def demo(options: argparse.Namespace) -> int:
    """Train two small networks on digits and study how they are connected."""
    from landscape.demo import run

    run(Path(options.output), quiet=options.quiet)
    return DONE


# --- pieces of the verbs --------------------------------------------------------------------------


def _line_job(options: argparse.Namespace) -> LineJob:
    loading = {
        "key": options.state_key,
        "strip_prefix": options.strip_prefix,
        "allow_missing": options.allow_missing,
        "allow_nonfinite": options.allow_nonfinite,
    }
    return LineJob(
        _absolute_task(options.task),
        json.dumps(options.task_args),
        str(Path(options.a).resolve()),
        str(Path(options.b).resolve()),
        json.dumps(loading),
        options.device,
        options.dtype,
        options.batch_norm,
        options.batch_norm_examples,
        options.keep_examples,
    )


@lru_cache(maxsize=1)
def _inputs(job: LineJob) -> tuple[tuple["Task", ...], tuple["State", "State"]]:
    from landscape.checkpoints import load_state
    from landscape.task import load_tasks

    tasks = load_tasks(job.task, json.loads(job.task_args))
    loading: dict[str, Any] = json.loads(job.loading)
    a, b = (load_state(path, model=tasks[0].model, **loading) for path in (job.a, job.b))
    return tasks, (a, b)


@lru_cache(maxsize=1)
def _prepared(job: LineJob, strategy: str | None) -> "Prepared":
    import torch

    from landscape.evaluation import prepare
    from landscape.strategy import Strategy

    tasks, states = _inputs(job)
    return prepare(
        tasks,
        states,
        device=job.device,
        dtype=getattr(torch, job.dtype),
        batch_norm=job.batch_norm,
        batch_norm_examples=job.batch_norm_examples,
        strategy=Strategy(**json.loads(strategy)) if strategy else None,
    )


def _line_plan(job: LineJob, tasks: Sequence["Task"]) -> dict[str, Any]:
    """What the results depend on; where the inputs lie does not matter, what is in them does."""
    from landscape.checkpoints import sha256
    from landscape.task import data_sha256

    return {
        "task": Path(job.task).name,
        "task_args": json.loads(job.task_args),
        "a_sha256": sha256(job.a),
        "b_sha256": sha256(job.b),
        "data_sha256": {task.name: data_sha256(task.data) for task in tasks},
        "loading": json.loads(job.loading),
        "dtype": job.dtype,
        "batch_norm": job.batch_norm,
        "batch_norm_examples": job.batch_norm_examples,
        "keep_examples": job.keep_examples,
    }


def _cost(job: LineJob, num: int) -> str:
    """Forward passes and estimated seconds for so many points."""
    prepared = _prepared(job, None)
    evaluated = sum(examples.num for examples in prepared.examples)
    from landscape.normalisation import batch_norms, check_policy

    model = prepared.tasks[0].model
    passes = 0.0
    if check_policy(model, job.batch_norm) == "recalibrate":
        complete = prepared.strategy.moment_batch >= prepared.moments.num
        passes = 1.0 if complete else (len(batch_norms(model)) + 1) / 2
    recalibrated = round(passes * prepared.moments.num)
    forwards = num * (evaluated + recalibrated)
    seconds = forwards * prepared.strategy.seconds
    return (
        f"{num} points x ({evaluated:,} examples evaluated + {recalibrated:,} for batch norm) = "
        f"{forwards:,} forward passes of one example\n"
        f"about {_duration(seconds)} on {prepared.device} ({prepared.strategy})"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _finished(result: "xr.Dataset") -> int:
    from landscape.results import STATUS

    names = {"nonfinite": "non-finite", "failed": "failed"}
    bad = {names[n]: int((result["status"] == STATUS.index(n)).sum()) for n in names}
    said = ", ".join(f"{count} {name}" for name, count in bad.items() if count)
    if not said:
        return DONE
    say(f"finished, but of {result['status'].size} points {said}")
    for failure in json.loads(result.attrs.get("failures", "[]")):
        say(f"points {failure['points']}: {failure['error']}")
    return INCOMPLETE


def _writable(path: str) -> Path:
    """The path of an output; an error at once if it cannot be written."""
    output = Path(path)
    if not output.parent.is_dir():
        raise ValueError(f"{output}: the folder {output.parent} does not exist; create it first")
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name a file in it")
    try:
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise ValueError(f"{output.parent} cannot be written to: {error.strerror}") from error
    return output


def _absolute_task(spec: str) -> str:
    place, colon, name = spec.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if colon and place.endswith(".py") else spec


def _terminate(signum: int, frame: Any) -> NoReturn:
    raise Terminated


# --- options --------------------------------------------------------------------------------------


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
    _demo_options(_verb(verbs, "demo", demo))
    _interpolate_options(_verb(verbs, "interpolate", interpolate))
    _plot_options(_verb(verbs, "plot", plot))
    _info_options(_verb(verbs, "info", info))
    _verb(verbs, "validate", validate).add_argument(
        "results", nargs="+", help="results files (HDF5)"
    )
    return parser


def _verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    text = str(run.__doc__)
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text.rstrip("."), description=text)
    verb.set_defaults(run=run)
    verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verb.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")
    return verb


def _demo_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "-o", "--output", default="landscape-demo", help="folder for all files (%(default)s)"
    )


def _interpolate_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("a", help="checkpoint at t = 0: a file, or a folder in a known format")
    verb.add_argument("b", help="checkpoint at t = 1")
    _task_options(verb)
    verb.add_argument("--points", type=_count, default=25, help="points on the line (%(default)s)")
    verb.add_argument(
        "--range", type=float, nargs=2, default=(0.0, 1.0), metavar=("FIRST", "LAST"),
        help="first and last t (0 1)",
    )  # fmt: skip
    verb.add_argument(
        "--keep-examples", action="store_true",
        help="store the loss of each example, for intervals on barriers",
    )  # fmt: skip
    _evaluation_options(verb)
    _loading_options(verb)
    _work_options(verb)


def _task_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--task", required=True, metavar="WHERE:FUNCTION",
        help="pkg.mod:function or path/file.py:function; the function returns a landscape.Task, "
        "or several with one model",
    )  # fmt: skip
    verb.add_argument(
        "--task-args", type=_json_object, default={}, metavar="JSON",
        help='keyword arguments for that function, such as \'{"width": 64}\'',
    )  # fmt: skip


def _evaluation_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--batch-norm", choices=("recalibrate", "interpolate", "keep"),
        help="batch-norm statistics of a point: recomputed from the task named 'train' or the "
        "first task (default), mixed like weights, or those of the nearest checkpoint",
    )  # fmt: skip
    verb.add_argument(
        "--batch-norm-examples", type=_count, metavar="N",
        help="recalibrate on N examples, evenly spread over the data (default: all)",
    )  # fmt: skip
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (%(default)s)")
    verb.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32",
        help="of the arithmetic (%(default)s)",
    )  # fmt: skip


def _loading_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--state-key", help="which weights, if a checkpoint holds several (EMA, raw)")
    verb.add_argument("--strip-prefix", help="leading part to remove from all names, such as net.")
    verb.add_argument(
        "--allow-missing", action="append", default=[], metavar="PATTERN",
        help="names that a checkpoint may lack; filled from the task's model (repeatable)",
    )  # fmt: skip
    verb.add_argument(
        "--allow-nonfinite", action="store_true", help="accept checkpoints with NaN or infinity"
    )


def _work_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "-o", "--output", required=True, help="results file (HDF5) to write or resume"
    )
    verb.add_argument(
        "--overwrite", action="store_true", help="start anew instead of resuming the output"
    )
    verb.add_argument(
        "--workers", type=_workers, default=0, metavar="N|auto",
        help="processes on this machine; auto: one per GPU; 0: this process (%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--scheduler", metavar="ADDRESS|FILE",
        help="a running dask cluster: tcp://host:8786, or a scheduler file",
    )  # fmt: skip
    verb.add_argument(
        "--dry-run", action="store_true", help="print the cost and stop before computing"
    )


def _plot_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("results", help="results file (HDF5)")
    verb.add_argument("-o", "--output", required=True, help="figure: .pdf, .svg, .png ...")
    verb.add_argument("--y", nargs="+", metavar="MEASURE", help="measures to draw (all)")
    verb.add_argument(
        "--venue",
        default="neurips",
        help="whose column width to use: icml, neurips, ... (%(default)s)",
    )
    verb.add_argument("--style", help="a matplotlib style or style file instead of the paper style")


def _info_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("path", help="results file (HDF5), checkpoint, or folder of checkpoints")
    verb.add_argument("--state-key", help="which weights, if a checkpoint holds several (EMA, raw)")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _workers(text: str) -> int | str:
    if text != "auto" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number or 'auto', got {text!r}")
    return text if text == "auto" else int(text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error}): {text}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text}")
    return value

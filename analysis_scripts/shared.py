"""What the studies of this folder share: settings, effects over seeds, claims, figures.

A study is a script with three functions that `run_study` is given: `measure(settings)` makes the
runs and returns results by name, `draw(results)` makes figures from them, and `judge(results)`
gives a verdict on each claim. Figures and verdicts are made from the HDF5 files alone.
"""

import argparse
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import active_children, get_context
from pathlib import Path
from threading import RLock
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike
from scipy import stats
from tqdm import tqdm

from landscape import datasets, experiments, plots, results
from landscape.datasets import Batches
from landscape.examples import pick_device
from landscape.execution import WorkerLost
from landscape.experiments import Ended, Run, RunError
from landscape.experiments.records import written
from landscape.tables import table

SCALES = ("tiny", "small", "full")
INTERRUPTED = 130  # the exit code of what Control-C ended
PIXELS = 150  # to the inch, of the small pictures for the index; the PDF is for print
CIFAR = (
    "The full scale needs CIFAR-10. Download cifar-10-python.tar.gz or cifar-10-binary.tar.gz "
    "from the page of the data set (www.cs.toronto.edu/~kriz/cifar.html), unpack it, and give the "
    "folder that holds cifar-10-batches-py or cifar-10-batches-bin as --data cifar10:FOLDER. "
    "Without it, --data synthetic:num_examples=50000 makes images of the same size"
)


# Settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Where and how large a study is: what the command line says."""

    study: str
    scale: Literal["tiny", "small", "full"] = "small"
    first_seed: int = 1
    num_seeds: int | None = None
    root: Path = Path("studies")
    data: str = ""
    workers: int = 1
    device: str = "auto"
    force: bool = False
    code: str = ""
    progress: bool | None = None
    executor: Executor | None = None

    @property
    def folder(self) -> Path:
        """Where the runs and results of this study lie."""
        return self.root / self.scale / f"{self.study}-seeds-{self.first_seed}"

    def seeds(self, num: int) -> range:
        """The seeds of a part of the study that asks for `num`, unless the command line says."""
        num = self.num_seeds or (2 if self.scale == "tiny" else num)
        return range(self.first_seed, self.first_seed + num)

    def choose(self, *, tiny: Any, small: Any, full: Any) -> Any:
        """The value for this scale."""
        return {"tiny": tiny, "small": small, "full": full}[self.scale]

    def images(self) -> tuple[Batches, Batches]:
        """The training and test images of the full scale, (n, 3, 32, 32) in 10 classes.

        Raises `ValueError` without them.
        """
        if not self.data:
            raise ValueError(CIFAR)
        try:
            train, test = (datasets.load(self.data, split=split) for split in ("train", "test"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{error}.\n{CIFAR}") from error
        shape, num = tuple(train.inputs.shape[1:]), train.num_classes
        if shape != (3, 32, 32) or num > 10:
            raise ValueError(
                f"--data {self.data} has inputs of shape {shape} in {num} classes, where the "
                f"networks of the full scale take images (3, 32, 32) in 10.\n{CIFAR}"
            )
        return train, test

    @property
    def runs_folder(self) -> Path:
        """The folder of all runs of this study."""
        return self.folder / "runs"

    @property
    def options(self) -> dict[str, Any]:
        """The options of `experiments.train`, for functions that hand them on.

        Stacks have a fixed size below the full scale, so that the same command gives the same bits.
        """
        return {
            "device": self.device, "executor": self.executor, "progress": self.progress,
            "stack": "auto" if self.scale == "full" else max(1, 24 // self.workers),
        }  # fmt: skip

    def train(self, runs: Sequence[Run]) -> list[Ended]:
        """Train runs into this study's folder; what is finished is not trained again."""
        options = self.options
        if isinstance(options["stack"], int):
            options["stack"] = min(options["stack"], -(-len(runs) // self.workers))
        return experiments.train(runs, self.runs_folder, **options)

    def runs(self, name: str | Run) -> Path:
        """The folder of a run, where its checkpoints are."""
        return self.runs_folder / (name.name if isinstance(name, Run) else name)

    def kept(self, name: str, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        """The result `name.h5` of this study, or what `compute` gives, which is then written there.

        A result is made again when the number of seeds, the data or the script are others.
        """
        path = self.folder / f"{name}.h5"
        plan = f"seeds {self.num_seeds}, data {self.data!r}, script {self.code}"
        if path.exists():
            found = _loaded(path)
            if found.attrs.get("plan") == plan:
                return found
        made = compute().assign_attrs(plan=plan)
        path.parent.mkdir(parents=True, exist_ok=True)
        results.save(made, path)
        return made

    def check_time(self, run: Run, epochs: float) -> None:
        """At full scale, refuse what would take days: estimated from a few steps of a run.

        `epochs` are those of all runs together. Raises `ValueError` without a GPU, unless forced.
        """
        if self.scale != "full" or self.force:
            return
        if torch.cuda.is_available() and self.device != "cpu":
            return
        hours = epochs * seconds_of_epoch(run) / 3600
        raise ValueError(
            f"{self.study} at full scale trains for {epochs:,.0f} epochs, which takes about "
            f"{hours:,.0f} hours without a GPU. Use a machine with one, --scale small, or --force"
        )


def _loaded(path: Path) -> xr.Dataset:
    try:
        return results.load(path)
    except results.ResultError as error:
        raise ValueError(f"{error}. Remove it, and the same command makes it again") from error


def seconds_of_epoch(run: Run) -> float:
    """About how long an epoch of a run takes here: from the fastest of three batches."""
    size = run.batch_size_at(0)
    inputs, targets = next(iter(replace(run.data, batch_size=size)))
    model = run.build().train()
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        taken.append(time.perf_counter() - begun)
    return min(taken) * run.data.num_examples / size


# Data ---------------------------------------------------------------------------------------------


def digits(seed: int, num: int = 900, *, noise: float = 0.0) -> tuple[Batches, Batches]:
    """Of the digits, `num` that a seed draws to train on, and all but 900 others to test.

    Images (n, 1, 8, 8) in units of their standard deviation, with normal noise added to each pixel
    of both sets, drawn once.
    """
    parts = [datasets.load(split=split) for split in ("train", "test")]
    images, targets = (
        torch.cat([getattr(one, name) for one in parts]) for name in ("inputs", "targets")
    )
    chance = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=chance)
    pixels = parts[0].transform(images) if parts[0].transform else images
    pixels = pixels + noise * torch.randn(pixels.shape, generator=chance)
    train, test = (Batches(pixels[own], targets[own], 1024) for own in (order[:num], order[900:]))
    return train, test


# Effects over seeds -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """A mean over seeds with its 95 % t interval, and the p-value of its being 0."""

    mean: float
    low: float
    high: float
    p: float
    num: int


def effect(
    values: ArrayLike, *, test: Literal["t", "wilcoxon"] = "t", tail: str = "two-sided"
) -> Effect:
    """The mean of paired differences, one for each seed, with a paired t or Wilcoxon test.

    `tail` is that of scipy: `"two-sided"`, `"greater"` or `"less"`. Without seeds all is unknown;
    raises `ValueError` for seeds that are nan (runs that failed).
    """
    values = np.asarray(values, float)
    if not len(values):
        return Effect(*(math.nan,) * 4, 0)
    if not np.isfinite(values).all():
        raise ValueError(f"{np.sum(~np.isfinite(values))} of {len(values)} seeds have no value")
    mean, half, p = values.mean(), math.nan, math.nan
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        if not values.any():
            p = 1.0
        elif test == "wilcoxon":
            p = stats.wilcoxon(values, alternative=tail).pvalue
        elif np.ptp(values) == 0:
            p = 0.0
        else:
            p = stats.ttest_1samp(values, 0, alternative=tail).pvalue
    return Effect(float(mean), float(mean - half), float(mean + half), float(p), len(values))


def ratio(above: ArrayLike, below: ArrayLike) -> Effect:
    """The geometric mean over seeds of a ratio, its interval, and the p-value of its being 1."""
    found = effect(np.log(np.asarray(above, float)) - np.log(np.asarray(below, float)))
    mean, low, high = np.exp([found.mean, found.low, found.high]).tolist()
    return replace(found, mean=mean, low=low, high=high)


def points(accuracies: ArrayLike) -> np.ndarray:
    """Shares as percentage points."""
    return 100 * np.asarray(accuracies, float)


# Claims -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What is expected, what came, and whether it shows at this scale."""

    criterion: str
    figure: str
    claim: str
    quantity: str
    mean: float
    low: float
    high: float
    p: float
    num_seeds: int
    condition: str
    verdict: str


def judged(
    criterion: str,
    figure: str,
    claim: str,
    quantity: str,
    found: Effect | float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    within: float | None = None,
    p_below: float | None = None,
    also: Mapping[str, bool] | None = None,
    expected: Literal["effect", "null", "report"] = "effect",
    gated: bool = True,
) -> Claim:
    """The verdict on one claim, from its quantity and what was expected of it.

    `criterion` is the label of the check, `figure` where it is seen, `claim` a sentence on what is
    expected, `quantity` what was measured, with its unit. The mean must be at least or at most a
    value, or its size `within` one; `also` names further conditions and says whether they hold.
    `expected="null"` is for effects that are not expected at this scale, and `"report"` for what is
    told without a condition, as all is if it is not `gated`.
    """
    if not gated:
        return judged(criterion, figure, claim, quantity, found, expected="report")
    found = found if isinstance(found, Effect) else Effect(found, math.nan, math.nan, math.nan, 0)
    conditions = {}
    if at_least is not None:
        conditions[f">= {at_least:g}"] = found.mean >= at_least
    if at_most is not None:
        conditions[f"<= {at_most:g}"] = found.mean <= at_most
    if within is not None:
        conditions[f"within {within:g} of 0"] = abs(found.mean) <= within
    if p_below is not None:
        conditions[f"p < {p_below:g}"] = found.p < p_below
    conditions |= also or {}
    if expected != "report" and not conditions:
        raise ValueError(f"{criterion}: a claim needs a condition, or expected='report'")
    holds = all(conditions.values())
    verdicts = {
        "effect": ("shows", "does not show"),
        "null": ("null, as expected", "not null"),
        "report": ("reported", "reported"),
    }
    return Claim(
        criterion, figure, claim, quantity, found.mean, found.low, found.high, found.p, found.num,
        ", ".join(conditions), verdicts[expected][not holds],
    )  # fmt: skip


def claims_table(claims: Sequence[Claim]) -> str:
    """The claims, one line each, for a terminal."""
    rows = [["criterion", "quantity", "mean [95 %]", "p", "seeds", "condition", "verdict"]]
    rows += [
        [one.criterion, one.quantity, interval(one), p_value(one.p), str(one.num_seeds or ""),
         one.condition, one.verdict]
        for one in claims
    ]  # fmt: skip
    return table(rows)


def interval(found: Effect | Claim) -> str:
    """A mean with its interval: `-1.23 [-1.80, -0.66]`."""
    known = [value for value in (found.mean, found.low, found.high) if not math.isnan(value)]
    if not known:
        return "not measured"
    noise = 1e-4 * max(map(abs, known))  # of rounding
    mean, *limits = (f"{value if abs(value) > noise else 0:.3g}" for value in known)
    return f"{mean} [{', '.join(limits)}]" if limits else mean


def p_value(p: float) -> str:
    """A p-value to one digit, or nothing."""
    return "" if math.isnan(p) else f"{p:.1g}"


# Figures ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A figure and what it shows, in a sentence or two."""

    figure: Figure
    caption: str


def panels(
    columns: int, rows: int = 1, *, height: float = 1.9, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure as wide as a text column, with an array (rows, columns) of axes.

    Call it, and all that draws on it, within `plots.paper_style()`: `run_study` does.
    """
    fig = Figure(figsize=(plots.WIDTHS["neurips"], height * rows), layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False, **options)


def band(
    ax: Axes,
    x: ArrayLike,
    values: ArrayLike,
    label: str | None = None,
    *,
    geometric: bool = False,
    **style: Any,
) -> None:
    """The mean over seeds of values (seed, x), with its 95 % t interval as a band.

    `geometric`: of the logarithms of positive values.
    """
    values = np.atleast_2d(np.asarray(values, float))
    values = np.log(values) if geometric else values
    mean, num = values.mean(0), len(values)
    half = (
        stats.t.ppf(0.975, num - 1) * stats.sem(values, axis=0) if num > 1 else np.zeros_like(mean)
    )
    low, mean, high = (np.exp(v) if geometric else v for v in (mean - half, mean, mean + half))
    (line,) = ax.plot(x, mean, label=label, **style)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, lw=0)


def bars(ax: Axes, values: Mapping[str, ArrayLike], **style: Any) -> None:
    """A point for the mean over seeds of each arm, its 95 % t interval, and the seeds behind."""
    for place, own in enumerate(values.values()):
        own = np.asarray(own, float)
        ax.plot(np.full(len(own), place), own, "o", color="0.75", ms=2, zorder=1)
        half = stats.t.ppf(0.975, len(own) - 1) * stats.sem(own) if len(own) > 1 else 0.0
        ax.errorbar(
            place, own.mean(), half, fmt="o", capsize=2, zorder=2, **{"color": "C0"} | style
        )
    ax.set_xticks(range(len(values)), list(values))
    ax.margins(x=0.15)


# The command line ---------------------------------------------------------------------------------

Results = Mapping[str, xr.Dataset]


def run_study(
    measure: Callable[[Settings], dict[str, xr.Dataset]],
    draw: Callable[[Results], dict[str, Drawn]],
    judge: Callable[[Results], list[Claim]],
    *,
    argv: Sequence[str] | None = None,
) -> None:
    """What each study does when it is called: measure, write, draw, and give its verdicts.

    Results go to `FOLDER/SCALE/STUDY-seeds-FIRST/*.h5` and figures beside them or to `--figures`.
    What exists is taken up, so that the same command goes on after an interruption.
    """
    module = sys.modules[measure.__module__]
    script, title = Path(str(module.__file__)), str(module.__doc__).split("\n")[0]
    options, settings = _parsed(script, title, argv)
    torch.set_num_threads(1 if settings.scale != "full" else torch.get_num_threads())
    started = time.perf_counter()
    with explained(script.name):
        if options.only == "figure":
            found = {path.stem: _loaded(path) for path in sorted(settings.folder.glob("*.h5"))}
            if not found:
                raise ValueError(f"{settings.folder} holds no results; call without --only figure")
        else:
            with workers(settings.workers) as executor:
                found = measure(replace(settings, executor=executor))
        seconds = time.perf_counter() - started
        where = options.figures or settings.folder
        where.mkdir(parents=True, exist_ok=True)
        try:
            drawn, claims = _drawn(draw, found, where), judge(found)
        except KeyError as error:
            if options.only != "figure":
                raise
            raise ValueError(
                f"the results in {settings.folder} have no {error}: they are not complete, or of "
                "another version of the script; call without --only figure"
            ) from error
        _write_summary(settings, title, drawn, claims, seconds)
        show(claims_table(claims))


@contextmanager
def explained(name: str) -> Iterator[None]:
    """End a script with a line of what is wrong, or of what to do after Control-C."""
    try:
        yield
    except KeyboardInterrupt:
        told = "interrupted; what was finished is on disk, and the same command goes on from there"
        print(f"\n{name}: {told}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except (ValueError, RunError, WorkerLost, OSError) as error:
        raise SystemExit(f"{name}: {error}") from error


def show(text: str) -> None:
    """Print a text, to a reader who may have gone, as after `| head -1`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def workers(num: int) -> Iterator[Executor | None]:
    """Processes that train, with a thread each; none for one, which is this process itself.

    After Control-C they are ended at once: what they had not finished is taken up again.
    """
    if num == 1:
        yield None
        return
    with ProcessPoolExecutor(num, get_context("spawn"), initializer=_begin) as executor:
        try:
            yield executor
        except KeyboardInterrupt:
            for process in active_children():
                process.terminate()
            raise


def _begin() -> None:
    """One thread, and no heed of Control-C, which reaches all processes."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(RLock())  # its own is a semaphore, which a process that is ended leaves behind


def _drawn(
    draw: Callable[[Results], dict[str, Drawn]], found: Results, where: Path
) -> dict[str, Drawn]:
    """Draw the figures and save each as PDF, and as a picture for the index."""
    with plots.paper_style():
        drawn = draw(found)
        for name, one in drawn.items():
            for ending, dpi in ((".pdf", None), (".png", PIXELS)):
                path = where / f"{name}{ending}"
                plots.save_figure(one.figure, path, subject=one.caption, dpi=dpi)
    return drawn


def _parsed(
    script: Path, title: str, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(prog=script.name, description=title)
    add = parser.add_argument
    add(
        "--scale",
        choices=SCALES,
        default="small",
        help="small: digits, minutes on a CPU; full: CIFAR-10, on a GPU; tiny: seconds, a trial "
        "whose verdicts mean nothing (default: small)",
    )
    add("--seeds", type=int, metavar="NUM", help="how many seeds, at least 2 (default: as many as "
        "each part of the study asks for; tiny: 2)")  # fmt: skip
    add("--first-seed", type=int, metavar="SEED", default=1,
        help="seeds count from here (default: 1)")  # fmt: skip
    add("--folder", type=Path, default=Path("studies"),
        help="where runs and results are kept and taken up again (default: studies)")  # fmt: skip
    add("--figures", type=Path, metavar="FOLDER", help="folder of the figures (default: beside "
        "the results)")  # fmt: skip
    add("--only", choices=("figure",), help="draw and judge from the results that exist, train "
        "nothing")  # fmt: skip
    add("--data", default="", help="images of the full scale: cifar10:FOLDER, or "
        "synthetic:num_examples=50000 (no default)")  # fmt: skip
    add("--workers", type=int, metavar="NUM", default=1, help="processes that train (default: 1)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:NUMBER (default: auto, the GPU "
        "if there is one)")  # fmt: skip
    add("--force", action="store_true", help="run the full scale even without a GPU")
    add("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(argv)
    if options.seeds is not None and options.seeds < 2:
        parser.error(f"--seeds must be at least 2, for error bars; got {options.seeds}")
    if options.first_seed < 0:
        parser.error(f"--first-seed must be at least 0, got {options.first_seed}")
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    if options.data and options.scale != "full":
        parser.error("--data is for --scale full; the other scales bring their own images")
    try:
        torch.empty(0, device=pick_device(options.device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        parser.error(f"--device {options.device} cannot be used here: {reason}")
    return options, Settings(
        script.stem,
        options.scale,
        options.first_seed,
        options.seeds,
        root=options.folder,
        data=options.data,
        workers=options.workers,
        device=options.device,
        force=options.force,
        code=hashlib.sha256(script.read_bytes()).hexdigest()[:12],
        progress=False if options.quiet else None,
    )


def _write_summary(
    settings: Settings,
    title: str,
    drawn: Mapping[str, Drawn],
    claims: Sequence[Claim],
    seconds: float,
) -> None:
    """`summary.json`: what the index of all studies is made of."""
    path = settings.folder / "summary.json"
    before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
    command = f"python analysis_scripts/{settings.study}.py --scale {settings.scale}"
    summary = {
        "study": settings.study,
        "title": title,
        "scale": settings.scale,
        "first_seed": settings.first_seed,
        "command": f"{command} --first-seed {settings.first_seed}",
        "seconds": max(seconds, before),  # what was taken up again took longer
        "figures": {name: one.caption for name, one in drawn.items()},
        "claims": [asdict(one) for one in claims],
    }
    text = json.dumps(summary, indent=1)
    written(path, lambda new: new.write_text(text))


def log_ticks(ax: Axes) -> None:
    """Plain numbers on a logarithmic x axis, as for steps."""
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

"""Which options does each verb have?"""

import argparse
import json
from typing import Any

Verb = argparse.ArgumentParser
KINDS = ("chord", "mean", "max")
SIMILARITIES = ("cca", "svcca", "pwcca", "cka", "procrustes", "regression")


def demo(verb: Verb) -> None:
    """Options of `demo`."""
    verb.add_argument(
        "-o", "--output", default="landscape-demo", help="folder for all files (%(default)s)"
    )


def interpolate(verb: Verb) -> None:
    """Options of `interpolate`."""
    _ends(verb)
    verb.add_argument(
        "further", nargs="*", default=[], help="more checkpoints: a path through all, in order"
    )
    _task(verb)
    _points(verb, 25, "points on the line, both ends included")
    verb.add_argument(
        "--range", type=float, nargs=2, default=(0.0, 1.0), metavar=("FIRST", "LAST"),
        help="first and last position t on the line, 0 at a and 1 at b (0 1)",
    )  # fmt: skip
    verb.add_argument(
        "--keep-examples", action="store_true",
        help="store the loss of each example, for intervals on barriers",
    )  # fmt: skip
    verb.add_argument(
        "--layers", nargs="+", metavar="NAME",
        help="move one part at a time: each (module), blocks, or names and patterns of modules",
    )  # fmt: skip
    _diagnostics(verb)
    _evaluation(verb)
    _loading(verb)
    _work(verb)


def connect(verb: Verb) -> None:
    """Options of `connect`."""
    _ends(verb)
    _task(verb)
    verb.add_argument(
        "--curve", choices=("bezier", "polychain", "autoneb"), default="bezier",
        help="kind of path; autoneb relaxes a chain of pivots and adds more (%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--bends", type=count, default=None,
        help="trained states between the ends (one for each --start, else 1; autoneb starts at 3)",
    )  # fmt: skip
    verb.add_argument(
        "--start", nargs="+", metavar="CHECKPOINT", default=[],
        help="a checkpoint for each bend to start from (default: the straight line)",
    )  # fmt: skip
    _points(verb, 61, "points on the trained curve")
    verb.add_argument(
        "--cycles", type=count, default=4,
        help="cycles of autoneb, each of --epochs epochs (%(default)s)",
    )  # fmt: skip
    training = verb.add_argument_group("training")
    training.add_argument(
        "--epochs", type=count, default=100, help="passes over the training data (%(default)s)"
    )
    training.add_argument(
        "--batch-size", type=count, default=128, help="examples in a mini-batch (%(default)s)"
    )
    training.add_argument(
        "--lr", type=float, default=0.03,
        help="learning rate, which falls to 1 %% in the second half (%(default)s)",
    )  # fmt: skip
    training.add_argument(
        "--weight-decay", type=float, default=0.0,
        help="decay of the weights at each point of the curve, not of the bends (%(default)s)",
    )  # fmt: skip
    training.add_argument(
        "--optimiser", metavar="NAME", help="a class of torch.optim instead of SGD with momentum"
    )
    training.add_argument(
        "--optimiser-args", type=json_object, default={}, metavar="JSON",
        help="keyword arguments of that class but lr, which is --lr",
    )  # fmt: skip
    training.add_argument(
        "--training-data", metavar="WHERE:FUNCTION",
        help="a function that gives batches to train on, which may shuffle and augment "
        "(default: those of the task named 'train', or the first)",
    )  # fmt: skip
    training.add_argument(
        "--seed", type=int, default=0,
        help="of the order of the data and the positions on the curve (%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--save-bends", metavar="FOLDER", help="also write the trained bends as checkpoints"
    )
    _diagnostics(verb)
    _evaluation(verb)
    _loading(verb)
    _output(verb)


def surface(verb: Verb) -> None:
    """Options of `surface`."""
    verb.add_argument(
        "checkpoints", nargs="+",
        help="one: random directions about it; three: the plane through them; two and --curve: the "
        "plane through both and the middle bend",
    )  # fmt: skip
    _task(verb)
    verb.add_argument(
        "--curve", metavar="RESULT", help="result of connect for the first two checkpoints"
    )
    verb.add_argument(
        "--direction", action="append", default=[], metavar="CHECKPOINT",
        help="a direction (eigenvector, gradient ...) instead of a random one; up to three times",
    )  # fmt: skip
    verb.add_argument(
        "--mark", action="append", default=[], metavar="NAME=CHECKPOINT",
        help="a checkpoint to be projected on the surface (repeatable)",
    )  # fmt: skip
    verb.add_argument(
        "--points", type=sizes, default=[21], metavar="N|NxM|NxMxL",
        help="points along each axis (21)",
    )  # fmt: skip
    verb.add_argument(
        "--dimensions", type=int, choices=(1, 2, 3), default=2,
        help="random directions, if --points does not say (%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--extent", type=float, default=1.0,
        help="about one checkpoint: axes from -EXTENT to EXTENT, in multiples of the directions "
        "(%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--margin", type=float, default=0.2,
        help="through three checkpoints: space around them, as a share of the largest width "
        "(%(default)s)",
    )  # fmt: skip
    for axis in "xyz":
        verb.add_argument(
            f"--{axis}-range", type=float, nargs=2, metavar=("FIRST", "LAST"),
            help=f"ends of the {axis} axis, instead of those by --extent or --margin",
        )  # fmt: skip
    verb.add_argument(
        "--normalise", choices=("filter", "layer", "model", "none"), default="filter",
        help="what random directions have the norms of: each filter, layer, or the whole model; "
        "or none of these (%(default)s)",
    )  # fmt: skip
    verb.add_argument("--seed", type=int, default=0, help="of random directions (%(default)s)")
    verb.add_argument(
        "--refine", metavar="RESULT",
        help="an earlier surface, given the same checkpoints and options: its grid with half the "
        "steps, evaluated near its contours and extremes and interpolated elsewhere",
    )  # fmt: skip
    _evaluation(verb)
    _loading(verb)
    _work(verb)


def trajectory(verb: Verb) -> None:
    """Options of `trajectory`."""
    verb.add_argument(
        "checkpoints", nargs="+", help="a folder of checkpoints, or checkpoints in their order"
    )
    _task(verb)
    verb.add_argument(
        "--pattern",
        help="which files of the folder: a glob, or a regular expression with a group step",
    )
    verb.add_argument(
        "--origin", choices=("last", "mean"), default="last",
        help="principal components about the last checkpoint or the mean (%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--points", type=sizes, default=[21], metavar="N|NxM", help="points along each axis (21)"
    )
    verb.add_argument(
        "--margin",
        type=float,
        default=0.2,
        help="space around the path, as a share of the largest width (%(default)s)",
    )
    verb.add_argument("--path-only", action="store_true", help="no surface below the path")
    verb.add_argument("--tsne", action="store_true", help="also a t-SNE view of the path")
    verb.add_argument("--seed", type=int, default=0, help="of the t-SNE view (%(default)s)")
    _evaluation(verb)
    _loading(verb)
    _work(verb)


def instability(verb: Verb) -> None:
    """Options of `instability`."""
    verb.add_argument(
        "runs", nargs="+",
        help="a folder of runs, each a folder of checkpoints that says in its path from which step "
        "it was branched (k=500), from which trunk (seed=1), and its own name; with --all-pairs: "
        "checkpoints, or folders whose last checkpoint is meant, or one folder of checkpoints",
    )  # fmt: skip
    _task(verb)
    verb.add_argument(
        "--pattern",
        help="regular expression for the paths of runs in the folder, with a group step and if "
        "need be trunk and run; with --all-pairs: which files of a folder, as in trajectory",
    )
    verb.add_argument(
        "--all-pairs", action="store_true",
        help="barriers between all pairs of runs (or steps of one run), and their basins",
    )  # fmt: skip
    _points(verb, 31, "points on each line")
    verb.add_argument(
        "--kind", choices=KINDS,
        help="rise above the straight line between the ends (chord), above their mean, or above "
        "the larger one (mean; chord with --all-pairs)",
    )  # fmt: skip
    verb.add_argument(
        "--threshold", type=float, default=0.02,
        help="largest barrier at which a step is stable, or a pair in one basin (%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--measure", help="what the threshold is of: loss or a metric (error if it is there, else "
        "loss)",
    )  # fmt: skip
    _evaluation(verb)
    _loading(verb)
    _work(verb)


def align(verb: Verb) -> None:
    """Options of `align`."""
    _ends(verb)
    _task(verb)
    verb.add_argument(
        "--method", choices=("weights", "activations"), default="weights",
        help="what is matched (%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--starts", type=count, default=3, help="searches, of which the best counts (%(default)s)"
    )
    verb.add_argument("--seed", type=int, default=0, help="of the searches (%(default)s)")
    verb.add_argument(
        "--symmetries", metavar="FILE",
        help='which units may be permuted, if the model cannot be traced: JSON such as '
        '{"hidden": [["fc1.weight", 0], ["fc1.bias", 0], ["fc2.weight", 1]]}',
    )  # fmt: skip
    verb.add_argument(
        "--save", metavar="FOLDER", help="also write the aligned second state as a checkpoint"
    )
    _points(verb, 25, "points on both lines, raw and aligned")
    _diagnostics(verb)
    _evaluation(verb)
    _loading(verb)
    _output(verb)


def layers(verb: Verb) -> None:
    """Options of `layers`."""
    verb.add_argument(
        "checkpoints", nargs="+",
        help="two checkpoints (or one, against itself): all their layers with each other; with "
        "--against: a folder of checkpoints, or checkpoints in their order; with --between: those, "
        "or networks (folders mean their last checkpoint)",
    )  # fmt: skip
    _task(verb)
    verb.add_argument(
        "--split", metavar="NAME", help="which task's data, if there are several (the first)"
    )
    verb.add_argument(
        "--pattern",
        help="which files of the folder: a glob, or a regular expression with a group step",
    )
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument(
        "--against", metavar="final|CHECKPOINT",
        help="compare each layer of each checkpoint with the same layer of this one",
    )  # fmt: skip
    kind.add_argument(
        "--between", choices=("steps", "runs"),
        help="compare all checkpoints of a run, or several networks, layer by layer",
    )  # fmt: skip
    verb.add_argument(
        "--measure", nargs="+", choices=SIMILARITIES, default=["cka"],
        help="one or several of %(choices)s (cka)", metavar="MEASURE",
    )  # fmt: skip
    verb.add_argument(
        "--layers", nargs="+", default=["*"], metavar="NAME",
        help="names, patterns ('conv*') or types ('Conv2d') of modules (all that have none inside)",
    )  # fmt: skip
    verb.add_argument(
        "--other-layers", nargs="+", metavar="NAME",
        help="layers of the second checkpoint (as --layers)",
    )  # fmt: skip
    verb.add_argument(
        "--maps", default="average", metavar="FORM",
        help="what of a convolution's map is a row: average, positions, flatten, pool[:HxW], "
        "frequency[:HxW] (%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--threshold", type=float, default=0.99,
        help="share of the variance that svcca keeps (%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--weights", choices=("x", "y", "fewer", "both"), default="x",
        help="whose neurons weight pwcca: the first, the second, those of fewer directions, both "
        "(%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--biased", action="store_true", help="cka without the correction for few examples"
    )
    verb.add_argument(
        "--blocks", type=blocks, default=10,
        help="blocks of examples that the jackknife leaves out for standard errors; 0: no errors "
        "(%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--correlations", action="store_true", help="also keep all canonical correlations"
    )
    verb.add_argument(
        "--batch-size", type=count, default=256, help="of the forward passes (%(default)s)"
    )
    _running(verb.add_argument_group("evaluation"))
    verb.set_defaults(batch_norm=None, batch_norm_examples=None)
    _loading(verb)
    _work(verb)


def fisher(verb: Verb) -> None:
    """Options of `fisher`."""
    verb.add_argument(
        "checkpoints", nargs="+",
        help="a checkpoint, a folder of checkpoints, checkpoints in their order, or several such "
        "folders of equal steps (runs: seeds, deficits)",
    )  # fmt: skip
    verb.add_argument(
        "--pattern",
        help="which files of a folder: a glob, or a regular expression with a group step",
    )
    _task(verb)
    verb.add_argument(
        "--labels", nargs="+", choices=("sampled", "exact", "observed"), default=["sampled"],
        help="labels drawn from the network, all classes, or those of the data: the empirical "
        "Fisher (sampled)",
    )  # fmt: skip
    verb.add_argument(
        "--likelihood", choices=("auto", "categorical", "bernoulli", "gaussian"), default="auto",
        help="what outputs mean (%(default)s: that of the task's loss)",
    )  # fmt: skip
    verb.add_argument(
        "--num-backwards", type=count,
        help="gradients of examples to take (256 for sampled labels, else all examples)",
    )  # fmt: skip
    verb.add_argument(
        "--tolerance", type=positive, metavar="SHARE",
        help="go on until the standard error is at most this share of the trace",
    )  # fmt: skip
    verb.add_argument("--seed", type=int, default=0, help="of all draws (%(default)s)")
    verb.add_argument(
        "--steps-per-epoch", type=count, metavar="N", help="count training in epochs of N steps"
    )
    verb.add_argument(
        "--deficit", action="append", default=[], type=deficit, metavar="[RUN=]FIRST:LAST",
        help="when a deficit was on, in the units of the steps, to be shaded (repeatable)",
    )  # fmt: skip
    group = verb.add_argument_group("evaluation")
    group.add_argument(
        "--batch-norm", nargs="+", choices=("recalibrate", "keep"), dest="statistics",
        help="statistics of a checkpoint: recomputed (default), or those that are stored; both "
        "to compare",
    )  # fmt: skip
    _recalibration(group)
    _running(group)
    verb.set_defaults(batch_norm=None)
    _loading(verb)
    _work(verb)


def hessian(verb: Verb) -> None:
    """Options of `hessian`."""
    _checkpoints(verb)
    _task(verb)
    verb.add_argument(
        "--what", choices=("eigenvalues", "trace", "density"), default="eigenvalues",
        help="a density takes one checkpoint (%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--matrix", choices=("hessian", "gauss-newton"), default="hessian", help="(%(default)s)"
    )
    verb.add_argument(
        "--layers", nargs="+", metavar="NAME",
        help="diagonal blocks instead of the whole: each (module), blocks, or names and patterns",
    )  # fmt: skip
    verb.add_argument("--num", type=count, default=5, help="eigenvalues (%(default)s)")
    verb.add_argument(
        "--which", choices=("largest", "magnitude", "both ends"), default="largest",
        help="eigenvalues (%(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--tolerance", type=positive,
        help="relative residual of eigenvalues (1e-4), relative standard error of a trace (0.05)",
    )  # fmt: skip
    verb.add_argument(
        "--method", choices=("hutchinson", "hutch++", "xtrace"), default="hutchinson",
        help="of the trace (%(default)s)",
    )  # fmt: skip
    verb.add_argument("--num-probes", type=count, default=10, help="of the density (%(default)s)")
    verb.add_argument(
        "--num-steps", type=count, default=80, help="products for each probe (%(default)s)"
    )
    verb.add_argument("--log", action="store_true", help="the density by decades")
    verb.add_argument(
        "--learning-rate", type=positive, help="to draw 2 / rate beside the largest eigenvalue"
    )
    verb.add_argument("--seed", type=int, default=0, help="of random vectors (%(default)s)")
    group = verb.add_argument_group("evaluation")
    group.add_argument(
        "--batch-norm", choices=("recalibrate", "keep"),
        help="statistics of a checkpoint: recomputed (default), or those that are stored",
    )  # fmt: skip
    _recalibration(group)
    _running(group)
    _loading(verb)
    _work(verb)


def dynamics(verb: Verb) -> None:
    """Options of `dynamics`."""
    verb.add_argument(
        "runs", nargs="+",
        help="a folder of checkpoints, or several with the same steps, or checkpoints in their "
        "order",
    )  # fmt: skip
    _task(verb, required=False)
    verb.add_argument(
        "--pattern",
        help="which files of a folder: a glob, or a regular expression with a group step",
    )
    for name, which in (("initial", "first"), ("final", "last")):
        verb.add_argument(
            f"--{name}", metavar="CHECKPOINT",
            help=f"what counts as the {name} state (default: the {which} checkpoint of each run)",
        )  # fmt: skip
    verb.add_argument(
        "--gradients", action="store_true",
        help="also the gradient of the training loss and its noise scale",
    )  # fmt: skip
    verb.add_argument(
        "--threshold", type=float,
        help="value that a learning curve is to reach and keep (half of the first one)",
    )  # fmt: skip
    verb.add_argument(
        "--measure", help="what the threshold is of: loss or a metric (error if it is there, else "
        "loss)",
    )  # fmt: skip
    verb.add_argument(
        "--seed", type=int, default=0, help="of the groups of examples for the noise (%(default)s)"
    )
    _evaluation(verb)
    _loading(verb)
    _work(verb)


def lottery(verb: Verb) -> None:
    """Options of `lottery`."""
    verb.add_argument(
        "folders", nargs="+",
        help="folders of runs, runs, or chains: NAME/level-00 (dense), NAME/CHAIN/level-01, "
        "NAME/CHAIN/CONTROL/level-01",
    )  # fmt: skip
    verb.add_argument(
        "--chains", nargs="+", default=["*"], metavar="PATTERN",
        help="patterns of the chains to report by their path in a run, such as 'k=50*' or "
        "'k=50/random-*' (all)",
    )  # fmt: skip
    group = verb.add_argument_group("work")
    group.add_argument("-o", "--output", required=True, help="results file (HDF5) to write")
    group.add_argument(
        "--overwrite", action="store_true", help="replace an output that is another analysis"
    )
    group.add_argument(
        "--dry-run", action="store_true", help="print which chains there are, and stop"
    )


def plot(verb: Verb) -> None:
    """Options of `plot`."""
    verb.add_argument("results", help="results file (HDF5)")
    verb.add_argument(
        "-o", "--output", required=True,
        help="figure: .pdf, .svg, .png ...; a surface also as .vts for ParaView, or .html",
    )  # fmt: skip
    verb.add_argument(
        "--y", nargs="+", metavar="MEASURE",
        help="measures to draw (all; the first for .vts and .html)",
    )  # fmt: skip
    verb.add_argument(
        "--kind", choices=("3d", "layers", "weights"),
        help="draw a surface in three dimensions instead of contours; dynamics by layer, or the "
        "distribution of weights, instead of those of the whole network",
    )  # fmt: skip
    verb.add_argument(
        "--html", action="store_true",
        help="an interactive surface that needs no network, as for an output that ends in .html",
    )  # fmt: skip
    verb.add_argument(
        "--venue", default="neurips",
        help="whose column width to use: icml, neurips, ... (%(default)s)",
    )  # fmt: skip
    verb.add_argument("--style", help="a matplotlib style or style file instead of the paper style")


def info(verb: Verb) -> None:
    """Options of `info`."""
    verb.add_argument("path", help="results file (HDF5), checkpoint, or folder of checkpoints")
    verb.add_argument("--state-key", help="which weights, if a checkpoint holds several (EMA, raw)")


def validate(verb: Verb) -> None:
    """Options of `validate`."""
    verb.add_argument("results", nargs="+", help="results files (HDF5)")


# --- options that verbs share ---------------------------------------------------------------------


def _ends(verb: Verb) -> None:
    verb.add_argument("a", help="checkpoint at t = 0: a file, or a folder in a known format")
    verb.add_argument("b", help="checkpoint at t = 1")


def _checkpoints(verb: Verb) -> None:
    verb.add_argument(
        "checkpoints", nargs="+",
        help="a checkpoint, a folder of checkpoints, or checkpoints in their order",
    )  # fmt: skip
    verb.add_argument(
        "--pattern",
        help="which files of the folder: a glob, or a regular expression with a group step",
    )


def _task(verb: Verb, *, required: bool = True) -> None:
    verb.add_argument(
        "--task", required=required, metavar="WHERE:FUNCTION",
        help="pkg.mod:function or path/file.py:function; the function returns a landscape.Task, "
        "or several with one model" + ("" if required else " (default: weights alone)"),
    )  # fmt: skip
    verb.add_argument(
        "--task-args", type=json_object, default={}, metavar="JSON",
        help='keyword arguments for that function, such as \'{"width": 64}\'',
    )  # fmt: skip


def _points(verb: Verb, default: int, what: str) -> None:
    verb.add_argument("--points", type=count, default=default, help=f"{what} (%(default)s)")


def _diagnostics(verb: Verb) -> None:
    verb.add_argument(
        "--diagnostics", action="store_true",
        help="also disagreement with both ends, entropy, calibration error and ensemble gain",
    )  # fmt: skip


def _evaluation(verb: Verb) -> None:
    group = verb.add_argument_group("evaluation")
    group.add_argument(
        "--batch-norm", choices=("recalibrate", "interpolate", "keep", "repair"),
        help="statistics of a point: recomputed from the task named 'train' or the first task "
        "(default), mixed like weights, those of the nearest checkpoint, or REPAIR for all units",
    )  # fmt: skip
    _recalibration(group)
    _running(group)


def _recalibration(group: Any) -> None:
    group.add_argument(
        "--batch-norm-examples", type=count, metavar="N",
        help="recalibrate on N examples, evenly spread over the data (default: all)",
    )  # fmt: skip


def _running(group: Any) -> None:
    group.add_argument(
        "--examples", type=count, metavar="N",
        help="a cheap preview: evaluate N examples, evenly spread over the data (default: all)",
    )  # fmt: skip
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (%(default)s)")
    group.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32",
        help="of the arithmetic (%(default)s)",
    )  # fmt: skip


def _loading(verb: Verb) -> None:
    group = verb.add_argument_group("reading checkpoints")
    group.add_argument(
        "--state-key", help="which weights, if a checkpoint holds several (EMA, raw)"
    )
    group.add_argument("--strip-prefix", help="leading part to remove from all names, such as net.")
    group.add_argument(
        "--allow-missing", action="append", default=[], metavar="PATTERN",
        help="names that a checkpoint may lack; filled from the task's model (repeatable)",
    )  # fmt: skip
    group.add_argument(
        "--allow-nonfinite", action="store_true", help="accept checkpoints with NaN or infinity"
    )


def _output(verb: Verb) -> Any:
    group = verb.add_argument_group("work")
    group.add_argument(
        "-o", "--output", required=True, help="results file (HDF5) to write or resume"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="start anew instead of resuming the output"
    )
    group.add_argument(
        "--dry-run", action="store_true", help="print the cost and stop before computing"
    )
    return group


def _work(verb: Verb) -> None:
    group = _output(verb)
    group.add_argument(
        "--workers", type=_workers, default=0, metavar="N|auto",
        help="processes on this machine; auto: one per GPU; 0: this process (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--scheduler", metavar="ADDRESS|FILE",
        help="a running dask cluster: tcp://host:8786, or a scheduler file",
    )  # fmt: skip


# --- values ---------------------------------------------------------------------------------------


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def blocks(text: str) -> int:
    """A number of blocks: 0, or at least 2."""
    if not text.isdigit() or int(text) == 1:
        raise argparse.ArgumentTypeError(f"expected 0 or at least 2 blocks, got {text!r}")
    return int(text)


def deficit(text: str) -> tuple[str, float, float]:
    """The window of a deficit, of one run or of all (""): seed0=0:40, or 0:40."""
    run, _, window = text.rpartition("=")
    first, _, last = window.partition(":")
    try:
        return run, float(first), float(last)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected FIRST:LAST or RUN=FIRST:LAST, got {text!r}"
        ) from error


def sizes(text: str) -> list[int]:
    """Numbers of points along the axes: 21, or 21x11."""
    return [count(part) for part in text.split("x")]


def json_object(text: str) -> dict[str, Any]:
    """A mapping in JSON."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error}): {text}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text}")
    return value


def _workers(text: str) -> int | str:
    if text != "auto" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number or 'auto', got {text!r}")
    return text if text == "auto" else int(text)

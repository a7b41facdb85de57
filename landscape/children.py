"""Which networks does a folder of runs hold, and at which step did each leave which trunk?"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from landscape.analyses.instability import Child, pairs_of
from landscape.checkpoints import SUFFIXES, Checkpoint, CheckpointError, checkpoints

STEP = r"(?:k|step|from)[-_=]?(\d+)"
TRUNK = r"(?:trunk|seed|init)(?:[-_=].+|\d+)"

Names = tuple[int, str, str]  # branch step, trunk, run
Holding = Mapping[str, Checkpoint | CheckpointError]  # by the path of a folder in the whole


def children_of(folder: str | os.PathLike[str], pattern: str | None = None) -> list[Child]:
    r"""The last checkpoints of all runs in a folder, as children for `instability`.

    A run is a subfolder, at any depth, that holds checkpoints as `checkpoints` reads them. Without
    `pattern`, the parts of its path say what it is: one like `k=500`, `k500`, `step-500` or
    `from-500` is the branch step, the first like `trunk-1`, `seed=1` or `init-1` the trunk (else
    the trunk is ""), and the rest, joined by `/`, the run. A folder without a branch step is left
    out if runs lie beneath it: it holds the trunk's own checkpoints. `pattern` is a regular
    expression for whole paths in the folder, with a group `step` and if need be `trunk` and `run`
    (else the run is the path), such as `r"(?P<trunk>\w+)/at-(?P<step>\d+)/(?P<run>\w+)"`; paths
    that it does not match are left out.

    Children are in the order of step, trunk and run. Raises `CheckpointError` if there is no run, a
    branch step cannot be read, two runs have the same names or lie in each other, or those of one
    step and trunk end at different training steps; `ValueError` if a step of a trunk has a single
    run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder of runs, and there is no such folder")
    holding = {
        place.relative_to(folder).as_posix(): last for place, last in _holding(folder).items()
    }
    try:
        named = _by_parts(holding) if pattern is None else _matched(holding, pattern)
        runs = _last(holding, named)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}\n{_ADVICE}") from error
    children = [Child(*names, runs[names]) for names in sorted(runs)]
    for a, b in pairs_of(children):
        ends = [runs[child.step, child.trunk, child.run].step for child in (a, b)]
        if ends[0] != ends[1]:
            raise CheckpointError(
                f"{folder}: from step {a.step} of trunk {a.trunk!r}, run {a.run!r} ends at step "
                f"{ends[0]} and run {b.run!r} at {ends[1]}. Children are compared where they have "
                "trained equally long: finish the shorter one, or leave it out."
            )
    return children


def _holding(folder: Path) -> dict[Path, Checkpoint | CheckpointError]:
    """Every folder beneath that holds checkpoints, with the last, or why they cannot be read."""
    found: dict[Path, Checkpoint | CheckpointError] = {}
    for place in sorted(folder.iterdir()):
        if not place.is_dir() or place.name.startswith("."):
            continue
        last: Checkpoint | CheckpointError | None = None
        try:
            last = checkpoints(place)[-1]
        except CheckpointError as error:
            if any(path.name.endswith(SUFFIXES) for path in place.iterdir()):
                last = error
        if last is not None:
            found[place] = last
        if not (isinstance(last, Checkpoint) and last.path.is_dir()):  # else it holds those alone
            found |= _holding(place)
    return found


def _by_parts(holding: Holding) -> dict[str, Names]:
    """The runs, named by the parts of their paths."""
    named = {}
    readable = [path for path, last in holding.items() if isinstance(last, Checkpoint)]
    for path in holding:
        beneath = [other for other in readable if other.startswith(f"{path}/")]
        above = [other for other in readable if path.startswith(f"{other}/")]
        steps, trunk, run = _parts(path)
        if (path not in readable and (beneath or above)) or (not steps and beneath):
            continue  # a stray file of weights, or the trunk
        if len(steps) != 1:
            raise CheckpointError(
                f"{path} holds checkpoints, and its path says "
                f"{'several branch steps' if steps else 'no branch step'}, expected one."
            )
        if beneath:
            raise CheckpointError(f"{path} holds checkpoints, and so does {beneath[0]} in it.")
        named[path] = steps[0], trunk, run
    return named


def _parts(path: str) -> tuple[list[int], str, str]:
    """The branch steps that a path says, the trunk and the run."""
    rest = path.split("/")
    said = [part for part in rest if re.fullmatch(STEP, part, re.IGNORECASE)]
    trunk = next((part for part in rest if re.fullmatch(TRUNK, part, re.IGNORECASE)), "")
    steps = [int(re.sub(r"\D", "", part)) for part in said]
    run = "/".join(part for part in rest if part not in (*said, trunk))
    return steps, trunk, run


def _matched(holding: Holding, pattern: str) -> dict[str, Names]:
    """The runs whose paths a pattern matches, named by its groups."""
    named = {}
    try:
        for path in holding:
            if match := re.fullmatch(pattern, path):
                groups = match.groupdict()
                step, trunk, run = groups["step"], groups.get("trunk"), groups.get("run")
                named[path] = int(step), trunk or "", run or path
    except (re.error, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the pattern {pattern!r} gives no step: {error!r}") from error
    return named


def _last(holding: Holding, named: Mapping[str, Names]) -> dict[Names, Checkpoint]:
    """The last checkpoint of each run, which no two may have names for."""
    if not named:
        seen = ", ".join([*holding][:5]) or "none"
        raise CheckpointError(f"nothing here is a run; folders that hold checkpoints: {seen}")
    runs: dict[Names, Checkpoint] = {}
    for path, names in named.items():
        last = holding[path]
        if isinstance(last, CheckpointError):
            raise last
        if names in runs:
            step, trunk, run = names
            both = " and ".join(other for other in named if named[other] == names)
            raise CheckpointError(
                f"{both} would all be run {run!r} of trunk {trunk!r} from step {step}"
            )
        runs[names] = last
    return runs


_ADVICE = (
    "Lay runs out as TRUNK/k=STEP/RUN, such as trunk-1/k=500/order-2, with their checkpoints in "
    "the folder of the run, or say where the names stand: "
    r'pattern=r"(?P<trunk>\w+)/at-(?P<step>\d+)/(?P<run>\w+)".'
)

"""What came of chains of pruning? One report, from the folders of levels and of controls."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from scipy import stats
from tqdm import tqdm

from landscape import results
from landscape.checkpoints import Checkpoint
from landscape.experiments.branches import checkpoint_at
from landscape.experiments.masks import MASK, Mask, load_mask, stability
from landscape.experiments.perturbations import effective_std
from landscape.experiments.pruning import levels_in, sparsity_curve
from landscape.experiments.records import read_run
from landscape.states import State

LEVEL = "level-[0-9]*"
DONE = ("finished", "stopped")
DISTANCES = {
    "pruning_distance": ("distance to the dense network", ""),
    "pruning_angle": ("angle to the dense network", "degree"),
    "order_distance": ("distance between data orders", ""),
    "order_angle": ("angle between data orders", "degree"),
    "effective_std": ("effective standard deviation", ""),
}
ENDED = "how the run ended"


class Place(NamedTuple):
    """What a level is of: a run (the folder of its dense network), a chain, and its number."""

    run: str
    chain: str
    level: int


def tickets(
    folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    chains: Sequence[str] = ("*",),
    progress: bool | None = False,
) -> xr.Dataset:
    """Accuracy, sparsity and stability of all levels of chains, and of their controls.

    `folders` and `chains` are those of `chains_in`. Variables over `run`, `chain` and `level`, nan
    where there is none: `density` of the prunable weights and `layer_density` (with `layer`);
    `test_error` and `train_error` of the last epoch; `ended`, how, as in `run.json`, or
    `"running"` or `"missing"`. Level 0 is the dense network, one for all chains of a run.

    On the weights that survive (arXiv 1903.01611): `pruning_distance`, `pruning_angle` (degrees)
    between the trained dense network and the trained subnetwork; `order_distance`, `order_angle`
    between copies of the subnetwork with other orders of the data, the mean over their pairs. The
    copies are those that `branches.children` makes from the first step of the level.

    `effective_std`, of controls with the mask of their chain: the standard deviation of the change
    from the start of the chain's level to theirs (arXiv 2002.10365), 0 for the chain itself. Over
    `chain` and `level`, where a chain has such controls: the Pearson `correlation` of the means
    over runs (those that have both) of effective standard deviation and test accuracy, with its
    two-sided `p_value`, over at least three points; the chain itself is one unless a control
    repeats it.

    Coordinates along `chain`: `step` k that it rewinds to; the chain that it is a `control` of,
    or itself, is `of`; and `kind`, what its name says beside `k=STEP`, such as `lr`.

    Raises `ValueError` as `chains_in`; for levels that ran without a mask, or if none has begun;
    for masks of other shapes than the checkpoints beside them or than those of other runs; for
    damaged files, and if the last checkpoint of a run that is over is not there, or the first.
    """
    places = chains_in(folders, chains=chains)
    about = {place.chain: _about(place, places) for place in reversed(places) if place.level}
    axes: dict[str, list[Any]] = {
        "run": sorted({place.run for place in places}),
        "chain": sorted(about, key=lambda chain: [*about[chain].values()]),
        "level": list(range(1 + max(place.level for place in places))),
    }
    ended = {place: _ended(path) for place, path in places.items()}
    masks = {place: _mask(path) for place, path in places.items() if place.level}
    if not any(masks.values()):
        raise ValueError(
            f"no level of {', '.join(about)} has begun: none has a {MASK}. Report when one trains"
        )
    _check_shapes({places[place]: mask for place, mask in masks.items() if mask})
    values = _errors(places, ended)
    for place in tqdm(
        masks, desc="tickets", unit="level", disable=None if progress is None else not progress
    ):
        if ended[place] in DONE:
            values[place] |= _distances(place, places, ended, masks, about[place.chain]["of"])
    dims = tuple(axes)
    layers = list(dict.fromkeys(layer for mask in masks.values() for layer in mask))

    def grid(name: str, text: str, units: str) -> tuple[Any, ...]:
        filled = _filled(axes, {place: own[name] for place, own in values.items() if name in own})
        return dims, filled, {"long_name": text} | ({"units": units} if units else {})

    by_layer = [
        _filled(axes, {place: own["layers"].get(layer, np.nan) for place, own in values.items()})
        for layer in layers
    ]
    result = results.dataset(
        {
            "density": grid("density", "density", ""),
            "layer_density": (
                (*dims, "layer"), np.stack(by_layer, -1), {"long_name": "density of the layer"}
            ),
            "test_error": grid("test_error", "test error", ""),
            "train_error": grid("train_error", "training error", ""),
            "ended": (dims, _filled(axes, ended, "missing"), {"long_name": ENDED}),
            **{name: grid(name, *said) for name, said in DISTANCES.items()},
        },
        {
            **axes,
            "layer": layers,
            **{
                name: ("chain", [about[one][name] for one in axes["chain"]], {"long_name": text})
                for name, text in (
                    ("step", "rewinding step"), ("kind", "kind of chain"), ("of", "chain"),
                    ("control", "control"),
                )
            },
        },
        analysis="tickets",
        title=f"{len(axes['chain'])} chains and controls of {len(axes['run'])} runs",
    )  # fmt: skip
    return result.assign(_correlations(result))


def chains_in(
    folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    chains: Sequence[str] = ("*",),
) -> dict[Place, Path]:
    """The folders of all levels of chains and controls, dense networks as level 0 of each chain.

    Each folder holds runs, is a run, or is a chain, as `iterative_pruning` and `train_masked` leave
    them: `name/level-00`, `name/CHAIN/level-01`, `name/CHAIN/CONTROL/level-01`. A chain has all
    levels up to its last; a control may have any. `chains` are patterns (as in `fnmatch`) of which
    a chain matches one, such as `"k=50*"` or `"k=50/random-*"`, by its path within the run.

    Raises `ValueError` if there is no such chain in a folder, or a level of a chain is missing.
    """
    if isinstance(folders, str | os.PathLike):
        folders = [folders]
    found: dict[Path, Path] = {}  # the run of each chain
    for folder in folders:
        own = _folders(Path(folder).resolve())
        if not own:
            raise ValueError(_nothing(Path(folder)))
        found |= own
    above = os.path.commonpath([run.parent for run in found.values()])
    places: dict[Place, Path] = {}
    for path, run in sorted(found.items()):
        chain, name = path.relative_to(run).as_posix(), Path(os.path.relpath(run, above)).as_posix()
        if any(fnmatchcase(chain, pattern) for pattern in chains):
            if _chain_of(path, run) == path:
                levels_in(path)  # none may be missing
            places[Place(name, chain, 0)] = run / "level-00"
            places |= {Place(name, chain, n): one for n, one in _levels(path).items()}
    if not places:
        known = ", ".join(sorted({path.relative_to(run).as_posix() for path, run in found.items()}))
        raise ValueError(f"no chain matches {' or '.join(chains)}; there are {known}")
    return places


# Folders ------------------------------------------------------------------------------------------


def _folders(folder: Path) -> dict[Path, Path]:
    """The folders of chains and controls in a folder, and that of the run of each."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder with chains, and there is no such folder")
    found = {}
    for path in {level.parent for level in folder.rglob(LEVEL) if level.is_dir()}:
        within = path.relative_to(folder).parts
        if _levels(path) and not any(part.startswith("level-") for part in within):
            above = (one for one in (path, *path.parents) if (one / "level-00").is_dir())
            beside = path.parent.parent if _levels(path.parent) else path.parent
            found[path] = next(above, beside)
    return found


def _levels(path: Path) -> dict[int, Path]:
    """The levels in the folder of a chain by their numbers, but level 0."""
    named = {one.name.removeprefix("level-"): one for one in sorted(path.glob(LEVEL))}
    return {int(n): one for n, one in named.items() if n.isdigit() and int(n)}


def _chain_of(path: Path, run: Path) -> Path:
    """The folder of the chain that a control lies in; that of a chain itself."""
    return path.parent if path.parent != run and path != run and _levels(path.parent) else path


def _nothing(folder: Path) -> str:
    seen = sorted(path.name for path in folder.iterdir() if path.is_dir())
    shown = ", ".join(seen[:8]) + (", ..." if len(seen) > 8 else "")
    return (
        f"{folder} holds no chain: looked for folders level-01, level-02, ... in NAME/CHAIN or "
        "NAME/CHAIN/CONTROL, as iterative_pruning leaves them beside NAME/level-00; found "
        f"{shown or 'no folders'}"
    )


def _about(place: Place, places: Mapping[Place, Path]) -> dict[str, Any]:
    """What is known of the chain of a level, in the order by which chains are sorted."""
    path, run = places[place].parent, places[place._replace(level=0)].parent
    of = _chain_of(path, run)
    name = of.relative_to(run).as_posix()
    step = _rewinding_step(min(_levels(of).items())[1], run / "level-00")
    kind = f"{name}-".removeprefix(f"k={step:g}-").removesuffix("-")
    return {"step": step, "kind": kind, "of": name, "control": path.name if of != path else ""}


def _rewinding_step(level: Path, dense: Path) -> float:
    """The step k of the weights that a level begins with, or of its clock; infinite if unknown."""
    start = read_run(level).get("settings", {}).get("start") or {}
    state = start.get("state")
    point = state.get("step") if isinstance(state, Mapping) else None
    end = read_run(dense).get("step", -1)
    if isinstance(point, int) and point < end:  # else it goes on from trained weights
        return float(point)
    return float(start.get("step", np.inf))


def _ended(path: Path) -> str:
    """How the run of a level ended, or why it did not."""
    return str(read_run(path).get("status", "running" if (path / MASK).exists() else "missing"))


def _mask(path: Path) -> Mask:
    """The mask of a level; empty for one that has nothing yet."""
    if (path / MASK).exists():
        return load_mask(path)
    if read_run(path) or any(path.glob("step-*")):
        raise ValueError(
            f"{path} holds a run but no {MASK}, which says what survives: iterative_pruning and "
            "train_masked write it. Write it with masks.save_mask, or leave this chain out"
        )
    return {}


def _check_shapes(masks: Mapping[Path, Mask]) -> None:
    """Refuse masks of one name and other shapes, whose runs have nothing in common."""
    seen: dict[str, tuple[torch.Size, Path]] = {}
    for path, mask in masks.items():
        for name, one in mask.items():
            shape, first = seen.setdefault(name, (one.shape, path))
            if shape != one.shape:
                raise ValueError(
                    f"the masks of {first} and {path} are of other networks: {name} is "
                    f"{tuple(shape)} and {tuple(one.shape)}. Report them one at a time"
                )


# Numbers ------------------------------------------------------------------------------------------


def _errors(
    places: Mapping[Place, Path], ended: Mapping[Place, str]
) -> dict[Place, dict[str, Any]]:
    """Densities of all levels, and the errors of those that are over."""
    above = Path(os.path.commonpath([*places.values()]))
    curve = sparsity_curve([path.relative_to(above).as_posix() for path in places.values()], above)
    layers = list(map(str, curve["layer"].values))
    found: dict[Place, dict[str, Any]] = {}
    for number, place in enumerate(places):
        one = curve.isel(run=number)
        known = place.level or ended[place] != "missing"
        shares = one["layer_density"].values.tolist() if known else []
        found[place] = {"layers": dict(zip(layers, shares, strict=False))}
        if known:
            found[place]["density"] = float(one["density"])
        if ended[place] in DONE:
            found[place] |= {n: float(one[n]) for n in ("test_error", "train_error")}
    return found


def _distances(
    place: Place,
    places: Mapping[Place, Path],
    ended: Mapping[Place, str],
    masks: Mapping[Place, Mask],
    of: str,
) -> dict[str, float]:
    """Stability to pruning and to data order of a level, and how far its start was changed."""
    path, mask = places[place], masks[place]
    found: dict[str, float] = {}
    dense = place._replace(level=0)
    with _explained(path):
        last = _end(path).load()
        if ended[dense] in DONE:
            found |= _pair("pruning", [stability(_end(places[dense]), last, mask)])
        if copies := _copies(path):
            pairs = [stability(a, b, mask) for a, b in combinations(copies, 2)]
            found |= _pair("order", pairs)
        if of == place.chain:
            found["effective_std"] = 0.0
            return found
        base = path.parent.parent / path.name
        if _ended(base) in DONE and _same(mask, _mask(base)):
            found["effective_std"] = effective_std(_start(base), _start(path), mask)
    return found


def _pair(name: str, pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    distance, angle = np.mean(pairs, axis=0).tolist() if pairs else (np.nan, np.nan)
    return {f"{name}_distance": distance, f"{name}_angle": angle}


def _start(path: Path) -> Checkpoint:
    """The checkpoint with which a run began."""
    start = read_run(path).get("settings", {}).get("start") or {}
    return checkpoint_at(path, int(start.get("step", 0)))


def _end(path: Path) -> Checkpoint:
    """The checkpoint with which a run ended, and no earlier one."""
    return checkpoint_at(path, int(read_run(path)["step"]))


def _copies(path: Path) -> list[State]:
    """The ends of the copies of a level that saw the data in other orders from its first step."""
    point = path / f"k={_start(path).step}"
    found = sorted([*point.glob("order-*"), *point.glob("both-*")])
    return [_end(one).load() for one in found if _ended(one) in DONE]


def _same(a: Mask, b: Mask) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _filled(
    axes: Mapping[str, Sequence[Any]], values: Mapping[Place, Any], empty: Any = np.nan
) -> Any:
    """An array (run, chain, level) with values in their places, those of level 0 for all chains."""
    at = [{label: number for number, label in enumerate(labels)} for labels in axes.values()]
    found = np.full([len(one) for one in at], empty, None if empty != "missing" else object)
    for place, value in values.items():
        run, chain, level = (own[key] for own, key in zip(at, place, strict=True))
        found[(run, chain, level) if level else (run, slice(None), 0)] = value
    return found.astype(str) if empty == "missing" else found


def _correlations(result: xr.Dataset) -> dict[str, Any]:
    """Accuracy against effective standard deviation over a chain and the controls of each level."""
    shape = result.sizes["chain"], result.sizes["level"]
    found = np.full((2, *shape), np.nan)
    both = result["effective_std"].notnull() & result["test_error"].notnull()
    changes, errors = (
        result[name].where(both).mean("run").values for name in ("effective_std", "test_error")
    )
    chain, of = result["chain"].values, result["of"].values
    for number, level in np.ndindex(shape):
        arms = (of == chain[number]) & np.isfinite(changes[:, level] + errors[:, level])
        arms[number] &= not (changes[arms & (chain != of), level] == 0).any()
        x, y = changes[arms, level], 1 - errors[arms, level]
        if chain[number] == of[number] and len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
            found[:, number, level] = stats.pearsonr(x, y)
    dims = ("chain", "level")
    return {
        "correlation": (dims, found[0], {"long_name": "correlation with accuracy"}),
        "p_value": (dims, found[1], {"long_name": "p-value of the correlation"}),
    }


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say of which folder an error is, unless it does."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error

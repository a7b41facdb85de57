"""Which way did training go? Checkpoints in their principal plane, with the loss around them.

Checkpoints are read one after the other and compared a few at a time: their inner products are all
that the principal components need, so a trajectory may be larger than the memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from landscape.analyses.surface import SurfacePlan, covering, finished, surface_plan, surface_rows
from landscape.evaluation import Tasks
from landscape.families import AXES, Family, affine
from landscape.maths.spectra import cosine_content, principal_components
from landscape.results import dataset
from landscape.states import PIECE, State, Stored, check_alike, loaded, weight_names

Array = NDArray[np.float64]
Checkpoints = Sequence[State | Stored]

HELD = 6  # checkpoints of a block; two blocks and the last checkpoint are in memory at once
ORIGINS = {
    "last": "the axes are those of the uncentred moments about the last checkpoint; "
    "subtracting the mean instead gives different axes",
    "mean": "the axes are those of the covariance about the mean of the checkpoints; "
    "subtracting the last checkpoint instead gives different axes",
}


def trajectory(
    task: Tasks | None,
    checkpoints: Checkpoints,
    *,
    steps: Sequence[int] | None = None,
    origin: str = "last",
    num_components: int = 2,
    points: int | Sequence[int] = 21,
    margin: float = 0.2,
    surface: bool = True,
    marks: Mapping[str, State | Stored] | None = None,
    curve: Family | None = None,
    tsne: bool = False,
    seed: int = 0,
    **options: Any,
) -> xr.Dataset:
    """Where checkpoints lie in the plane of their principal components, and the loss in it.

    The path is that of `trajectory_path`, which explains `steps`, `origin`, `num_components`,
    `tsne` and `seed`. With a task, and unless `surface` is False, the plane about the same origin
    is evaluated on the grid of `trajectory_plan`, which explains `points`, `margin`, `marks` and
    `curve`; `options` are those of `evaluate`. The result then has the variables of a surface too.

    Raises what these raise: `ValueError` for a single checkpoint or equal ones, checkpoints that
    span fewer directions than there are components, and checkpoints of different architectures.
    """
    path = trajectory_path(
        checkpoints, steps=steps, origin=origin, num_components=num_components, tsne=tsne, seed=seed
    )
    if task is None or not surface:
        return path
    plan = trajectory_plan(
        checkpoints, path, points=points, margin=margin, marks=marks, curve=curve
    )
    return with_surface(path, finished(surface_rows(task, plan, **options), plan))


def trajectory_path(
    checkpoints: Checkpoints,
    *,
    steps: Sequence[int] | None = None,
    origin: str = "last",
    num_components: int = 2,
    tsne: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Coordinates of checkpoints along their principal components, in Euclidean distances.

    `checkpoints` are states, or things with `load()` that are read when needed: at most 13 are in
    memory at once. `steps`: their training steps, by default those of the checkpoints (`.step`),
    else 0, 1, ... `origin`: where the axes meet, `"last"` (Li et al. 2018, section 7.1) or
    `"mean"`; the components are about that point. `num_components`: 1 to 3. Components come from
    the Gram matrix of differences between checkpoints, in float64.

    Returns along `step`: `path_x`, `path_y` (as many as components), `path_distance` (from the
    plane: a checkpoint far from it does not have the loss that is drawn there), and with `tsne`
    `tsne_x`, `tsne_y`, an embedding of the distances that keeps neighbours and no scale. For each
    `component`: `explained_variance`, its share of the sum of squares about the origin;
    `cosine_content`, how much it looks like that of a random walk (1: entirely, see
    `maths.spectra.cosine_content`); and `loadings (step, component)`: the axis is the sum of the
    checkpoints' differences from the last one, times these.

    Raises `ValueError` for fewer than two checkpoints, equal ones, other architectures, non-finite
    weights, or more components than the checkpoints span; t-SNE needs at least four.
    """
    if origin not in ORIGINS:
        raise ValueError(f"origin must be 'last' or 'mean', got {origin!r}")
    if not 1 <= num_components <= len(AXES):
        raise ValueError(f"num_components must be 1 to {len(AXES)}, got {num_components}")
    labels = _steps(checkpoints, steps)
    about_last = _gram(checkpoints, labels)
    products = about_last
    if origin == "mean":
        centred = products - products.mean(0)
        products = centred - centred.mean(1, keepdims=True)
    try:
        values, vectors = principal_components(products, num_components)
    except ValueError as error:
        raise ValueError(
            f"{len(labels)} checkpoints about their {origin}: {error}; ask for fewer "
            "(num_components=), or give more checkpoints"
        ) from error
    coordinates = vectors * np.sqrt(values)
    rest = np.clip(products.diagonal() - (coordinates**2).sum(1), 0, None)
    contents = cosine_content(coordinates, pinned=origin == "last")
    variables: dict[str, Any] = {
        f"path_{axis}": ("step", column, {"units": "distance"})
        for axis, column in zip(AXES, coordinates.T, strict=False)
    }
    variables |= {
        "path_distance": (
            "step",
            np.sqrt(rest),
            {"long_name": "distance from the plane", "units": "distance"},
        ),
        "explained_variance": ("component", values / np.trace(products)),
        "cosine_content": ("component", contents),
        "loadings": (("step", "component"), vectors / np.sqrt(values)),
    }
    if tsne:
        variables |= _tsne(about_last, seed)
    look = [str(number) for number, content in enumerate(contents, start=1) if content > 0.5]
    note = "a slice through a few directions is not the landscape"
    if look:
        note += (
            f"; the cosine content of component {', '.join(look)} is above 0.5: a random walk "
            "without any landscape draws such a (Lissajous) curve. The first component alone says "
            "little, since every steady drift has it"
        )
    return dataset(
        variables,
        {"step": labels, "component": np.arange(1, num_components + 1)},
        analysis="trajectory",
        title=f"Trajectory of {len(labels)} checkpoints",
        origin=origin,
        axes=ORIGINS[origin],
        note=note,
        seed=seed,
    )


def trajectory_plane(checkpoints: Checkpoints, path: xr.Dataset) -> Family:
    """The plane (line, space) in which a path lies: orthonormal axes about the same origin.

    `path` is the result of `trajectory_path` for the same checkpoints, which are read once more.
    Buffers and statistics of normalisation layers are those of the last one.
    """
    last = loaded(checkpoints[-1])
    names = weight_names(last)
    loadings = path["loadings"].values.T
    if loadings.shape[1] != len(checkpoints):
        raise ValueError(
            f"the path has {loadings.shape[1]} steps, got {len(checkpoints)} checkpoints: give "
            "those that the path was made from"
        )
    about_mean = path.attrs["origin"] == "mean"
    rows = np.vstack([loadings, np.full(len(checkpoints), 1 / len(checkpoints))])
    sums = [
        {name: torch.zeros_like(last[name], dtype=torch.float64) for name in names} for _ in rows
    ]
    for weights, state in zip(rows.T, checkpoints, strict=True):
        one = loaded(state)
        for name in names:
            difference = one[name].detach().to(last[name].device).double() - last[name]
            for total, weight in zip(sums, weights, strict=True):
                total[name] += float(weight) * difference
    *axes, mean = sums
    middle = {name: last[name].double() + mean[name] for name in names}
    return affine({**last, **middle} if about_mean else last, *axes)


def trajectory_plan(
    checkpoints: Checkpoints,
    path: xr.Dataset,
    *,
    points: int | Sequence[int] = 21,
    margin: float = 0.2,
    marks: Mapping[str, State | Stored] | None = None,
    curve: Family | None = None,
) -> SurfacePlan:
    """The surface that belongs to a path: its plane, on a grid that covers the path.

    `margin` is a share of the largest width on each side. About the last checkpoint, the grid
    contains it. `points`, `marks` and `curve` are those of `surface_plan`.
    """
    family = trajectory_plane(checkpoints, path)
    num = len(family.coordinates)
    sizes = [points] * num if isinstance(points, int) else list(points)
    if len(sizes) != num:
        raise ValueError(f"points must be one number, or {num} for this path; got {points}")
    places = np.stack([path[f"path_{axis}"].values for axis in family.coordinates], axis=1)
    axes = covering(places, sizes, margin)
    if path.attrs["origin"] == "last":
        axes = [_through_zero(axis[[0, -1]], size) for axis, size in zip(axes, sizes, strict=True)]
    named = dict(zip(family.coordinates, axes, strict=True))
    return surface_plan(family, **named, marks=marks, curve=curve)  # type: ignore[arg-type]


def with_surface(path: xr.Dataset, surface: xr.Dataset) -> xr.Dataset:
    """A path with the surface of its plane, in one result."""
    joined = xr.merge(
        [path, surface], compat="no_conflicts", join="exact", combine_attrs="override"
    )
    shape = " x ".join(str(surface.sizes[f"{axis}"]) for axis in surface["axis"].values)
    title = f"{path.attrs['title']} on a surface of {shape} points"
    return joined.assign_attrs({**surface.attrs, **path.attrs, "title": title})


def _steps(checkpoints: Checkpoints, steps: Sequence[int] | None) -> list[int]:
    """A training step for each checkpoint."""
    if len(checkpoints) < 2:
        raise ValueError(
            f"a trajectory needs at least two checkpoints, got {len(checkpoints)}; surface() "
            "looks around a single state"
        )
    found = [getattr(one, "step", None) for one in checkpoints] if steps is None else list(steps)
    if len(found) != len(checkpoints):
        raise ValueError(f"got {len(found)} steps for {len(checkpoints)} checkpoints")
    return list(range(len(found))) if None in found else [int(step) for step in found]  # type: ignore[arg-type]


def _through_zero(ends: Array, size: int) -> Array:
    """Equidistant values, with 0 exactly among them, that cover from one end to the other."""
    if size < 3:
        raise ValueError(f"a grid about the last checkpoint needs at least 3 points, got {size}")
    low, high = ends
    step = (high - low) / (size - 2)
    return step * (np.floor(low / step) + np.arange(size))


# --- inner products -------------------------------------------------------------------------------


def _gram(checkpoints: Checkpoints, steps: Sequence[int]) -> Array:
    """Inner products (n, n) of the differences from the last checkpoint, over the weights.

    Differences come first, so that checkpoints close to each other but far from zero keep their
    digits. Blocks of checkpoints are held, and all later blocks pass by.
    """
    num, last = len(checkpoints), loaded(checkpoints[-1])
    products = np.zeros((num, num))
    blocks = [slice(start, start + HELD) for start in range(0, num, HELD)]

    def read(block: slice) -> list[State]:
        pairs = zip(checkpoints[block], steps[block], strict=True)
        return [_checked(one, step, last, steps[-1]) for one, step in pairs]

    for number, block in enumerate(blocks):
        held = read(block)
        products[block, block] = _products(held, held, last)
        for other in blocks[number + 1 :]:
            products[block, other] = _products(held, read(other), last)
        del held
    upper = np.triu(products)
    products = upper + np.triu(products, 1).T
    if not np.isfinite(products).all():
        bad = [steps[i] for i in range(num) if not np.isfinite(products[i, i])]
        raise ValueError(
            f"the checkpoints of the steps {bad[:5]} hold values that are not finite (or the last "
            "one does, if all are named): leave them out"
        )
    if not products.any():
        raise ValueError(f"the {num} checkpoints are all equal, so they span no direction")
    return products


def _checked(one: State | Stored, step: int, last: State, last_step: int) -> State:
    state = loaded(one)
    try:
        check_alike([last, state])
    except ValueError as error:
        raise ValueError(
            f"the last checkpoint (step {last_step}) and that of step {step} differ: {error}"
        ) from error
    return state


def _products(these: Sequence[State], those: Sequence[State], last: State) -> Array:
    """Inner products (m, n) of the differences of m and of n states from the last one."""
    total = np.zeros((len(these), len(those)))
    for base, part, name in _pieces(last):
        ours, theirs = (
            torch.stack([s[name].detach().reshape(-1)[part].to(base) - base for s in states])
            for states in (these, those)
        )
        total += (ours @ theirs.T).cpu().numpy()
    return total


def _pieces(state: State) -> Iterator[tuple[Tensor, slice, str]]:
    """The weights of a state in float64, piece by piece, and where each piece lies."""
    for name in weight_names(state):
        flat = state[name].detach().reshape(-1)
        for start in range(0, len(flat), PIECE):
            part = slice(start, start + PIECE)
            yield flat[part].double(), part, name


def _tsne(products: Array, seed: int) -> dict[str, Any]:
    """An embedding of the distances in two dimensions. Van der Maaten and Hinton 2008."""
    from sklearn.manifold import TSNE

    num = len(products)
    if num < 4:
        raise ValueError(f"t-SNE needs at least 4 checkpoints, got {num}")
    squares = products.diagonal()
    distances = np.sqrt(np.clip(squares[:, None] + squares - 2 * products, 0, None))
    np.fill_diagonal(distances, 0)
    perplexity = min(30.0, (num - 1) / 3)
    fit = TSNE(metric="precomputed", init="random", perplexity=perplexity, random_state=seed)
    embedded = fit.fit_transform(distances).astype(np.float64)
    words = {"long_name": f"t-SNE of the distances, perplexity {perplexity:.3g}"}
    return {f"tsne_{axis}": ("step", embedded[:, i], words) for i, axis in enumerate("xy")}

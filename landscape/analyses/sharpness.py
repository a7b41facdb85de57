"""How much does the loss rise within a small distance of a solution?

`sharpness` is the rise that sharpness-aware minimisation sees, plain or adaptive. `rescaled` gives
another state with the same function: a measure that tells the two apart says nothing about what the
network computes (Dinh et al. 2017).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from landscape.analyses.curvature import at_state, mean_loss_at, within_memory
from landscape.analyses.hessian import on_products
from landscape.evaluation import Tasks, outputs_at, prepare
from landscape.examples import Examples
from landscape.maths.lanczos import top_eigenvalues
from landscape.maths.traces import Product, hutchinson
from landscape.products import MeanLoss, gradient
from landscape.results import dataset
from landscape.states import State, Stored, loaded, match
from landscape.task import tensors_in, training_task


def sharpness(
    task: Tasks,
    state: State | Stored,
    *,
    radius: float = 0.05,
    adaptive: bool = False,
    steps: int = 1,
    m: int | None = None,
    num_batches: int | None = None,
    curvature: bool = False,
    seed: int = 0,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """The largest rise of the mean loss, L(w + d) - L(w), over moves d of length `radius` or less.

    Main arguments. `task`: one, or several of which the one named `"train"`, or the first, counts.
    `adaptive`: lengths are those of d / |w|, element by element and biases too, so that sharpness
    does not change with `rescaled` (Kwon et al. 2021, section 3, who add a constant to |w| in
    practice); weights of zero do not move. `steps`: 1 is the one move of length `radius` along the
    gradient of Foret et al. 2021, equation 2 (0 where there is no gradient); more steps climb on
    from there, along the gradient and back into the ball, each by `radius` until that climbs no
    more and then by half. `m`: the mean over batches of `m` examples, each with a move of its own
    (m-sharpness; Andriushchenko and Flammarion 2022); by default all examples share one.

    Other arguments. `num_batches`: no more than so many; examples are drawn without replacement,
    and those that do not fill a batch are left out. `curvature`: also the `top_eigenvalue` and the
    `trace` with `trace_stderr` of the Hessian of the mean loss over all examples, or if adaptive of
    the Hessian with respect to d / |w|: at a minimum, the rise is about radius^2 / 2 times the
    first. Further `options` are those of `mean_loss_at`; batch norm keeps its statistics while
    weights move.

    Returns `sharpness` with `sharpness_stderr` (over batches, NaN for one), `loss` and
    `gradient_norm`. Steps find a large rise, not surely the largest.

    Raises `ValueError` for a radius that is not positive, if batches are larger than the data or
    the data do not fit into memory, and where the loss cannot be differentiated or, at the state or
    nearby, is not finite.
    """
    if not radius > 0 or steps < 1:
        raise ValueError(
            f"need a positive radius and a step at least, got radius={radius} and steps={steps}"
        )
    mean, attrs = mean_loss_at(task, state, **options)
    batches = [mean] if m is None else _drawn(mean, m, num_batches, seed)
    mean, variables = at_state(mean)
    batches = [replace(one, batch_size=min(one.batch_size, mean.batch_size)) for one in batches]
    start = torch.cat([p.detach().reshape(-1).double() for p in mean.parameters])
    scale = start.abs() if adaptive else torch.ones_like(start)
    rises = []
    with tqdm(batches, unit="batch", disable=None if progress is None else not progress) as bar:
        for one in bar:
            rises.append(_rise(one, start, scale, radius, steps, seed))
    stderr = np.std(rises, ddof=1) / len(rises) ** 0.5 if len(rises) > 1 else np.nan
    words = {"long_name": "standard error of the sharpness over batches"}
    variables |= {"sharpness": ((), np.mean(rises)), "sharpness_stderr": ((), stderr, words)}
    if curvature:
        variables |= _curvature(mean, scale, seed, progress)
    return dataset(
        variables,
        {},
        analysis="sharpness",
        title=f"{'Adaptive sharpness' if adaptive else 'Sharpness'} within {radius:g}",
        radius=radius,
        adaptive=adaptive,
        steps=steps,
        m=attrs["num_examples"] if m is None else m,
        num_batches=len(rises),
        seed=seed,
        **attrs,
    )


def rescaled(
    task: Tasks,
    state: State | Stored,
    first: str,
    second: str,
    scale: float,
    *,
    tolerance: float = 1e-5,
    **options: Any,
) -> State:
    """A state with the same function: one layer times `scale`, the layer behind it by its inverse.

    `first` and `second` name layers with a `weight`; the bias of the first one is scaled too. The
    function stays if all between them has f(a x) = a f(x) for a > 0, such as ReLU and pooling (Dinh
    et al. 2017, section 3). That is tested on all examples of the task, with
    the batch-norm statistics of the state. `options` are those of `prepare`; the arithmetic is in
    float64 unless said otherwise.

    Raises `ValueError` if a layer is unknown or has no weight, if the scale is not positive, and
    if the outputs change by more than `tolerance` of the largest.
    """
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be positive, got {scale}")
    state = loaded(state)
    ready = prepare(task, [state], **{"dtype": torch.float64, **options})
    main = training_task(ready.tasks)
    state = match(state, main.model)
    modules = dict(main.model.named_modules())
    for name in (first, second):
        if not isinstance(getattr(modules.get(name), "weight", None), Tensor):
            known = [name for name in modules if f"{name}.weight" in state]
            raise ValueError(
                f"the model has no layer {name!r} with a weight; it has {', '.join(known[:8])}"
                f"{', ...' if len(known) > 8 else ''}"
            )
    factors = {f"{first}.weight": scale, f"{first}.bias": scale, f"{second}.weight": 1 / scale}
    moved = {name: state[name] * factors[name] for name in factors if name in state}
    result = {**state, **moved}
    outputs = outputs_at(ready, [state, result], batch_norm="keep")[ready.tasks.index(main)]
    change = abs(outputs[1] - outputs[0]).max() / abs(outputs[0]).max()
    if not change <= tolerance:
        raise ValueError(
            f"{first!r} times {scale:g} and {second!r} by it change the outputs by {change:.2g} of "
            "the largest: between them may be only functions with f(a x) = a f(x), such as ReLU "
            "and pooling, and nothing else may take what the first gives"
        )
    return result


def _drawn(mean: MeanLoss, m: int, num_batches: int | None, seed: int) -> list[MeanLoss]:
    """The mean losses over disjoint random batches of m examples."""
    examples = mean.examples
    if examples.source is not None:
        raise ValueError("batches of m examples are drawn from data that fit into memory; leave m "
                         "out, or give a task with fewer examples")  # fmt: skip
    if not 1 <= m <= examples.num or (num_batches is not None and num_batches < 1):
        raise ValueError(
            f"there are {examples.num} examples, too few for batches of m={m} or for "
            f"num_batches={num_batches}"
        )
    order = torch.randperm(examples.num, generator=torch.Generator().manual_seed(seed))
    parts = [part for part in order.split(m) if len(part) == m][:num_batches]
    return [
        replace(mean, task=f"{mean.task}, batch {number} of {m}", examples=_some(examples, part))
        for number, part in enumerate(parts)
    ]


def _some(examples: Examples, index: Tensor) -> Examples:
    where = tensors_in(examples.inputs)[0].device
    inputs, targets = examples.part(index.to(where))
    return replace(examples, num=len(index), inputs=inputs, targets=targets)


def _rise(
    mean: MeanLoss, start: Tensor, scale: Tensor, radius: float, steps: int, seed: int
) -> float:
    """How much the loss rises where the ascent ends. Moves are `scale` times u, |u| <= radius."""

    def at(u: Tensor) -> tuple[float, Tensor]:
        with _moved(mean, start + scale * u):
            _, (value, slope) = within_memory(mean, gradient)
        return value, scale * slope

    value, slope = at(torch.zeros_like(start))
    if not slope.any():
        if steps == 1:
            return 0.0
        noise = torch.randn(len(start), generator=torch.Generator().manual_seed(seed))
        slope = scale.sign() * noise.to(start)
    u, pace = _of_length(slope, radius), radius
    height, slope = at(u)
    for _ in range(steps - 1):
        further = u + _of_length(slope, pace)
        further = _of_length(further, min(radius, further.norm().item()))
        new, new_slope = at(further)
        if new > height:
            u, height, slope = further, new, new_slope
        else:
            pace /= 2
    return height - value


def _of_length(vector: Tensor, length: float) -> Tensor:
    """The vector at that length; zero stays zero."""
    norm = vector.norm()
    return vector * (length / norm) if norm > 0 else vector


@contextmanager
def _moved(mean: MeanLoss, vector: Tensor) -> Iterator[None]:
    """The private model with other values of the parameters that count."""
    own = [parameter.detach().clone() for parameter in mean.parameters]
    parts = vector.split([parameter.numel() for parameter in own])
    try:
        _set(mean, [part.view_as(old) for part, old in zip(parts, own, strict=True)])
        yield
    finally:
        _set(mean, own)


def _set(mean: MeanLoss, values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(mean.parameters, values, strict=True):
            parameter.copy_(value)


def _curvature(mean: MeanLoss, scale: Tensor, seed: int, progress: bool | None) -> dict[str, Any]:
    """The largest eigenvalue and the trace of the Hessian with respect to moves by `scale`."""

    def work(product: Product) -> dict[str, Any]:
        def scaled(vectors: Tensor) -> Tensor:
            return scale[:, None] * product(scale[:, None] * vectors)

        where = mean.device
        top = top_eigenvalues(scaled, mean.size, 1, tolerance=1e-3, seed=seed, device=where)
        trace = hutchinson(scaled, mean.size, tolerance=0.05, max_products=1000, seed=seed,
                           device=where)  # fmt: skip
        return {
            "top_eigenvalue": ((), top.values[0]),
            "trace": ((), trace.value),
            "trace_stderr": ((), trace.stderr),
        }

    return on_products(mean, "hessian", work, progress)

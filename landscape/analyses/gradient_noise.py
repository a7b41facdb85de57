"""How noisy is the gradient of a batch? The covariance of the gradients of single examples."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from landscape.analyses.curvature import mean_loss_at, within_memory
from landscape.engine import gradients_allowed, ordinary, replicate
from landscape.evaluation import Tasks
from landscape.example_gradients import Rules, example_gradients, rules_for
from landscape.products import MeanLoss
from landscape.results import dataset
from landscape.states import State, Stored
from landscape.task import map_tensors, tensors_in

Array = NDArray[np.float64]
MEASURES = {
    "covariance_trace": "trace of the covariance of the gradients of single examples",
    "squared_gradient": "squared norm of the expected gradient",
    "noise_scale": "noise scale: trace of the covariance by the squared norm",
}


def gradient_noise(
    task: Tasks,
    state: State | Stored,
    *,
    num_groups: int = 20,
    seed: int = 0,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """The trace of the gradient's covariance, its squared mean, and the simple noise scale.

    For n examples with gradients g and their mean m, `covariance_trace` is the sum of |g - m|^2 by
    n - 1; `squared_gradient` is |m|^2 less the covariance's trace by n. Both are unbiased for the
    population that the examples are from; the second can be negative. `noise_scale` is their ratio,
    the batch size beyond which larger batches bring little (McCandlish et al. 2018, equation 2.9
    and appendix A.1): NaN unless the second is positive.

    Main arguments. `task`: one, or several of which the one named `"train"`, or the first, counts.
    `num_groups`: for standard errors the examples are put into so many groups at random, each of
    which is left out in turn (the jackknife); one vector of parameters is kept for each. Data that
    do not fit into memory are grouped by their own batches. Further `options` are those of
    `mean_loss_at`. In a linear regression, 95 % t intervals held the truth in 0.93 to 0.95 of 400
    draws of 300 examples, and in 0.84 to 0.97 of those of 60.

    Returns the three along `tensor` (with coordinate `module`), for all parameters together as
    `total_covariance_trace` and so on, each with `*_stderr`; and `num_parameters`, the `rule` of
    each tensor and the `loss`.

    Raises `ValueError` if there are fewer than 3 examples or two groups, if examples are not
    independent, and for gradients that are not finite, naming the example.
    """
    mean, attrs = mean_loss_at(task, state, **options)
    num = mean.examples.num
    if num < 3 or num_groups < 2:
        raise ValueError(
            f"a standard error needs 3 examples and 2 groups at least, got {num} examples and "
            f"num_groups={num_groups}"
        )
    with gradients_allowed():
        model, rules = _with_rules(mean)
        work = partial(_sums, model=model, rules=rules, num_groups=min(num_groups, num), seed=seed,
                       progress=progress)  # fmt: skip
        mean, (sums, loss) = within_memory(mean, work)
    if len(sums) < 2:
        raise ValueError(f"a standard error needs two batches of data at least, got {len(sums)}")
    values, stderrs = _jackknifed(sums)
    variables: dict[str, Any] = {"loss": ((), loss)}
    for name, value, stderr in zip(MEASURES, values, stderrs, strict=True):
        words = {"long_name": MEASURES[name]}
        variables |= {
            name: ("tensor", value[:-1], words),
            f"{name}_stderr": ("tensor", stderr[:-1]),
            f"total_{name}": ((), value[-1], words),
            f"total_{name}_stderr": ((), stderr[-1]),
        }
    own = dict(mean.model.named_parameters())
    variables["num_parameters"] = ("tensor", [own[name].numel() for name in mean.names])
    variables["rule"] = ("tensor", [rules.parameters[name].kind for name in mean.names])
    modules = [name.rpartition(".")[0] for name in mean.names]
    return dataset(
        variables,
        {"tensor": list(mean.names), "module": ("tensor", modules)},
        analysis="gradient noise",
        title="Noise of the gradient at a state",
        num_groups=len(sums),
        seed=seed,
        **attrs,
    )


@dataclass(eq=False)
class _Sums:
    """Over the examples of a group: how many, squared norms by tensor, and gradients by tensor."""

    num: int
    squares: Array
    gradients: list[Tensor]


def _with_rules(mean: MeanLoss) -> tuple[nn.Module, Rules]:
    """A private model for the gradients of single examples, and the rules for its layers."""
    (model,) = replicate(mean.model, 1, device=mean.device, dtype=mean.dtype, layout="contiguous")
    inputs, _ = next(mean.examples.batches(min(mean.batch_size, 16)))
    return model, rules_for(model, map_tensors(ordinary, inputs), counted=mean.names)


def _sums(
    mean: MeanLoss,
    model: nn.Module,
    rules: Rules,
    num_groups: int,
    seed: int,
    progress: bool | None,
) -> tuple[list[_Sums], float]:
    """The sums of each group, and the mean loss."""
    sums: dict[int, _Sums] = {}
    loss = 0.0
    num = mean.examples.num
    with tqdm(total=num, unit="example", disable=None if progress is None else not progress) as bar:
        for group, numbers, inputs, targets in _batches(mean, num_groups, seed):
            losses: list[Tensor] = []
            cotangents = partial(_slopes, mean=mean, targets=targets, losses=losses)
            found = example_gradients(model, rules, inputs, cotangents, mean=True)
            squares = torch.stack([found.norms[name][0] for name in mean.names])
            _check_finite(mean, losses[0], squares, numbers)
            gradients = [found.mean[name].double() for name in mean.names]
            if group not in sums:
                zeros = [torch.zeros_like(gradient) for gradient in gradients]
                sums[group] = _Sums(0, np.zeros(len(squares)), zeros)
            sums[group].num += len(numbers)
            sums[group].squares += squares.sum(1).cpu().numpy()
            for total, gradient in zip(sums[group].gradients, gradients, strict=True):
                total += gradient
            loss += losses[0].double().sum().item()
            bar.update(len(numbers))
    return list(sums.values()), loss / num


def _batches(mean: MeanLoss, num: int, seed: int) -> Iterator[tuple[int, list[int], Any, Any]]:
    """Batches with the group that they belong to and the numbers of their examples."""
    examples = mean.examples
    if examples.source is not None:
        first = 0
        for batch, (inputs, targets) in enumerate(examples.batches(mean.batch_size)):
            count = len(tensors_in(targets)[0])
            numbers = list(range(first, first := first + count))
            yield batch % num, numbers, inputs, map_tensors(ordinary, targets)
        return
    order = torch.randperm(examples.num, generator=torch.Generator().manual_seed(seed))
    for group, members in enumerate(order.tensor_split(num)):
        for part in members.split(mean.batch_size):
            inputs, targets = examples.part(part.to(mean.device))
            targets = map_tensors(ordinary, targets)
            yield group, part.tolist(), examples.finish(inputs), targets


def _slopes(outputs: Tensor, mean: MeanLoss, targets: Any, losses: list[Tensor]) -> Tensor:
    """The gradients (1, b, ...) of the losses with respect to the outputs; the losses are kept."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        values = mean.loss(leaf, targets)
    losses.append(values.detach())
    if not values.requires_grad:
        raise ValueError(
            f"the loss of task {mean.task!r} cannot be differentiated with respect to the outputs"
        )
    return torch.autograd.grad(values.sum(), leaf)[0][None]


def _check_finite(mean: MeanLoss, losses: Tensor, squares: Tensor, numbers: list[int]) -> None:
    """Raise `ValueError` naming the example whose loss or gradient is not finite."""
    for values, what in ((losses[None], "loss"), (squares, "gradient")):
        finite = torch.isfinite(values).all(0)
        if not finite.all():
            worst = numbers[int((~finite).nonzero()[0])]
            raise ValueError(f"the {what} of example {worst} of task {mean.task!r} is not finite")


def _jackknifed(sums: list[_Sums]) -> tuple[Array, Array]:
    """Measures (3, tensors + 1), the last for all tensors, and their standard errors.

    By leaving out groups that may be of unlike sizes (Busing, Meijer and van der Leeden 1999).
    """
    num, squares = sum(one.num for one in sums), sum(one.squares for one in sums)
    totals = [torch.stack(parts).sum(0) for parts in zip(*(s.gradients for s in sums), strict=True)]
    values = _measures(num, squares, totals)
    without = np.stack([
        _measures(
            num - one.num, squares - one.squares,
            [total - part for total, part in zip(totals, one.gradients, strict=True)],
        )
        for one in sums
    ])  # fmt: skip
    ratio = np.array([num / one.num for one in sums])[:, None, None]
    pseudo = ratio * values - (ratio - 1) * without
    centre = len(sums) * values - ((1 - 1 / ratio) * without).sum(0)
    variance = ((pseudo - centre) ** 2 / (ratio - 1)).mean(0)
    return values, np.sqrt(variance)


def _measures(num: int, squares: Any, gradients: list[Tensor]) -> Array:
    """The three measures by tensor and for all, from sums over examples."""
    lengths = np.array([gradient.square().sum().item() for gradient in gradients])
    lengths, squares = (np.append(values, values.sum()) for values in (lengths, squares))
    trace = (squares - lengths / num) / (num - 1)
    square = lengths / num**2 - trace / num
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([trace, square, np.where(square > 0, trace / square, np.nan)])

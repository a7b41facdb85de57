"""Which batch-norm statistics does a point have? They are data about a state, not part of a line.

`recalibrate` computes them anew from the training data, by merging exact moments: the result is the
one of a single pass in training mode with all examples in one batch, whatever the batch size and
whatever the order of the data. Only normalisation layers are in training mode; dropout stays off.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from landscape.engine import Call, run

POLICIES = ("recalibrate", "interpolate", "keep", "repair")
RECALIBRATING = ("recalibrate", "repair")


class Correction(_BatchNorm):
    """A batch norm behind a layer that has none, for outputs (n, channels, ...) of any dimension.

    Its stored variance is the one of the data, without the factor n / (n - 1) of torch, so that
    moments come out as they were set. `repair` says where corrections stand.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Everything with channels will do."""


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norm layers that keep running statistics, by name."""
    modules = model.named_modules()
    return {
        name: module
        for name, module in modules
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def statistics_names(model: nn.Module) -> list[str]:
    """Names of all running means and variances, of batch and of instance norm."""
    return [
        entry(name, leaf)
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
        for leaf in ("running_mean", "running_var")
    ]


def check_policy(model: nn.Module, policy: str | None) -> str:
    """The policy to use: `"recalibrate"` by default, `"none"` for models without statistics.

    `"repair"` is for all models, since it is not about their own statistics only. Raises
    `ValueError` for an unknown policy and for tracked instance norm under recalibration.
    """
    tracked = {name.rpartition(".")[0] for name in statistics_names(model)}
    if not tracked and policy in (None, "none", "recalibrate", "interpolate", "keep"):
        return "none"
    policy = policy or "recalibrate"
    if policy not in POLICIES:
        raise ValueError(f"batch_norm must be one of {', '.join(POLICIES)}, got {policy!r}")
    others = sorted(tracked - set(batch_norms(model)))
    if others and policy in RECALIBRATING:
        raise ValueError(
            f"cannot recalibrate {', '.join(others[:5])}: instance norm with running "
            "statistics is no batch norm; use batch_norm='interpolate' or 'keep'"
        )
    return policy


def recalibrate(
    models: Sequence[nn.Module],
    tensors: Mapping[str, Tensor],
    batches: Callable[[], Iterator[tuple[Any, Any]]],
    *,
    vectorised: bool,
    one_batch: bool,
    biased: bool = False,
) -> dict[str, Tensor]:
    """The stacked tensors of K points with running statistics of exactly these data.

    Layers become exact in the order in which the data reach them: a layer's moments are taken once
    all layers before it normalise with moments of all the data. `one_batch` says that `batches`
    gives one batch; then all layers are exact after one pass. Otherwise each layer needs a pass,
    which stops behind it. The stored variance is the unbiased one, as in torch, except in a
    `Correction`, or if all are to be `biased`: the moments with which the layers see these data.

    Raises `ValueError` if a layer is used twice or sees a single value per channel.
    """
    layers = batch_norms(models[0])
    observer = Observer()
    result, unbiased = dict(tensors), {}
    for model in models:
        for name, module in batch_norms(model).items():
            module.forward = partial(_forward, module, name, observer)  # type: ignore[method-assign]
    try:
        if not one_batch:  # one batch all through the model shows layers that are used twice
            one_point = {name: tensor[:1] for name, tensor in tensors.items()}
            first = next(batches())
            merged_moments(models[:1], one_point, lambda: iter([first]), observer, vectorised=False)
            observer.stop = True
        while observer.exact < layers.keys():
            merged = merged_moments(models, result, batches, observer, vectorised=vectorised)
            if not merged:  # what is left are layers that the model does not use
                break
            for name, moments in merged.items():
                if (moments.count < 2).any():
                    raise ValueError(
                        f"batch norm {name!r} sees a single value per channel: recalibration needs "
                        "more examples, or use batch_norm='keep'"
                    )
                mean, var = entry(name, "running_mean"), entry(name, "running_var")
                result[mean] = moments.mean.to(tensors[mean].dtype)
                result[var] = (moments.square / moments.count).to(tensors[var].dtype)
                if not biased and not isinstance(layers[name], Correction):
                    unbiased[var] = (moments.square / (moments.count - 1)).to(tensors[var].dtype)
            observer.exact.update(merged)
    finally:
        for model in models:
            for module in batch_norms(model).values():
                del module.forward
    return result | unbiased


def entry(module: str, leaf: str) -> str:
    """The name of a tensor in a module of that name; the model itself has the empty name."""
    return f"{module}.{leaf}" if module else leaf


@dataclass
class Observer:
    """What layers see in the forward pass of one model; `exact` batch norms only normalise."""

    stop: bool = False
    exact: set[str] = field(default_factory=set)
    seen: dict[str, Tensor] = field(default_factory=dict)  # (2, channels): mean and variance
    counts: dict[str, int] = field(default_factory=dict)

    def see(self, name: str, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take the mean and the biased variance of values (n, channels, ...) and give them."""
        dims = [dim for dim in range(values.ndim) if dim != 1]
        var, mean = torch.var_mean(values, dims, correction=0)
        self.counts[name] = values.numel() // values.shape[1]
        self.seen[name] = torch.stack([mean, var])
        return mean, var


class _Stop(Exception):  # noqa: N818
    """Ends a forward pass behind the layer whose moments were wanted."""


def _forward(module: _BatchNorm, name: str, observer: Observer, inputs: Tensor) -> Tensor:
    """Batch norm in training mode over all data: with exact moments, or taking those of a batch."""
    mean, var = module.running_mean, module.running_var
    if name not in observer.exact:
        if name in observer.seen:
            raise ValueError(
                f"batch norm {name!r} is used twice in one forward pass, so its statistics have no "
                "single meaning; use batch_norm='interpolate' or 'keep'"
            )
        mean, var = observer.see(name, inputs)
        if observer.stop:
            raise _Stop
    return F.batch_norm(inputs, mean, var, module.weight, module.bias, False, 0.0, module.eps)


@dataclass
class Moments:
    """Counts (K, 1), means and sums of squared deviations (K, channels) in float64."""

    count: Tensor
    mean: Tensor
    square: Tensor

    def merge(self, rows: slice, count: int, mean: Tensor, var: Tensor) -> None:
        """Add a batch to some of the points: Chan, Golub and LeVeque 1983, equation 2.1."""
        old, delta = self.count[rows], mean - self.mean[rows]
        share = count / (old + count)
        self.square[rows] += var * count + delta.square() * old * share
        self.mean[rows] += delta * share
        self.count[rows] += count  # last: `old` is a view of it


def merged_moments(
    models: Sequence[nn.Module],
    tensors: Mapping[str, Tensor],
    batches: Callable[[], Iterator[tuple[Any, Any]]],
    observer: Observer,
    *,
    vectorised: bool,
) -> dict[str, Moments]:
    """Moments over all batches of what the observer sees in one pass."""

    def observe(call: Call, inputs: Any, targets: Any) -> dict[str, Tensor]:
        observer.seen.clear()
        with suppress(_Stop):
            call(inputs)
        return dict(observer.seen)

    num = len(next(iter(tensors.values())))
    merged: dict[str, Moments] = {}
    for rows, values in run(models, tensors, batches, observe, vectorised=vectorised):
        for name, pair in values.items():
            mean, var = pair.double().unbind(1)
            if name not in merged:
                zeros = mean.new_zeros(num, mean.shape[1])
                merged[name] = Moments(zeros[:, :1].clone(), zeros, zeros.clone())
            merged[name].merge(rows, observer.counts[name], mean, var)
    return merged

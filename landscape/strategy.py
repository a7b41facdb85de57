"""Which way over the data is fastest? Memory format, batch size and points per pass are timed.

What is best depends on the model and on the machine, so `choose` tries; the `Strategy` that it
gives is recorded in every result.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from landscape.engine import Measure, caller, install, measured, own_names, replicate, vmapped
from landscape.examples import Examples, free_memory, num_examples, some
from landscape.task import PerExample, tensors_in


@dataclass(frozen=True)
class Strategy:
    """How points and examples go through the device.

    `layout`: memory format of images and convolution weights, `"contiguous"` or `"channels_last"`.
    `batch_size`: examples per forward pass. `points`: points per pass; under `vmap` if
    `vectorised`, else in a loop. `moment_batch`: examples per forward pass while batch norm is
    recalibrated. `seconds`: measured time per example and point (0 if not measured).
    """

    layout: str = "contiguous"
    batch_size: int = 256
    points: int = 1
    vectorised: bool = False
    moment_batch: int = 256
    seconds: float = 0.0


_chosen: dict[tuple[Any, ...], Strategy] = {}


def choose(
    model: nn.Module,
    state: Mapping[str, Tensor],
    examples: Examples,
    measures: Mapping[str, PerExample],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Strategy:
    """The fastest of some strategies in a short trial; the same for the same problem in a process.

    Tried are both memory formats (if there are images), several batch sizes, and several numbers of
    points under `vmap`. Each is timed on at most one batch, and given up on once it is slow.
    """
    first = tensors_in(next(iter(examples.batches(1))))
    shapes = tuple((tuple(tensor.shape[1:]), tensor.dtype) for tensor in first)
    functions = tuple(getattr(f, "__qualname__", repr(f)) for f in measures.values())
    key = (repr(model), functions, shapes, examples.num, device, dtype)
    if key not in _chosen:
        _chosen[key] = _trial(model, state, examples, partial(measured, measures), device, dtype)
    return _chosen[key]


def moment_batch(
    model: nn.Module, state: Mapping[str, Tensor], examples: Examples, strategy: Strategy
) -> int:
    """Examples per pass while batch norm is recalibrated: all, if their activations fit.

    Four of the largest activations are live at once in a residual block.
    """
    seen = _some_activations(model, state, examples)
    needed = 4 * max((tensor.nbytes // 2 for tensor in seen), default=0) * examples.num
    points = strategy.points if strategy.vectorised else 1
    fits = needed * points <= free_memory(seen[0].device) // 2
    return examples.num if fits and examples.source is None else strategy.batch_size


def points_per_pass(state: Mapping[str, Tensor], examples: Examples, itemsize: int) -> int:
    """Points in a loop per chunk: those whose weights fill 64 MiB, or 1 GiB if data is streamed."""
    size = sum(tensor.numel() for tensor in state.values()) * itemsize
    return max(1, (2**26 if examples.source is None else 2**30) // max(size, 1))


def _trial(
    model: nn.Module,
    state: Mapping[str, Tensor],
    examples: Examples,
    measure: Measure,
    device: torch.device,
    dtype: torch.dtype,
) -> Strategy:
    arranged: dict[str, tuple[nn.Module, Examples]] = {}

    def timed(strategy: Strategy, best: float) -> Strategy:
        if strategy.layout not in arranged:
            (twin,) = replicate(model, 1, device=device, dtype=dtype, layout=strategy.layout)
            install(twin, {name: state[name] for name in own_names(twin) if name in state})
            arranged[strategy.layout] = (
                twin,
                some(examples, slice(largest), strategy.layout, dtype),
            )
        twin, head = arranged[strategy.layout]
        return replace(strategy, seconds=_seconds(twin, head, measure, strategy, best))

    fixed = _own_batches_only(model, examples)
    sizes = [examples.batch_size] if fixed else _batch_sizes(examples, device)
    largest = max(sizes)
    images = any(t.ndim == 4 and t.shape[1] > 1 for t in _some_activations(model, state, examples))
    layouts = ["channels_last", "contiguous"] if images else ["contiguous"]
    looped = points_per_pass(state, examples, dtype.itemsize)
    best = Strategy(seconds=float("inf"))
    for layout in layouts:
        best = _faster(best, timed(Strategy(layout, sizes[0], points=looped), best.seconds))
    best = _best_size(best, sizes[1:], timed)
    if not fixed and _call_dominates(best, timed):
        for points in (8, 32):
            tried = replace(best, points=points, vectorised=True, batch_size=sizes[0])
            tried = _best_size(timed(tried, best.seconds), sizes[1:], timed)
            if tried.seconds > 0.8 * best.seconds:  # a gain that small is lost in its set-up
                break
            best = tried
    return best


Timed = Callable[[Strategy, float], Strategy]


def _faster(a: Strategy, b: Strategy) -> Strategy:
    return min(a, b, key=lambda strategy: strategy.seconds)


def _best_size(strategy: Strategy, sizes: Sequence[int], timed: Timed) -> Strategy:
    """The strategy with the best batch size: larger ones are tried until one is clearly slower."""
    for size in sizes:
        tried = timed(replace(strategy, batch_size=size), strategy.seconds)
        if tried.seconds > 1.15 * strategy.seconds:
            break
        strategy = _faster(strategy, tried)
    return strategy


def _call_dominates(strategy: Strategy, timed: Timed) -> bool:
    """Whether a forward pass costs more for its calls than for its arithmetic, so vmap can gain."""
    alone = timed(replace(strategy, batch_size=2), float("inf"))
    return alone.seconds * 2 > 0.2 * strategy.seconds * min(strategy.batch_size, 256)


def _own_batches_only(model: nn.Module, examples: Examples) -> bool:
    """Whether values depend on the batches: streamed ones, or batch norm without statistics."""
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase))
    batch_norms = (m for m in norms if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return examples.source is not None or any(m.running_mean is None for m in batch_norms)


def _batch_sizes(examples: Examples, device: torch.device) -> list[int]:
    sizes = [64, 128, 256, 512, 1024, 2048] if device.type == "cpu" else [256, 1024, 4096, 16384]
    return sorted({min(size, examples.num) for size in sizes})


def _some_activations(
    model: nn.Module, state: Mapping[str, Tensor], examples: Examples
) -> list[Tensor]:
    """Inputs and outputs of all leaf modules for two examples, to see shapes and sizes."""
    device = tensors_in(next(iter(examples.batches(1))))[0].device
    dtype = torch.float32
    (twin,) = replicate(model, 1, device=device, dtype=dtype, layout="contiguous")
    seen: list[Tensor] = []
    for module in twin.modules():
        if not any(module.children()):
            module.register_forward_hook(lambda m, args, out: seen.extend(tensors_in((args, out))))
    head = some(examples, slice(2), "contiguous", dtype)
    inputs, _ = next(iter(head.batches(2)))
    install(twin, {name: state[name] for name in own_names(twin) if name in state})
    caller(twin)(inputs)
    return seen


def _seconds(
    model: nn.Module, head: Examples, measure: Measure, strategy: Strategy, best: float
) -> float:
    """Seconds per example and point, the least of a few tries; infinite if it cannot be done."""
    inputs, targets = next(iter(head.batches(strategy.batch_size)))
    points = strategy.points if strategy.vectorised else 1
    num = num_examples((inputs, targets)) * points
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    stacked = {
        name: tensor.expand(points, *tensor.shape).contiguous()
        for name, tensor in own.items()
        if strategy.vectorised and tensor.is_floating_point()
    }

    def once() -> float:
        start = time.perf_counter()
        if strategy.vectorised:
            vmapped(model, stacked, measure, inputs, targets)
        else:
            measure(caller(model), inputs, targets)
        if tensors_in(inputs)[0].is_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / num

    try:
        warm = once()  # pays for set-up; only a long one shows what is out of the question
        if warm * num > 0.1 and warm > 3 * best:
            return warm
        times: list[float] = []
        while len(times) < 3 or (len(times) < 20 and sum(times) * num < 0.05):
            times.append(once())
            if min(times) > 1.5 * best:
                break
    except torch.OutOfMemoryError:
        return float("inf")
    except (RuntimeError, ValueError):
        if strategy.vectorised:  # not every model can be vmapped; every one can be looped
            return float("inf")
        raise
    return min(times)

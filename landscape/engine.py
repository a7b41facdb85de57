"""How do many points share one pass of the data? Private copies of the model, looped or vmapped.

The user's model is never run: `replicate` makes copies whose tensors are set from the points.
`run` takes a function of one model over all batches and all points. Which memory format, batch size
and number of points per pass are fastest depends on the model and the machine, so `choose` times
them, and the `Strategy` that it returns is recorded in every result.
"""

import copy
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from landscape.task import PerExample, map_tensors, tensors_in

Call = Callable[[Any], Any]
Measure = Callable[[Call, Any, Any], dict[str, Tensor]]


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


@dataclass(frozen=True, eq=False)
class Examples:
    """The data of one task: tensors on the device, or a `source` that is read on every pass.

    `finish` makes a batch of inputs ready for the model: transform, dtype and memory format.
    """

    num: int
    batch_size: int
    finish: "Finish"
    inputs: Any = None
    targets: Any = None
    source: Iterable[tuple[Any, Any]] | None = None

    def batches(self, size: int) -> Iterator[tuple[Any, Any]]:
        """Batches of `(inputs, targets)`; a source gives its own batches, whatever the size."""
        if self.source is None:
            starts = range(0, self.num, size)
            pairs: Iterable[tuple[Any, Any]] = (self.part(slice(i, i + size)) for i in starts)
        else:
            pairs = self.source
        for inputs, targets in pairs:
            yield self.finish(inputs), targets

    def part(self, part: slice | Tensor) -> tuple[Any, Any]:
        """Some of the inputs and targets that are in memory, as they are."""
        inputs, targets = (map_tensors(lambda x: x[part], y) for y in (self.inputs, self.targets))
        return inputs, targets


@dataclass(frozen=True)
class Finish:
    """What is done with a batch of inputs: the transform of the data, then dtype and format."""

    transform: Callable[[Any], Any] | None = None
    dtype: torch.dtype | None = None
    layout: str = "contiguous"

    def __call__(self, inputs: Any) -> Any:
        """Inputs that the model can take."""
        inputs = self.transform(inputs) if self.transform else inputs
        return map_tensors(self._placed, inputs)

    def _placed(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        if tensor.ndim == 4 and self.layout == "channels_last":
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor


def pick_device(device: str | torch.device) -> torch.device:
    """`"auto"` is the GPU if there is one, else the CPU."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated; on the CPU what the system calls available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return 4 * 2**30


# --- reading data ---------------------------------------------------------------------------------


def read(data: Iterable[tuple[Any, Any]], device: torch.device) -> Examples:
    """Take the data of a task to the device, if it fits into a quarter of the free memory.

    Raises `ValueError` if there are no examples or the batches differ between two passes.
    """
    limit = free_memory(device) // 4
    if all(hasattr(data, name) for name in ("inputs", "targets", "batch_size")):
        pair = (data.inputs, data.targets)  # type: ignore[attr-defined]
        finish = Finish(getattr(data, "transform", None))
        fits = sum(tensor.nbytes for tensor in tensors_in(pair)) <= limit
        if fits or device.type == "cpu":
            inputs, targets = to_device(pair, device)
            num = tensors_in(targets)[0].shape[0]
            return Examples(num, data.batch_size, finish, inputs, targets)  # type: ignore[attr-defined]
    batches, complete = _collect(data, limit, device)
    size = _num_examples(batches[0])
    if not complete:
        num = sum(_num_examples(_checked(batch)) for batch in data)
        return Examples(num, size, Finish(), source=_Moved(data, device))
    num = sum(_num_examples(batch) for batch in batches)
    joined = _joined(batches)
    if joined is None:  # batches of unlike shapes, such as padded text
        return Examples(num, size, Finish(), source=batches)
    return Examples(num, size, Finish(), *joined)


def arrange(examples: Examples, layout: str, dtype: torch.dtype) -> Examples:
    """Have inputs in one dtype and memory format; done once if that copy fits into memory."""
    arranged = replace(examples, finish=replace(examples.finish, dtype=dtype, layout=layout))
    ready = all(t.dtype == dtype or not t.is_floating_point() for t in tensors_in(examples.inputs))
    if examples.source is not None or (
        ready and layout == "contiguous" and examples.finish.transform is None
    ):
        return arranged
    some_inputs, _ = next(arranged.batches(8))
    size = sum(tensor.nbytes for tensor in tensors_in(some_inputs)) * max(1, examples.num // 8)
    if size > free_memory(tensors_in(some_inputs)[0].device) // 8:
        return arranged
    inputs = _joined([inputs for inputs, _ in arranged.batches(4096)])
    return replace(arranged, finish=Finish(dtype=dtype, layout=layout), inputs=inputs)


def some(examples: Examples, part: slice, layout: str, dtype: torch.dtype) -> Examples:
    """Some examples, ready for the model; of a source those in its first batch."""
    if examples.source is not None:
        few = replace(examples, source=list(itertools.islice(examples.source, 1)))
    else:
        inputs, targets = examples.part(part)
        num = len(tensors_in(targets)[0])
        few = replace(examples, num=num, inputs=inputs, targets=targets)
    return arrange(few, layout, dtype)


def to_device(tree: Any, device: torch.device) -> Any:
    """Move all tensors of a tree to the device."""
    return map_tensors(lambda tensor: tensor.to(device), tree)


@dataclass(frozen=True)
class _Moved:
    """Batches that are moved to the device one after the other."""

    data: Iterable[tuple[Any, Any]]
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return (to_device(_checked(batch), self.device) for batch in self.data)


def _collect(
    data: Iterable[Any], limit: int, device: torch.device
) -> tuple[list[tuple[Any, Any]], bool]:
    """All batches on the device, or the first ones and False if they are too large."""
    batches: list[tuple[Any, Any]] = []
    size = 0
    for batch in data:
        batches.append(to_device(_checked(batch), device))
        size += sum(tensor.nbytes for tensor in tensors_in(batch))
        if size > limit:
            break
    else:
        if not batches or not sum(_num_examples(batch) for batch in batches):
            raise ValueError("the data holds no examples: it gave no batch, or only empty ones")
    again = to_device(_checked(next(iter(data))), device)
    first, second = tensors_in(batches[0]), tensors_in(again)
    if not all(itertools.starmap(torch.equal, zip(first, second, strict=True))):
        raise ValueError(
            "the data differs between two passes, so points could not be compared: "
            "turn off shuffling (shuffle=False) and random augmentation"
        )
    return batches, size <= limit


def _checked(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not tensors_in(batch[1]):
        raise ValueError(
            f"data must give pairs (inputs, targets) of tensors, got {type(batch).__name__}"
            + (f" of length {len(batch)}" if hasattr(batch, "__len__") else "")
        )
    return batch[0], batch[1]


def _num_examples(batch: tuple[Any, Any]) -> int:
    return tensors_in(batch[1])[0].shape[0]


def _joined(batches: Sequence[Any]) -> Any:
    """Batches as one tree of tensors, or None if their shapes do not allow it."""
    trees = [tensors_in(batch) for batch in batches]
    if len({tuple((t.shape[1:], t.dtype) for t in tree) for tree in trees}) > 1:
        return None
    columns = map(torch.cat, zip(*trees, strict=True))
    return map_tensors(lambda _: next(columns), batches[0])


# --- running --------------------------------------------------------------------------------------


def replicate(
    model: nn.Module, num: int, *, device: torch.device, dtype: torch.dtype, layout: str
) -> list[nn.Module]:
    """Private copies of the model on the device, in evaluation mode and without gradients."""
    copies = []
    for _ in range(num):
        twin = copy.deepcopy(model).eval().requires_grad_(False)
        if any(t.is_meta for t in itertools.chain(twin.parameters(), twin.buffers())):
            twin = twin.to_empty(device=device)
        twin = twin.to(device=device, dtype=dtype)
        if layout == "channels_last":
            twin = twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        copies.append(twin)
    return copies


def install(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters and buffers of a private model."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def run(
    models: Sequence[nn.Module],
    tensors: Mapping[str, Tensor],
    batches: Callable[[], Iterator[tuple[Any, Any]]],
    measure: Measure,
    *,
    vectorised: bool,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Take K points over all batches; give `(points, values)` with values (points, ...).

    `tensors` are the stacked weights (K, *shape) of the points. `measure(call, inputs, targets)`
    sees one model, whose outputs `call(inputs)` gives. One model serves the points one after the
    other; as many models as points share each batch; `vectorised` runs all points at once.
    """
    num = len(next(iter(tensors.values())))
    if vectorised:
        for inputs, targets in batches():
            yield slice(0, num), _vmapped(models[0], tensors, measure, inputs, targets)
    elif len(models) == 1:
        for k in range(num):
            install(models[0], {name: tensor[k] for name, tensor in tensors.items()})
            for inputs, targets in batches():
                yield _one(k, measure(caller(models[0]), inputs, targets))
    else:
        for k in range(num):
            install(models[k], {name: tensor[k] for name, tensor in tensors.items()})
        for inputs, targets in batches():
            for k in range(num):
                yield _one(k, measure(caller(models[k]), inputs, targets))


def _one(k: int, values: dict[str, Tensor]) -> tuple[slice, dict[str, Tensor]]:
    return slice(k, k + 1), {name: value[None] for name, value in values.items()}


def _vmapped(
    model: nn.Module, tensors: Mapping[str, Tensor], measure: Measure, inputs: Any, targets: Any
) -> dict[str, Tensor]:
    def single(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        def call(inputs: Any) -> Any:
            args, kwargs = _arguments(inputs)
            return functional_call(model, tensors, args, kwargs)

        return measure(call, inputs, targets)

    with quiet_vmap():
        return vmap(single)(dict(tensors))


def caller(model: nn.Module) -> Call:
    """A function of the inputs that runs the model."""

    def call(inputs: Any) -> Any:
        args, kwargs = _arguments(inputs)
        return model(*args, **kwargs)

    return call


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


@contextmanager
def quiet_vmap() -> Iterator[None]:
    """Without the warning that an operation is slow under `vmap`: that is what the trial is for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """No gradients, no autocast, no TF32, deterministic cuDNN; the user's settings come back."""
    backends: Any = torch.backends
    operations = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    operations += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    wanted: list[tuple[Any, str, Any]] = [(op, "fp32_precision", "ieee") for op in operations]
    wanted += [(backends.cudnn, "deterministic", True), (backends.cudnn, "benchmark", False)]
    found = [(place, name, getattr(place, name)) for place, name, _ in wanted]
    try:
        for place, name, value in wanted:
            setattr(place, name, value)
        with (
            torch.inference_mode(),
            torch.autocast("cuda", enabled=False),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        for place, name, value in found:
            setattr(place, name, value)


# --- choosing -------------------------------------------------------------------------------------

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


def measured(
    measures: Mapping[str, PerExample], call: Call, inputs: Any, targets: Any
) -> dict[str, Tensor]:
    """The values of a batch, each (batch,)."""
    outputs = call(inputs)
    return {name: measure(outputs, targets) for name, measure in measures.items()}


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


def own_names(model: nn.Module) -> Iterator[str]:
    """Names of the parameters (tied ones once) and of all buffers."""
    return (name for name, _ in itertools.chain(model.named_parameters(), model.named_buffers()))


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
    num = _num_examples((inputs, targets)) * points
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    stacked = {
        name: tensor.expand(points, *tensor.shape).contiguous()
        for name, tensor in own.items()
        if strategy.vectorised and tensor.is_floating_point()
    }

    def once() -> float:
        start = time.perf_counter()
        if strategy.vectorised:
            _vmapped(model, stacked, measure, inputs, targets)
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

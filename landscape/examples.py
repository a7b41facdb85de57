"""How do data come to the model? Tensors on the device, or batches read on each pass."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.task import map_tensors, tensors_in


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
    size = num_examples(batches[0])
    if not complete:
        num = sum(num_examples(_checked(batch)) for batch in data)
        return Examples(num, size, Finish(), source=_Moved(data, device))
    num = sum(num_examples(batch) for batch in batches)
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
        if not batches or not sum(num_examples(batch) for batch in batches):
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


def num_examples(batch: tuple[Any, Any]) -> int:
    """The number of examples in a batch."""
    return tensors_in(batch[1])[0].shape[0]


def _joined(batches: Sequence[Any]) -> Any:
    """Batches as one tree of tensors, or None if their shapes do not allow it."""
    trees = [tensors_in(batch) for batch in batches]
    if len({tuple((t.shape[1:], t.dtype) for t in tree) for tree in trees}) > 1:
        return None
    columns = map(torch.cat, zip(*trees, strict=True))
    return map_tensors(lambda _: next(columns), batches[0])

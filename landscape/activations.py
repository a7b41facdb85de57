"""What do the layers of a network give for these examples?

`stream` gives the activations of layers (of `selection.layers_of`) batch by batch as matrices
(rows, neurons), and `record` keeps them together with a hash of the examples in their order. What
a row is, is said by the form `maps`: see `selection`.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from landscape.engine import caller, exact_arithmetic, with_state
from landscape.examples import Examples, Finish, free_memory, num_examples, pick_device, read
from landscape.selection import (
    Layer,
    Path,
    Selector,
    closest,
    common_form,
    few_inputs,
    frequencies,
    hooked,
    kind_and_grid,
    layers_of,
    neurons,
    other_examples,
    rows_per_example,
    shown,
)
from landscape.states import State, Stored, loaded, match
from landscape.task import Task, random_state_kept, tensors_in


@dataclass(frozen=True, eq=False)
class Recording:
    """Activations of layers, kept: `values[name]` is a matrix (n * rows_per_example, neurons).

    On the CPU; in the form `"frequency"` (frequencies, n, channels) complex. `examples` is a hash
    of the inputs in their order, see `hash_examples`.
    """

    values: Mapping[str, Tensor]
    examples: str
    num_examples: int
    rows_per_example: int
    maps: str
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the layers."""
        return list(self.values)

    def __getitem__(self, name: str) -> Tensor:
        """The activations of one layer."""
        if name not in self.values:
            raise KeyError(f"{name!r} was not recorded{closest(name, self.names)}")
        return self.values[name]


def stream(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Iterable[tuple[Any, Any]],
    *,
    maps: str = "average",
) -> Iterator[list[Tensor]]:
    """For each batch of `(inputs, targets)` the activations of the layers, (rows, neurons) each.

    All have the same rows, `rows_per_example` for each example; in the form `"frequency"` they are
    (frequencies, n, channels) complex. They lie on the device of the model, a private one (of
    `engine.replicate`), which gets hooks while it runs and is otherwise left alone. Two networks
    see the same batches by `itertools.tee`. Half precision becomes float32.

    Raises `ValueError` as `common_form`; for activations that are not finite, naming layer and
    batch; and for a layer that gives another shape, or runs more or less often, than was found by
    `layers_of`.
    """
    maps = common_form(layers, maps)
    for number, (inputs, targets) in enumerate(batches):
        blocks = capture(model, layers, inputs, maps=maps, num=num_examples((inputs, targets)))
        if bad := _not_finite(layers, blocks):
            raise ValueError(
                f"activations of {shown(bad, 5)} are not finite in batch {number} (counted from "
                "0): the state has diverged, or the inputs hold such values"
            )
        yield blocks


def capture(
    model: nn.Module, layers: Sequence[Layer], inputs: Any, *, maps: str, num: int
) -> list[Tensor]:
    """The activations of one batch of `num` examples, as `stream` gives them, but not checked.

    They are reduced or copied as soon as a module has given them, before anything can change them
    in place. `maps` is a form of `common_form`.
    """
    found: dict[Layer, Tensor] = {}
    calls: Counter[str] = Counter()
    wanted: dict[str, list[Layer]] = {}
    for layer in layers:
        wanted.setdefault(layer.module, []).append(layer)

    def see(name: str, module: nn.Module, args: Any, output: Any) -> None:
        calls[name] += 1
        for layer in wanted[name]:
            if layer.call == calls[name]:
                found[layer] = _reduced(_follow(output, layer.path), layer, maps, num)

    with hooked(model, {name: partial(see, name) for name in wanted}), torch.no_grad():
        caller(model)(inputs)
    for layer in layers:
        if calls[layer.module] != layer.calls:
            raise ValueError(
                f"{layer.name} ran {calls[layer.module]} times in this batch and {layer.calls} "
                "times in the first: its calls have no fixed meaning; choose other layers"
            )
    return [found[layer] for layer in layers]


def record(
    task: Task,
    state: State | Stored,
    layers: Selector = "*",
    *,
    maps: str = "average",
    channels_first: Sequence[str] = (),
    channels_last: Sequence[str] = (),
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    max_bytes: int | None = None,
) -> Recording:
    """The activations of layers on all examples of a task, kept in memory.

    The selection is that of `layers_of`. The model runs in evaluation mode with the statistics that
    are stored in the state. `max_bytes` is what the values may take; by default half of the memory
    that is free.

    Raises `ValueError` as `layers_of` and `stream`, and if the values would take more memory.
    """
    where = pick_device(device)
    with exact_arithmetic(), random_state_kept():
        examples = read(task.data, where)
        ready = replace(examples, finish=replace(examples.finish, dtype=dtype))
        matched = match(loaded(state), task.model)
        model = with_state(task.model, matched, device=where, dtype=dtype)
        selection = layers_of(
            model, layers, few_inputs(ready), maps=maps,
            channels_first=channels_first, channels_last=channels_last,
        )  # fmt: skip
        maps = common_form(selection.layers, maps)
        values = _room(selection.layers, maps, examples.num, dtype, max_bytes)
        digests: list[_Digest] = []
        done, per = 0, rows_per_example(selection.layers, maps)
        for blocks in stream(model, selection.layers, _hashed(ready, digests), maps=maps):
            rows = blocks[0].shape[-2]
            for whole, block in zip(values.values(), blocks, strict=True):
                whole[..., done : done + rows, :] = block
            done += rows
    return Recording(values, _combined(digests), examples.num, per, maps, selection.notes)


def hash_examples(data: Iterable[tuple[Any, Any]]) -> str:
    """SHA-256 of the inputs in their order, as the data hold them, whatever the batches.

    Transforms of `datasets.Batches`, targets and devices do not count.
    """
    digests: list[_Digest] = []
    if all(hasattr(data, name) for name in ("inputs", "targets")):
        data = [(data.inputs, data.targets)]  # type: ignore[attr-defined]
    with random_state_kept():
        for inputs, _ in data:
            _feed(digests, inputs)
    return _combined(digests)


def check_same_examples(a: Recording, b: Recording) -> None:
    """Raise `ValueError` unless two recordings are of the same examples in the same order."""
    if (a.maps, a.rows_per_example) != (b.maps, b.rows_per_example):
        raise ValueError(
            f"the recordings have unlike rows: maps={a.maps!r} with {a.rows_per_example} rows for "
            f"an example, and maps={b.maps!r} with {b.rows_per_example}; record both alike"
        )
    if a.examples != b.examples:
        counts = f"{a.num_examples} and {b.num_examples} examples"
        raise ValueError(
            f"the recordings are not of the same examples in the same order ({counts}, hashes "
            f"{a.examples[:8]} and {b.examples[:8]}), so rows would be compared with rows of other "
            "examples: record both on the same data, without shuffling"
        )


def _follow(output: Any, path: Path) -> Any:
    for key in path:
        output = output[key]
    return output


def _reduced(output: Any, layer: Layer, maps: str, num: int) -> Tensor:
    """The rows of one layer, in memory of their own."""
    if not isinstance(output, Tensor) or not output.ndim or len(output) != num:
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        raise ValueError(other_examples(layer.name, shape, num))
    values = output.detach()
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    values = values[:, None] if values.ndim == 1 else values
    rows = _rows(values, layer, maps)
    expected = num * rows_per_example([layer], maps), neurons(layer, maps)
    if tuple(rows.shape[-2:]) != expected:
        raise ValueError(
            f"{layer.name} gives rows {tuple(rows.shape[-2:])} where {expected} were expected: its "
            f"outputs {tuple(output.shape)} have another size than in the first batch; "
            "use maps='average', or inputs of one size"
        )
    same = rows.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
    return rows.clone() if same else rows


def _rows(values: Tensor, layer: Layer, maps: str) -> Tensor:
    """Outputs (n, ...) as a matrix (rows, neurons), or (frequencies, n, channels)."""
    kind, grid = kind_and_grid(maps)
    if kind == "flatten":
        return values.flatten(1)
    first = values.movedim(layer.channels, 1)
    positions = tuple(range(2, first.ndim))
    if kind == "average":
        return first.mean(positions) if positions else first
    if grid and grid != first.shape[2:]:
        pools: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
        first = pools[len(grid) - 1](first, grid)
    if kind == "frequency":
        return torch.fft.rfftn(first, dim=positions).flatten(2).permute(2, 0, 1).contiguous()
    return first.movedim(1, -1).flatten(0, -2)


def _not_finite(layers: Sequence[Layer], blocks: Sequence[Tensor]) -> list[str]:
    """Layers with values that are not finite. Sums show it many times faster, but may overflow."""
    if torch.isfinite(torch.stack([block.sum() for block in blocks])).all():
        return []
    pairs = zip(layers, blocks, strict=True)
    return [layer.name for layer, block in pairs if not torch.isfinite(block).all()]


# --- recordings -----------------------------------------------------------------------------------


def _room(
    layers: Sequence[Layer], maps: str, num: int, dtype: torch.dtype, max_bytes: int | None
) -> dict[str, Tensor]:
    """Empty tensors for the values of all examples; raises `ValueError` if they take too much."""
    kind, _ = kind_and_grid(maps)
    dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    dtype = dtype.to_complex() if kind == "frequency" else dtype
    lead = (len(frequencies(maps)[0]),) if kind == "frequency" else ()
    rows = num * rows_per_example(layers, maps)
    shapes = {layer.name: (*lead, rows, neurons(layer, maps)) for layer in layers}
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    limit = free_memory(torch.device("cpu")) // 2 if max_bytes is None else max_bytes
    if (total := sum(sizes.values())) > limit:
        largest = max(sizes, key=sizes.__getitem__)
        raise ValueError(
            f"the activations of {len(layers)} layers on {num} examples take {total:,} bytes, and "
            f"{limit:,} are allowed ({largest} alone takes {sizes[largest]:,}): choose fewer "
            "layers, maps='average', or fewer examples; compare_layers keeps no activations"
        )
    with torch.inference_mode(False):
        return {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}


@dataclass
class _Digest:
    """The running hash of one tensor of the inputs; the form of an example is part of it."""

    sha256: Any
    form: str = ""


def _hashed(examples: Examples, digests: list[_Digest]) -> Iterator[tuple[Any, Any]]:
    """Batches that are ready for the model; what the data hold is hashed on the way."""
    for inputs, targets in replace(examples, finish=Finish()).batches(examples.batch_size):
        _feed(digests, inputs)
        yield examples.finish(inputs), targets


def _feed(digests: list[_Digest], inputs: Any) -> None:
    tensors = tensors_in(inputs)
    digests += [_Digest(hashlib.sha256()) for _ in tensors[len(digests) :]]
    for digest, tensor in zip(digests, tensors, strict=True):
        form = f"{tensor.dtype} {tuple(tensor.shape[1:])}\n"
        if form != digest.form:
            digest.sha256.update(form.encode())
            digest.form = form
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.sha256.update(flat.view(torch.uint8).numpy().data)


def _combined(digests: Sequence[_Digest]) -> str:
    return hashlib.sha256("".join(d.sha256.hexdigest() for d in digests).encode()).hexdigest()

"""How are the moments of all layers summed in one pass over examples that nobody could keep?

Rows wait in a buffer until there are enough for a product of matrices, so that results do not
depend on how they came in batches; there they are shifted and scaled. What is summed, and what it
says, is the matter of `maths/moments.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from landscape.maths.moments import CUTS, Layout, Moments, count, triangle
from landscape.maths.overlap import rounding

TILE = 256  # columns of a product at a time: half of it is never computed
ROWS = 128  # rows that are shifted and scaled at a time
FIRST = 512  # rows whose mean is the shift


@dataclass
class Accumulator:
    """Takes activations batch by batch; `finish` gives their `Moments`.

    `dtype` float32 computes products of blocks in float32 and adds them up in float64: in about 0.6
    of the time, with an error of about 1e-7 times the square of the condition, which should be
    below 100. `exact` keeps a QR factor in float64 instead. With `num_blocks` the sums are kept
    apart for that many blocks of images, for `Moments.without`: image k belongs to block
    k mod `num_blocks`, and has `rows_per_image` consecutive rows (positions of a map, tokens).

    Results do not depend on how the rows come in batches, to the last digit.
    """

    dtype: torch.dtype = torch.float64
    exact: bool = False
    num_blocks: int = 0
    rows_per_image: int = 1
    _layout: Layout | None = field(default=None, init=False, repr=False)
    _buffer: Tensor = field(init=False, repr=False)
    _sums: list[Tensor | None] = field(init=False, repr=False)
    _filled: int = field(default=0, init=False, repr=False)
    _seen: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in CUTS:
            raise ValueError(f"dtype must be torch.float64 or torch.float32, got {self.dtype}")
        if self.exact and self.dtype != torch.float64:
            raise ValueError("exact moments are computed in float64: leave dtype as it is")
        if self.num_blocks < 0 or self.num_blocks == 1 or self.rows_per_image < 1:
            raise ValueError(
                "num_blocks must be 0 or at least 2 and rows_per_image at least 1, got "
                f"{self.num_blocks} and {self.rows_per_image}"
            )

    def add(self, blocks: Sequence[Tensor]) -> None:
        """Add the activations (b, d_i) of every layer i, for the same b examples.

        Raises `ValueError` if layers have different numbers of rows, or a layer is not as it was in
        the first batch, or (as soon as they are summed) for values that are not finite.
        """
        if self._layout is None:
            self._start(blocks)
        layout = self._layout
        assert layout is not None
        _check(layout, blocks)
        num, taken = len(blocks[0]), 0
        while taken < num:
            part = min(num - taken, len(self._buffer) - self._filled)
            rows = self._buffer[self._filled : self._filled + part]
            for block, columns in zip(blocks, layout.columns, strict=True):
                rows[:, columns] = _real(block[taken : taken + part].detach())
            self._filled += part
            taken += part
            if self._filled == len(self._buffer):
                self._flush()

    def finish(self) -> Moments:
        """The moments of all rows. Raises `ValueError` for fewer than two, or broken blocks."""
        num = self._seen + self._filled
        if num < 2:
            raise ValueError(f"moments need at least two examples, got {num}")
        images, rest = divmod(num, self.rows_per_image)
        if rest:
            raise ValueError(
                f"{num} rows are no whole number of images of {self.rows_per_image} rows"
            )
        if images < self.num_blocks:
            raise ValueError(
                f"there are fewer images ({images}) than blocks to leave out ({self.num_blocks})"
            )
        if self._filled:
            self._flush()
        assert self._layout is not None
        layout, sums = self._layout, tuple(part for part in self._sums if part is not None)
        if not self.exact:
            for part in sums:
                _mirror(part)
        self._layout, self._seen = None, 0
        del self._buffer, self._sums
        noise = _noise(sums, layout, self.exact, self.dtype)
        return Moments(layout, sums, self.exact, self.dtype, noise)

    def _start(self, blocks: Sequence[Tensor]) -> None:
        self._layout = layout = _layout(blocks)
        rows = rows_at_once(layout.size, num_blocks=self.num_blocks, exact=self.exact)
        device = blocks[0].device
        self._buffer = torch.empty(rows, layout.size, dtype=torch.float64, device=device)
        self._sums = [None] * max(1, self.num_blocks)

    def _flush(self) -> None:
        """Shift, scale and add what is in the buffer."""
        layout, rows = self._layout, self._buffer[: self._filled]
        assert layout is not None
        if not self._seen:
            _set_scale(layout, rows)
        for part in rows.split(ROWS):
            _prepare(part, layout)
        if not torch.isfinite(rows.sum(0)).all():
            raise ValueError(
                f"layer {_not_finite(layout, rows)} has activations that are not finite, somewhere "
                f"in examples {self._seen} to {self._seen + self._filled - 1}"
            )
        for number, part in self._parts(rows.to(self.dtype)):
            self._sums[number] = _added(self._sums[number], part, self.exact)
        self._seen += self._filled
        self._filled = 0

    def _parts(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The rows of each block of images."""
        if not self.num_blocks:
            yield 0, rows
            return
        places = torch.arange(self._seen, self._seen + len(rows), device=rows.device)
        owners = places // self.rows_per_image % self.num_blocks
        for number in range(self.num_blocks):
            part = rows[owners == number]
            if len(part):
                yield number, part


def memory_bytes(
    widths: Sequence[int],
    *,
    num_blocks: int = 0,
    exact: bool = False,
    dtype: torch.dtype = torch.float64,
) -> int:
    """About the most bytes that moments of layers of these widths take, whatever the examples.

    The sums, the rows that wait to be summed, and what `Moments` make of both: those of all
    examples and, with blocks, those without one of them. A complex neuron counts twice.
    """
    size = 1 + sum(widths) + len(widths)
    rows = rows_at_once(size, num_blocks=num_blocks, exact=exact)
    waiting = rows * size * (8 * 2 + dtype.itemsize * (dtype != torch.float64 or num_blocks > 0))
    sums = 8 * size**2 * max(1, num_blocks)
    working = 8 * (2 * rows * size if exact else size**2)
    made = 2 * 8 * size**2 + 8 * 4 * sum(d**2 for d in widths)
    return sums + max(waiting + working * exact, made * (2 if num_blocks else 1))


def rows_at_once(size: int, *, num_blocks: int = 0, exact: bool = False) -> int:
    """How many rows are summed at once, for a joint matrix of `size` columns."""
    each = 2 * size if exact else 512
    return max(2048, each * max(1, num_blocks))


def _layout(blocks: Sequence[Tensor]) -> Layout:
    shapes = [tuple(block.shape) for block in blocks]
    if not shapes or any(len(shape) != 2 or shape[1] < 1 for shape in shapes):
        raise ValueError(
            f"activations must have the shape (examples, neurons), got {shapes}; flatten or "
            "average maps first"
        )
    widths = tuple(shape[1] for shape in shapes)
    is_complex = blocks[0].is_complex()
    ends = list(accumulate([1, *(width * (1 + is_complex) for width in widths)]))
    columns = tuple(slice(*both) for both in pairwise(ends))
    size = ends[-1] + len(widths)
    like = torch.empty(0, dtype=torch.float64, device=blocks[0].device)
    weights = like.new_zeros(ends[-1] - 1, len(widths))
    for i, own in enumerate(columns):
        weights[own.start - 1 : own.stop - 1, i] = 1
    dtypes = tuple(block.dtype for block in blocks)
    shift, scale = like.new_zeros(size), like.new_ones(size)
    return Layout(widths, is_complex, dtypes, columns, size, weights, shift, scale)


def _set_scale(layout: Layout, rows: Tensor) -> None:
    """Take shift and scale from the first rows."""
    last = len(layout.columns)
    values = rows[:FIRST, 1:-last]
    shift = values[0] + (values - values[0]).mean(0)  # a constant exactly
    values = values - shift
    lengths = values.square() @ layout.weights
    layout.shift[1:-last], layout.shift[-last:] = shift, lengths.mean(0)
    spread = torch.cat([values.square().mean(0), lengths.var(0, correction=0)]).sqrt()
    layout.scale[1:] = torch.where(spread > 0, spread / spread.frexp().mantissa, 1.0)
    layout.weights *= layout.scale[1:-last, None].square()


def _check(layout: Layout, blocks: Sequence[Tensor]) -> None:
    """Raise `ValueError` for blocks that are not as the first."""
    shapes = [tuple(block.shape) for block in blocks]
    expected = [(shapes[0][0], width) for width in layout.widths]
    if shapes != expected or any(b.is_complex() != layout.is_complex for b in blocks):
        raise ValueError(
            "every batch must hold the same rows of every layer, with the widths of the first "
            f"batch, and be complex in all or in none: expected {expected}, got {shapes}"
        )


def _not_finite(layout: Layout, rows: Tensor) -> int:
    """The first layer with a neuron that is not finite, or too large to have a square."""
    bad = ~torch.isfinite(rows.square().sum(0))
    return next(i for i, own in enumerate(layout.columns) if bad[own].any())


def _prepare(rows: Tensor, layout: Layout) -> None:
    """Turn rows of activations into rows of the joint matrix, in place."""
    last = len(layout.columns)
    values = rows[:, 1:-last]
    values.sub_(layout.shift[1:-last]).mul_(1 / layout.scale[1:-last])
    lengths = values.square() @ layout.weights
    rows[:, 0] = 1
    rows[:, -last:] = (lengths - layout.shift[-last:]) / layout.scale[-last:]


def _added(total: Tensor | None, rows: Tensor, exact: bool) -> Tensor:
    """The sum with further rows: the upper tiles of the products, or the triangle of a QR."""
    if exact:
        return triangle([rows] if total is None else [total, rows])
    if total is None:
        total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], TILE):
        tile = total[start : start + TILE, start:]
        left, right = rows[:, start : start + TILE].T, rows[:, start:]
        if rows.dtype == total.dtype:
            tile.addmm_(left, right)
        else:
            tile += left @ right
    return total


def _mirror(total: Tensor) -> None:
    for start in range(0, len(total), TILE):
        stop = start + TILE
        total[stop:, start:stop] = total[start:stop, stop:].T


def _noise(sums: Sequence[Tensor], layout: Layout, exact: bool, dtype: torch.dtype) -> Tensor:
    """The squared spread of each column, in its own unit, below which it is constant.

    The rounding of its values, as in `overlap.rows`, and that of the sums.
    """
    num, scale = sum(count(part, exact) for part in sums), layout.scale[1:]
    first = [part[0, 1:] * part[0, 0] if exact else part[0, 1:] for part in sums]
    means = layout.shift[1:] + torch.stack(first).sum(0) / num * scale
    rounded = torch.zeros_like(means)
    for columns, given in zip(layout.columns, layout.dtypes, strict=True):
        rounded[columns.start - 1 : columns.stop - 1] = rounding(given)
    squares = [part.square().sum(0) if exact else part.diagonal() for part in sums]
    lost = 64 * torch.finfo(dtype).eps
    lengths = torch.stack(squares).sum(0)[1:] * scale.square()
    floor = torch.maximum(num * (rounded * means).square(), (lost**2 if exact else lost) * lengths)
    floor[-len(layout.columns) :] = -1
    return floor


def _real(block: Tensor) -> Tensor:
    return torch.view_as_real(block.resolve_conj()).flatten(1) if block.is_complex() else block

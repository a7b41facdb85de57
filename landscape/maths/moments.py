"""What do all pairs of layers share, from one pass over examples that nobody could keep?

The columns of a joint matrix V are 1, the neurons of every layer, and for each layer the squared
length of its rows; neurons are shifted by their mean over the first rows, so that no digits go to
an offset. The triangle of V^H V (memory of the widths alone) holds every covariance, and with the
squared lengths also the diagonal terms that exactly debiased measures take away. What it loses is
the square of the condition; where that is too much, a running QR of V (`exact`) keeps a triangular
factor of the same size, at about three times the cost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from landscape.maths.overlap import Overlap, Side, relative_cut, side_of

TILE = 256  # columns of a product at a time: half of it is never computed
ROWS = 128  # rows that are shifted and scaled at a time
FIRST = 512  # rows whose mean is the shift
CUTS = {torch.float64: 2.0**-20, torch.float32: 3e-3}  # as for activations in float32
CONDITIONS = {torch.float64: 1e5, torch.float32: 1e2}  # above these too much is lost


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
    _layout: "_Layout | None" = field(default=None, init=False, repr=False)
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
        layout.check(blocks)
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

    def finish(self) -> "Moments":
        """The moments of all rows. Raises `ValueError` for fewer than two, or broken blocks."""
        num = self._seen + self._filled
        if num < 2:
            raise ValueError(f"moments need at least two examples, got {num}")
        images, rest = divmod(num, self.rows_per_image)
        if rest or images < self.num_blocks:
            raise ValueError(
                f"{num} rows are no whole number of images of {self.rows_per_image} rows, or fewer "
                f"images than the {self.num_blocks} blocks"
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
            layout.set_scale(rows)
        for part in rows.split(ROWS):
            _prepare(part, layout)
        if not torch.isfinite(rows.sum(0)).all():
            raise ValueError(
                f"layer {layout.not_finite(rows)} has activations that are not finite, somewhere "
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


@dataclass(frozen=True, eq=False)
class Moments:
    """Centred second moments of all layers, and what every linear measure needs of a pair.

    Made by an `Accumulator`. `side` and `overlap` are those of `maths/overlap.py`, up to the choice
    of the basis. Directions are kept whose singular value, with each neuron at unit variance, is
    above the cut for the dtype of the activations (`overlap.relative_cut`). Covariances know none
    below 1e-6 of the largest, and 3e-3 if products are in float32: see `needs_exact`.
    """

    layout: "_Layout" = field(repr=False)
    sums: tuple[Tensor, ...] = field(repr=False)
    exact: bool
    dtype: torch.dtype
    noise: Tensor = field(repr=False)

    @cached_property
    def num(self) -> int:
        """The number of examples."""
        return sum(_count(part, self.exact) for part in self.sums)

    @property
    def num_blocks(self) -> int:
        """The number of blocks of images that can be left out; 0 if they were not kept apart."""
        return len(self.sums) if len(self.sums) > 1 else 0

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """The number of examples in each block."""
        return tuple(_count(part, self.exact) for part in self.sums)

    @property
    def conditions(self) -> list[float]:
        """For each layer the condition of its kept directions, each neuron at unit variance."""
        return [self.side(i).condition for i in range(len(self.layout.columns))]

    def without(self, block: int) -> "Moments":
        """The moments of all images but those of one block."""
        if not 0 <= block < self.num_blocks:
            raise ValueError(
                f"there is no block {block} to leave out of {self.num_blocks}; set num_blocks of "
                "the accumulator"
            )
        if self.exact:
            rest = _triangle([*self.sums[:block], *self.sums[block + 1 :]])
        else:
            rest = self._total - self.sums[block]
        return Moments(self.layout, (rest,), self.exact, self.dtype, self.noise)

    def side(self, i: int) -> Side:
        """Layer i alone."""
        return self._bases[i][0]

    def is_resolved(self, i: int) -> bool:
        """Whether the products kept all digits that layer i needs: see `needs_exact`."""
        if self.exact:
            return True
        side, given = self.side(i), relative_cut(self.layout.dtypes[i])
        if side.condition > CONDITIONS[self.dtype]:
            return False
        varying = int((self._covariance(i, i).diagonal().real > 0).sum())
        return side.rank == min(varying, self.num - 1) or given >= CUTS[self.dtype]

    def overlap(self, i: int, j: int) -> Overlap:
        """What layers i and j share."""
        (x, of_x), (y, of_y) = self._bases[i], self._bases[j]
        cross = self._covariance(i, j)
        if i == j:
            whitened = torch.eye(x.rank, dtype=x.loadings.dtype, device=x.loadings.device)
        else:
            whitened = of_x.mH @ of_y if self.exact else of_x.mH @ cross @ of_y
        squares = torch.linalg.vector_norm(cross).square()
        tolerance = self._tolerance(x.condition, y.condition)
        return Overlap(x, y, whitened, squares, self._squared_rows[i, j], tolerance)

    @cached_property
    def _total(self) -> Tensor:
        """The sums over all blocks."""
        if len(self.sums) == 1:
            return self.sums[0]
        return _triangle(self.sums) if self.exact else sum(self.sums[1:], self.sums[0])

    @cached_property
    def _centred(self) -> Tensor:
        """The centred products of all columns in their own units; if exact, a factor F of F^H F."""
        products, scale, num = self._total[1:, 1:], self.layout.scale[1:], self.num
        if self.exact:
            factor = products * scale
            return factor.masked_fill_(factor.square().sum(0) <= self.noise, 0)
        sums = self._total[0, 1:]
        products = torch.addr(products, sums, sums, alpha=-1 / num).mul_(scale).mul_(scale[:, None])
        constant = products.diagonal() <= self.noise
        return products.masked_fill_(constant, 0).masked_fill_(constant[:, None], 0)

    @cached_property
    def _squared_rows(self) -> Tensor:
        """(L, L): the sums over the examples of products of the squared lengths of rows.

        The squared length of a row about the mean m is r - 2 x m up to a constant, which is the
        mean of the squared lengths.
        """
        layout, total = self.layout, self._total
        means = total[0, 1:] / total[0, 0] * layout.scale[1:]
        num, last = len(layout.columns), layout.size - 1
        mixed = torch.zeros(last, num, dtype=torch.float64, device=total.device)
        squares = []
        for i, columns in enumerate(layout.columns):
            own = slice(columns.start - 1, columns.stop - 1)
            mixed[own, i] = -2 * means[own]
            mixed[last - num + i, i] = 1
            part = self._centred[:, own]
            squares.append(part.square().sum() if self.exact else part[own].diagonal().sum())
        lengths = torch.stack(squares)
        if self.exact:
            factor = self._centred @ mixed
            products = factor.T @ factor
        else:
            products = mixed.T @ self._centred @ mixed
        return products + torch.outer(lengths, lengths) / self.num

    @cached_property
    def _bases(self) -> list[tuple[Side, Tensor]]:
        """For each layer the side, and the map from neurons to the basis (if exact, the basis)."""
        return [self._basis(i) for i in range(len(self.layout.columns))]

    def _basis(self, i: int) -> tuple[Side, Tensor]:
        covariance, cut = self._covariance(i, i), self._cut(i)
        spread = covariance.diagonal().real.sqrt()
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        if self.exact:
            factor = self._factor(i)
            left, values, _ = torch.linalg.svd(factor / spread, full_matrices=False)
            rank = int((values > cut * values[0]).sum())
            basis, kept = left[:, :rank], values[:rank]
            loadings = basis.mH @ factor
        else:
            squares, vectors = torch.linalg.eigh(covariance / spread / spread[:, None])
            first = int((squares <= cut**2 * squares[-1]).sum())
            kept, vectors = squares[first:].flip(0).sqrt(), vectors[:, first:].flip(1)
            basis = vectors / kept / spread[:, None]
            loadings = (vectors * kept).mH * spread
        squared = torch.linalg.vector_norm(covariance).square()
        return side_of(self.num, loadings, kept, squared, self._squared_rows[i, i]), basis

    def _tolerance(self, *conditions: float) -> float:
        """How far rounding may lift a correlation above one."""
        lost = max(conditions) ** (1 if self.exact else 2)
        return max(1e-9, 64 * torch.finfo(self.dtype).eps * lost)

    def _cut(self, i: int) -> float:
        given = relative_cut(self.layout.dtypes[i])
        return given if self.exact else max(given, CUTS[self.dtype])

    def _factor(self, i: int) -> Tensor:
        """The columns of layer i in the factor, complex again where they were."""
        columns = self.layout.columns[i]
        part = self._centred[:, columns.start - 1 : columns.stop - 1]
        if not self.layout.is_complex:
            return part
        return torch.view_as_complex(part.reshape(len(part), -1, 2).contiguous())

    def _covariance(self, i: int, j: int) -> Tensor:
        """X_i^H X_j (d_i, d_j), centred."""
        if self.exact:
            return self._factor(i).mH @ self._factor(j)
        rows, columns = (self.layout.columns[k] for k in (i, j))
        part = self._centred[rows.start - 1 : rows.stop - 1, columns.start - 1 : columns.stop - 1]
        return _complex(part) if self.layout.is_complex else part


def needs_exact(moments: Moments) -> list[int]:
    """The layers that covariances do not resolve, so that a second pass with `exact` is due.

    Those are the layers with a condition above 1e5 (100 for products in float32): the error of a
    correlation is about the square of the condition times the precision of the products. Layers are
    also named if directions were cut which the activations, by their dtype, could hold: nothing
    tells whether these are copies of others or merely small. None for moments that are exact. The
    moments of the first few thousand examples mostly name the same layers.
    """
    return [i for i in range(len(moments.layout.columns)) if not moments.is_resolved(i)]


def memory_bytes(
    widths: Sequence[int],
    *,
    num_blocks: int = 0,
    exact: bool = False,
    dtype: torch.dtype = torch.float64,
) -> int:
    """About the most bytes that moments of layers of these widths take, whatever the examples.

    The sums, the rows that wait to be summed, and what `Moments` make of both. A complex neuron
    counts twice.
    """
    size = 1 + sum(widths) + len(widths)
    rows = rows_at_once(size, num_blocks=num_blocks, exact=exact)
    waiting = rows * size * (8 * 2 + dtype.itemsize * (dtype != torch.float64 or num_blocks > 0))
    sums = 8 * size**2 * max(1, num_blocks)
    working = 8 * (2 * rows * size if exact else size**2)
    return sums + max(
        waiting + working * exact, 2 * 8 * size**2 + 8 * 4 * sum(d**2 for d in widths)
    )


def rows_at_once(size: int, *, num_blocks: int = 0, exact: bool = False) -> int:
    """How many rows are summed at once, for a joint matrix of `size` columns."""
    each = 2 * size if exact else 512
    return max(2048, each * max(1, num_blocks))


@dataclass
class _Layout:
    """Which columns of the joint matrix belong to which layer, their shift and their unit.

    Columns are 1, the neurons (of complex layers the real and the imaginary part, alternately), and
    a squared length for each layer. `scale` are powers of two, so that nothing is rounded, and
    numbers of any size have a product in float32.
    """

    widths: tuple[int, ...]
    is_complex: bool
    dtypes: tuple[torch.dtype, ...]
    columns: tuple[slice, ...]
    size: int
    weights: Tensor  # (neurons, L): the squares of the unit in the column of its layer
    shift: Tensor
    scale: Tensor

    def set_scale(self, rows: Tensor) -> None:
        """Take shift and scale from the first rows."""
        last = len(self.columns)
        values = rows[:FIRST, 1:-last]
        shift = values[0] + (values - values[0]).mean(0)  # a constant exactly
        values = values - shift
        lengths = values.square() @ self.weights
        self.shift[1:-last], self.shift[-last:] = shift, lengths.mean(0)
        spread = torch.cat([values.square().mean(0), lengths.var(0, correction=0)]).sqrt()
        self.scale[1:] = torch.where(spread > 0, spread / spread.frexp().mantissa, 1.0)
        self.weights *= self.scale[1:-last, None].square()

    def check(self, blocks: Sequence[Tensor]) -> None:
        """Raise `ValueError` for blocks that are not as the first."""
        shapes = [tuple(block.shape) for block in blocks]
        expected = [(shapes[0][0], width) for width in self.widths]
        if shapes != expected or any(b.is_complex() != self.is_complex for b in blocks):
            raise ValueError(
                "every batch must hold the same rows of every layer, with the widths of the first "
                f"batch, and be complex in all or in none: expected {expected}, got {shapes}"
            )

    def not_finite(self, rows: Tensor) -> int:
        """The first layer with a neuron that is not finite, or too large to have a square."""
        bad = ~torch.isfinite(rows.square().sum(0))
        return next(i for i, own in enumerate(self.columns) if bad[own].any())


def _layout(blocks: Sequence[Tensor]) -> _Layout:
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
    return _Layout(widths, is_complex, dtypes, columns, size, weights, shift, scale)


def _prepare(rows: Tensor, layout: _Layout) -> None:
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
        return _triangle([rows] if total is None else [total, rows])
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


def _triangle(rows: Sequence[Tensor]) -> Tensor:
    return torch.linalg.qr(torch.cat(list(rows)), mode="r").R


def _count(total: Tensor, exact: bool) -> int:
    return round(float(total[0, 0]) ** 2 if exact else float(total[0, 0]))


def _noise(sums: Sequence[Tensor], layout: _Layout, exact: bool, dtype: torch.dtype) -> Tensor:
    """The squared spread of each column, in its own unit, below which it is constant.

    The rounding of its values, as in `overlap.rows`, and that of the sums.
    """
    num, scale = sum(_count(part, exact) for part in sums), layout.scale[1:]
    first = [part[0, 1:] * part[0, 0] if exact else part[0, 1:] for part in sums]
    means = layout.shift[1:] + torch.stack(first).sum(0) / num * scale
    rounding = torch.zeros_like(means)
    for columns, given in zip(layout.columns, layout.dtypes, strict=True):
        rounding[columns.start - 1 : columns.stop - 1] = _rounding(given)
    squares = [part.square().sum(0) if exact else part.diagonal() for part in sums]
    lost = 64 * torch.finfo(dtype).eps
    lengths = torch.stack(squares).sum(0)[1:] * scale.square()
    floor = torch.maximum(num * (rounding * means).square(), (lost**2 if exact else lost) * lengths)
    floor[-len(layout.columns) :] = -1
    return floor


def _rounding(dtype: torch.dtype) -> float:
    inexact = dtype.is_floating_point or dtype.is_complex
    return max(4 * torch.finfo(torch.float64).eps, torch.finfo(dtype).eps if inexact else 0.0)


def _real(block: Tensor) -> Tensor:
    return torch.view_as_real(block.resolve_conj()).flatten(1) if block.is_complex() else block


def _complex(products: Tensor) -> Tensor:
    """X^H Y from the products of real and imaginary parts that alternate."""
    right = torch.complex(products[:, ::2].contiguous(), products[:, 1::2].contiguous())
    return right[::2] - 1j * right[1::2]

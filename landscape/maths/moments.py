"""What do the summed products of layers say about any pair of them?

The columns of a joint matrix V are 1, the neurons of every layer, and for each layer the squared
length of its rows; neurons are shifted by their mean over the first rows, so that no digits go to
an offset. The triangle of V^H V (memory of the widths alone) holds every covariance, and with the
squared lengths also the diagonal terms that exactly debiased measures take away. What it loses is
the square of the condition; where that is too much, a running QR of V (`exact`) keeps a triangular
factor of the same size, at about three times the cost. `maths/accumulator.py` sums either.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from landscape.maths.overlap import Overlap, Side, relative_cut, side_of

CUTS = {torch.float64: 2.0**-20, torch.float32: 3e-3}  # as for activations in float32
CONDITIONS = {torch.float64: 1e5, torch.float32: 1e2}  # above these too much is lost


@dataclass
class Layout:
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


@dataclass(frozen=True, eq=False)
class Moments:
    """Centred second moments of all layers, and what every linear measure needs of a pair.

    Made by an `Accumulator`. `side` and `overlap` are those of `maths/overlap.py`, up to the choice
    of the basis. Directions are kept whose singular value, with each neuron at unit variance, is
    above the cut for the dtype of the activations (`overlap.relative_cut`). Covariances know none
    below 1e-6 of the largest, and 3e-3 if products are in float32: see `needs_exact`.
    """

    layout: Layout = field(repr=False)
    sums: tuple[Tensor, ...] = field(repr=False)
    exact: bool
    dtype: torch.dtype
    noise: Tensor = field(repr=False)

    @cached_property
    def num(self) -> int:
        """The number of examples."""
        return sum(count(part, self.exact) for part in self.sums)

    @property
    def num_blocks(self) -> int:
        """The number of blocks of images that can be left out; 0 if they were not kept apart."""
        return len(self.sums) if len(self.sums) > 1 else 0

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """The number of examples in each block."""
        return tuple(count(part, self.exact) for part in self.sums)

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
            rest = triangle([*self.sums[:block], *self.sums[block + 1 :]])
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
        return triangle(self.sums) if self.exact else sum(self.sums[1:], self.sums[0])

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


def triangle(rows: Sequence[Tensor]) -> Tensor:
    """The triangular factor R of the rows of several matrices, one below the other."""
    return torch.linalg.qr(torch.cat(list(rows)), mode="r").R


def count(total: Tensor, exact: bool) -> int:
    """How many rows were summed: the first column of the joint matrix is 1."""
    return round(float(total[0, 0]) ** 2 if exact else float(total[0, 0]))


def _complex(products: Tensor) -> Tensor:
    """X^H Y from the products of real and imaginary parts that alternate."""
    right = torch.complex(products[:, ::2].contiguous(), products[:, 1::2].contiguous())
    return right[::2] - 1j * right[1::2]

"""CKA of all pairs of layers from one batch at a time: for layers too wide for their moments.

Moments of D neurons take D^2 numbers; a batch of b examples takes b^2 for each layer, whatever its
width. The price is that pairs of examples from different batches are not seen, so that the value
depends on the batches: that of `moments`, exact over all examples, is better where it fits.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def minibatch_cka(
    batches: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]],
) -> NDArray[np.float64]:
    """Debiased linear CKA (L, M) of L layers of one network with M of another.

    Each batch holds the activations (b, d_i) of the layers of both, for the same examples. The
    three criteria of Song et al. 2012 are added up over the batches before the ratio is taken, as
    by Nguyen et al. 2021, equation 4, each batch with the weight b (b - 3) of its pairs; batches of
    fewer than four examples have none. Rows are centred, so that large means cost no digits;
    arithmetic is in the widest dtype of the layers, float32 at least.

    nan where a layer has no criterion with itself. Raises `ValueError` if no batch has four
    examples, layers of a batch have different numbers of them, and for activations that are complex
    or not finite.
    """
    total: list[Tensor] | None = None
    for number, (xs, ys) in enumerate(batches):
        sizes = sorted({len(block) for block in (*xs, *ys)})
        if len(sizes) != 1:
            raise ValueError(f"layers of a batch must have the same examples, got {sizes} rows")
        if sizes[0] < 4:
            continue
        if any(block.is_complex() for block in (*xs, *ys)):
            raise ValueError("minibatch CKA takes real activations, got complex ones")
        dtype = reduce(torch.promote_types, (block.dtype for block in (*xs, *ys)), torch.float32)
        x = _centred_grams(xs, dtype)
        y = x if xs is ys else _centred_grams(ys, dtype)
        found = [x @ y.T, x.square().sum(1), y.square().sum(1)]
        found = [part.double() for part in found]
        for name, own in (("first", found[1]), ("second", found[2])):
            if len(bad := (~own.isfinite()).nonzero()):
                raise ValueError(
                    f"activations of layer {int(bad[0])} of the {name} network are not finite in "
                    f"batch {number} (both counted from 0), or too large to be squared"
                )
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    if total is None:
        raise ValueError("debiased CKA needs batches of at least four examples, got none")
    cross, of_x, of_y = (part.cpu().numpy() for part in total)
    squares = np.outer(of_x, of_y)
    roots = np.sqrt(squares, where=squares > 0, out=np.full_like(squares, np.nan))
    return np.asarray(cross / roots)


def _centred_grams(blocks: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """U-centred Gram matrices (L, b * b), without their diagonals. Szekely and Rizzo 2014."""
    num = len(blocks[0])
    grams = torch.empty(len(blocks), num, num, dtype=dtype, device=blocks[0].device)
    for gram, block in zip(grams, blocks, strict=True):
        rows = block.detach().to(dtype)
        _fill_gram(gram, rows - rows.mean(0))
    diagonals = grams.diagonal(dim1=1, dim2=2)
    diagonals.zero_()
    means = grams.sum(1) / (num - 2)
    means -= means.sum(1, keepdim=True) / (2 * (num - 1))
    grams -= means[:, None]
    grams -= means[:, :, None]
    diagonals.zero_()
    return grams.flatten(1)


def _fill_gram(gram: Tensor, rows: Tensor) -> None:
    """All products of two rows, of which almost half are copied across the diagonal."""
    step = max(64, len(rows) // 4)
    for start in range(0, len(rows), step):
        stop = start + step
        torch.mm(rows[start:stop], rows[start:].T, out=gram[start:stop, start:])
        gram[stop:, start:stop] = gram[start:stop, stop:].T

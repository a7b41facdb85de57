"""The gradient of a convolution's weight for each example: one product, done in several ways.

The weight gradient of an example is the product of its output gradients (O, L) with the windows of
its padded input (L, C * K) at the L output positions. Transposed convolutions exchange the two.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from landscape.example_gradients.parts import Key, Part, Way, gather_fastest

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """Where the windows of a convolution lie; `padding` is as in `F.pad`."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding: tuple[int, ...]
    mode: str


def convolution(
    module: nn.Module,
    inputs: Tensor,
    gradients: Tensor,
    parts: dict[str, Part],
    choices: dict[Key, tuple[str, int]],
) -> None:
    """Gather weight and bias of a convolution, transposed or not, in 1 to 3 dimensions."""
    assert isinstance(module, _ConvNd)
    if "bias" in parts:
        parts["bias"].add(gradients.flatten(3).sum(3).transpose(0, 1))
    if "weight" not in parts:
        return
    geometry = Geometry(
        module.kernel_size,
        module.stride,
        module.dilation,
        module.groups,
        tuple(module._reversed_padding_repeated_twice),
        "constant" if module.padding_mode == "zeros" else module.padding_mode,
    )
    if not isinstance(module, _ConvTransposeNd):
        _weight(inputs, gradients, geometry, parts["weight"], choices)
        return
    for number, one in enumerate(gradients):
        part = parts["weight"].cotangents(slice(number, number + 1))
        _weight(one, inputs[None], geometry, part, choices)


def _weight(
    images: Tensor,
    outputs: Tensor,
    geometry: Geometry,
    part: Part,
    choices: dict[Key, tuple[str, int]],
) -> None:
    """Gather the weight from images (b, C, ...) and what stands at the outputs (k, b, O, ...)."""
    k, _, channels, *places = outputs.shape
    positions, kernel = math.prod(places), math.prod(geometry.kernel)
    windows = images.shape[1] * kernel * positions
    weight = k * channels * (images.shape[1] // geometry.groups) * kernel
    gram = 2 * k * geometry.groups * positions**2
    size = images.element_size()

    def gather(pieces: Pieces, rows: slice, part: Part) -> None:
        for index, gradients in pieces(images[rows], outputs[:, rows], geometry):
            part.add(gradients, rows, index)

    def gather_each(pieces: Pieces, rows: slice, part: Part) -> None:
        for number in range(k):
            one = slice(number, number + 1)
            for index, gradients in pieces(images[rows], outputs[one, rows], geometry):
                part.cotangents(one).add(gradients, rows, index)

    def gather_norms(rows: slice, part: Part) -> None:
        columns = _windows(_padded(images[rows], geometry), places, geometry)
        columns = columns.unflatten(1, (geometry.groups, -1)).flatten(2, -1 - len(places))
        ours = outputs[:, rows].unflatten(2, (geometry.groups, -1))
        part.norms[:, rows] += gram_norms(ours.flatten(4), columns.flatten(3))

    ways = {"unfold": Way(partial(gather, _unfolded), size * max(windows, weight))}
    if kernel > 1:
        shifts = windows // geometry.kernel[0] * geometry.stride[0]
        ways["shift"] = Way(partial(gather, _shifted), size * max(shifts, weight))
    if kernel > 1 and places == _all_places(images, geometry):
        each = max(images[0].numel(), weight // k)
        ways["grouped"] = Way(partial(gather_each, _grouped), size * each)
    if part.only_norms and gram < 2 * weight:
        ways["gram"] = Way(gather_norms, size * max(windows, gram))
    shapes = (*images.shape[1:], k, *outputs.shape[2:])
    key = (geometry, shapes, str(images.dtype), images.device.type, part.only_norms)
    gather_fastest(ways, part, key, choices)


def gram_norms(left: Tensor, right: Tensor) -> Tensor:
    """Squared norms (k, n) of the products of left (k, n, g, o, l) with right (n, g, d, l).

    |A B^T|^2 is the sum of the elements of (A^T A) * (B^T B): cheap for few positions l.
    """
    ours, theirs = left.transpose(-1, -2) @ left, right.transpose(-1, -2) @ right
    return (ours * theirs).sum((2, 3, 4), dtype=torch.float64)


Pieces = Callable[[Tensor, Tensor, Geometry], Iterator[tuple[object, Tensor]]]


def _padded(images: Tensor, geometry: Geometry) -> Tensor:
    if any(geometry.padding):
        images = F.pad(images, geometry.padding, geometry.mode)
    return images.contiguous()


def _all_places(images: Tensor, geometry: Geometry) -> list[int]:
    """How many windows there are along each dimension."""
    pads = [a + b for a, b in zip(geometry.padding[::2], geometry.padding[1::2], strict=True)]
    sides = zip(images.shape[2:], reversed(pads), strict=True)
    return [
        (length + pad - d * (kernel - 1) - 1) // s + 1
        for (length, pad), kernel, s, d in zip(
            sides, geometry.kernel, geometry.stride, geometry.dilation, strict=True
        )
    ]


def _windows(padded: Tensor, places: Sequence[int], geometry: Geometry) -> Tensor:
    """Windows (n, C, *kernel, *places) of padded images, as a view."""
    n, c, *steps = padded.stride()
    by_kernel = [step * d for step, d in zip(steps, geometry.dilation, strict=True)]
    by_place = [step * s for step, s in zip(steps, geometry.stride, strict=True)]
    shape = (*padded.shape[:2], *geometry.kernel, *places)
    return padded.as_strided(shape, (n, c, *by_kernel, *by_place))


def _rows(outputs: Tensor, groups: int) -> Tensor:
    """What stands at the outputs (k, n, O, ...) as matrices (n * groups, k * O / groups, l)."""
    flat = outputs.flatten(3)
    if len(flat) == 1:
        return flat.reshape(flat.shape[1] * groups, -1, flat.shape[3])
    flat = flat.unflatten(2, (groups, -1)).permute(1, 2, 0, 3, 4)
    return flat.reshape(flat.shape[0] * groups, -1, flat.shape[4])


def _gradients(products: Tensor, outputs: Tensor, groups: int) -> Tensor:
    """Products (n * groups, k * O / groups, d) as gradients (n, k, groups, O / groups, d)."""
    k, n = outputs.shape[:2]
    return products.view(n, groups, k, -1, products.shape[2]).transpose(1, 2)


def _unfolded(
    images: Tensor, outputs: Tensor, geometry: Geometry
) -> Iterator[tuple[object, Tensor]]:
    """All windows copied, then one product for each example."""
    places = outputs.shape[3:]
    windows = _windows(_padded(images, geometry), places, geometry)
    columns = windows.reshape(len(images) * geometry.groups, -1, math.prod(places))
    products = torch.bmm(_rows(outputs, geometry.groups), columns.transpose(1, 2))
    yield ..., _gradients(products, outputs, geometry.groups)


def _shifted(
    images: Tensor, outputs: Tensor, geometry: Geometry
) -> Iterator[tuple[object, Tensor]]:
    """Windows copied along all dimensions but the first, whose shifts are views of the copy.

    With a stride, rows are sorted by their remainder, so that those of a shift lie together.
    """
    stride, dilation, groups = geometry.stride[0], geometry.dilation[0], geometry.groups
    padded = _padded(images, geometry)
    n, channels, length = padded.shape[:3]
    if length % stride:
        padding = [0] * (2 * (padded.ndim - 3)) + [0, stride - length % stride]
        padded = F.pad(padded, padding)
    rows, inner, places = padded.shape[2] // stride, geometry.kernel[1:], outputs.shape[3:]
    outer, between, *steps = padded.stride()
    by_kernel = [s * d for s, d in zip(steps[1:], geometry.dilation[1:], strict=True)]
    by_place = [s * d for s, d in zip(steps[1:], geometry.stride[1:], strict=True)]
    shape = (n, channels, *inner, stride, rows, *places[1:])
    strides = (outer, between, *by_kernel, steps[0], steps[0] * stride, *by_place)
    copy = padded.as_strided(shape, strides).contiguous()
    width = math.prod(places[1:])
    columns = copy.view(n * groups, -1, stride, rows * width)
    ours = _rows(outputs, groups)
    for shift in range(geometry.kernel[0]):
        start, remainder = divmod(shift * dilation, stride)
        part = columns[:, :, remainder, start * width : (start + places[0]) * width]
        products = torch.bmm(ours, part.transpose(1, 2))
        yield (slice(None), slice(None), shift), _gradients(products, outputs, groups)


def _grouped(
    images: Tensor, outputs: Tensor, geometry: Geometry
) -> Iterator[tuple[object, Tensor]]:
    """The weight gradient of one convolution that has a group for each example."""
    left, right = geometry.padding[::2], geometry.padding[1::2]
    padding = left[::-1]
    if geometry.mode != "constant" or left != right:
        images, padding = _padded(images, geometry), (0,) * len(left)
    n, channels = images.shape[:2]
    weight = images.new_empty(1).expand(
        n * outputs.shape[2], channels // geometry.groups, *geometry.kernel
    )
    found = torch.ops.aten.convolution_backward(
        outputs[0].reshape(1, -1, *outputs.shape[3:]),
        images.reshape(1, -1, *images.shape[2:]),
        weight, [0], geometry.stride, padding, geometry.dilation, False, [0] * len(left),
        n * geometry.groups, [False, True, False],
    )[1]  # fmt: skip
    yield ..., found.view(n, 1, geometry.groups, -1, found[0].numel())

"""How are batches changed at random? Shifts, flips and mixtures of all runs' batches at once.

An augmentation draws its parameters for all places of an epoch, from the generator of one run, on
the CPU; it is applied on the device to the batches of n runs in one call. Images come as
(n, batch, ..., height, width), normalised already; `Run.augmentations` says when one is on.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shift:
    """Each image is moved by -`pixels` to `pixels` rows and columns, all equally likely.

    The same as padding by `pixels` on all sides and cropping at random. What comes in is `fill`, a
    number or one for each channel; 0 is the mean of normalised images, and black is -mean / std.
    """

    pixels: int
    fill: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise ValueError(f"pixels must be at least 1, got {self.pixels}")

    def draw(self, generator: torch.Generator, num: int) -> Tensor:
        """Rows and columns (num, 2), 0 to 2 `pixels`, at which each crop begins."""
        return torch.randint(2 * self.pixels + 1, (num, 2), generator=generator)

    def apply(self, inputs: Tensor, targets: Tensor, draws: Tensor) -> Examples:
        """The moved images; targets are kept."""
        images = _images(inputs, self)
        height, width = images.shape[-2:]
        fill = torch.as_tensor(self.fill, dtype=inputs.dtype, device=inputs.device)
        if fill.ndim and len(fill) != images.shape[1]:
            raise ValueError(f"{self} is for {len(fill)} channels, got {images.shape[1]}")
        rows, columns = height + 2 * self.pixels, width + 2 * self.pixels
        padded = fill.reshape(-1, 1, 1).expand(*images.shape[:2], rows, columns).clone()
        padded[..., self.pixels : -self.pixels, self.pixels : -self.pixels] = images
        crops = padded.unfold(-2, height, 1).unfold(-2, width, 1)
        row, column = draws.flatten(0, 1).unbind(-1)
        moved = crops[torch.arange(len(images), device=row.device), :, row, column]
        return moved.reshape(inputs.shape), targets


@dataclass(frozen=True)
class Flip:
    """Left and right are exchanged in each image with probability `share`."""

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in 0 to 1, got {self.share}")

    def draw(self, generator: torch.Generator, num: int) -> Tensor:
        """Whether each image is flipped, (num,)."""
        return torch.rand(num, generator=generator) < self.share

    def apply(self, inputs: Tensor, targets: Tensor, draws: Tensor) -> Examples:
        """The images, some flipped; targets are kept."""
        images = _images(inputs, self)
        flipped = torch.where(draws.reshape(-1, 1, 1, 1), images.flip(-1), images)
        return flipped.reshape(inputs.shape), targets


@dataclass(frozen=True)
class Mixup:
    """Each example becomes a mixture of itself and another of its batch, and so does its label.

    `weight x_i + (1 - weight) x_j`, with a weight from Beta(alpha, alpha) for each pair (Zhang et
    al., arXiv 1710.09412, eq. 1; their code draws one for each batch). Targets become
    probabilities (..., num_classes), which `cross_entropy` takes; where runs of one stack mix at
    unlike times, all need targets of this form throughout, by the view `SoftLabels`.
    """

    alpha: float
    num_classes: int

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")

    def draw(self, generator: torch.Generator, num: int) -> tuple[Tensor, Tensor]:
        """Weights (num,), and numbers (num,) whose order within a batch gives the partners."""
        seed = int(torch.randint(2**62, (), generator=generator))
        weights = np.random.default_rng(seed).beta(self.alpha, self.alpha, num)
        return torch.from_numpy(weights), torch.rand(num, generator=generator)

    def apply(self, inputs: Tensor, targets: Tensor, draws: tuple[Tensor, Tensor]) -> Examples:
        """The mixed inputs, and probabilities of the classes (n, batch, num_classes)."""
        if not inputs.is_floating_point():
            raise ValueError(f"{self} is for floating-point inputs, got {inputs.dtype}")
        weights, keys = draws
        partners = keys.argsort(dim=1, stable=True)
        soft = self._soft(targets, inputs.dtype)
        return _mixed(inputs, weights, partners), _mixed(soft, weights, partners)

    def _soft(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        if targets.is_floating_point():
            if targets.ndim != 3 or targets.shape[-1] != self.num_classes:
                raise ValueError(
                    f"{self} is for labels, or probabilities of {self.num_classes} classes; "
                    f"got {tuple(targets.shape[2:])} numbers for each example"
                )
            return targets
        return F.one_hot(targets.long(), self.num_classes).to(dtype)


def _mixed(tensor: Tensor, weights: Tensor, partners: Tensor) -> Tensor:
    """Rows (n, batch, ...) mixed with their partners' in the same run."""
    run = torch.arange(len(tensor), device=tensor.device)[:, None]
    weights = weights.to(tensor.dtype).reshape(*weights.shape, *[1] * (tensor.ndim - 2))
    return weights * tensor + (1 - weights) * tensor[run, partners]


def _images(inputs: Tensor, augmentation: Any) -> Tensor:
    """Images of all runs as (n * batch, channels, height, width)."""
    if inputs.ndim < 4 or not inputs.is_floating_point():
        raise ValueError(
            f"{augmentation} is for images (n, batch, ..., height, width) of floating-point "
            f"numbers, got {tuple(inputs.shape)} of {inputs.dtype}"
        )
    return inputs.reshape(inputs.shape[0] * inputs.shape[1], -1, *inputs.shape[-2:])

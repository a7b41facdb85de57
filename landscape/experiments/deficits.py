"""What is wrong with the training set for a while? Views that show it with a deficit.

A view takes the inputs (N, ...) and targets (N,) of the whole training set and gives another
version of the same examples; `Run.views` says when it is on. Test sets are not seen by it. Images
come as (N, ..., height, width), normalised already, and a deficit is the same whenever it is on:
what is drawn comes from the view's own seed, and views of one seed draw independently.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from landscape.experiments.batches import generator

Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Blur:
    """Images without their fine detail: made smaller and then as large again, both bilinearly.

    The smaller images have `size` rows, with columns in proportion, or `factor` times fewer of
    both (to the nearest pixel). Making them smaller averages over all pixels (antialiasing). With
    32 x 32 images, `Blur(size=8)` and `Blur(factor=4)` are the deficit of Achille et al. (arXiv
    1711.08856). A factor of 1 changes nothing.
    """

    size: int | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        if (self.size is None) == (self.factor is None):
            raise ValueError(f"a blur takes size or factor, got {self.size} and {self.factor}")
        given = self.factor if self.size is None else self.size
        if given is None or given < 1:
            raise ValueError(f"size or factor must be at least 1, got {given}")

    def __call__(self, inputs: Tensor, targets: Tensor) -> Examples:
        """The blurred images; targets are kept."""
        images = _images(inputs, self)
        height, width = images.shape[-2:]
        factor = self.factor or height / (self.size or height)
        small = round(height / factor), round(width / factor)
        if small[0] > height or min(small) < 1:
            raise ValueError(
                f"{self} does not fit images of {height} x {width} pixels; "
                f"choose a size of 1 to {height}, or a factor of 1 to {min(height, width)}"
            )
        if small == (height, width):
            return inputs, targets
        reduced = F.interpolate(images, small, mode="bilinear", antialias=True)
        blurred = F.interpolate(reduced, (height, width), mode="bilinear")
        return blurred.reshape(inputs.shape), targets


@dataclass(frozen=True)
class Occlusion:
    """A square of `size` pixels is hidden, somewhere else in each image but always there.

    Its place is drawn from `seed`, uniformly among those that lie within the image. The pixels
    become `fill`; 0 is the mean of normalised images.
    """

    size: int
    fill: float = 0.0
    seed: int = 0

    def __call__(self, inputs: Tensor, targets: Tensor) -> Examples:
        """The images with a hidden square; targets are kept."""
        images = _images(inputs, self)
        height, width = images.shape[-2:]
        if not 1 <= self.size <= min(height, width):
            raise ValueError(
                f"{self} does not fit images of {height} x {width} pixels; "
                f"choose a size of 1 to {min(height, width)}"
            )
        chance = _chance(self)
        hidden = [
            _interval(extent, self.size, len(images), chance).to(images.device)
            for extent in (height, width)
        ]
        square = hidden[0][:, None, :, None] & hidden[1][:, None, None, :]
        return images.masked_fill(square, self.fill).reshape(inputs.shape), targets


@dataclass(frozen=True)
class NoiseImages:
    """Noise in place of each input: standard normal, the same for an example whenever it is seen.

    It does not depend on the input, only on `seed` and the number of the example; mean 0 and
    variance 1 are those of normalised images. Targets are kept.
    """

    seed: int = 0

    def __call__(self, inputs: Tensor, targets: Tensor) -> Examples:
        """Noise of the inputs' shape; targets are kept."""
        return _normal(inputs, self), targets


@dataclass(frozen=True)
class PixelNoise:
    """Normal noise of standard deviation `std` is added to each input, always the same to each."""

    std: float
    seed: int = 0

    def __call__(self, inputs: Tensor, targets: Tensor) -> Examples:
        """The noisy inputs; targets are kept."""
        return inputs + self.std * _normal(inputs, self), targets


@dataclass(frozen=True)
class PermutedLabels:
    """Each class goes by the name of another: one permutation of the classes, without fixed point.

    Drawn from `seed`, uniformly among those without fixed points; see `permutation`. Inputs are
    kept.
    """

    num_classes: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_num_classes(self.num_classes)

    @property
    def permutation(self) -> Tensor:
        """The new label (num_classes,) of each class."""
        chance, classes = _chance(self), torch.arange(self.num_classes)
        drawn = classes
        while (drawn == classes).any():
            drawn = torch.randperm(self.num_classes, generator=chance)
        return drawn

    def __call__(self, inputs: Tensor, targets: Tensor) -> Examples:
        """The permuted labels; inputs are kept."""
        _check_labels(targets, self.num_classes, self)
        return inputs, self.permutation.to(targets)[targets.long()]


@dataclass(frozen=True)
class NoisyLabels:
    """A `share` of the examples have a label drawn uniformly from all classes.

    So a share of (1 - 1 / num_classes) of these is wrong, and `NoisyLabels(1.0, ...)` are random
    labels. Both the examples and their labels come from `seed` alone: those of a smaller share are
    among those of a larger one. Inputs are kept.
    """

    share: float
    num_classes: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_num_classes(self.num_classes)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in 0 to 1, got {self.share}")

    def __call__(self, inputs: Tensor, targets: Tensor) -> Examples:
        """The noisy labels; inputs are kept."""
        _check_labels(targets, self.num_classes, self)
        chance, num = _chance(self), len(targets)
        noisy = torch.randperm(num, generator=chance)[: round(self.share * num)]
        drawn = torch.randint(self.num_classes, (num,), generator=chance)
        labels = targets.clone()
        labels[noisy.to(targets.device)] = drawn[noisy].to(targets)
        return inputs, labels


@dataclass(frozen=True)
class ReducedSet:
    """Only `num_examples` of the examples are there: they take the places of all others, in turn.

    The number of examples of an epoch stays what it was, and each that is left is seen equally
    often, up to one time. They come from `seed`; those of a smaller set are among those of a larger
    one.
    """

    num_examples: int
    seed: int = 0

    def indices(self, num: int) -> Tensor:
        """Which of `num` examples stands at the place of each, (num,)."""
        if not 1 <= self.num_examples <= num:
            raise ValueError(
                f"a reduced set of {num} examples has 1 to {num}, got {self.num_examples}"
            )
        order = torch.randperm(num, generator=_chance(self))
        shown = torch.empty_like(order)
        shown[order] = order[torch.arange(num) % self.num_examples]
        return shown

    def __call__(self, inputs: Tensor, targets: Tensor) -> Examples:
        """The examples that are left, at the places of all."""
        index = self.indices(len(inputs)).to(inputs.device)
        return inputs[index], targets[index]


@dataclass(frozen=True)
class SoftLabels:
    """Labels as probabilities (N, num_classes): 1 for the class and 0 for all others.

    No deficit: it gives all runs of a stack targets of one form, where only some mix examples.
    """

    num_classes: int

    def __call__(self, inputs: Tensor, targets: Tensor) -> Examples:
        """Targets as probabilities, of the dtype of the inputs, which are kept."""
        _check_labels(targets, self.num_classes, self)
        return inputs, F.one_hot(targets.long(), self.num_classes).to(inputs.dtype)


def flip_vertical(inputs: Tensor, targets: Tensor) -> Examples:
    """Images upside down: the order of the rows is reversed; targets are kept."""
    return _images(inputs, "flip_vertical").flip(-2).reshape(inputs.shape), targets


def _interval(extent: int, size: int, num: int, chance: torch.Generator) -> Tensor:
    """Which of the pixels along one side are hidden in each image, (num, extent)."""
    first = torch.randint(extent - size + 1, (num, 1), generator=chance)
    pixel = torch.arange(extent)
    return (pixel >= first) & (pixel < first + size)


def _normal(inputs: Tensor, view: Any) -> Tensor:
    """Standard normal numbers of the inputs' shape."""
    if not inputs.is_floating_point():
        raise ValueError(f"{view} is for inputs of floating-point numbers, got {inputs.dtype}")
    noise = torch.randn(inputs.shape, generator=_chance(view), dtype=inputs.dtype)
    return noise.to(inputs.device)


def _chance(view: Any) -> torch.Generator:
    """The generator of a view; views of other kinds draw other numbers from the same seed."""
    return generator(view.seed, *type(view).__name__.encode())


def _images(inputs: Tensor, view: Any) -> Tensor:
    """Images as (N, channels, height, width)."""
    if inputs.ndim < 3 or not inputs.is_floating_point():
        raise ValueError(
            f"{view} is for images (N, ..., height, width) of floating-point numbers, got "
            f"{tuple(inputs.shape)} of {inputs.dtype}"
        )
    return inputs.reshape(len(inputs), -1, *inputs.shape[-2:])


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")


def _check_labels(targets: Tensor, num_classes: int, view: Any) -> None:
    if targets.is_floating_point() or targets.ndim != 1:
        raise ValueError(
            f"{view} is for labels (N,) of integers, got {tuple(targets.shape)} of "
            f"{targets.dtype}; put it before a view that makes labels soft"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{view} is for labels 0 to {num_classes - 1}, got {low} to {high}")

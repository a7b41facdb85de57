"""Which networks do the papers train?

Small reference architectures in plain torch: images (n, c, h, w) in, logits (n, classes) out.
`width` is the number of channels of the first convolution; later layers grow with it as published.

Weights start as in He et al. 2015 (arXiv 1502.01852, eq. 10), normal with variance 2 / fan-in in
convolutions and linear layers alike, biases at 0; batch norm starts at scale 1 and shift 0. A
convolution that batch norm follows has no bias. The weights are drawn from torch's global
generator; with `seed` they depend on nothing else, and the global generator stays as it was.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def mlp(
    in_features: int = 64,
    hidden: Sequence[int] = (100, 100),
    classes: int = 10,
    batch_norm: bool = False,
    *,
    seed: int | None = None,
) -> nn.Sequential:
    """A fully connected ReLU network; inputs (n, ...) are flattened to (n, in_features).

    `mlp(784, (300, 100))` is LeNet-300-100 (LeCun et al. 1998), with 266,610 parameters.
    """
    sizes = [in_features, *hidden]
    with _seeded(seed):
        layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        for number, (before, after) in enumerate(pairwise(sizes), start=1):
            layers[f"fc{number}"] = nn.Linear(before, after)
            if batch_norm:
                layers[f"bn{number}"] = nn.BatchNorm1d(after)
            layers[f"relu{number}"] = nn.ReLU()
        layers["output"] = nn.Linear(sizes[-1], classes)
        return _he_normal(layers)


def lenet(
    in_channels: int = 1, size: int = 28, classes: int = 10, *, seed: int | None = None
) -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998, section II) with ReLU and max pooling, for size x size images.

    Images below 32 x 32 are padded by 2 pixels on each side, as MNIST was; 61,706 parameters at
    28 x 28 x 1. Raises `ValueError` if nothing would be left of the image after both poolings.
    """
    padding = 2 if size < 32 else 0
    side = ((size + 2 * padding - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError(f"size must be at least 12 for two 5 x 5 convolutions, got {size}")
    with _seeded(seed):
        layers = {
            "conv1": nn.Conv2d(in_channels, 6, 5, padding=padding),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(6, 16, 5),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(16 * side**2, 120),
            "relu3": nn.ReLU(),
            "fc2": nn.Linear(120, 84),
            "relu4": nn.ReLU(),
            "output": nn.Linear(84, classes),
        }
        return _he_normal(layers)


def small_cnn(
    in_channels: int = 1,
    classes: int = 10,
    width: int = 16,
    batch_norm: bool = True,
    *,
    seed: int | None = None,
) -> nn.Sequential:
    """Three 3 x 3 convolutions of width, 2 width and 4 width channels, then a global average.

    The second and third halve the image; any size from 2 x 2 up will do.
    """
    with _seeded(seed):
        layers = {
            "block1": _conv_block(in_channels, width, 1, batch_norm),
            "block2": _conv_block(width, 2 * width, 2, batch_norm),
            "block3": _conv_block(2 * width, 4 * width, 2, batch_norm),
            "head": _head(4 * width, classes),
        }
        return _he_normal(layers)


def resnet20(
    in_channels: int = 3,
    classes: int = 10,
    width: int = 16,
    batch_norm: bool = True,
    skip: bool = True,
    *,
    seed: int | None = None,
) -> nn.Sequential:
    """The CIFAR residual network with 20 layers (He et al. 2015, arXiv 1512.03385, section 4.2).

    Three stages of `width`, 2 `width` and 4 `width` channels, and the parameter-free shortcuts
    of the paper's CIFAR networks (option A): where a stage begins, every second pixel is taken and
    the new channels are 0. 269,722 parameters for 10 classes (published: 0.27 M).

    `skip=False` leaves the shortcuts out. `batch_norm=False` gives the convolutions biases; to
    keep the activations bounded, the last weights of each of the n residual branches then start
    1/sqrt(n) times as large (Hanin & Rolnick 2018, arXiv 1803.01719).
    """
    return _resnet(3, 3, in_channels, classes, width, batch_norm, skip, seed)


def resnet32(
    in_channels: int = 3,
    classes: int = 10,
    width: int = 16,
    batch_norm: bool = True,
    skip: bool = True,
    *,
    seed: int | None = None,
) -> nn.Sequential:
    """`resnet20` with 32 layers, five blocks in each stage: 464,154 parameters (0.46 M)."""
    return _resnet(5, 3, in_channels, classes, width, batch_norm, skip, seed)


def resnet56(
    in_channels: int = 3,
    classes: int = 10,
    width: int = 16,
    batch_norm: bool = True,
    skip: bool = True,
    *,
    seed: int | None = None,
) -> nn.Sequential:
    """`resnet20` with 56 layers, nine blocks in each stage: 853,018 parameters (0.85 M)."""
    return _resnet(9, 3, in_channels, classes, width, batch_norm, skip, seed)


def resnet18(
    in_channels: int = 3,
    classes: int = 10,
    width: int = 64,
    batch_norm: bool = True,
    skip: bool = True,
    *,
    seed: int | None = None,
) -> nn.Sequential:
    """The residual network with 18 layers (He et al. 2015, table 1) for images of CIFAR's size.

    The first convolution is 3 x 3 and nothing is pooled before the end; four stages of `width` to
    8 `width` channels, each but the first begun by a projection (option B). 11,173,962 parameters
    for 10 classes; `width=16` is the slim one of Ash & Adams (arXiv 1910.08475), with 0.70 M.
    """
    return _resnet(2, 4, in_channels, classes, width, batch_norm, skip, seed)


def all_cnn(
    in_channels: int = 3,
    classes: int = 10,
    width: int = 96,
    batch_norm: bool = True,
    *,
    seed: int | None = None,
) -> nn.Sequential:
    """All-CNN-C (Springenberg et al. 2014, arXiv 1412.6806, table 1), with batch norm.

    Convolutions of `width` and 2 `width` channels, two of which halve the image in place of
    pooling, then 1 x 1 convolutions and a global average. 1,620,010 parameters (1.6 M).
    """
    plan = [(1, 1, 3), (1, 1, 3), (2, 2, 3), (2, 1, 3), (2, 1, 3), (2, 2, 3), (2, 1, 3), (2, 1, 1)]
    with _seeded(seed):
        layers: dict[str, nn.Module] = {}
        channels = in_channels
        for number, (factor, stride, size) in enumerate(plan, start=1):
            block = _conv_block(channels, factor * width, stride, batch_norm, size)
            layers[f"block{number}"] = block
            channels = factor * width
        return _he_normal(layers | {"head": _head(channels, classes)})


def vgg16(
    in_channels: int = 3,
    classes: int = 10,
    width: int = 64,
    batch_norm: bool = True,
    *,
    seed: int | None = None,
) -> nn.Sequential:
    """VGG-16 in its CIFAR form: the 13 convolutions of Simonyan & Zisserman 2014 (arXiv 1409.1556,
    table 1, D), each with batch norm, and one linear layer in place of three.

    Images must be 32 x 32 or larger, for five poolings. 14,724,042 parameters (14.7 M).
    """
    with _seeded(seed):
        layers: dict[str, nn.Module] = {}
        channels = in_channels
        for stage, (factor, depth) in enumerate([(1, 2), (2, 2), (4, 3), (8, 3), (8, 3)], start=1):
            for number in range(1, depth + 1):
                block = _conv_block(channels, factor * width, 1, batch_norm)
                layers[f"block{stage}_{number}"] = block
                channels = factor * width
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        return _he_normal(layers | {"head": _head(channels, classes)})


def shortcut(x: Tensor, channels: int, stride: int) -> Tensor:
    """The identity from (n, c, h, w) to (n, channels, h / stride, w / stride) without parameters.

    Every `stride`-th pixel, with zeros as the added channels: option A of He et al. 2015.
    """
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, channels - x.shape[1]))


class _ResidualBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))); where the size changes, x may be projected."""

    def __init__(
        self, before: int, after: int, stride: int, batch_norm: bool, skip: bool, projected: bool
    ):
        super().__init__()
        self.channels, self.stride, self.skip = after, stride, skip
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=not batch_norm)
        self.bn1 = nn.BatchNorm2d(after) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=not batch_norm)
        self.bn2 = nn.BatchNorm2d(after) if batch_norm else nn.Identity()
        self.projection: nn.Sequential | None = None
        if projected and skip and (stride > 1 or before != after):
            conv = nn.Conv2d(before, after, 1, stride, bias=not batch_norm)
            norm = nn.BatchNorm2d(after) if batch_norm else nn.Identity()
            self.projection = nn.Sequential(OrderedDict(conv=conv, bn=norm))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if not self.skip:
            return F.relu(out)
        past = self.projection(x) if self.projection else shortcut(x, self.channels, self.stride)
        return F.relu(out + past)


def _resnet(
    blocks: int,
    stages: int,
    in_channels: int,
    classes: int,
    width: int,
    batch_norm: bool,
    skip: bool,
    seed: int | None,
) -> nn.Sequential:
    """The residual network with `blocks` blocks in each stage; four stages have projections."""
    with _seeded(seed):
        layers: dict[str, nn.Module] = {"stem": _conv_block(in_channels, width, 1, batch_norm)}
        channels = width
        for stage in range(1, stages + 1):
            out = width * 2 ** (stage - 1)
            for number in range(1, blocks + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                block = _ResidualBlock(channels, out, stride, batch_norm, skip, stages > 3)
                layers[f"block{stage}_{number}"] = block
                channels = out
        model = _he_normal(layers | {"head": _head(channels, classes)})
    if skip and not batch_norm:
        for layer in model:
            if isinstance(layer, _ResidualBlock):
                layer.conv2.weight.data.div_((stages * blocks) ** 0.5)
    return model


def _conv_block(
    before: int, after: int, stride: int, batch_norm: bool, size: int = 3
) -> nn.Sequential:
    layers = {
        "conv": nn.Conv2d(before, after, size, stride, padding=size // 2, bias=not batch_norm),
        "bn": nn.BatchNorm2d(after) if batch_norm else nn.Identity(),
        "relu": nn.ReLU(),
    }
    return nn.Sequential(OrderedDict(layers))


def _head(channels: int, classes: int) -> nn.Sequential:
    """Global average pooling, then the logits."""
    layers = {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "output": nn.Linear(channels, classes),
    }
    return nn.Sequential(OrderedDict(layers))


def _he_normal(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    """The layers in sequence, with He's initial weights."""
    model = nn.Sequential(OrderedDict(layers))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Within it torch draws from `seed`, if one is given; afterwards goes on as if nothing was."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # the generators of devices stay as they are
        yield

"""What is the gradient of each example in a layer, given its inputs and its outputs' gradients?

Each rule takes the module, its inputs x (b, ...), the gradients (k, b, ...) of its outputs for k
cotangents, and the parts to add to, by the name of the parameter in the module.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from landscape.example_gradients.convolutions import CONVOLUTIONS, convolution, gram_norms
from landscape.example_gradients.parts import Key, Part, Way, gather_fastest

Choices = dict[Key, tuple[str, int]]
LayerRule = Callable[[nn.Module, Tensor, Tensor, dict[str, Part], Choices], None]

CACHE = 2**20  # bytes that a core has at hand
NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm,
)  # fmt: skip


def kind_of(module: nn.Module) -> str | None:
    """The name in `RULES` of the rule for a module, or None if there is none.

    A rule serves exactly the layers of torch, with the parameters they have when made: subclasses,
    parametrised and pruned layers may compute something else.
    """
    kind = type(module)
    if "forward" in vars(module) or not set(module._parameters) <= {"weight", "bias"}:
        return None
    if kind is nn.Linear:
        return "linear"
    if kind in CONVOLUTIONS:
        return "convolution"
    if kind in NORMS:
        return "norm"
    return "embedding" if kind is nn.Embedding and module.max_norm is None else None


def linear(
    module: nn.Module, x: Tensor, gradients: Tensor, parts: dict[str, Part], choices: Choices
) -> None:
    """Y = W x + b, at one position for each example or at several."""
    if x.ndim == 2:
        _linear(x, gradients, parts)
        return
    x, gradients = x.flatten(1, -2), gradients.flatten(2, -2)  # (b, l, d), (k, b, l, o)
    if "bias" in parts:
        parts["bias"].add(gradients.sum(2).transpose(0, 1))
    if "weight" not in parts:
        return
    k, _, positions, out = gradients.shape
    size, weight, gram = x.element_size(), k * out * x.shape[2], k * positions**2

    def directly(rows: slice, part: Part) -> None:
        left = gradients[:, rows].transpose(0, 1).transpose(2, 3)  # (n, k, o, l)
        part.add(left @ x[rows, None], rows)

    def by_gram(rows: slice, part: Part) -> None:
        left, right = gradients[:, rows, None].mT, x[rows, None].mT
        part.norms[:, rows] += gram_norms(left, right)

    ways = {"direct": Way(directly, size * weight)}
    if parts["weight"].only_norms and gram < 2 * weight:
        ways["gram"] = Way(by_gram, 2 * size * gram)
    key = ("linear", k, positions, out, x.shape[2], str(x.dtype), x.device.type, len(ways))
    gather_fastest(ways, parts["weight"], key, choices)


def _linear(x: Tensor, gradients: Tensor, parts: dict[str, Part]) -> None:
    """One position: the weight's gradient is an outer product, whose square is one as well."""
    if "bias" in parts:
        parts["bias"].add(gradients.transpose(0, 1))
    if part := parts.get("weight"):
        weighted = part.weights[:, :, None]
        squares, x_squares = gradients.square(), x.square()
        part.norms.add_(squares.sum(2).double() * x_squares.sum(1).double())
        if part.diagonal is not None:
            part.diagonal.addmm_((squares * weighted).sum(0).T, x_squares)
        if part.mean is not None:
            part.mean.addmm_((gradients * weighted).sum(0).T, x)


def norm(
    module: nn.Module, x: Tensor, gradients: Tensor, parts: dict[str, Part], choices: Choices
) -> None:
    """Y = w * n(x) + b, with w and b for each channel, or for each element of the last dims."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        dims = tuple(range(2, 1 + x.ndim - len(module.normalized_shape)))
    else:
        dims = tuple(range(3, 1 + x.ndim))
    if "bias" in parts:
        parts["bias"].add(_summed(gradients, dims))
    if "weight" in parts:
        step = max(1, CACHE // (len(gradients) * x[0].numel() * x.element_size()))
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            terms = gradients[:, rows] * _normalised(module, x[rows])
            parts["weight"].add(_summed(terms, dims), rows)


def _summed(terms: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Terms (k, n, ...) as gradients (n, k, ...), summed over the positions."""
    return (terms.sum(dims) if dims else terms).transpose(0, 1)


def _normalised(module: nn.Module, x: Tensor) -> Tensor:
    """What a norm layer multiplies with its weight."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    if isinstance(module, _InstanceNorm) and module.running_mean is None:
        return F.instance_norm(x, eps=module.eps)
    assert isinstance(module, _BatchNorm | _InstanceNorm)
    mean, var = module.running_mean, module.running_var
    return F.batch_norm(x, mean, var, eps=module.eps)


def embedding(
    module: nn.Module, x: Tensor, gradients: Tensor, parts: dict[str, Part], choices: Choices
) -> None:
    """Rows of a table: the gradients of equal tokens of an example add up; padding has none."""
    assert isinstance(module, nn.Embedding)
    part = parts["weight"]
    num, rows = len(x), module.num_embeddings
    k, width = len(gradients), module.embedding_dim
    example = torch.arange(num, device=x.device).repeat_interleave(x[0].numel())
    flat, tokens = gradients.reshape(k, -1, width), x.reshape(-1)
    if module.padding_idx is not None:
        kept = tokens != module.padding_idx
        flat, tokens, example = flat[:, kept], tokens[kept], example[kept]
    pairs, place = torch.unique(example * rows + tokens, return_inverse=True)
    sums = flat.new_zeros(k, len(pairs), width).index_add_(1, place, flat)
    example, tokens = pairs // rows, pairs % rows
    squares = sums.square()
    part.norms.index_add_(1, example, squares.sum(2).double())
    weights = part.weights[:, example, None]
    if part.diagonal is not None:
        part.diagonal.index_add_(0, tokens, (squares * weights).sum(0))
    if part.mean is not None:
        part.mean.index_add_(0, tokens, (sums * weights).sum(0))


RULES: dict[str, LayerRule] = {
    "linear": linear,
    "convolution": convolution,
    "norm": norm,
    "embedding": embedding,
}

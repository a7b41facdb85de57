"""What do a model's outputs mean as a distribution of labels, and which gradients belong to it?

Fisher information needs the gradients of log p(y | outputs) with respect to the outputs, for all
labels y or for drawn ones: the cotangents that are pulled back through the model. Outputs (b, ...)
are logits of classes (categorical), logits of labels of their own (bernoulli), or means of unit
variance (gaussian). The log-probabilities of the positions of an example (tokens, pixels, outputs)
add up. Probabilities are in float64, and what is small is summed, never subtracted from one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("categorical", "bernoulli", "gaussian")
SCHEMES = ("importance", "plain")
CLOSE = 1e-3  # to which a loss must agree with a likelihood, in the arithmetic of the loss
KNOWN = (
    "softmax cross-entropy (categorical), binary cross-entropy with logits (bernoulli) and squared "
    "error (gaussian)"
)


@dataclass(frozen=True)
class Likelihood:
    """How outputs are read.

    `kind` is one of `KINDS`; `class_dim` the dimension of outputs (b, ...) that holds the classes:
    1 for (b, C) and (b, C, positions), as in torch, or -1 for (b, positions, C). `scale` is the
    factor between the task's loss and -log p, such as 1 / positions; NaN if they do not agree.
    """

    kind: str
    class_dim: int = 1
    scale: float = float("nan")


# --- which likelihood -----------------------------------------------------------------------------


def likelihood_of(
    loss: Callable[[Tensor, Tensor], Tensor],
    outputs: Tensor,
    targets: Tensor,
    kind: str = "auto",
) -> Likelihood:
    """The likelihood whose -log p is the loss, but for a factor and a constant.

    Its gradient with respect to the outputs is compared with that of `loss` for these targets, at
    random outputs of the same shape (b, ...), so that the answer does not depend on the weights.
    The factor may be that of a mean over positions. A `kind` other than `"auto"` is taken at its
    word; then only where the classes are is found out.

    Raises `ValueError` for an unknown kind, outputs that cannot be of this kind, and with `"auto"`
    if the loss belongs to no likelihood.
    """
    if kind not in ("auto", *KINDS):
        raise ValueError(f"likelihood must be 'auto' or one of {', '.join(KINDS)}, got {kind!r}")
    candidates = [one for one in _candidates(outputs, targets) if kind in ("auto", one.kind)]
    for one in candidates:
        scale = _agreement(loss, one, outputs, targets)
        if scale is not None:
            return Likelihood(one.kind, one.class_dim, scale)
    if kind == "auto":
        shape = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"the loss belongs to no likelihood that is known: {KNOWN}. Outputs are "
            f"{tuple(outputs.shape)}, targets {shape}. Say what the outputs mean with "
            "likelihood='categorical', 'bernoulli' or 'gaussian' (outputs must be logits, not "
            "probabilities), or take labels='observed', which needs no likelihood"
        )
    if kind == "categorical" and outputs.ndim < 2:
        raise ValueError(
            f"likelihood='categorical' needs outputs (b, classes, ...), got {tuple(outputs.shape)}"
        )
    return candidates[0] if candidates else Likelihood(kind)


def _candidates(outputs: Tensor, targets: object) -> list[Likelihood]:
    """Likelihoods that shapes and types allow."""
    if not isinstance(targets, Tensor) or len(targets) != len(outputs):
        return []
    found = []
    for dim in (1, -1) if outputs.ndim > 2 else (1,) if outputs.ndim == 2 else ():
        shape = list(outputs.shape)
        classes = shape.pop(dim)
        hard = not targets.is_floating_point() and targets.shape == torch.Size(shape)
        soft = targets.is_floating_point() and targets.shape == outputs.shape
        if classes > 1 and (hard or soft):
            found.append(Likelihood("categorical", dim))
    if targets.numel() == outputs.numel():
        found += [Likelihood("bernoulli"), Likelihood("gaussian")]
    return found


def _agreement(
    loss: Callable[[Tensor, Tensor], Tensor],
    likelihood: Likelihood,
    outputs: Tensor,
    targets: Tensor,
) -> float | None:
    """The factor between the gradients of the loss and of -log p, or None if there is none."""
    generator = torch.Generator().manual_seed(0)
    trial = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    logarithms = likelihood.kind == "categorical" and _normalised(likelihood, outputs)
    if logarithms:
        trial = trial.log_softmax(likelihood.class_dim)
    with torch.inference_mode(False), torch.enable_grad():
        leaf = trial.clone().requires_grad_()
        try:
            (slope,) = torch.autograd.grad(loss(leaf, targets.clone()).sum(), leaf)
        except (RuntimeError, ValueError, IndexError, TypeError):  # not for such outputs
            return None
    found = _rows(likelihood, slope).double()
    if logarithms:  # the loss may use that the outputs are log-probabilities
        found = found - _rows(likelihood, trial).double().exp() * found.sum(-1, keepdim=True)
    counted = counted_positions(likelihood, trial, targets)
    wanted = _masked(-_score(likelihood, trial, targets), counted)
    found, wanted = found.flatten(1), wanted.flatten(1)
    squares = wanted.square().sum(1)
    if not squares.any() or (found[squares == 0] != 0).any():
        return None
    scales = ((found * wanted).sum(1) / squares)[squares > 0]
    rest = (found[squares > 0] - scales[:, None] * wanted[squares > 0]).norm(dim=1)
    if not (rest <= CLOSE * found[squares > 0].norm(dim=1)).all() or not (scales > 0).all():
        return None
    by_position = scales if counted is None else scales * counted.sum(1)[squares > 0]
    for factors in (scales, by_position):
        if (factors - factors[0]).abs().max() <= CLOSE * factors[0]:
            return float(scales.mean())
    return None


def _normalised(likelihood: Likelihood, outputs: Tensor) -> bool:
    """Whether outputs are log-probabilities."""
    sums = outputs.detach().double().logsumexp(likelihood.class_dim)
    return bool((sums.abs() < CLOSE).all())


def counted_positions(likelihood: Likelihood, outputs: Tensor, targets: object) -> Tensor | None:
    """Which positions (b, positions) have a label that is a class; None if all have.

    Positions whose label is no class, such as -100 in padded text, are ignored by the loss, and
    hold no information.
    """
    if (
        likelihood.kind != "categorical"
        or not isinstance(targets, Tensor)
        or targets.is_floating_point()
        or targets.numel() * outputs.shape[likelihood.class_dim] != outputs.numel()
    ):
        return None
    labels = targets.reshape(len(targets), -1)
    counted = (labels >= 0) & (labels < outputs.shape[likelihood.class_dim])
    return None if counted.all() else counted


def _score(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient (b, positions, C) of log p of the targets."""
    rows = _rows(likelihood, outputs)
    if likelihood.kind != "categorical":
        means = torch.sigmoid(rows) if likelihood.kind == "bernoulli" else rows
        return targets.reshape(rows.shape).double() - means
    if targets.is_floating_point():
        labels = _rows(likelihood, targets)
    else:
        classes = targets.reshape(len(targets), -1).clamp(0, rows.shape[-1] - 1)
        labels = torch.nn.functional.one_hot(classes.long(), rows.shape[-1]).double()
    return labels - labels.sum(-1, keepdim=True) * rows.softmax(-1)


# --- what is pulled back --------------------------------------------------------------------------


def uncertainty(likelihood: Likelihood, outputs: Tensor, counted: Tensor | None = None) -> Tensor:
    """The mean over labels of the squared length of the score, (b,) in float64.

    The score is the gradient of log p with respect to the outputs (b, ...). Summed over positions,
    it is 1 - sum p^2 of a categorical distribution, p (1 - p) of Bernoulli's and 1 of a Gaussian.
    `counted`: of the positions, as `counted_positions` has them.
    """
    rows = _rows(likelihood, outputs)
    if likelihood.kind == "categorical":
        p = rows.softmax(-1)
        each = (p * _complement(p)).sum(-1)
    else:
        each = _deviation(likelihood, rows).square()[..., 0]
    return (each if counted is None else each * counted).sum(1)


def num_exact(likelihood: Likelihood, outputs: Tensor) -> int:
    """How many exact cotangents an example has: one for each class of each position."""
    return outputs[:1].numel()


def exact_cotangents(
    likelihood: Likelihood,
    outputs: Tensor,
    part: slice = slice(None),
    counted: Tensor | None = None,
) -> Tensor:
    """Cotangents (k, b, ...) whose squared gradients sum to the mean over all labels.

    sqrt(p_c) (e_c - p) for each class c of each position (categorical), and sqrt(p (1 - p)) e_j or
    e_j for each output j. Positions are independent and have scores of mean zero, so that there are
    no cross terms. `part`: which of the `num_exact` cotangents.
    """
    rows = _rows(likelihood, outputs)
    num, positions, classes = rows.shape
    numbers = torch.arange(positions * classes, device=rows.device)[part]
    at, chosen = numbers // classes, numbers % classes
    each = torch.arange(len(numbers), device=rows.device)
    if likelihood.kind == "categorical":
        p = rows.softmax(-1)
        scores = -p[:, at]
        scores[:, each, chosen] = _complement(p)[:, at, chosen]
        scores = scores * p[:, at, chosen].sqrt()[..., None]
    else:
        scores = _deviation(likelihood, rows)[:, at]
    if counted is not None:
        scores = scores * counted[:, at, None]
    found = rows.new_zeros(len(numbers), num, positions, classes)
    found[each, :, at] = scores.transpose(0, 1)
    return _like(likelihood, found, outputs)


def num_uniforms(likelihood: Likelihood, outputs: Tensor) -> tuple[int, int]:
    """The shape of the random numbers that one draw of one example takes."""
    return _rows(likelihood, outputs[:1]).shape[1], 2


def drawn_cotangents(
    likelihood: Likelihood,
    outputs: Tensor,
    uniforms: Tensor,
    *,
    scheme: str = "importance",
    counted: Tensor | None = None,
) -> Tensor:
    """Cotangents (k, b, ...), each with an unbiased estimate of the mean over all labels.

    `uniforms` (k, b, positions, 2) between 0 and 1 decide. `"plain"`: e_y - p for a label y drawn
    from p (y - p, y - mean). `"importance"`: a class c is drawn with probability
    q_c = p_c |e_c - p|^2 / sum, and sqrt(p_c / q_c) (e_c - p) is taken, so that all draws have the
    same length; then a random sign for each position, without which the positions would not be
    independent. Outputs that stand alone have deviations with random signs. The mean of s s' over
    draws is the Fisher information of the outputs under both.

    Raises `ValueError` for an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    rows = _rows(likelihood, outputs)
    uniforms = uniforms.to(rows)
    signs = torch.where(uniforms[..., 1:] < 0.5, -1.0, 1.0)
    if likelihood.kind == "categorical":
        found = _drawn_classes(rows, uniforms[..., 0], scheme)
        if scheme == "importance":
            found = found * signs
    elif scheme == "importance":
        found = _deviation(likelihood, rows) * signs
    elif likelihood.kind == "bernoulli":
        positive = uniforms[..., :1] < torch.sigmoid(rows)
        found = torch.where(positive, torch.sigmoid(-rows), -torch.sigmoid(rows))
    else:
        found = torch.special.ndtri(uniforms[..., :1].clamp(min=2.0**-54)).expand(-1, *rows.shape)
    return _like(likelihood, _masked(found, counted), outputs)


def _drawn_classes(rows: Tensor, uniforms: Tensor, scheme: str) -> Tensor:
    """The scores (k, b, positions, C) of drawn classes."""
    p = rows.softmax(-1)
    rest = _complement(p)
    lengths = _squared_lengths(p, rest)
    odds = p if scheme == "plain" else p * lengths
    sums = odds.cumsum(-1)
    total = sums[..., -1:]
    chosen = (sums <= uniforms[..., None] * total).sum(-1, keepdim=True)
    chosen = chosen.clamp(max=p.shape[-1] - 1)
    p, rest, lengths = (x.expand(*chosen.shape[:-1], -1) for x in (p, rest, lengths))
    scores = (-p).scatter(-1, chosen, rest.gather(-1, chosen))
    if scheme == "plain":
        return scores
    length = lengths.gather(-1, chosen)
    return scores * torch.where(length > 0, total / length, 0).sqrt()


def fisher_factor(likelihood: Likelihood, outputs: Tensor, tangents: Tensor) -> Tensor:
    """The Fisher information of the outputs, block by block of an example, times tangents.

    What `products.fisher_product` takes: diag(p) - p p', p (1 - p) or the identity.
    """
    rows, along = _rows(likelihood, outputs), _rows(likelihood, tangents)
    if likelihood.kind == "categorical":
        p = rows.softmax(-1)
        along = along - along.gather(-1, p.argmax(-1, keepdim=True))  # or one class hides the rest
        product = p * (along - (p * along).sum(-1, keepdim=True))
    else:
        product = _deviation(likelihood, rows).square() * along
    return _like(likelihood, product[None], outputs)[0]


# --- layouts and stable terms ---------------------------------------------------------------------


def _rows(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """Outputs as (b, positions, C) in float64; C is 1 for outputs that stand alone."""
    outputs = outputs.double()
    if likelihood.kind != "categorical":
        return outputs.reshape(len(outputs), -1, 1)
    moved = outputs.movedim(likelihood.class_dim, -1)
    return moved.reshape(len(moved), -1, moved.shape[-1])


def _like(likelihood: Likelihood, rows: Tensor, outputs: Tensor) -> Tensor:
    """Rows (k, b, positions, C) in the layout and dtype of the outputs, (k, b, ...)."""
    if likelihood.kind != "categorical":
        return rows.reshape(len(rows), *outputs.shape).to(outputs.dtype)
    shape = outputs.movedim(likelihood.class_dim, -1).shape
    dim = likelihood.class_dim + (likelihood.class_dim > 0)
    return rows.reshape(len(rows), *shape).movedim(-1, dim).to(outputs.dtype)


def _masked(rows: Tensor, counted: Tensor | None) -> Tensor:
    return rows if counted is None else rows * counted[..., None]


def _complement(p: Tensor) -> Tensor:
    """1 - p along the last dimension, exact where p is close to one."""
    top = p.argmax(-1, keepdim=True)
    return (1 - p).scatter(-1, top, p.scatter(-1, top, 0).sum(-1, keepdim=True))


def _squared_lengths(p: Tensor, complement: Tensor) -> Tensor:
    """|e_c - p|^2 for each class c, exact where p is close to one."""
    top = p.argmax(-1, keepdim=True)
    squares = p.square()
    others = squares.sum(-1, keepdim=True) - squares
    others = others.scatter(-1, top, squares.scatter(-1, top, 0).sum(-1, keepdim=True))
    return complement.square() + others


def _deviation(likelihood: Likelihood, rows: Tensor) -> Tensor:
    """The standard deviation of each output's label, (b, positions, 1)."""
    if likelihood.kind == "gaussian":
        return torch.ones_like(rows)
    return (torch.sigmoid(rows) * torch.sigmoid(-rows)).sqrt()

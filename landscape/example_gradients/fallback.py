"""What if no rule knows a parameter? Its gradient is formed for each example, but not kept."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from landscape.engine import caller, quiet_vmap
from landscape.example_gradients.parts import Part
from landscape.task import map_tensors, tensors_in

MEMORY = 2**28  # bytes for the gradients and activations of the examples that share a vmap


def by_vmap(
    model: nn.Module, parts: Mapping[str, Part], inputs: Any, cotangents: Tensor, example_bytes: int
) -> None:
    """Add the gradients of the named parameters to their parts, many examples at once.

    Norms and sums over cotangents are taken inside the `vmap`, so that of each example the
    gradients of one cotangent are held, and its squares.
    """
    own = dict(model.named_parameters())
    parameters = {name: own[name].detach() for name in parts}
    k, num = cotangents.shape[:2]
    numbers = sum(parameter.numel() for parameter in parameters.values())
    size = (k + 2) * numbers * cotangents.element_size() + 4 * k * example_bytes
    step = max(1, MEMORY // size)
    leaves = tensors_in(inputs)
    for start in range(0, num, step):
        rows = slice(start, min(start + step, num))

        def single(
            cotangent: Tensor, weights: Mapping[str, Tensor], *leaves: Tensor
        ) -> dict[str, list[Tensor]]:
            rest = iter(leaves)
            example = map_tensors(lambda _: next(rest)[None], inputs)

            def outputs_of(parameters: dict[str, Tensor]) -> Tensor:
                def bound(*args: Any, **kwargs: Any) -> Any:
                    return functional_call(model, parameters, args, kwargs)

                return caller(bound)(example)[0]  # type: ignore[arg-type]

            pull = vjp(outputs_of, parameters)[1]
            found: dict[str, list[list[Tensor]]] = {name: [] for name in parts}
            for k, one in enumerate(cotangent):
                (gradients,) = pull(one)
                for name, part in parts.items():
                    found[name].append(_sums(gradients[name], weights[name][k], part))
            return {name: _together(sums) for name, sums in found.items()}

        weights = {name: part.weights[:, rows] for name, part in parts.items()}
        with quiet_vmap():
            found = vmap(single, in_dims=(1, 1, *[0] * len(leaves)))(
                cotangents[:, rows], weights, *(leaf[rows] for leaf in leaves)
            )
        for name, sums in found.items():
            _add(parts[name], rows, [sums[0].T, *(total.sum(0) for total in sums[1:])])


def one_by_one(
    model: nn.Module, parts: Mapping[str, Part], inputs: Any, cotangents: Tensor
) -> None:
    """Add the gradients of the named parameters to their parts, one example after the other."""
    own = dict(model.named_parameters())
    parameters = [own[name] for name in parts]
    with gradients_of(parameters):
        for number in range(cotangents.shape[1]):
            rows = slice(number, number + 1)
            outputs = caller(model)(map_tensors(itemgetter(rows), inputs))
            for k, cotangent in enumerate(cotangents[:, rows]):
                gradients = torch.autograd.grad(
                    outputs, parameters, cotangent, retain_graph=True, allow_unused=True
                )
                for part, gradient in zip(parts.values(), gradients, strict=True):
                    if gradient is not None:
                        one = part.cotangents(slice(k, k + 1))
                        _add(one, rows, _sums(gradient, one.weights[0, number], one))


@contextmanager
def gradients_of(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Parameters of a private model require gradients for a while."""
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _sums(gradient: Tensor, weight: Tensor, part: Part) -> list[Tensor]:
    """The squared norm and the weighted terms of the sums that are wanted, of one gradient."""
    squares = gradient.square()
    terms = [weight * squares] if part.diagonal is not None else []
    return [squares.sum(), *terms, *([weight * gradient] if part.mean is not None else [])]


def _together(found: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Norms (k,) and sums of k cotangents."""
    norms, *totals = zip(*found, strict=True)
    return [torch.stack(norms), *(torch.stack(terms).sum(0) for terms in totals)]


def _add(part: Part, rows: slice, found: Sequence[Tensor]) -> None:
    """Add norms (k, n) and sums to a part."""
    part.norms[:, rows] += found[0]
    totals = (total for total in (part.diagonal, part.mean) if total is not None)
    for total, terms in zip(totals, found[1:], strict=True):
        total += terms

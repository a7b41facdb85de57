"""What of one task's weights serves another? Heads are new or fixed, and prefixes stay."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from landscape.experiments.runs import Branch, During, Run
from landscape.states import State, Stored, loaded


def new_head(state: State | Stored, fresh_state: State, head: Sequence[str]) -> State:
    """The entries of `state`, but those that match a pattern of `head` from `fresh_state`.

    Patterns are as in `fnmatch`; the shapes of the head may differ. Raises `ValueError` if a
    pattern matches nothing, or an entry outside the head is missing or of another shape.
    """
    state = loaded(state)
    for pattern in head:
        if not any(fnmatchcase(name, pattern) for name in fresh_state):
            raise ValueError(
                f"the pattern {pattern!r} of the head matches none of {', '.join(fresh_state)}"
            )
    fresh = {n for n in fresh_state if any(fnmatchcase(n, pattern) for pattern in head)}
    unlike = [
        name
        for name, tensor in fresh_state.items()
        if name not in fresh and (name not in state or state[name].shape != tensor.shape)
    ]
    if unlike:
        raise ValueError(
            f"the pre-trained state does not fit at {', '.join(unlike[:5])}: outside the head all "
            "entries must be there, in the same shapes"
        )
    return {name: (fresh_state if name in fresh else state)[name] for name in fresh_state}


def fine_tuned(
    run: Run,
    state: State | Stored,
    *,
    head: Sequence[str],
    frozen: bool = False,
    batch_norm: Literal["carry", "reset"] = "carry",
) -> Run:
    """The run from a pre-trained state on, with a head that is new; the rest may be frozen.

    `state` comes from another task, whose number of classes may differ; `head` are patterns of
    names, and its weights are those that the run's seed gives. The optimiser and the clock start
    anew. Raises `ValueError` as `new_head`.
    """
    model = run.build()
    begun = new_head(state, model.state_dict(), head)
    start = Branch(state=begun, step=0, optimiser="reset", clock="continue", batch_norm=batch_norm)
    body = [n for n, _ in model.named_parameters() if not any(fnmatchcase(n, p) for p in head)]
    held = tuple(During(name) for name in body) if frozen else ()
    return replace(run, start=start, frozen=(*run.frozen, *held))


def layers(model: nn.Module) -> list[str]:
    """The names of the modules that hold parameters themselves, in their order."""
    return [
        name
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]


def transferred(run: Run, state: State | Stored, depth: int, *, frozen: bool = True) -> Run:
    """The run whose first `depth` layers come from a state, and are frozen or trained on.

    How transferable are features (Yosinski et al. 2014, arXiv 1411.1792, figure 1): the other
    layers are those that the run's seed gives. Layers are those of `layers`, and batch norms count.
    A depth of 0 is the run as it is. Statistics of batch norm move in training as always.

    Raises `ValueError` for a depth outside 0 to the number of layers, or a state that does not fit.
    """
    model = run.build()
    names = layers(model)
    if not 0 <= depth <= len(names):
        raise ValueError(
            f"depth must be 0 to {len(names)}, the number of layers ({', '.join(names)}), "
            f"got {depth}"
        )
    if depth == 0:
        return run
    own = model.state_dict()
    kept = {name for name in own if name.rpartition(".")[0] in names[:depth]}
    begun = new_head(state, own, [name for name in own if name not in kept])
    start = Branch(state=begun, step=0, optimiser="reset", clock="continue", batch_norm="carry")
    parameters = [name for name, _ in model.named_parameters() if name in kept]
    held = tuple(During(name) for name in parameters) if frozen else ()
    return replace(run, start=start, frozen=(*run.frozen, *held))


def fixed(run: Run, patterns: Sequence[str]) -> Run:
    """The run in which parameters that match a pattern keep their initial values throughout.

    With the patterns of the last layer, a fixed classifier (Hoffer et al. 2018, arXiv 1801.04540).
    """
    return replace(run, frozen=(*run.frozen, *(During(pattern) for pattern in patterns)))

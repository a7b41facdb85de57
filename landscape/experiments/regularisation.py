"""When does it matter? Lists of runs that differ from a base in when something is on.

Each function takes a `Run`, which says everything else, and gives the arms of an experiment as runs
named `base.name/arm`, to be trained together by `train`. Seeds are those of the base, so that arms
are paired; `over_seeds` repeats them. Every timed intervention names what the learning rate does
around it, `lr_policy`, since annealing alone can fake or hide the effects; see `Run`.

Deficits (Achille et al., arXiv 1711.08856): `removal_sweep`, `sensitivity_windows`,
`compared_deficits`. Regularisation in time (Golatkar et al., arXiv 1905.13277):
`regularised_until`, `regularised_from`, `regularised_windows`. What regularises by itself:
`large_batches`, `compared_optimisers`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from landscape.experiments.runs import (
    Augmentation,
    During,
    Policy,
    Run,
    Scalar,
    Seeds,
    View,
    Window,
)
from landscape.experiments.schedules import Switched, Warmup, linearly_scaled


@dataclass(frozen=True)
class Regulariser:
    """What regularises while it is on; outside its window a run is as its base says.

    `weight_decay` and `knobs` (such as the strength of a penalty in the objective) replace the
    values of the base, `augmentations` are added to its own.
    """

    weight_decay: Scalar | None = None
    augmentations: tuple[Augmentation, ...] = ()
    knobs: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weight_decay is None and not self.augmentations and not self.knobs:
            raise ValueError("a regulariser needs weight_decay, augmentations or knobs")


def removal_sweep(
    base: Run, deficit: View, removals: Iterable[int], *, clean: int, lr_policy: Policy
) -> list[Run]:
    """A deficit from the beginning to each epoch of `removals`, and `clean` epochs after it.

    0 stands for a run without deficit. The epochs of the base are not used. With the policy
    `"constant"` the learning rate never changes, that of the run without deficit neither.
    """
    runs = []
    for removal in _whole(removals, "removals", least=0):
        arm = replace(base, name=f"{base.name}/removed-{removal}", epochs=removal + clean)
        if removal:
            runs.append(_shown(arm, deficit, Window(0, removal), lr_policy))
        else:
            runs.append(_timed(arm, Window() if lr_policy == "constant" else None, lr_policy))
    return runs


def sensitivity_windows(
    base: Run,
    deficit: View,
    onsets: Iterable[int],
    *,
    width: int,
    clean: int | None = None,
    lr_policy: Policy,
) -> list[Run]:
    """A deficit for `width` epochs from each of `onsets` on, and a run without.

    All train for the epochs of the base, or each for `clean` epochs after its window; the run
    without deficit, named `never`, is then as long as the longest.
    """
    starts = _whole(onsets, "onsets", least=0)
    lengths = [base.epochs if clean is None else start + width + clean for start in starts]
    never = replace(base, name=f"{base.name}/never", epochs=max(lengths))
    return [never] + [
        _shown(
            replace(base, name=f"{base.name}/onset-{start}", epochs=epochs),
            deficit,
            Window(start, start + width),
            lr_policy,
        )
        for start, epochs in zip(starts, lengths, strict=True)
    ]


def compared_deficits(
    base: Run, deficits: Mapping[str, View], *, until: int, clean: int, lr_policy: Policy
) -> list[Run]:
    """Each deficit from the beginning to epoch `until`, `clean` epochs after it, and no deficit.

    Arms are named by the keys of `deficits`, and `none`, whose length and learning rate are those
    of the others.
    """
    if "none" in deficits:
        raise ValueError("a deficit cannot be named 'none', which is the run without")
    (until,) = _whole([until], "until", least=1)
    window, epochs = Window(0, until), until + clean
    none = _timed(replace(base, name=f"{base.name}/none", epochs=epochs), window, lr_policy)
    return [none] + [
        _shown(replace(base, name=f"{base.name}/{name}", epochs=epochs), view, window, lr_policy)
        for name, view in deficits.items()
    ]


def regularised_until(
    base: Run, regulariser: Regulariser, times: Iterable[float], *, lr_policy: Policy
) -> list[Run]:
    """A regulariser from the beginning to each of `times` (epochs), and not after it.

    0 stands for never, the epochs of the base for always.
    """
    return [
        _regularised(base, regulariser, f"until-{time:g}", 0, time, lr_policy) for time in times
    ]


def regularised_from(
    base: Run, regulariser: Regulariser, times: Iterable[float], *, lr_policy: Policy
) -> list[Run]:
    """A regulariser from each of `times` (epochs) to the end, and not before it.

    0 stands for always, the epochs of the base for never.
    """
    return [
        _regularised(base, regulariser, f"from-{time:g}", time, base.epochs, lr_policy)
        for time in times
    ]


def regularised_windows(
    base: Run,
    regulariser: Regulariser,
    onsets: Iterable[float],
    *,
    width: float,
    lr_policy: Policy,
) -> list[Run]:
    """A regulariser for `width` epochs from each of `onsets` on."""
    return [
        _regularised(base, regulariser, f"onset-{onset:g}", onset, onset + width, lr_policy)
        for onset in onsets
    ]


def large_batches(base: Run, batch_size: int, *, warmup: float) -> list[Run]:
    """The base with a larger batch, and what may close the gap between the two.

    `small` is the base. The others have batches of `batch_size`: `large` alone; `scaled`, with the
    learning rate in proportion; `warmed`, which also rises to it during `warmup` epochs; `longer`,
    with as many updates as the base, or up to an epoch's more (Hoffer et al., arXiv 1705.08741).
    The schedule of `longer` is that of the base: give it in steps or shares.
    """
    if callable(base.batch_size) or not base.batch_size < batch_size <= base.data.num_examples:
        raise ValueError(
            f"batch_size must lie above that of the base, {base.batch_size}, and be at most "
            f"{base.data.num_examples}, the number of examples, got {batch_size}"
        )
    large = replace(base, name=f"{base.name}/large", batch_size=batch_size)
    lr = linearly_scaled(base.lr, batch_size=batch_size, reference=base.batch_size)
    epochs = -(-base.timeline.steps // (large.timeline.steps // large.epochs))
    return [
        replace(base, name=f"{base.name}/small"),
        large,
        replace(large, name=f"{base.name}/scaled", lr=lr),
        replace(large, name=f"{base.name}/warmed", lr=Warmup(lr, warmup, "epochs")),
        replace(large, name=f"{base.name}/longer", epochs=epochs),
    ]


def compared_optimisers(
    base: Run, settings: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Run]:
    """Optimisers by name, each with its settings (fields of `Run`, such as `lr`) to choose from.

    Runs are named `base.name/optimiser-number`. Raises `ValueError` unless all optimisers have
    equally many settings: what is tuned more looks better.
    """
    counts = {name: len(trials) for name, trials in settings.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(
            f"optimisers need equally many settings to be compared, and at least one, got {counts}"
        )
    return [
        replace(base, name=f"{base.name}/{name}-{number}", optimiser=name, **trial)
        for name, trials in settings.items()
        for number, trial in enumerate(trials)
    ]


def over_seeds(runs: Iterable[Run], seeds: Iterable[int]) -> list[Run]:
    """Each run with each seed for all sources of chance, as `name/seed-3`."""
    seeds = list(seeds)
    return [
        replace(run, name=f"{run.name}/seed-{seed}", seeds=Seeds.all(seed))
        for run in runs
        for seed in seeds
    ]


def _regularised(
    base: Run, regulariser: Regulariser, arm: str, start: float, stop: float, policy: Policy
) -> Run:
    """The base with a regulariser from `start` to `stop`; if these are equal, never."""
    run = replace(base, name=f"{base.name}/{arm}")
    if start == stop:
        at_once = policy == "constant" and stop == 0
        return _timed(run, Window() if at_once else None, policy)
    window = Window(start, stop)
    window.within(run.timeline)
    unknown = regulariser.knobs.keys() - base.knobs.keys()
    if unknown:
        raise ValueError(
            f"knobs {sorted(unknown)} have no value in run {base.name!r} for when they are off; "
            f"it has {sorted(base.knobs) or 'none'}"
        )
    decay, off = regulariser.weight_decay, base.weight_decay
    knobs = {name: Switched(on, window, base.knobs[name]) for name, on in regulariser.knobs.items()}
    return replace(
        _timed(run, window, policy),
        weight_decay=off if decay is None else Switched(decay, window, off),
        augmentations=(
            *base.augmentations,
            *(During(augmentation, window) for augmentation in regulariser.augmentations),
        ),
        knobs={**base.knobs, **knobs},
    )


def _shown(run: Run, view: View, window: Window, policy: Policy) -> Run:
    """A run that sees its training set through a view during a window."""
    return replace(_timed(run, window, policy), views=(*run.views, During(view, window)))


def _timed(run: Run, window: Window | None, policy: Policy) -> Run:
    """A run whose learning rate answers a window; without one it goes on."""
    return replace(run, lr_policy=policy if window else "continue", lr_window=window)


def _whole(numbers: Iterable[int], what: str, *, least: int) -> list[int]:
    """Numbers of epochs, checked to be whole."""
    given = list(numbers)
    if not given or any(number != int(number) or number < least for number in given):
        raise ValueError(f"{what} must be whole numbers of epochs, at least {least}, got {given}")
    return [int(number) for number in given]

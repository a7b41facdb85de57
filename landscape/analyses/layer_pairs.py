"""How are layers of networks compared? One pass over the examples, then any measure of any pair.

`opened` makes a private network with its layers, `compared` sums the joint moments of groups of
layers, and `Found.table` takes measures of any pairs.
"""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from landscape.activations import stream
from landscape.engine import with_state
from landscape.examples import Examples, free_memory
from landscape.maths.accumulator import Accumulator, memory_bytes
from landscape.maths.moments import Moments, needs_exact
from landscape.maths.overlap import Overlap
from landscape.maths.significance import jackknife_estimate
from landscape.maths.similarity import (
    cca_of,
    cka_of,
    procrustes_of,
    pwcca_of,
    regression_of,
    svcca_of,
)
from landscape.selection import (
    Layer,
    Selector,
    common_form,
    few_inputs,
    frequencies,
    layers_of,
    neurons,
    rows_per_example,
)
from landscape.states import State, Stored, loaded, match

Array = NDArray[np.float64]
Measure = Callable[[Overlap], SupportsFloat]
Variables = dict[str, Array]
CANONICAL = {"cca", "svcca", "pwcca"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is compared, and how.

    `measure`: one or several of cca, svcca, pwcca, cka, procrustes, regression, or functions of an
    `Overlap` by name. `layers`, `maps`, `channels_first`, `channels_last`: which layers, and what a
    row of their activations is (`selection.layers_of`). `threshold` of the variance that SVCCA
    keeps; `weights` of PWCCA; whether CKA is `debiased`. `blocks`: standard errors by the jackknife
    over so many blocks of examples, 0 for none. `correlations`: also keep the canonical ones.
    `exact`: running QR instead of moments; None: where the condition of a layer needs it, in a
    second pass. `products`: float32 sums products of blocks at half the cost, where no layer has a
    condition above 100. `batch_size`, `device`, `dtype`: how the networks run.
    """

    measure: str | Sequence[str] | Mapping[str, Measure] = "cka"
    layers: Selector = "*"
    maps: str = "average"
    channels_first: Sequence[str] = ()
    channels_last: Sequence[str] = ()
    threshold: float = 0.99
    weights: str = "x"
    debiased: bool = True
    blocks: int = 10
    correlations: bool = False
    exact: bool | None = None
    products: torch.dtype = torch.float64
    batch_size: int = 256
    device: str | torch.device = "auto"
    dtype: torch.dtype = torch.float32

    def measures(self) -> dict[str, Measure]:
        """The measures by name. Raises `ValueError` for an unknown one, or for none."""
        if isinstance(self.measure, Mapping):
            return dict(self.measure)
        known: dict[str, Measure] = {
            "cca": cca_of,
            "svcca": partial(svcca_of, threshold=self.threshold),
            "pwcca": partial(pwcca_of, weights=self.weights),
            "cka": partial(cka_of, debiased=self.debiased),
            "procrustes": procrustes_of,
            "regression": regression_of,
        }
        names = [self.measure] if isinstance(self.measure, str) else list(self.measure)
        if not names or set(names) - set(known):
            raise ValueError(
                f"measure must be one of {', '.join(known)}, or several, got {self.measure!r}"
            )
        return {name: known[name] for name in names}


@dataclass(frozen=True, eq=False)
class Network:
    """A private model, and the layers of it that are compared."""

    model: nn.Module
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The names of the layers."""
        return [layer.name for layer in self.layers]


def opened(
    skeleton: nn.Module,
    state: State | Stored,
    examples: Examples,
    how: Comparison,
    *,
    device: torch.device,
    layers: Selector | None = None,
) -> Network:
    """A private model with a state, and the layers of it that are asked for.

    Raises `ValueError` as `selection.layers_of` and `selection.common_form`.
    """
    model = with_state(skeleton, match(loaded(state), skeleton), device=device, dtype=how.dtype)
    selection = layers_of(
        model, how.layers if layers is None else layers, few_inputs(examples), maps=how.maps,
        channels_first=how.channels_first, channels_last=how.channels_last,
    )  # fmt: skip
    common_form(selection.layers, how.maps)
    return Network(model, selection.layers, selection.notes)


@dataclass(frozen=True, eq=False)
class Found:
    """The moments of groups of layers; in the form `"frequency"` of each frequency.

    `moments[group][frequency]` holds the layers of a group in the order of their `names`.
    """

    moments: list[list[Moments]]
    how: Comparison
    maps: str
    names: list[list[str]]
    notes: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        """The number of rows that were compared."""
        return self.moments[0][0].num

    @property
    def by_frequency(self) -> bool:
        """Whether there are moments for each frequency."""
        return self.maps.startswith("frequency")

    def sides(self, group: int) -> list[dict[str, float]]:
        """Rank, condition and width of each layer; the worst of the frequencies."""
        layers = range(len(self.moments[group][0].conditions))
        found = [[one.side(i) for one in self.moments[group]] for i in layers]
        return [
            {
                "rank": min(side.rank for side in sides),
                "condition": max(side.condition for side in sides),
                "width": sides[0].width,
            }
            for sides in found
        ]

    def table(self, pairs: Sequence[tuple[int, int, int]], shape: Sequence[int]) -> Variables:
        """The variables of pairs (group, layer, other layer), in an array of a shape each.

        Warns once if canonical correlations of some pairs are 1 whatever the data, and once if
        pairs have no value. Raises `ValueError` as the measures, naming the layers.
        """
        rows = [self._named(self.moments[pair[0]], pair) for pair in pairs]
        if self.how.blocks:
            self._add_errors(rows, pairs)
        table = {
            name: np.array([row[name] for row in rows])
            for name in rows[0]
            if name not in ("correlations", "reason")
        }
        if self.how.correlations:
            longest = max(min(self._width(g, i), self._width(g, j)) for g, i, j in pairs)
            table["correlations"] = np.array(
                [
                    np.pad(found, (0, longest - len(found)), constant_values=np.nan)
                    for found in (row["correlations"] for row in rows)
                ]
            )
        self._warn(rows)
        return {name: v.reshape(*shape, *v.shape[1:]) for name, v in table.items()}

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """The measures by name."""
        return self.how.measures()

    def _width(self, group: int, i: int) -> int:
        return self.moments[group][0].side(i).width

    def _warn(self, rows: Sequence[dict[str, Any]]) -> None:
        """Tell what the numbers do not say."""
        forced = sum(row["num_forced"] > 0 for row in rows)
        if forced and set(self.measures) & CANONICAL:
            warnings.warn(
                f"with {self.num_rows} examples, some canonical correlations of {forced} of "
                f"{len(rows)} pairs of layers are 1 whatever the data (num_forced says how many): "
                "use more examples, fewer neurons (svcca), or cka",
                stacklevel=4,
            )
        reasons = [row["reason"] for row in rows if row["reason"]]
        if reasons:
            warnings.warn(
                f"{len(reasons)} of {len(rows)} pairs of layers have values that are nan: "
                + "; ".join(list(dict.fromkeys(reasons))[:3]),
                stacklevel=4,
            )

    def _add_errors(
        self, rows: Sequence[dict[str, Any]], pairs: Sequence[tuple[int, int, int]]
    ) -> None:
        """Standard errors; moments without a block are made one at a time, as each is large."""
        places: dict[int, list[int]] = {}
        for place, (group, _, _) in enumerate(pairs):
            places.setdefault(group, []).append(place)
        for group, own in places.items():
            moments = self.moments[group]
            left_out = []
            for block in range(self.how.blocks):
                rest = [one.without(block) for one in moments]
                left_out.append([self._named(rest, pairs[place]) for place in own])
            for place, *values in zip(own, *left_out, strict=True):
                for name in self.measures:
                    others = np.array([value[name] for value in values])
                    found = jackknife_estimate(
                        np.array(rows[place][name]), others, moments[0].block_sizes
                    )
                    rows[place][f"{name}_stderr"] = float(found.stderr)

    def _named(self, moments: Sequence[Moments], pair: tuple[int, int, int]) -> dict[str, Any]:
        """The values of a pair; what is wrong with them names its layers."""
        group, i, j = pair
        x, y = self.names[group][i], self.names[group][j]
        try:
            row = self._values(moments, i, j)
        except ValueError as error:
            if moments[0] is self.moments[group][0]:
                raise ValueError(f"{x} and {y}: {error}") from error
            raise ValueError(
                f"{x} and {y}, without one of {self.how.blocks} blocks of examples: {error}; or "
                "choose blocks=0 for no standard errors"
            ) from error
        return row | {"reason": row["reason"] and f"{x} and {y}: {row['reason']}"}

    def _values(self, moments: Sequence[Moments], i: int, j: int) -> dict[str, Any]:
        shared = [one.overlap(i, j) for one in moments]
        row: dict[str, Any] = {"reason": ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of forced correlations: `table` tells
            for name, measure in self.measures.items():
                scores = [measure(one) for one in shared]
                if self.by_frequency:
                    row |= self._over_frequencies(name, [float(score) for score in scores], shared)
                else:
                    row[name] = float(scores[0])
                    debiased = getattr(scores[0], "debiased", False)
                    if hasattr(scores[0], "adjusted") and not debiased:
                        row[f"{name}_adjusted"] = float(scores[0].adjusted)
                if np.isnan(row[name]):
                    row["reason"] = row["reason"] or getattr(scores[0], "reason", "")
            if self.how.correlations:
                found = cca_of(shared[0])
                row["correlations"] = found.correlations
                row["correlations_chance"] = found.chance**0.5
        row["num_forced"] = max(0, *(one.x.rank + one.y.rank - (one.num - 1) for one in shared))
        row["exact"] = int(moments[0].exact)
        return row

    def _over_frequencies(
        self, name: str, values: Sequence[float], shared: Sequence[Overlap]
    ) -> dict[str, Any]:
        """Each frequency, and their means with and without power, which leave out dead ones."""
        _, counts = frequencies(self.maps)
        power = np.sqrt(
            [float(one.x.values.square().sum() * one.y.values.square().sum()) for one in shared]
        )
        found = np.array(values)
        live = np.isfinite(found) & (power > 0)
        means = [
            np.average(found[live], weights=weights[live]) if live.any() else np.nan
            for weights in (counts * power, counts)
        ]
        return {name: means[0], f"{name}_unweighted": means[1], f"{name}_by_frequency": found}


def compared(
    networks: Sequence[Network],
    groups: Sequence[Sequence[int]],
    examples: Examples,
    how: Comparison,
) -> Found:
    """The joint moments of groups of layers, which are numbered through all networks.

    One pass over the examples, and with `how.exact=None` a second one for the groups whose
    condition needs a running QR. Raises `ValueError` if layers have no common form, and if the
    moments of a pass would not fit into memory.
    """
    layers = [layer for network in networks for layer in network.layers]
    maps = common_form(layers, how.maps)
    notes = tuple(dict.fromkeys(note for network in networks for note in network.notes))
    device = next(iter(networks[0].model.state_dict().values())).device
    widths = [[neurons(layers[i], maps) for i in group] for group in groups]
    _check_memory(widths, how, maps, device)
    moments = _summed(networks, groups, examples, how, maps, exact=bool(how.exact))
    if how.exact is None:
        poor = [k for k, group in enumerate(moments) if any(needs_exact(one) for one in group)]
        again = [groups[k] for k in poor]
        _check_memory([widths[k] for k in poor], replace(how, exact=True), maps, device)
        exact = _summed(networks, again, examples, how, maps, exact=True) if poor else []
        for k, group in zip(poor, exact, strict=True):
            moments[k] = group
    names = [[layers[i].name for i in group] for group in groups]
    return Found(moments, how, maps, names, notes)


def _summed(
    networks: Sequence[Network],
    groups: Sequence[Sequence[int]],
    examples: Examples,
    how: Comparison,
    maps: str,
    *,
    exact: bool,
) -> list[list[Moments]]:
    """One pass over the examples: for each group its moments, one for each frequency."""
    per = rows_per_example(networks[0].layers, maps)
    num = len(frequencies(maps)[1]) if maps.startswith("frequency") else 1

    def accumulator() -> Accumulator:
        dtype = torch.float64 if exact else how.products
        return Accumulator(dtype=dtype, exact=exact, num_blocks=how.blocks, rows_per_image=per)

    sums = [[accumulator() for _ in range(num)] for _ in groups]
    feeds = itertools.tee(examples.batches(how.batch_size), len(networks))
    streams = [
        stream(network.model, network.layers, feed, maps=maps)
        for network, feed in zip(networks, feeds, strict=True)
    ]
    for each in zip(*streams, strict=True):
        blocks = [block for found in each for block in found]
        for group, accumulators in zip(groups, sums, strict=True):
            for number, one in enumerate(accumulators):
                one.add([blocks[i][number] if blocks[i].ndim == 3 else blocks[i] for i in group])
    return [[one.finish() for one in accumulators] for accumulators in sums]


def moments_bytes(widths: Sequence[Sequence[int]], how: Comparison, maps: str) -> int:
    """About how many bytes the joint moments of groups of layers of these widths take.

    In the form `"frequency"` each frequency has its own, of complex neurons.
    """
    times, parts = (len(frequencies(maps)[1]), 2) if maps.startswith("frequency") else (1, 1)
    return times * sum(
        memory_bytes(
            [parts * width for width in group],
            num_blocks=how.blocks, exact=bool(how.exact), dtype=how.products,
        )
        for group in widths
    )  # fmt: skip


def _check_memory(
    widths: Sequence[Sequence[int]], how: Comparison, maps: str, device: torch.device
) -> None:
    """Raise if the joint moments of all groups would not fit."""
    needed, free = moments_bytes(widths, how, maps), free_memory(device)
    if needed > free:
        largest = max(sum(group) for group in widths)
        kind = "running QR" if how.exact else "joint moments"
        raise ValueError(
            f"the {kind} of up to {largest:,} neurons would take {needed / 2**30:.1f} GiB, "
            f"and {free / 2**30:.1f} GiB are free: choose fewer layers, maps='average' instead of "
            f"{how.maps!r}, or blocks=0 (it is {how.blocks})"
            + (", or exact=False, which is less accurate" if how.exact else "")
        )

"""How are layers of networks compared? One pass over the examples, then any measure of any pair.

`opened` makes a private network with its layers, `compared` sums the joint moments of groups of
layers, and `Found.table` takes measures of any pairs.
"""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
        """The measures by name. Raises `ValueError` for an unknown one."""
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
        for name in names:
            if name not in known:
                raise ValueError(f"measure must be one of {', '.join(known)}, got {name!r}")
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
    """A private model with a state, and the layers of it that are asked for."""
    model = with_state(skeleton, match(loaded(state), skeleton), device=device, dtype=how.dtype)
    selection = layers_of(
        model, how.layers if layers is None else layers, few_inputs(examples), maps=how.maps,
        channels_first=how.channels_first, channels_last=how.channels_last,
    )  # fmt: skip
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
    def exact(self) -> bool:
        """Whether any group needed a running QR."""
        return any(group[0].exact for group in self.moments)

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

        Warns once if canonical correlations of some pairs are 1 whatever the data.
        """
        rows = [self._pair(*pair) for pair in pairs]
        table = {
            name: np.array([row[name] for row in rows])
            for name in rows[0]
            if name != "correlations"
        }
        if self.how.correlations:
            longest = max(min(self._width(g, i), self._width(g, j)) for g, i, j in pairs)
            table["correlations"] = np.array(
                [
                    np.pad(found, (0, longest - len(found)), constant_values=np.nan)
                    for found in (row["correlations"] for row in rows)
                ]
            )
        forced = int((table["num_forced"] > 0).sum())
        if forced and set(self.measures) & CANONICAL:
            warnings.warn(
                f"with {self.num_rows} examples, some canonical correlations of {forced} of "
                f"{len(rows)} pairs of layers are 1 whatever the data (num_forced says how many): "
                "use more examples, fewer neurons (svcca), or cka",
                stacklevel=3,
            )
        return {name: v.reshape(*shape, *v.shape[1:]) for name, v in table.items()}

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """The measures by name."""
        return self.how.measures()

    @cached_property
    def _without(self) -> list[list[list[Moments]]]:
        """For each group and block the moments without that block."""
        return [
            [[one.without(block) for one in group] for block in range(group[0].num_blocks)]
            for group in self.moments
        ]

    def _width(self, group: int, i: int) -> int:
        return self.moments[group][0].side(i).width

    def _pair(self, group: int, i: int, j: int) -> dict[str, Any]:
        try:
            row = self._values(self.moments[group], i, j)
        except ValueError as error:
            names = self.names[group]
            raise ValueError(f"{names[i]} and {names[j]}: {error}") from error
        if self.how.blocks:
            others = [self._values(block, i, j) for block in self._without[group]]
            sizes = self.moments[group][0].block_sizes
            for name in self.measures:
                left_out = np.array([other[name] for other in others])
                found = jackknife_estimate(np.array(row[name]), left_out, sizes)
                row[f"{name}_stderr"] = float(found.stderr)
        return row

    def _values(self, moments: Sequence[Moments], i: int, j: int) -> dict[str, Any]:
        shared = [one.overlap(i, j) for one in moments]
        x, y = shared[0].x, shared[0].y
        row: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of forced correlations: `table` tells
            for name, measure in self.measures.items():
                scores = [measure(one) for one in shared]
                if self.by_frequency:
                    row |= self._over_frequencies(name, [float(score) for score in scores], shared)
                    continue
                row[name] = float(scores[0])
                if hasattr(scores[0], "adjusted") and not getattr(scores[0], "debiased", False):
                    row[f"{name}_adjusted"] = float(scores[0].adjusted)
            if self.how.correlations:
                found = cca_of(shared[0])
                row["correlations"] = found.correlations
                row["correlations_chance"] = found.chance**0.5
        row["num_forced"] = max(0, x.rank + y.rank - (shared[0].num - 1))
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
    condition needs a running QR. Raises `ValueError` if the moments would not fit into memory.
    """
    layers = [layer for network in networks for layer in network.layers]
    maps = common_form(layers, how.maps)
    notes = tuple(dict.fromkeys(note for network in networks for note in network.notes))
    device = next(iter(networks[0].model.state_dict().values())).device
    _check_memory([[neurons(layers[i], maps) for i in group] for group in groups], how, device)
    moments = _summed(networks, groups, examples, how, maps, exact=bool(how.exact))
    if how.exact is None:
        poor = [k for k, group in enumerate(moments) if any(needs_exact(one) for one in group)]
        again = [groups[k] for k in poor]
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


def moments_bytes(widths: Sequence[Sequence[int]], how: Comparison) -> int:
    """About how many bytes the joint moments of groups of layers of these widths take."""
    return sum(
        memory_bytes(group, num_blocks=how.blocks, exact=bool(how.exact), dtype=how.products)
        for group in widths
    )


def _check_memory(widths: Sequence[Sequence[int]], how: Comparison, device: torch.device) -> None:
    """Raise if the joint moments of all groups would not fit."""
    needed, free = moments_bytes(widths, how), free_memory(device)
    if needed > free:
        largest = max(sum(group) for group in widths)
        raise ValueError(
            f"the joint moments of up to {largest:,} neurons would take {needed / 2**30:.1f} GiB, "
            f"and {free / 2**30:.1f} GiB are free: choose fewer layers, maps='average' instead of "
            f"{how.maps!r}, or blocks=0 (it is {how.blocks})"
        )

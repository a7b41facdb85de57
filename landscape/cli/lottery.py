"""The verb about lottery tickets: what came of chains of pruning and of their controls."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.cli.jobs import say, writable

if TYPE_CHECKING:
    from landscape.experiments.tickets import Place


def lottery(options: argparse.Namespace) -> bool:
    """How sparse can a network be? Accuracy, sparsity and stability of chains of pruning.

    Of folders as experiments.iterative_pruning and the controls leave them. A report is made anew
    each time, from what is there.
    """
    output = writable(options.output)
    from landscape import results, tables
    from landscape.experiments.tickets import chains_in, tickets

    if output.exists() and not options.overwrite:
        there = results.load(output).attrs.get("analysis")
        if there != "tickets":
            raise ValueError(
                f"{output} holds the analysis {there!r}, which a report would replace; choose "
                "another output, or add --overwrite"
            )
    chosen = {"chains": options.chains}
    if options.dry_run:
        print(_sizes(chains_in(options.folders, **chosen)))
        return True
    result = tickets(options.folders, **chosen, progress=False if options.quiet else None)
    results.save(result, output)
    if not options.quiet:
        print(tables.tickets_table(result), file=sys.stderr)
    print(output)
    levels = result["ended"].isel(level=slice(1, None))
    broken = int((levels == "nonfinite").sum())
    if broken:
        say(f"finished, but of {int((levels != 'missing').sum())} levels {broken} non-finite")
    return not broken


def _sizes(places: "Mapping[Place, Path]") -> str:
    """How many levels of which chains there are, one chain a line."""
    from landscape import tables

    chains: dict[str, list[tuple[str, int]]] = {}
    for run, chain, level in places:
        if level:
            chains.setdefault(chain, []).append((run, level))
    rows = [
        [chain, str(len({run for run, _ in own})), tables.ranges([level for _, level in own])]
        for chain, own in chains.items()
    ]
    return str(tables.table([["chain", "runs", "levels"], *rows]))

"""Verbs about files: figures of results, what is in a file, and the demo."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.cli.jobs import writable

if TYPE_CHECKING:
    import xarray as xr

RESULTS = (".h5", ".hdf5", ".nc")


def plot(options: argparse.Namespace) -> bool:
    """Draw the figure that suits a results file."""
    output = writable(options.output)
    from landscape import plots

    if options.html and output.suffix != ".html":
        raise ValueError(f"--html writes a file that ends in .html, got {output}")
    if output.suffix in (".html", ".vts") and options.y and len(options.y) > 1:
        raise ValueError(f"a {output.suffix} file holds one measure, got --y {' '.join(options.y)}")
    result = _result(Path(options.results))
    if output.suffix == ".html":
        print(plots.write_html(result, output, y=options.y and options.y[0]))
    elif output.suffix == ".vts":
        print(plots.write_vts(result, output, y=options.y and options.y[0]))
    else:
        fig = plots.figure(
            result, y=options.y, venue=options.venue, style=options.style, kind=options.kind
        )
        subject = f"{options.results}: {result.attrs.get('command', '')}"
        print(plots.save_figure(fig, output, subject=subject, style=options.style))
    return True


def info(options: argparse.Namespace) -> bool:
    """Say what is in a results file, a checkpoint or a folder of checkpoints."""
    from landscape import tables

    path = Path(options.path)
    if path.suffix in RESULTS:
        print(tables.result_text(_result(path)))
        return True
    from landscape.checkpoints import CheckpointError, checkpoints, describe

    try:
        found = checkpoints(path) if path.is_dir() else []
    except CheckpointError:
        found = []  # a folder that is itself a checkpoint
    if found:
        rows = [[str(one.step), one.path.name] for one in found]
        print(tables.table([["step", "checkpoint"], *rows]))
        if (path / "mask.npz").exists():
            print(_mask_text(path))
    else:
        print(tables.mapping_text(describe(path, key=options.state_key)))
    return True


def _mask_text(folder: Path) -> str:
    """How dense the mask of a pruned run is, in all and by layer."""
    from landscape import tables
    from landscape.experiments.masks import densities, density, load_mask

    mask = load_mask(folder)
    rows = [[name, f"{share:.4g}"] for name, share in densities(mask).items()]
    text: str = tables.table([["pruned layer", "density"], *rows, ["all", f"{density(mask):.4g}"]])
    return f"\n{text}"


def validate(options: argparse.Namespace) -> bool:
    """Check that results files are complete and keep to the schema."""
    from landscape import results

    complete = True
    for path in options.results:
        found = results.problems(results.load(path))
        print(f"{path}: {'; '.join(found) or 'ok'}")
        complete = complete and not found
    return complete


def demo(options: argparse.Namespace) -> bool:
    """Train two small networks on digits and study how they are connected."""
    from landscape.demo import run

    run(Path(options.output), quiet=options.quiet)
    return True


def _result(path: Path) -> "xr.Dataset":
    """A result of ours, or a surface of the classic tool."""
    from landscape import classic, results

    return classic.read_surface(path) if classic.is_classic(path) else results.load(path)

"""Which checkpoints do the paths on a command line mean?"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_of(paths: Sequence[str], pattern: str | None) -> tuple[list[Path], list[int]]:
    """The checkpoints of a run and their steps: those of a folder, or files in their order."""
    from landscape.checkpoints import checkpoints

    first = Path(paths[0])
    if len(paths) == 1 and first.is_dir():
        found = checkpoints(first, pattern=pattern)
        return [one.path for one in found], [int(one.step or 0) for one in found]
    if pattern:
        raise ValueError("--pattern goes with one folder of checkpoints")
    for path in paths:
        if last_of(path, None) != Path(path):
            raise ValueError(
                f"{path} is a folder of checkpoints: give one such folder, or checkpoints in their "
                "order"
            )
    return [Path(path) for path in paths], list(range(len(paths)))


def networks_of(texts: Sequence[str], pattern: str | None) -> dict[tuple[Any, ...], Path]:
    """Checkpoints by name: files, the last ones of folders, or all of a single folder."""
    from landscape.checkpoints import checkpoints

    paths = [Path(text).absolute() for text in texts]
    if len(paths) == 1:
        found = checkpoints(paths[0], pattern=pattern)
        return {(str(one.step),): one.path for one in found}
    named: dict[tuple[Any, ...], Path] = {}
    for path in paths:
        if (str(path),) in named:
            raise ValueError(f"{path} is named twice: each network counts once")
        named[(str(path),)] = last_of(path, pattern)
    names = short_names([path for (path,) in named])
    return {(name,): path for name, path in zip(names, named.values(), strict=True)}


def last_of(path: str | Path, pattern: str | None) -> Path:
    """The last checkpoint of a folder; the path itself if it is a checkpoint, or nothing is."""
    from landscape.checkpoints import CheckpointError, checkpoints

    if Path(path).is_dir():
        try:
            return checkpoints(path, pattern=pattern)[-1].path
        except CheckpointError:
            pass  # a folder that is itself a checkpoint
    return Path(path)


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """Paths without what is above all of them."""
    absolute = [Path(path).absolute() for path in paths]
    above = os.path.commonpath([path.parent for path in absolute])
    return [os.path.relpath(path, above) for path in absolute]


def runs_of(texts: Sequence[str], pattern: str | None) -> dict[str, tuple[list[Path], list[int]]]:
    """The checkpoints of each run and their steps; a single run has the name "".

    Raises `ValueError` if runs have other steps than the first.
    """
    paths = [Path(text).absolute() for text in texts]
    if len(paths) == 1 or not all(path.is_dir() for path in paths):
        return {"": run_of(texts, pattern)}
    if len({*paths}) < len(paths):
        raise ValueError("a run is named twice: each counts once")
    above = os.path.commonpath([path.parent for path in paths])
    runs = {os.path.relpath(path, above): run_of([str(path)], pattern) for path in paths}
    (first, (_, steps)), *others = runs.items()
    for name, (_, other) in others:
        if other != steps:
            apart = sorted({*steps} ^ {*other})
            raise ValueError(
                f"runs are compared step by step, but {first} has {len(steps)} checkpoints and "
                f"{name} has {len(other)}; only one of them has step "
                f"{', '.join(map(str, apart[:5]))}{', ...' if len(apart) > 5 else ''}. Choose "
                "common ones with --pattern"
            )
    return runs

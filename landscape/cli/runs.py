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
    return [Path(path) for path in paths], list(range(len(paths)))


def networks_of(texts: Sequence[str], pattern: str | None) -> dict[tuple[Any, ...], Path]:
    """Checkpoints by name: files, the last ones of folders, or all of a single folder."""
    from landscape.checkpoints import CheckpointError, checkpoints

    paths = [Path(text).absolute() for text in texts]
    if len(paths) == 1:
        found = checkpoints(paths[0], pattern=pattern)
        return {(str(one.step),): one.path for one in found}
    named: dict[tuple[Any, ...], Path] = {}
    for path in paths:
        last = path
        if path.is_dir():
            try:
                last = checkpoints(path, pattern=pattern)[-1].path
            except CheckpointError:
                last = path  # a folder that is itself a checkpoint
        if (str(path),) in named:
            raise ValueError(f"{path} is named twice: each network counts once")
        named[(str(path),)] = last
    above = os.path.commonpath([path.parent for path in paths])
    return {(os.path.relpath(name, above),): path for (name,), path in named.items()}

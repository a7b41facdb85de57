"""How does a file that training left behind become a `State`, and a folder of them a trajectory?

`formats` says which files can be read and how; here the names are put right, folders of checkpoints
are ordered, and our own checkpoints are saved.
"""

import hashlib
import logging
import operator
import os
import re
import sys
import types
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.formats import (
    SHARD,
    CheckpointError,
    listed,
    not_found,
    read,
    refusing,
    resolve,
    weight_files,
)
from landscape.states import State, match, weight_names

__all__ = [
    "Checkpoint", "CheckpointError", "checkpoints", "describe", "load_state", "save_checkpoint",
    "sha256",
]  # fmt: skip

SUFFIXES = (".pth.tar", ".pt", ".pth", ".bin", ".ckpt", ".safetensors")
WRAPPERS = ("module", "_orig_mod")  # of DDP, DataParallel and AveragedModel; of torch.compile
STEP_RULES = (
    r"step[-_=]?(\d+)",
    r"iter(?:ation)?[-_=]?(\d+)",
    r"epoch[-_=]?(\d+)",
    r"(?:checkpoint|ckpt)[-_=]?(\d+)",
    r"^\D*(\d+)\D*$",
)

logger = logging.getLogger("landscape")


@dataclass(frozen=True)
class Checkpoint:
    """A place on disk that holds a state, its training step, and the key of the state within."""

    path: Path
    step: int | None = None
    key: str | None = None

    def load(self, **options: Any) -> State:
        """The state; `options` are those of `load_state`, which says what raises."""
        return load_state(self.path, **{"key": self.key, **options})


def load_state(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    model: nn.Module | None = None,
    strip_prefix: str | None = None,
    allow_missing: Collection[str] = (),
    allow_nonfinite: bool = False,
) -> State:
    """The state in a file or folder, on the CPU and in the dtypes it was saved in.

    `key` (dotted) picks one of several nested mappings of tensors. The wrappers `module.` and
    `_orig_mod.` are removed from the names. With a `model` the names are matched with its own
    (`states.match`, which fills `allow_missing`), and a prefix is stripped if that one makes all
    names fit. `strip_prefix` names the prefix; entries without it are left out.

    Raises `CheckpointError` if the file is missing, damaged, unsafe, ambiguous or still being
    written, does not fit the model, or holds non-finite values.
    """
    return _load(Path(path), key, model, strip_prefix, allow_missing, allow_nonfinite)[0]


def checkpoints(
    directory: str | os.PathLike[str], *, pattern: str | None = None, key: str | None = None
) -> list[Checkpoint]:
    r"""The checkpoints of one run, in the order of their steps.

    Without `pattern`: the folders that hold weights or are called `checkpoint-N`; if there are
    none, the files with a usual suffix. The step is the number after "step", else "iter",
    "epoch" or "checkpoint", else the only number; one of these must serve all names. A
    `last.ckpt` is left out, as is a `last-...` whose step another file has. `pattern` is a glob,
    or a regular expression with a group `step` for the path within the directory, such as
    `r"model_(?P<step>\d+)\.pth"`. Temporary and hidden files are ignored.

    Raises `CheckpointError` if none is found, a step cannot be read, or two have the same step.
    """
    directory = Path(directory)
    with refusing(directory):
        if not directory.is_dir():
            expected = "expected a folder; load_state reads a single file."
            raise CheckpointError(expected if directory.exists() else not_found(directory))
        groups: dict[int, list[Path]] = {}
        for path, step in _steps(directory, pattern).items():
            groups.setdefault(step, []).append(path)
        for step, paths in groups.items():
            groups[step] = [p for p in paths if not p.name.startswith("last-")] or paths
            if len(groups[step]) > 1:
                names = listed(path.name for path in groups[step])
                raise CheckpointError(f"several checkpoints have step {step}: {names}.\n{_ADVICE}")
        return [Checkpoint(paths[0], step, key) for step, paths in sorted(groups.items())]


def save_checkpoint(
    state_or_model: State | nn.Module, directory: str | os.PathLike[str], *, step: int
) -> Checkpoint:
    """Write the state as `directory/step-00000120.pt`, whole or not at all.

    Tensors are copied to the CPU; those that share memory share it in the file. Whatever fails,
    an older file of that step stays as it was. Raises `ValueError` for a negative step,
    `CheckpointError` for tensors without values of their own, `OSError` from the disk.
    """
    if operator.index(step) < 0:
        raise ValueError(f"step must be a count of training steps, got {step}")
    if isinstance(state_or_model, nn.Module):
        state_or_model = state_or_model.state_dict()
    state = _compact(state_or_model)
    path = Path(directory) / f"step-{step:08d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return Checkpoint(path, int(step))


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's weight files.

    Raises `CheckpointError` if there is no checkpoint.
    """
    path = Path(path)
    with refusing(path):
        files = resolve(path)[1]
        digests = []
        for part in files:
            with part.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        lines = (f"{part.name}\0{digest}\n" for part, digest in zip(files, digests, strict=True))
        return (
            digests[0] if files == [path] else hashlib.sha256("".join(lines).encode()).hexdigest()
        )


def describe(path: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """What a checkpoint holds, and how `load_state` with these options reads it.

    `size` is in bytes, `renamed` maps each rule to how many names it changed, `weights` counts
    every shared tensor once, `nonfinite` names the entries with such values. Raises as
    `load_state`, but for non-finite values.
    """
    path = Path(path)
    state, read = _load(path, **{**options, "allow_nonfinite": True})
    weights = {(state[n].data_ptr(), state[n].shape): state[n].numel() for n in weight_names(state)}
    return {
        "path": str(path),
        "sha256": sha256(path),
        **read,
        "tensors": len(state),
        "weights": sum(weights.values()),
        "dtypes": dict(Counter(str(t.dtype).removeprefix("torch.") for t in state.values())),
        "step": next((s for rule in STEP_RULES if (s := _step(rule, path)) is not None), None),
        "nonfinite": _nonfinite(state),
    }


# From a path to a state


def _load(
    path: Path,
    key: str | None = None,
    model: nn.Module | None = None,
    strip_prefix: str | None = None,
    allow_missing: Collection[str] = (),
    allow_nonfinite: bool = False,
) -> tuple[State, dict[str, Any]]:
    """The state, and how it was read."""
    with refusing(path):
        form, files = resolve(path)
        with _unchanging(files):
            key, found = read(form, files, key)
        _check_plain(found)
        names = _names(list(found), model, strip_prefix)
        state: State = {new: found[old].detach() for old, new in names.items()}
        if model is not None:
            patterns = [allow_missing] if isinstance(allow_missing, str) else allow_missing
            state = _match(state, model, patterns)
        if not allow_nonfinite and (bad := _nonfinite(state)):
            raise CheckpointError(
                f"{len(bad)} of {len(state)} tensors hold NaN or infinite values: "
                f"{listed(bad, 5)}. Take an earlier checkpoint, or load it all the same with "
                "allow_nonfinite=True (--allow-nonfinite)."
            )
    rules = _rules(names, len(found))
    done = ", ".join(f"{rule} ({count} names)" for rule, count in rules.items())
    logger.info(
        "%s: %s, state at %s; %s", path, form, key or "the top level", done or "no renaming"
    )
    size = sum(file.stat().st_size for file in files)
    return state, {"format": form, "size": size, "key": key, "renamed": rules}


@contextmanager
def _unchanging(files: list[Path]) -> Iterator[None]:
    """Refuse files that change meanwhile: that explains best what else went wrong."""

    def stamps() -> list[tuple[int, int]]:
        return [(stat.st_size, stat.st_mtime_ns) for stat in map(Path.stat, files)]

    before, failure = stamps(), None
    try:
        yield
    except Exception as error:
        failure = error
    if stamps() != before:
        raise CheckpointError(
            "changed while it was read, so it is still being written. "
            "Load it again when the writer has finished."
        ) from failure
    if failure:
        raise failure


def _check_plain(state: State) -> None:
    """Refuse tensors whose values are elsewhere or nowhere."""
    for name, tensor in state.items():
        if type(tensor).__module__.startswith("torch.distributed"):
            raise CheckpointError(f"{name} is a {type(tensor).__name__}: {SHARD}")
        if tensor.is_meta or tensor.layout != torch.strided:
            raise CheckpointError(
                f"{name} is on {tensor.device} with layout {tensor.layout}, expected a dense "
                "tensor with values. Save a state_dict of dense tensors."
            )


def _match(state: State, model: nn.Module, allow_missing: Collection[str]) -> State:
    try:
        return match(state, model, allow_missing=allow_missing)
    except ValueError as error:
        first = Counter(name.partition(".")[0] + "." for name in state if "." in name)
        parts = listed(f"{part} ({count})" for part, count in first.items())
        raise CheckpointError(
            f"{error}\nThe names begin with {parts or 'no prefix'}. "
            "strip_prefix= (--strip-prefix) takes the entries under one prefix, "
            "allow_missing= (--allow-missing) the model's own values."
        ) from error


def _nonfinite(state: State) -> list[str]:
    return [name for name in state if not _is_finite(state[name])]


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    tensor = tensor.float() if tensor.itemsize == 1 else tensor  # types of 8 bits know no aminmax
    # both ends are NaN if any value is; far faster than isfinite of every value
    return bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


# Names


def _names(found: list[str], model: nn.Module | None, strip_prefix: str | None) -> dict[str, str]:
    """The new name of every entry that is kept."""
    raw = {name: name for name in found}
    if strip_prefix:
        prefix = strip_prefix.rstrip(".") + "."
        raw = _strip(raw, prefix) or _strip({name: _clean(name) for name in found}, prefix)
        if not raw:
            raise CheckpointError(f"no name begins with {prefix!r}; the names are {listed(found)}")
    clean = {o: _clean(n) for o, n in raw.items() if n.rpartition(".")[2] != "n_averaged"}
    own = model.state_dict() if model is not None else {}
    expected = {name: name for name, value in own.items() if isinstance(value, Tensor)}
    unwrapped = {_clean(name): name for name in expected}
    names = _fit(raw, expected) or _fit(clean, unwrapped)
    names = names or {old: unwrapped.get(new, new) for old, new in clean.items()}
    for new, count in Counter(names.values()).items():
        if count > 1:
            raise CheckpointError(
                f"{' and '.join(old for old in names if names[old] == new)} would both be named "
                f"{new}. Pass model=, or take one part with strip_prefix= (--strip-prefix)."
            )
    return names


def _clean(name: str) -> str:
    *path, last = name.split(".")
    return ".".join([*(part for part in path if part not in WRAPPERS), last])


def _strip(names: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {o: n.removeprefix(prefix) for o, n in names.items() if n.startswith(prefix)}


def _fit(names: Mapping[str, str], expected: Mapping[str, str]) -> dict[str, str]:
    """The expected names, if all fit as they are or without the one prefix; else empty."""
    first = next(iter(names.values()), "")
    prefixes = ["", *(first[: i + 1] for i, letter in enumerate(first) if letter == ".")]
    stripped = {prefix: _strip(names, prefix) for prefix in prefixes}
    fitting = {
        prefix: {old: expected[new] for old, new in rest.items()}
        for prefix, rest in stripped.items()
        if len(rest) == len(names) and all(new in expected for new in rest.values())
    }
    return fitting.get("") or (next(iter(fitting.values())) if len(fitting) == 1 else {})


def _rules(names: Mapping[str, str], num_found: int) -> dict[str, int]:
    """How many names lost or gained which part."""
    rules: Counter[str] = Counter()
    for old, new in names.items():
        before, after = Counter(old.split(".")), Counter(new.split("."))
        rules.update(f"{part}. removed" for part in before - after)
        rules.update(f"{part}. added" for part in after - before)
    return dict(rules) | ({"left out": num_found - len(names)} if num_found > len(names) else {})


# Folders of checkpoints


def _steps(directory: Path, pattern: str | None) -> dict[Path, int]:
    """The step of every checkpoint in the directory."""
    if pattern and "(?P<step>" in pattern:
        entries = _visible(directory.rglob("*") if "/" in pattern else directory.iterdir())
        names = {path: path.relative_to(directory).as_posix() for path in entries}
        try:
            matches = {path: re.fullmatch(pattern, name) for path, name in names.items()}
            steps = {path: int(found["step"]) for path, found in matches.items() if found}
        except (re.error, ValueError) as error:
            raise CheckpointError(f"pattern {pattern!r}: {error}.\n{_ADVICE}") from error
    else:
        steps = _read_steps(_visible(directory.glob(pattern)) if pattern else _usual(directory))
    if not steps:
        wanted = f"matches {pattern!r}" if pattern else "is a checkpoint with a step in its name"
        seen = listed(sorted(path.name for path in directory.iterdir())) or "nothing"
        raise CheckpointError(f"nothing here {wanted}; found {seen}.\n{_ADVICE}")
    return steps


def _read_steps(paths: list[Path]) -> dict[Path, int]:
    paths = [path for path in paths if not re.fullmatch(r"last(-v\d+)?\.ckpt", path.name)]
    for rule in STEP_RULES:
        steps = {path: step for path in paths if (step := _step(rule, path)) is not None}
        if len(steps) == len(paths):
            return steps
    names = listed(path.name for path in paths)
    raise CheckpointError(f"no rule reads a step from each of {names}.\n{_ADVICE}")


def _step(rule: str, path: Path) -> int | None:
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
    found = re.search(rule, path.name.removesuffix(suffix), re.IGNORECASE)
    return int(found[1]) if found else None


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path
        for path in paths
        if not path.name.startswith((".", "tmp-"))
        and not path.name.endswith((".tmp", ".part", "~"))
    )


def _usual(directory: Path) -> list[Path]:
    entries = _visible(directory.iterdir())
    folders = [path for path in entries if path.is_dir() and _is_checkpoint(path)]
    return folders or [path for path in entries if path.name.endswith(SUFFIXES) and path.is_file()]


def _is_checkpoint(folder: Path) -> bool:
    called = re.fullmatch(r"checkpoint-\d+", folder.name)
    return bool(called or (folder / ".metadata").is_file() or weight_files(folder))


_ADVICE = (
    "Say which files are meant and where their step stands, for example "
    r'pattern=r"model_(?P<step>\d+)\.pth", or leave files out with a glob such as "epoch_*.pt".'
)


# Saving


def _compact(state: State) -> dict[str, Tensor]:
    """Copies of the tensors, and of nothing that they are views of; ties stay ties."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    _check_plain(tensors)
    copies: dict[tuple[Any, ...], Tensor] = {}
    compact = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if place not in copies:
            copies[place] = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
        compact[name] = copies[place]
    return compact


class _Module(types.ModuleType):
    """Lets `landscape.checkpoints`, the module, be called as the function of that name."""

    def __call__(self, *args: Any, **options: Any) -> "list[Checkpoint]":
        return checkpoints(*args, **options)


sys.modules[__name__].__class__ = _Module

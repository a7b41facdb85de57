"""How does a file that training left behind become a `State`, and a folder of them a trajectory?

Read are zip and legacy files of `torch.save`, safetensors (single and sharded), folders of the
Hugging Face Trainer and accelerate, and folders of `torch.distributed.checkpoint`. Pickles are
read with `weights_only=True` and a fixed list of harmless classes; there is no way around it.
The checksums of zip files are verified. Legacy files, safetensors and the metadata of distributed
folders carry none: for those, compare `sha256`.
"""

import argparse
import datetime
import difflib
import hashlib
import io
import json
import logging
import operator
import os
import pathlib
import pickle
import re
import sys
import threading
import types
import uuid
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from landscape.states import State, match, weight_names

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


class CheckpointError(ValueError):
    """All that can be wrong with a checkpoint: what was found and expected, and what to do."""


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
    with _refusing(directory):
        if not directory.is_dir():
            missing = "" if directory.exists() else _missing(directory)
            raise CheckpointError(missing or "expected a folder; load_state reads a single file.")
        groups: dict[int, list[Path]] = {}
        for path, step in _steps(directory, pattern).items():
            groups.setdefault(step, []).append(path)
        for step, paths in groups.items():
            groups[step] = [p for p in paths if not p.name.startswith("last-")] or paths
            if len(groups[step]) > 1:
                names = _listed(path.name for path in groups[step])
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
    with _refusing(path):
        files = _resolve(path)[1]
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
    with _refusing(path):
        form, files = _resolve(path)
        with _unchanging(files):
            key, found = _read(form, files, key)
        _check_plain(found)
        names = _names(list(found), model, strip_prefix)
        state: State = {new: found[old].detach() for old, new in names.items()}
        if model is not None:
            patterns = [allow_missing] if isinstance(allow_missing, str) else allow_missing
            state = _match(state, model, patterns)
        if not allow_nonfinite and (bad := _nonfinite(state)):
            raise CheckpointError(
                f"{len(bad)} tensors hold NaN or infinite values: {_listed(bad, 5)}. Take an "
                "earlier checkpoint, or load it all the same with allow_nonfinite=True "
                "(--allow-nonfinite)."
            )
    rules = _rules(names, len(found))
    done = ", ".join(f"{rule} ({count} names)" for rule, count in rules.items())
    logger.info(
        "%s: %s, state at %s; %s", path, form, key or "the top level", done or "no renaming"
    )
    size = sum(file.stat().st_size for file in files)
    return state, {"format": form, "size": size, "key": key, "renamed": rules}


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn whatever a bad file raises into a CheckpointError that names it."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        place = str(path)
        with suppress(OSError):
            place += f" ({path.stat().st_size:,} bytes)" if path.is_file() else ""
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{place}: {error}") from error.__cause__ or error
        reason = f"{type(error).__name__}: {str(error).strip() or 'no text'}".splitlines()[0]
        raise CheckpointError(
            f"{place}: cannot be read as a checkpoint ({reason[:300]}). It is damaged, cut short "
            "or of an unknown format: copy it again from where it was written."
        ) from error


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
            raise CheckpointError(f"{name} is a {type(tensor).__name__}: {_SHARD}")
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
        parts = _listed(f"{part} ({count})" for part, count in first.items())
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


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"does not exist, nor does the folder {path.parent}."
    names = [entry.name for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    return f"does not exist. Closest names in the folder: {_listed(close) or 'none'}."


def _listed(names: Iterable[str], count: int = 10) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f", ... ({len(names)} in all)" if len(names) > count else "")


# Which files, in which format


def _resolve(path: Path) -> tuple[str, list[Path]]:
    """The format of a checkpoint and the files that hold it."""
    if not path.exists():
        raise CheckpointError(_missing(path))
    if path.name.endswith(".index.json"):
        shards = sorted(set(_weight_map(path).values()))
        if lost := [n for n in shards if Path(n).name != n or not (path.parent / n).is_file()]:
            raise CheckpointError(
                f"of the {len(shards)} shards in {path.name}, not in the folder: {_listed(lost)}. "
                "Copy them again."
            )
        return "sharded", [path, *(path.parent / name for name in shards)]
    if path.is_file():
        return _format(path), [path]
    if (path / ".metadata").is_file():
        return "distributed", [path / ".metadata", *sorted(path.glob("*.distcp"))]
    weights = _weights(path)
    if len(weights) == 1:
        return _resolve(weights[0])
    if weights:
        names = _listed(file.name for file in weights)
        raise CheckpointError(f"holds several files of weights: {names}. Name one of them.")
    seen = _listed(sorted(entry.name for entry in path.iterdir()))
    raise CheckpointError(
        "expected a folder with model.safetensors, the index of its shards, pytorch_model.bin or "
        f"the .metadata of torch.distributed.checkpoint; found {seen or 'nothing'}. The save was "
        "not finished, or not copied whole. A folder of many checkpoints is for checkpoints()."
    )


def _weights(folder: Path) -> list[Path]:
    """The file or index that holds a folder's weights; several if they compete."""
    for name in ("*.safetensors", "pytorch_model*.bin"):
        files = [*folder.glob(name), *folder.glob(f"{name}.index.json")]
        if whole := sorted(f for f in files if not re.search(r"-\d+-of-\d+\.\w+$", f.name)):
            return whole
    return []


def _format(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError("the file is empty: writing it was cut short. Copy it again.")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(b"\x80"):
        return "legacy"
    text = " ".join(head.decode(errors="ignore").split())
    if text.isprintable() and text:
        raise CheckpointError(
            f"this is a text file (it begins {text[:40]!r}), expected weights. If it came by git "
            "or from the web, it may be a Git LFS pointer (`git lfs pull`) or an error page."
        )
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return "safetensors"
    raise CheckpointError(
        f"begins with {head[:8]!r}, expected a file of torch.save or safetensors. "
        "It is damaged or of another format: save a state_dict with torch.save."
    )


# Reading


def _read(form: str, files: list[Path], key: str | None) -> tuple[str | None, State]:
    """The key of the state and its tensors under the names in the file."""
    if form == "distributed":
        return _read_distributed(files[0], key)
    place, state = _select(_read_shards(files) if form == "sharded" else _read_file(files[0]), key)
    return ".".join(place) or None, state


def _read_file(path: Path) -> object:
    if _format(path) == "safetensors":
        # cloned, because safetensors maps the file, which may change later
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    with path.open("rb") as file:
        return _read_torch(file)


def _weight_map(index: Path) -> dict[str, str]:
    return json.loads(index.read_text(encoding="utf-8"))["weight_map"]


def _read_shards(files: list[Path]) -> State:
    weight_map = _weight_map(files[0])
    state: dict[str, Tensor] = {}
    for path in files[1:]:
        with _refusing(path):
            shard = _select(_read_file(path), None)[1]
            listed = {name for name, file in weight_map.items() if file == path.name}
            if wrong := listed ^ set(shard):
                raise CheckpointError(
                    f"the index and this shard disagree on {_listed(sorted(wrong))}. "
                    "Copy the index and all shards again from one save."
                )
            state |= shard
    return {name: state[name] for name in weight_map}


def _read_torch(file: BinaryIO) -> object:
    """What `torch.save` wrote to a zip, verified by its checksums, or to a legacy stream."""
    if file.read(4) == b"PK\x03\x04":
        _check_zip(file)
    file.seek(0)
    with _LOCK, torch.serialization.safe_globals(_ALLOWED):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if wanted := _unsafe_globals(file, error):
                raise CheckpointError(_refusal(wanted)) from error
            raise


def _check_zip(file: BinaryIO) -> None:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            "the file ends early: the table at the end of the zip is missing or damaged. It is "
            "still being written or was not copied whole; copy it again."
        ) from error
    names = [name.rpartition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names or "data.pkl" not in names:
        raise CheckpointError(
            f"a zip that torch.save did not write (TorchScript, npz?); it holds {_listed(names)}. "
            "Save model.state_dict() with torch.save."
        )
    # torch takes an entry with the mark of a folder for empty, and leaves its tensor unset
    marked = (i.filename for i in archive.infolist() if i.external_attr & 0x10 and i.file_size)
    if damaged := archive.testzip() or next(marked, None):
        raise CheckpointError(
            f"{damaged} fails its checksum: bits of the file have changed. Copy it again from "
            "where it was written, or take another checkpoint."
        )


def _unsafe_globals(file: BinaryIO, error: Exception) -> list[str]:
    """The classes and functions, not on the list, that a pickle wants to call."""
    named = re.findall(r"GLOBAL ([\w.]+)", str(error))
    try:
        file.seek(0)
        named += torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception as other:  # legacy streams cannot be listed
        logger.debug("cannot list the globals of the file: %s", other)
    return sorted(set(named))


def _refusal(wanted: list[str]) -> str:
    text = f"it wants to call {_listed(wanted)}; expected only tensors and plain values. "
    if any(name.startswith("torch.distributed") for name in wanted):
        return text + _SHARD
    weights = 'checkpoint["state_dict"]'
    if any(name.startswith("torch.nn.") for name in wanted):
        text += "This is a whole pickled model. "
        weights = "checkpoint.state_dict()"
    return (
        f"{text}Nothing of it was run. Save model.state_dict() instead; a file that you made "
        "yourself can be converted (this runs the code in it):\n"
        "    import torch\n"
        '    checkpoint = torch.load("old.pt", map_location="cpu", weights_only=False)\n'
        f'    torch.save({weights}, "weights.pt")'
    )


def _select(tree: object, key: str | None) -> tuple[tuple[str, ...], State]:
    """The one mapping of names to tensors within what a file holds, and its place."""
    found = list(_candidates(tree))
    # a mapping of single numbers (metrics) is no rival of one with weights
    large = [(place, state) for place, state in found if any(t.ndim for t in state.values())]
    called = [(place, state) for place, state in found if ".".join(place) == key]
    chosen = called if key else large or found
    if len(chosen) == 1:
        return chosen[0]
    lines = [
        f"  {'.'.join(place) or '(top level)'}: {len(state)} tensors, "
        f"{sum(tensor.numel() for tensor in state.values()):,} values"
        for place, state in found
    ]
    if not lines and isinstance(tree, Mapping):
        lines = ["  " + (_listed(f"{k}: {type(v).__name__}" for k, v in tree.items()) or "{}")]
    raise CheckpointError(
        f"expected one mapping of names to tensors{f' with the key {key!r}' if key else ''}, "
        "found\n" + ("\n".join(lines) or f"  a {type(tree).__name__}") + "\n"
        "Choose with key= (--state-key), or save model.state_dict() by itself."
    )


def _candidates(
    tree: object, place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every nested mapping of names to tensors, but for the state of optimizers."""
    if not isinstance(tree, Mapping) or any(str(name).startswith("param_groups") for name in tree):
        return
    tensors = {n: t for n, t in tree.items() if isinstance(n, str) and isinstance(t, Tensor)}
    if all(name in tensors or str(name).endswith("_extra_state") for name in tree):
        if any(tensor.is_floating_point() for tensor in tensors.values()):
            yield place, tensors
        return
    for name, value in tree.items():
        if isinstance(name, str) and name != "optim" and not name.startswith("optimizer"):
            yield from _candidates(value, (*place, name))


# Folders of torch.distributed.checkpoint


def _read_distributed(metadata_file: Path, key: str | None) -> tuple[str | None, State]:
    """Choose the state by the metadata alone, then read its tensors piece by piece.

    The loader of torch is not used: it reads the metadata and all that is no tensor with an
    unrestricted pickle, and verifies no checksum.
    """
    with metadata_file.open("rb") as file:
        metadata = _MetadataUnpickler(file).load()
    tree: dict[str, Any] = {}
    names = {}
    for name, entry in metadata.state_dict_metadata.items():
        *path, last = (str(part) for part in (metadata.planner_data or {}).get(name, (name,)))
        names[*path, last] = name
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = None
        if hasattr(entry, "chunks"):
            node[last] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    place, state = _select(tree, key)
    return ".".join(place) or None, {
        name: _assemble(metadata_file.parent, names[*place, name], metadata) for name in state
    }


def _assemble(folder: Path, name: str, metadata: Any) -> Tensor:
    """One tensor from its pieces, each of which is a zip of its own in one of the files."""
    from torch.distributed.checkpoint.metadata import MetadataIndex

    entry = metadata.state_dict_metadata[name]
    tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
    num_read = 0
    for chunk in entry.chunks:
        info = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
        file = folder / info.relative_path
        if file.parent != folder or not file.is_file():
            raise CheckpointError(
                f"the shard {info.relative_path}, which holds {name}, is not in the folder. "
                "Copy the files of all ranks into one folder."
            )
        with file.open("rb") as stream:
            stream.seek(info.offset)
            data = stream.read(info.length)
        with _refusing(file):
            if len(data) < info.length:
                end = info.offset + info.length
                raise CheckpointError(f"ends early: {name} needs {end:,} bytes. Copy it again.")
            piece = _read_torch(io.BytesIO(data))
            if not isinstance(piece, Tensor) or piece.shape != chunk.sizes:
                raise CheckpointError(f"expected a piece of {name} with shape {chunk.sizes}.")
        place = zip(chunk.offsets, chunk.sizes, strict=True)
        tensor[tuple(slice(start, start + size) for start, size in place)] = piece
        num_read += piece.numel()
    if num_read != tensor.numel():
        raise CheckpointError(
            f"the pieces of {name} have {num_read:,} values, expected {tensor.numel():,}. "
            "Copy the checkpoint again."
        )
    return tensor


class _MetadataUnpickler(pickle.Unpickler):
    """Reads pickles of the metadata classes and of nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("pathlib") and name in ("PosixPath", "WindowsPath"):
            return pathlib.PurePath
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or re.fullmatch(_METADATA, f"{module}:{name}"):
            return super().find_class(module, name)
        raise CheckpointError(
            f"its .metadata wants to call {module}.{name}, which no checkpoint needs. Nothing of "
            "it was run; do not trust this folder."
        )


_METADATA = (
    r"torch:Size|torch\.serialization:_get_layout"
    r"|torch\.distributed\.checkpoint\.filesystem:_StorageInfo"
    r"|torch\.distributed\.checkpoint\.metadata:((Bytes|Chunk|Tensor)StorageMetadata|Metadata"
    r"|MetadataIndex|StorageMeta|TensorProperties|_MEM_FORMAT_ENCODING)"
)


# Names


def _names(found: list[str], model: nn.Module | None, strip_prefix: str | None) -> dict[str, str]:
    """The new name of every entry that is kept."""
    raw = {name: name for name in found}
    if strip_prefix:
        prefix = strip_prefix.rstrip(".") + "."
        raw = _strip(raw, prefix) or _strip({name: _clean(name) for name in found}, prefix)
        if not raw:
            raise CheckpointError(f"no name begins with {prefix!r}; the names are {_listed(found)}")
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
        seen = _listed(sorted(path.name for path in directory.iterdir())) or "nothing"
        raise CheckpointError(f"nothing here {wanted}; found {seen}.\n{_ADVICE}")
    return steps


def _read_steps(paths: list[Path]) -> dict[Path, int]:
    paths = [path for path in paths if not re.fullmatch(r"last(-v\d+)?\.ckpt", path.name)]
    for rule in STEP_RULES:
        steps = {path: step for path in paths if (step := _step(rule, path)) is not None}
        if len(steps) == len(paths):
            return steps
    names = _listed(path.name for path in paths)
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
    return bool(called or (folder / ".metadata").is_file() or _weights(folder))


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


_SHARD = (
    "This is the part of one process, without the others. Save the whole with "
    "torch.distributed.checkpoint.save and give its folder, or gather it first with "
    "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))."
)

# What a pickle may hold besides tensors and plain values

_LOCK = threading.Lock()  # safe_globals changes a list of the whole process

_NUMPY: list[Any] = [np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]

_ALLOWED: list[Any] = [
    argparse.Namespace,
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    *(
        (getattr(pathlib, f"Pure{name}"), f"{module}.{prefix}{name}")
        for name in ("PosixPath", "WindowsPath")
        for module in ("pathlib", "pathlib._local")  # before and since Python 3.13
        for prefix in ("", "Pure")
    ),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDGSUMm"),
    *(
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for function in _NUMPY
        for core in ("_core", "core")  # since and before numpy 2
    ),
]


class _Module(types.ModuleType):
    """Lets `landscape.checkpoints`, the module, be called as the function of that name."""

    def __call__(self, *args: Any, **options: Any) -> "list[Checkpoint]":
        return checkpoints(*args, **options)


sys.modules[__name__].__class__ = _Module

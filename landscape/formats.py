"""Which file formats hold checkpoints, and how is each read without running what is in it?

Zip and legacy files of `torch.save`, safetensors (single and sharded), folders of the Hugging Face
Trainer and of accelerate, and folders of `torch.distributed.checkpoint`. Pickles are read with
`weights_only=True` and a fixed list of harmless classes; there is no way around it. The checksums
of zip files are verified; legacy files and safetensors carry none.
"""

import argparse
import datetime
import difflib
import io
import json
import logging
import pathlib
import pickle
import re
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from landscape.states import State

logger = logging.getLogger("landscape")


class CheckpointError(ValueError):
    """All that can be wrong with a checkpoint: what was found and expected, and what to do."""


@contextmanager
def refusing(path: Path) -> Iterator[None]:
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


def not_found(path: Path) -> str:
    """Says that a path does not exist, and what is called alike beside it."""
    if not path.parent.is_dir():
        return f"does not exist, nor does the folder {path.parent}."
    names = [entry.name for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    return f"does not exist. Closest names in the folder: {listed(close) or 'none'}."


def listed(names: Iterable[str], count: int = 10) -> str:
    """The first names, and how many there are if that is not all."""
    names = list(names)
    return ", ".join(names[:count]) + (f", ... ({len(names)} in all)" if len(names) > count else "")


def resolve(path: Path) -> tuple[str, list[Path]]:
    """The format of a checkpoint and the files that hold it."""
    if not path.exists():
        raise CheckpointError(not_found(path))
    if path.name.endswith(".index.json"):
        shards = sorted(set(_weight_map(path).values()))
        if lost := [n for n in shards if Path(n).name != n or not (path.parent / n).is_file()]:
            raise CheckpointError(
                f"of the {len(shards)} shards in {path.name}, not in the folder: {listed(lost)}. "
                "Copy them again."
            )
        return "sharded", [path, *(path.parent / name for name in shards)]
    if path.is_file():
        return _format(path), [path]
    if (path / ".metadata").is_file():
        return "distributed", [path / ".metadata", *sorted(path.glob("*.distcp"))]
    found = weight_files(path)
    if len(found) == 1:
        return resolve(found[0])
    if found:
        names = listed(file.name for file in found)
        raise CheckpointError(f"holds several files of weights: {names}. Name one of them.")
    seen = listed(sorted(entry.name for entry in path.iterdir()))
    raise CheckpointError(
        "expected a folder with model.safetensors, the index of its shards, pytorch_model.bin or "
        f"the .metadata of torch.distributed.checkpoint; found {seen or 'nothing'}. The save was "
        "not finished, or not copied whole. A folder of many checkpoints is for checkpoints()."
    )


def weight_files(folder: Path) -> list[Path]:
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


def read(form: str, files: list[Path], key: str | None) -> tuple[str | None, State]:
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
        with refusing(path):
            shard = _select(_read_file(path), None)[1]
            promised = {name for name, file in weight_map.items() if file == path.name}
            if wrong := promised ^ set(shard):
                raise CheckpointError(
                    f"the index and this shard disagree on {listed(sorted(wrong))}. "
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
            f"a zip that torch.save did not write (TorchScript, npz?); it holds {listed(names)}. "
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
    text = f"it wants to call {listed(wanted)}; expected only tensors and plain values. "
    if any(name.startswith("torch.distributed") for name in wanted):
        return text + SHARD
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
        lines = ["  " + (listed(f"{k}: {type(v).__name__}" for k, v in tree.items()) or "{}")]
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
        with refusing(file):
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


SHARD = (
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

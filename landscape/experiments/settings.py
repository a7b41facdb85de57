"""How does a run say what it is? Its parts as plain values that JSON can hold, and what differs."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checkpoints import Checkpoint, sha256
from landscape.datasets import Batches
from landscape.task import data_sha256


def described(value: Any) -> Any:
    """A value in words that JSON can hold, the same in every process.

    Dataclasses by their type and fields, functions by their place and what they have bound,
    tensors, models and data by their hashes; other objects by their `repr`.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Batches):
        return {"examples": value.num_examples, "sha256": _data_sha256(value)}
    if isinstance(value, Checkpoint):
        return {"step": value.step, "key": value.key, "sha256": sha256(value.path)}
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "sha256": _digest(value)}
    if isinstance(value, nn.Module):
        return {"is": _place(type(value)), "state": described(dict(value.state_dict()))}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: described(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"is": _place(type(value)), **fields}
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [described(item) for item in value]
    if isinstance(value, functools.partial):
        bound = {"arguments": described(value.args), "keywords": described(value.keywords)}
        return {"is": described(value.func), **bound}
    if isinstance(value, Path):
        return str(value)
    return _function(value) if callable(value) and hasattr(value, "__qualname__") else repr(value)


def differences(
    earlier: Mapping[str, Any], now: Mapping[str, Any], within: str = ""
) -> dict[str, tuple[Any, Any]]:
    """What differs between two settings: the dotted key, what it was and what it is."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*earlier, *now}):
        a, b = earlier.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= differences(a, b, f"{within}{key}.")
        elif a != b:
            found[f"{within}{key}"] = a, b
    return found


def _function(function: Callable[..., Any]) -> Any:
    """The place of a function; for one without a place, also what it is made of."""
    place = _place(function)
    code = getattr(function, "__code__", None)
    if code is None or "<" not in place:
        return place
    cells = [described(cell.cell_contents) for cell in function.__closure__ or ()]
    defaults = [function.__defaults__, function.__kwdefaults__]
    parts = [code.co_code.hex(), repr([c for c in code.co_consts if not hasattr(c, "co_code")])]
    parts += [repr(code.co_names), json.dumps(cells), json.dumps(described(defaults))]
    return f"{place} ({hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]})"


def _place(thing: Any) -> str:
    module = thing.__module__.replace("__mp_main__", "__main__")  # a script in a worker
    return f"{module}:{thing.__qualname__}"


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(str(tensor.dtype).encode() + flat.numpy().tobytes()).hexdigest()


@lru_cache(maxsize=1)  # the runs of a sweep mostly share their data
def _data_sha256(data: Batches) -> str:
    return data_sha256(data)

"""What makes a state a number? The model, the loss, the data and further metrics, said once."""

import difflib
import hashlib
import importlib
import importlib.util
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PerExample = Callable[[Any, Any], Tensor]
RESERVED = ("loss", "status")


@dataclass(frozen=True, eq=False)
class Task:
    """A model's skeleton, a loss, data and metrics: what is evaluated at each point.

    `name` labels the task in results (`"train"`, `"test"`). `model` gives the architecture; its own
    weights, mode and buffers are neither used nor changed. `loss(outputs, targets)` and every
    function in `metrics` return one value per example, shape (batch,), so that means over unequal
    batches are exact. `data` is re-iterable batches of `(inputs, targets)`, the same on each pass:
    `landscape.datasets.Batches` (the fast path) or any `DataLoader` that does not shuffle.
    A tuple of inputs is passed to the model as arguments, a mapping as keyword arguments.

    Raises `TypeError` or `ValueError` if a part cannot serve.
    """

    name: str
    model: nn.Module
    loss: PerExample
    data: Iterable[tuple[Any, Any]]
    metrics: Mapping[str, PerExample] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(self.model).__name__}")
        if not callable(self.loss):
            raise TypeError(f"loss must be callable, got {type(self.loss).__name__}")
        if isinstance(self.data, Iterator) or not isinstance(self.data, Iterable):
            raise TypeError(
                f"data must be re-iterable batches of (inputs, targets), got a "
                f"{type(self.data).__name__}; give a DataLoader, a list, or datasets.Batches"
            )
        for name, metric in self.metrics.items():
            if name in RESERVED or not callable(metric):
                raise ValueError(
                    f"metric {name!r} must be callable and not be named {' or '.join(RESERVED)}"
                )

    def measures(self) -> dict[str, PerExample]:
        """The loss and the metrics under the names they have in results."""
        return {"loss": self.loss, **self.metrics}


def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest output is not the target, else 0; shape (batch,)."""
    return (outputs.argmax(1) != targets).to(outputs.dtype)


def tasks_of(task: Task | Iterable[Task]) -> tuple[Task, ...]:
    """One task or several, as a tuple; several must have names of their own."""
    tasks = (task,) if isinstance(task, Task) else tuple(task)
    names = [t.name if isinstance(t, Task) else None for t in tasks]
    if not tasks or None in names:
        kinds = ", ".join(type(t).__name__ for t in tasks) or "nothing"
        raise TypeError(f"expected a landscape.Task or a sequence of them, got {kinds}")
    if len(set(names)) < len(names):
        raise ValueError(f"tasks that are evaluated together need different names, got {names}")
    return tasks


def training_task(tasks: Sequence[Task]) -> Task:
    """The task named `"train"`, or the first: what is trained and recalibrated on."""
    return next((task for task in tasks if task.name == "train"), tasks[0])


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the global random states of Python, NumPy and torch as they are found."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def load_tasks(spec: str, arguments: Mapping[str, Any] | None = None) -> tuple[Task, ...]:
    """The task or tasks that a function gives, named `pkg.mod:function` or `path/file.py:function`.

    The function is called with `arguments` as keywords. Modules are looked for in the working
    folder too. Raises `ValueError` if the name leads nowhere, `TypeError` if what the function
    returns is no `Task` or sequence of them.
    """
    return tasks_of(load_function(spec)(**(arguments or {})))


def load_function(spec: str) -> Callable[..., Any]:
    """The function of that name, as in `load_tasks`."""
    place, colon, name = spec.rpartition(":")
    if not colon or not name:
        raise ValueError(f"a task is named pkg.mod:function or path/file.py:function, got {spec!r}")
    module = _module_of_file(Path(place)) if place.endswith(".py") else _module(place)
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{place} has no function {name!r}{hint}")
    function: Callable[..., Any] = getattr(module, name)
    return function


def data_sha256(data: Iterable[tuple[Any, Any]]) -> str:
    """SHA-256 over dtypes, shapes and bytes of the data, as they are stored.

    Tensors in memory (`datasets.Batches`) count whatever their batches and their device, together
    with the transform; other data count batch by batch.
    """
    digest = hashlib.sha256()
    batches: Iterable[Any] = data
    if all(hasattr(data, name) for name in ("inputs", "targets")):
        batches = [(data.inputs, data.targets)]  # type: ignore[attr-defined]
        if transform := getattr(data, "transform", None):  # a function, or an object with values
            digest.update(getattr(transform, "__qualname__", repr(transform)).encode())
    with random_state_kept():
        for batch in batches:
            for tensor in tensors_in(batch):
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply a function to the tensors in nested tuples, lists and mappings."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)([map_tensors(function, value) for value in tree])
    return tree


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and mappings, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    values = tree.values() if isinstance(tree, Mapping) else tree
    nested = isinstance(tree, Mapping | tuple | list)
    return [tensor for value in values for tensor in tensors_in(value)] if nested else []


def _module(name: str) -> Any:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"the module {name!r} of the task cannot be imported: {error}") from error


def _module_of_file(path: Path) -> Any:
    """The module in a file, under a name of its own that is the same in every process."""
    if not path.is_file():
        raise ValueError(f"there is no file {path} to take the task from")
    name = (
        f"landscape_task_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    )
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]

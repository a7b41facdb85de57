"""What happened during training, and why does the network end where it does?

The names below are the public ones. They are imported when they are first used, so that
`import landscape` and `landscape --help` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "landscape.task": ["Task"],
    "landscape.families": ["Family", "bezier", "line", "plane", "polychain", "simplex"],
    "landscape.checkpoints": ["Checkpoint", "load_state", "save_checkpoint"],
    "landscape.evaluation": ["evaluate"],
    "landscape.analyses.interpolation": ["barrier", "interpolate"],
    "landscape.results": ["load", "save", "sweep"],
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}
_MODULES = ["checkpoints", "datasets", "models", "plots"]  # `checkpoints` can also be called

__all__ = [*_HOME, *_MODULES, "__version__"]  # noqa: PLE0604

if TYPE_CHECKING:
    from landscape import checkpoints, datasets, models, plots
    from landscape.analyses.interpolation import barrier, interpolate
    from landscape.checkpoints import Checkpoint, load_state, save_checkpoint
    from landscape.evaluation import evaluate
    from landscape.families import Family, bezier, line, plane, polychain, simplex
    from landscape.results import load, save, sweep
    from landscape.task import Task


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"landscape.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

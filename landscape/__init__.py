"""What happened during training, and why does the network end where it does?

The names below are the public ones. They are imported when they are first used, so that
`import landscape` and `landscape --help` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "landscape.task": ["Task"],
    "landscape.families": [
        "Family", "bezier", "line", "plane", "polychain", "random_plane", "simplex",
    ],
    "landscape.checkpoints": ["Checkpoint", "load_state", "save_checkpoint"],
    "landscape.evaluation": ["evaluate"],
    "landscape.analyses.alignment": ["align"],
    "landscape.analyses.connectivity": ["connect"],
    "landscape.analyses.fisher": ["fisher_diagonal", "fisher_trace"],
    "landscape.analyses.fisher_spectrum": ["fisher_eigenvalues"],
    "landscape.analyses.hessian": ["hessian_density", "hessian_eigenvalues", "hessian_trace"],
    "landscape.analyses.instability": ["instability"],
    "landscape.analyses.interpolation": ["barrier", "interpolate"],
    "landscape.analyses.layers": ["compare_layers"],
    "landscape.analyses.surface": ["surface"],
    "landscape.analyses.trajectory": ["trajectory"],
    "landscape.maths.similarity": ["cca", "cka", "procrustes", "pwcca", "rsa", "svcca"],
    "landscape.results": ["load", "save", "sweep"],
}  # fmt: skip
_HOME = {name: module for module, names in _WHERE.items() for name in names}
_MODULES = ["checkpoints", "datasets", "experiments", "models", "plots"]  # the first can be called

__all__ = [*_HOME, *_MODULES, "__version__"]

if TYPE_CHECKING:
    from landscape import (
        datasets as datasets,
        experiments as experiments,
        models as models,
        plots as plots,
    )
    from landscape.analyses.alignment import align as align
    from landscape.analyses.connectivity import connect as connect
    from landscape.analyses.fisher import (
        fisher_diagonal as fisher_diagonal,
        fisher_trace as fisher_trace,
    )
    from landscape.analyses.fisher_spectrum import fisher_eigenvalues as fisher_eigenvalues
    from landscape.analyses.hessian import (
        hessian_density as hessian_density,
        hessian_eigenvalues as hessian_eigenvalues,
        hessian_trace as hessian_trace,
    )
    from landscape.analyses.instability import instability as instability
    from landscape.analyses.interpolation import barrier as barrier, interpolate as interpolate
    from landscape.analyses.layers import compare_layers as compare_layers
    from landscape.analyses.surface import surface as surface
    from landscape.analyses.trajectory import trajectory as trajectory
    from landscape.checkpoints import (
        Checkpoint as Checkpoint,
        checkpoints as checkpoints,
        load_state as load_state,
        save_checkpoint as save_checkpoint,
    )
    from landscape.evaluation import evaluate as evaluate
    from landscape.families import (
        Family as Family,
        bezier as bezier,
        line as line,
        plane as plane,
        polychain as polychain,
        random_plane as random_plane,
        simplex as simplex,
    )
    from landscape.maths.similarity import (
        cca as cca,
        cka as cka,
        procrustes as procrustes,
        pwcca as pwcca,
        rsa as rsa,
        svcca as svcca,
    )
    from landscape.results import load as load, save as save, sweep as sweep
    from landscape.task import Task as Task


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"landscape.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

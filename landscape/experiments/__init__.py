"""Making the runs whose checkpoints the analyses study: nothing here knows an analysis.

A `Run` says what a run is, and `train` makes it, or many at once. The interventions are parts of a
run: `schedules` of scalars, `deficits` and `augmentations` of data, `regularisation` in time,
`warmstarts`, `transfer` and `branches` from checkpoints, `distillation`, `penalties`, `averaging`,
`masks`, `pruning` and `perturbations`. `comparisons` reads what came of runs, `tickets` what came
of chains of pruning, and `probes` asks a model.
"""

from landscape.experiments import (
    augmentations as augmentations,
    averaging as averaging,
    branches as branches,
    comparisons as comparisons,
    deficits as deficits,
    distillation as distillation,
    masks as masks,
    penalties as penalties,
    perturbations as perturbations,
    probes as probes,
    pruning as pruning,
    regularisation as regularisation,
    schedules as schedules,
    tickets as tickets,
    transfer as transfer,
    warmstarts as warmstarts,
)
from landscape.experiments.recorder import (
    Recorder as Recorder,
    lightning_callback as lightning_callback,
    trainer_callback as trainer_callback,
)
from landscape.experiments.records import Ended as Ended, RunError as RunError
from landscape.experiments.runs import (
    At as At,
    Branch as Branch,
    Clock as Clock,
    During as During,
    Every as Every,
    Run as Run,
    RunView as RunView,
    Seeds as Seeds,
    Window as Window,
    cross_entropy as cross_entropy,
    log_spaced as log_spaced,
)
from landscape.experiments.training import train as train

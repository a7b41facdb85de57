"""Making the runs whose checkpoints the analyses study: nothing here knows an analysis."""

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

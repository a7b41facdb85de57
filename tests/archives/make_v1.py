"""Made `v1.h5`, a result of schema version 1. Old files load for ever: do not make it again."""

from pathlib import Path

import numpy as np

from landscape.results import dataset, save

EPOCH = [0, 5, 10, 10]
LOSS = np.array([[2.5, 1.25, np.nan, np.nan], [3.0, 1.5, np.nan, np.nan]])
WRONG = [9, 4, 0, 0]
NAMES = ["start", "middle", "naïve", ""]


def v1():
    """All that a file of version 1 can hold, with what depends on the day and the machine fixed."""
    result = dataset(
        {
            "loss": (("split", "t"), LOSS, {"units": "nats", "long_name": "cross-entropy"}),
            "wrong": ("t", WRONG),
            "name": ("t", NAMES),
            "kept": ("t", [True, True, False, False]),
            "distance": ((), 4.25),
            "status": ("t", np.arange(4, dtype=np.uint8)),
        },
        {"t": [0.0, 0.25, 0.5, 1.0], "split": ["train", "test"], "epoch": ("t", EPOCH)},
        analysis="interpolation",
        title="Archive of version 1",
        seed=0,
        plan={"task": "digits", "t": [0.0, 0.25, 0.5, 1.0], "schema_version": 1},
        strategy=None,
    )
    return result.assign_attrs(created="2026-11-21T00:00:00+00:00", provenance='{"git": ""}')


if __name__ == "__main__":
    save(v1(), Path(__file__).with_name("v1.h5"))

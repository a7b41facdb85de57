"""How fast are all pairs of layers? `python analysis_scripts/benchmark_similarity.py` says.

Three tables, each from one run with one thread, in alternation, of which the least CPU time counts:

CCA of all pairs of 12 layers (three each of width 16, 32, 64 and 512), ours from one pass over the
rows, against the textbook: for each pair the covariance of both, inverse roots, and one SVD. The
roots are (a) those of the pseudo-inverse, as in the reference code of Raghu et al. 2017, and (b)
taken of the covariance itself.

Debiased CKA of 12 x 12 layers of width 512 from a batch of 256, against the packages `pytorch-cka`
(its function of features) and `torch-cka` (which goes through models: these hand over slices of
their input, so that there is nothing to compute but CKA), where they are installed.

The peak of memory for 20 000 and for 2 000 000 rows, each in a process of its own (on Linux).
"""

import argparse
import contextlib
import io
import itertools
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from landscape.maths.accumulator import Accumulator, memory_bytes
from landscape.maths.minibatch import minibatch_cka
from landscape.maths.moments import needs_exact
from landscape.maths.similarity import cca_of

WIDTHS = [width for width in (16, 32, 64, 512) for _ in range(3)]
BATCH = 256
Run = Callable[[], NDArray[np.float64]]


class Slices(nn.Module):
    """A network whose layers hand over parts of its input."""

    def __init__(self, start: int, num: int, width: int) -> None:
        super().__init__()
        self.start, self.width = start, width
        self.layers = nn.ModuleList([nn.Identity() for _ in range(num)])

    def forward(self, inputs: Tensor) -> Tensor:
        """The layers see their parts; the last part is returned."""
        parts = inputs[:, self.start :].split(self.width, dim=1)
        return [layer(part) for layer, part in zip(self.layers, parts, strict=False)][-1]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="the least time counts")
    parser.add_argument("--rows", type=int, nargs="*", default=[2000, 20000])
    parser.add_argument("--most", type=int, default=2000000, help="rows for the peak of memory")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(peak(options.peak))
        return
    for num in options.rows:
        compare_cca(num, options.repeats)
    compare_cka(5 * options.repeats)
    print(f"estimate of memory {memory_bytes(WIDTHS) / 2**20:.0f} MiB")
    for num in (20000, options.most):
        command = [sys.executable, __file__, "--peak", str(num)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"peak of memory above that of one pair, {num} rows: {int(printed) / 2**20:.0f} MiB")


def compare_cca(num: int, repeats: int) -> None:
    """One table: mean correlations of all pairs."""
    blocks = activations(num)
    arrays = [block.double().numpy() for block in blocks]
    runs: dict[str, Run] = {
        "textbook (a)": lambda: textbook(arrays, root_of_pseudo_inverse),
        "textbook (b)": lambda: textbook(arrays, inverse_root),
        "float64": lambda: all_pairs(blocks, torch.float64),
        "float32 products": lambda: all_pairs(blocks, torch.float32),
    }
    report(f"CCA of {len(WIDTHS)} layers, {num} rows", runs, repeats, against="textbook (a)")


def compare_cka(repeats: int) -> None:
    """One table: debiased CKA from one batch."""
    num, width = 12, 512
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(BATCH, 64, generator=generator)
    mixed = shared @ torch.randn(64, 2 * num * width, generator=generator) / 8
    inputs = mixed + torch.randn(BATCH, 2 * num * width, generator=generator)
    parts = inputs.split(width, dim=1)
    runs: dict[str, Run] = {"landscape": lambda: minibatch_cka([(parts[:num], parts[num:])])}
    for name, make in (("pytorch-cka", pytorch_cka), ("torch-cka", torch_cka)):
        try:
            runs[name] = make(parts)
        except ImportError:
            print(f"{name} is not installed: `pip install --no-deps {name}` to compare")
    title = f"debiased CKA of {num} x {num} layers, a batch of {BATCH}, width {width}"
    report(title, runs, repeats, against="landscape")


def report(title: str, runs: dict[str, Run], repeats: int, *, against: str) -> None:
    """Run all in alternation and print their least times, and what differs from one of them."""
    seconds = dict.fromkeys(runs, float("inf"))
    results = {}
    for _, (name, run) in itertools.product(range(repeats), runs.items()):
        start = time.process_time()
        results[name] = run()
        seconds[name] = min(seconds[name], time.process_time() - start)
    print(title)
    for name, value in seconds.items():
        off = np.abs(results[name] - results[against]).max()
        print(
            f"  {name:17}{1000 * value:9.1f} ms  {against} takes {seconds[against] / value:5.2f} "
            f"times that, and differs by {off:.0e}",
            flush=True,
        )


def activations(num: int) -> list[Tensor]:
    """Layers (num, d) in float32 that share 64 causes."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.randn(num, 64, generator=generator)
    return [
        causes @ torch.randn(64, width, generator=generator) / 8
        + torch.randn(num, width, generator=generator)
        for width in WIDTHS
    ]


def all_pairs(blocks: Sequence[Tensor], dtype: torch.dtype) -> NDArray[np.float64]:
    """Ours: moments of all layers in batches, and the mean correlation of every pair."""
    accumulator = Accumulator(dtype=dtype)
    for start in range(0, len(blocks[0]), BATCH):
        accumulator.add([block[start : start + BATCH] for block in blocks])
    moments = accumulator.finish()
    assert not needs_exact(moments)
    pairs = itertools.combinations(range(len(blocks)), 2)
    return np.array([float(cca_of(moments.overlap(i, j))) for i, j in pairs])


def textbook(
    arrays: Sequence[NDArray[np.float64]],
    root: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Each pair by itself: covariances, inverse roots, and a singular value decomposition."""
    found = []
    for x, y in itertools.combinations(arrays, 2):
        covariance = np.cov(x, y, rowvar=False)
        width = x.shape[1]
        root_x = root(covariance[:width, :width])
        root_y = root(covariance[width:, width:])
        _, correlations, _ = np.linalg.svd(root_x @ covariance[:width, width:] @ root_y)
        found.append(correlations.mean())
    return np.array(found)


def root_of_pseudo_inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The square root of the pseudo-inverse of a symmetric matrix."""
    values, vectors = np.linalg.eigh(np.linalg.pinv(matrix))
    return np.asarray(vectors @ (np.diag(np.sqrt(values)) @ vectors.T))


def inverse_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse square root of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T)


def pytorch_cka(parts: Sequence[Tensor]) -> Run:
    """The package `pytorch-cka` (imported as `cka`) on the layers of one batch."""
    from cka import cka_from_features  # type: ignore[import-not-found]

    num = len(parts) // 2
    return lambda: cka_from_features(parts[:num], parts[num:]).numpy()


def torch_cka(parts: Sequence[Tensor]) -> Run:
    """The package `torch-cka` on the layers of one batch."""
    from torch_cka import CKA  # type: ignore[import-not-found]

    num, width = len(parts) // 2, parts[0].shape[1]
    inputs = torch.cat(list(parts), 1)
    models = Slices(0, num, width), Slices(num * width, num, width)
    names = [f"layers.{k}" for k in range(num)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compare = CKA(*models, "a", "b", names, names)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs), BATCH)

    def run() -> NDArray[np.float64]:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            compare.compare(loader)
        return np.asarray(compare.hsic_matrix)

    return run


def peak(num: int) -> int:
    """The bytes that all pairs of layers take at most, beyond what is loaded before."""
    rows = activations(BATCH)
    all_pairs([block[:, :2] for block in rows], torch.float64)
    before = most_memory()
    accumulator = Accumulator()
    for start in range(0, num, BATCH):
        accumulator.add([block[: min(BATCH, num - start)] for block in rows])
    accumulator.finish().overlap(0, 11)
    return most_memory() - before


def most_memory() -> int:
    """The peak of resident memory in bytes, of this program alone (`resource` has its parent's)."""
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


if __name__ == "__main__":
    main()

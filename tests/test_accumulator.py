import subprocess
import sys

import pytest
import torch
from numpy.testing import assert_array_equal
from test_moments import check, gathered, layers

from landscape.maths.accumulator import Accumulator, memory_bytes


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"dtype": torch.float32}])
def test_batches_change_nothing(options):
    blocks = layers(5000)
    whole = gathered(blocks, batch=5000, **options)
    for batch in (1, 77, 2048, 4999):
        moments = gathered(blocks, batch=batch, **options)
        for i, j in ((0, 0), (0, 1), (2, 1)):
            check(moments.overlap(i, j), whole.overlap(i, j), 1e-12)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("options", [{}, {"exact": True}, {"num_blocks": 3}])
def test_memory_is_as_estimated_and_the_same_for_more_rows(options):
    script = (
        "import re, torch\n"
        "from landscape.maths.accumulator import Accumulator\n"
        "torch.set_num_threads(1)\n"
        "status = lambda: open('/proc/self/status').read()\n"
        "peak = lambda: int(re.findall(r'VmHWM:\\s*(\\d+) kB', status())[0]) * 1024\n"
        "batch = [torch.randn(256, 200, generator=torch.Generator().manual_seed(0))] * 3\n"
        "def run(num, blocks):\n"
        f"    accumulator = Accumulator(**{options})\n"
        "    for _ in range(num): accumulator.add(blocks)\n"
        "    accumulator.finish().overlap(0, 1)\n"
        "run(3, [part[:, :5] for part in batch])\n"
        "before = peak(); run(100, batch); print(peak() - before)\n"
        "run(300, batch); print(peak() - before)\n"
    )
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    few, many = (int(line) for line in printed.stdout.split())
    assert many - few < 2**24  # the allocator's; what came in between took 200 MiB
    assert few / 3 < memory_bytes([200] * 3, **options) < 3 * few  # the allocator keeps some


def test_input_is_left_alone():
    blocks = layers()
    copies = [block.clone() for block in blocks]
    gathered([block.requires_grad_() for block in blocks])
    for block, copy in zip(blocks, copies, strict=True):
        assert_array_equal(block.detach(), copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float16}, "dtype must be torch.float64 or torch.float32"),
        ({"dtype": torch.float32, "exact": True}, "exact moments are computed in float64"),
        ({"num_blocks": 1}, "num_blocks must be 0 or at least 2"),
        ({"rows_per_image": 0}, "rows_per_image at least 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Accumulator(**options)


def test_activations_that_do_not_fit_are_refused():
    x, y = layers(40, (3, 4))
    for wrong in ([x, y[:39]], [x, y[:, :3]], [x], [x, y.to(torch.complex128)]):
        accumulator = Accumulator()
        accumulator.add([x, y])
        with pytest.raises(ValueError, match=r"expected \[\(40, 3\), \(40, 4\)\], got"):
            accumulator.add(wrong)
    with pytest.raises(ValueError, match="same rows of every layer"):
        Accumulator().add([x, y[:39]])
    with pytest.raises(ValueError, match="flatten or average maps first"):
        Accumulator().add([x.reshape(40, 3, 1)])
    with pytest.raises(ValueError, match="at least two examples, got 1"):
        gathered([x[:1]])
    with pytest.raises(ValueError, match="at least two examples, got 0"):
        Accumulator().finish()
    with pytest.raises(ValueError, match="40 rows are no whole number of images of 7 rows"):
        gathered([x], rows_per_image=7)
    with pytest.raises(ValueError, match=r"fewer images \(5\) than blocks to leave out \(9\)"):
        gathered([x], rows_per_image=8, num_blocks=9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_values_that_are_not_finite_are_named(value):
    blocks = layers(5000)
    blocks[1][4321, 2] = value
    with pytest.raises(ValueError, match="layer 1 has .* not finite, .* 4096 to 4999"):
        gathered(blocks)

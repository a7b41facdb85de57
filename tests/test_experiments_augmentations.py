"""Augmentations are what they are called, drawn uniformly, and leave no trace when they are off."""

import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats
from torch.nn import functional as F  # noqa: N812

from landscape import checkpoints, models
from landscape.datasets import Batches
from landscape.experiments.augmentations import Flip, Mixup, Shift
from landscape.experiments.batches import epoch_batches, pooled
from landscape.experiments.deficits import SoftLabels
from landscape.experiments.runs import During, Run, Seeds, Window
from landscape.experiments.settings import described
from landscape.experiments.training import train

CPU = torch.device("cpu")
ALL = [Shift(1), Shift(4, fill=(0.5, -0.5)), Flip(), Mixup(0.4, 5)]


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=chance(seed), dtype=dtype)


def applied(augmentation, inputs, targets, seed=0):
    """An augmentation on (n, batch, ...) with draws of n generators, and the draws."""
    drawn = [augmentation.draw(chance(seed + row), inputs.shape[1]) for row in range(len(inputs))]
    if isinstance(drawn[0], tuple):
        draws = tuple(torch.stack(parts) for parts in zip(*drawn, strict=True))
    else:
        draws = torch.stack(drawn)
    return (*augmentation.apply(inputs, targets, draws), draws)


# Shifts and flips ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("pixels", "fill"), [(1, 0.0), (4, 0.25), (9, (0.5, -1.0))])
def test_a_shift_is_padding_and_cropping(pixels, fill):
    x, targets = noise(3, 20, 2, 6, 8), torch.zeros(3, 20, dtype=torch.long)
    moved, kept, draws = applied(Shift(pixels, fill), x, targets)
    assert kept is targets
    fills = np.broadcast_to(fill, 2)
    for image, result, (row, column) in zip(
        x.flatten(0, 1), moved.flatten(0, 1), draws.flatten(0, 1).tolist(), strict=True
    ):
        for channel in range(2):
            padded = np.pad(image[channel], pixels, constant_values=fills[channel])
            assert np.array_equal(result[channel], padded[row : row + 6, column : column + 8])


def test_shifts_are_drawn_uniformly_from_all():
    draws = Shift(2).draw(chance(), 20_000)
    counts = torch.bincount(draws[:, 0] * 5 + draws[:, 1], minlength=25)
    assert len(counts) == 25
    assert stats.chisquare(counts).pvalue > 0.01


def test_shifts_of_images_without_channels():
    x, targets = noise(2, 5, 8, 8), torch.zeros(2, 5)
    moved, _, draws = applied(Shift(1), x, targets)
    assert torch.equal(moved, Shift(1).apply(x[:, :, None], targets, draws)[0][:, :, 0])


def test_flips_exchange_left_and_right_of_the_share_that_is_drawn():
    x, targets = noise(2, 3000, 1, 4, 5), torch.zeros(2, 3000)
    flipped, kept, draws = applied(Flip(0.3), x, targets)
    assert kept is targets
    assert torch.equal(flipped[draws], x[draws].flip(-1))
    assert torch.equal(flipped[~draws], x[~draws])
    assert stats.binomtest(int(draws.sum()), 6000, 0.3).pvalue > 0.01
    assert torch.equal(applied(Flip(0), x, targets)[0], x)
    assert torch.equal(applied(Flip(1), x, targets)[0], x.flip(-1))


# Mixup --------------------------------------------------------------------------------------------


def test_mixed_examples_and_labels_are_the_formula():
    x, targets = noise(3, 7, 2, 4), torch.arange(21).reshape(3, 7) % 5
    mixed, soft, (weights, keys) = applied(Mixup(0.4, 5), x, targets)
    for run in range(3):
        partners = np.argsort(keys[run].numpy())
        for i, (j, weight) in enumerate(zip(partners, weights[run].double(), strict=True)):
            assert_allclose(mixed[run, i], weight * x[run, i] + (1 - weight) * x[run, j])
            truth = np.zeros(5)
            truth[targets[run, i]] += weight
            truth[targets[run, j]] += 1 - weight
            assert_allclose(soft[run, i], truth, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_soft_labels_sum_to_one(dtype):
    x, targets = noise(2, 64, 3, dtype=dtype), torch.arange(128).reshape(2, 64) % 10
    soft = applied(Mixup(1.0, 10), x, targets)[1]
    assert soft.dtype == dtype
    assert_allclose(soft.sum(-1), torch.ones(2, 64), rtol=1e-6)
    assert (soft >= 0).all()
    again = applied(Mixup(1.0, 10), x, soft, seed=9)[1]  # soft labels can be mixed again
    assert_allclose(again.sum(-1), torch.ones(2, 64), rtol=1e-6)


def test_every_example_is_a_partner_once_and_sums_are_kept_for_equal_weights():
    x, targets = noise(2, 50, 3), torch.zeros(2, 50, dtype=torch.long)
    keys = torch.stack([Mixup(1.0, 5).draw(chance(seed), 50)[1] for seed in range(2)])
    mixed, _ = Mixup(1.0, 5).apply(x, targets, (torch.full((2, 50), 0.25), keys))
    assert_allclose(mixed.sum(1), x.sum(1), atol=1e-12)
    whole, _ = Mixup(1.0, 5).apply(x, targets, (torch.ones(2, 50), keys))
    assert torch.equal(whole, x)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_weights_have_their_beta_distribution_and_partners_are_uniform(alpha):
    weights, keys = Mixup(alpha, 5).draw(chance(), 20_000)
    assert stats.kstest(weights.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01
    partners = keys.reshape(-1, 4).argsort(1)
    codes, numbers = (partners * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)
    assert len(codes) == math.factorial(4)
    assert stats.chisquare(numbers).pvalue > 0.01


def test_the_loss_of_a_mixture_is_the_mixture_of_losses():
    outputs, targets = noise(1, 8, 5), torch.arange(8)[None] % 5
    _, soft, (weights, keys) = applied(Mixup(1.0, 5), noise(1, 8, 3), targets)
    weights, partners = weights[0].double(), keys[0].argsort()
    own, other = (F.cross_entropy(outputs[0], t, reduction="none")
                  for t in (targets[0], targets[0, partners]))  # fmt: skip
    expected = (weights * own + (1 - weights) * other).mean()
    assert_allclose(F.cross_entropy(outputs[0], soft[0]), expected, rtol=1e-7)


# In runs ------------------------------------------------------------------------------------------

DATA = Batches(noise(50, 2, 8, 8).float(), torch.arange(50) % 5)
MLP = partial(models.mlp, 128, (9,), 5)


def a_run(name="a", **changes):
    given = {"make_model": MLP, "data": DATA, "epochs": 4, "batch_size": 16, "lr": 0.05}
    return Run(**{"name": name, **given, **changes})


def batches_of(*runs):
    pool, starts = pooled(runs, CPU), runs[0].timeline.starts
    for epoch in range(runs[0].epochs):
        yield from epoch_batches(pool, runs, epoch, starts[epoch], CPU)


def equal(pair, other):
    return all(torch.equal(a, b) for a, b in zip(pair, other, strict=True))


@pytest.mark.parametrize("augmentation", ALL, ids=str)
def test_batches_outside_the_window_are_the_plain_ones_to_the_bit(augmentation):
    plain = a_run()
    timed = a_run(augmentations=(During(augmentation, Window(1, 2.5)),))
    on = range(plain.timeline.step_of(1), plain.timeline.step_of(2.5))
    for step, (got, want) in enumerate(zip(batches_of(timed), batches_of(plain), strict=True)):
        assert equal(got, want) == (step not in on)


@pytest.mark.parametrize("augmentation", [Shift(1), Flip()], ids=str)
def test_a_run_in_a_stack_sees_the_batches_that_it_sees_alone(augmentation):
    windows = [Window(0, 2), Window(1, 4), None, Window(0, 2)]
    runs = [
        a_run(
            f"r{i}",
            augmentations=(During(augmentation, window),) if window else (),
            seeds=Seeds(order=i // 2, augmentation=i),
        )
        for i, window in enumerate(windows)
    ]
    together = list(batches_of(*runs))
    for row, run in enumerate(runs):
        for got, want in zip(together, batches_of(run), strict=True):
            assert equal([part[row] for part in got], [part[0] for part in want])


def test_epochs_and_seeds_draw_anew():
    def first_epochs(seed):
        run = a_run(augmentations=(During(Shift(2)),), seeds=Seeds(augmentation=seed))
        return torch.cat([inputs[0] for inputs, _ in batches_of(run)])

    assert torch.equal(first_epochs(1), first_epochs(1))
    assert not torch.equal(first_epochs(1), first_epochs(2))


def test_mixing_runs_train_and_in_a_stack_as_alone(tmp_path):
    runs = [
        a_run(f"r{i}", augmentations=(During(Mixup(1.0, 5)), During(Shift(1))), seeds=Seeds.all(i))
        for i in range(2)
    ]
    assert_equal_stacked_and_alone(runs, tmp_path)


def test_runs_that_mix_at_unlike_times_train_together_with_soft_labels(tmp_path):
    soft = (During(SoftLabels(5)),)
    windows = [Window(0, 1), Window(2), None]
    runs = [
        a_run(f"r{i}", views=soft, augmentations=(During(Mixup(1.0, 5), window),) if window else ())
        for i, window in enumerate(windows)
    ]
    assert_equal_stacked_and_alone(runs, tmp_path)
    train(a_run("hard"), tmp_path, device="cpu", progress=False)
    never, hard = (checkpoints(tmp_path / name)[-1].load() for name in ("1/r2", "hard"))
    for name, tensor in hard.items():  # labels are the same, soft or not
        assert_allclose(never[name], tensor, rtol=1e-4, atol=1e-6)


def assert_equal_stacked_and_alone(runs, folder):
    for stack in (1, len(runs)):
        ends = train(runs, folder / str(stack), device="cpu", progress=False, stack=stack)
        assert {end.status for end in ends} == {"finished"}
    for run in runs:
        alone, at_once = (
            checkpoints(folder / str(stack) / run.name)[-1].load() for stack in (1, len(runs))
        )
        for name, tensor in alone.items():
            assert_allclose(at_once[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("augmentation", ALL, ids=str)
def test_augmentations_leave_their_batches_alone_describe_themselves_and_travel(augmentation):
    x, targets = noise(2, 6, 2, 8, 8), torch.arange(12).reshape(2, 6) % 5
    before, state = x.clone(), torch.random.get_rng_state()
    got = applied(augmentation, x, targets)[:2]
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    copy = pickle.loads(pickle.dumps(augmentation))
    assert copy == augmentation
    assert equal(applied(copy, x, targets)[:2], got)
    assert set(described(augmentation)) == {"is", *augmentation.__dataclass_fields__}


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shift(0), "pixels must be at least 1, got 0"),
        (lambda: Flip(1.5), "share must lie in 0 to 1, got 1.5"),
        (lambda: Mixup(0, 5), "alpha must be above 0, got 0"),
        (lambda: applied(Shift(1, (0.0,) * 3), noise(1, 2, 1, 8, 8), None), "3 channels, got 1"),
        (lambda: applied(Shift(1), noise(1, 2, 8), None), r"batch, ..., height, width\) of floati"),
        (lambda: applied(Flip(), noise(1, 2, 8, 8).byte(), None), "numbers, got .* torch.uint8"),
        (lambda: applied(Mixup(1, 5), noise(1, 2, 8).byte(), None), "floating-point inputs, got t"),
        (
            lambda: applied(Mixup(1, 5), noise(1, 2, 8), torch.eye(2)[None]),
            r"probabilities of 5 classes; got \(2,\) numbers for each example",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_that_are_no_class_are_refused():
    with pytest.raises(RuntimeError, match="Class values must be smaller than num_classes"):
        applied(Mixup(1, 2), noise(1, 2, 8), torch.tensor([[0, 2]]))

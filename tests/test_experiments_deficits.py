"""Deficits change what they say and nothing else, alike whenever they are on."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats

from landscape import models, results
from landscape.datasets import Batches
from landscape.experiments.batches import epoch_batches, pooled
from landscape.experiments.deficits import (
    Blur,
    NoiseImages,
    NoisyLabels,
    Occlusion,
    PermutedLabels,
    PixelNoise,
    ReducedSet,
    SoftLabels,
    flip_vertical,
)
from landscape.experiments.runs import During, Run, Window
from landscape.experiments.settings import described
from landscape.experiments.training import train

CPU = torch.device("cpu")
MLP = partial(models.mlp, 64, (9,), 10)
LABELS = torch.arange(200) % 10


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def examples(num, size=8, channels=1, seed=0):
    return Batches(noise(num, channels, size, size, seed=seed).float(), torch.arange(num) % 4)


VIEWS = [
    Blur(size=4),
    Blur(factor=2),
    Occlusion(3),
    NoiseImages(),
    PixelNoise(0.5),
    PermutedLabels(10),
    NoisyLabels(0.3, 10),
    ReducedSet(50),
    SoftLabels(10),
    flip_vertical,
]
IMAGES = [view for view in VIEWS if isinstance(view, Blur | Occlusion | NoiseImages | PixelNoise)]
IMAGES.append(flip_vertical)


# Blur ---------------------------------------------------------------------------------------------


def blurring(size, small):
    """The matrix (size, size) by which one axis is blurred: triangles down, lines up."""
    scale = size / small
    coarse, fine = (np.arange(small) + 0.5) * scale, np.arange(size) + 0.5
    down = np.clip(1 - abs(fine - coarse[:, None]) / scale, 0, None)
    down /= down.sum(1, keepdims=True)
    up = np.stack([np.interp(fine, coarse, row) for row in np.eye(small)], axis=1)
    return up @ down


@pytest.mark.parametrize(("size", "small"), [(32, 8), (8, 3), (9, 4), (8, 1)])
def test_a_blur_is_its_matrix_on_rows_and_columns(size, small):
    x, matrix = noise(5, 3, size, size), blurring(size, small)
    blurred, targets = Blur(size=small)(x, LABELS[:5])
    assert_allclose(blurred, matrix @ x.numpy() @ matrix.T, atol=1e-12)
    assert torch.equal(targets, LABELS[:5])
    again, _ = Blur(factor=size / small)(x, targets)
    assert torch.equal(again, blurred)


def test_blurred_noise_has_the_spectrum_of_the_blur():
    matrix, x = blurring(32, 8), noise(2000, 1, 32, 32)
    blurred = Blur(size=8)(x, LABELS)[0].numpy()
    measured = (abs(np.fft.fft2(blurred, norm="ortho")) ** 2).mean((0, 1))
    gain = (abs(np.fft.fft(matrix, axis=0, norm="ortho")) ** 2).sum(1)
    expected = np.outer(gain, gain)  # of white noise: the mean of |F M x|^2 is diag(F M M' F*)
    assert abs(measured - expected).max() < 0.1 * expected.max()  # 2,000 draws: 4 of their errors
    frequency = abs(np.fft.fftfreq(32, 1 / 32))
    fine = np.maximum.outer(frequency, frequency) > 4  # more than 8 pixels can show
    assert fine.mean() > 0.9
    assert measured[fine].sum() < 0.1 * measured.sum()


def test_a_constant_image_and_a_factor_of_one_change_nothing():
    for view in (Blur(size=8), Blur(factor=4), Blur(factor=1.7)):
        for level in (0.0, -1.5, 3.0):
            flat = torch.full((2, 3, 32, 32), level)
            assert_allclose(view(flat, LABELS[:2])[0], flat, rtol=1e-6)
    x = noise(4, 1, 8, 8)
    assert torch.equal(Blur(factor=1)(x, LABELS[:4])[0], x)
    assert torch.equal(Blur(size=8)(x, LABELS[:4])[0], x)


def test_a_blur_commutes_with_the_normalisation_of_images():
    x = noise(3, 1, 8, 8)
    blurred = Blur(size=3)((x - 0.4) / 0.2, LABELS[:3])[0]
    assert_allclose(blurred, (Blur(size=3)(x, LABELS[:3])[0] - 0.4) / 0.2, atol=1e-12)


def test_a_blur_keeps_the_shape_of_images_without_channels_and_not_square():
    x = noise(4, 8, 16)
    blurred = Blur(size=4)(x, LABELS[:4])[0]
    assert blurred.shape == x.shape
    assert_allclose(blurred, blurring(8, 4) @ x.numpy() @ blurring(16, 8).T, atol=1e-12)


# Other images -------------------------------------------------------------------------------------


def test_flipping_twice_is_no_flip_and_reverses_the_rows_once():
    x = noise(3, 2, 8, 5)
    flipped, targets = flip_vertical(x, LABELS[:3])
    assert torch.equal(flipped[:, :, 0], x[:, :, -1])
    assert torch.equal(flip_vertical(flipped, targets)[0], x)
    assert torch.equal(flip_vertical(x[:, 0], targets)[0], flipped[:, 0])


def test_noise_images_do_not_depend_on_the_input_and_keep_labels():
    x = 5 + noise(200, 1, 8, 8)
    y, targets = NoiseImages(seed=3)(x, LABELS)
    assert torch.equal(y, NoiseImages(seed=3)(torch.zeros_like(x), LABELS)[0])
    assert torch.equal(targets, LABELS)
    assert not torch.equal(y, NoiseImages(seed=4)(x, LABELS)[0])
    assert stats.kstest(y.flatten().numpy(), "norm").pvalue > 0.01
    flat = y.flatten(1) - y.flatten(1).mean(0)
    assert len(flat.unique(dim=0)) == 200  # each has its own


def test_pixel_noise_is_added_with_its_standard_deviation():
    x = noise(200, 1, 8, 8)
    y, targets = PixelNoise(0.7, seed=3)(x, LABELS)
    assert stats.kstest(((y - x) / 0.7).flatten().numpy(), "norm").pvalue > 0.01
    assert torch.equal(targets, LABELS)
    assert torch.equal(PixelNoise(0)(x, LABELS)[0], x)
    assert not torch.allclose((y - x) / 0.7, NoiseImages(seed=3)(x, LABELS)[0])


def test_an_occlusion_hides_one_square_at_a_place_drawn_uniformly():
    x = noise(6000, 2, 8, 9)
    labels = torch.zeros(6000, dtype=torch.long)
    y, _ = Occlusion(3, fill=0.5)(x, labels)
    hidden = (y == 0.5).numpy()
    assert torch.equal(y[~hidden], x[~hidden])
    assert (hidden[:, 0] == hidden[:, 1]).all()
    assert (hidden.sum((2, 3)) == 9).all()
    first = hidden[:, 0].reshape(6000, -1).argmax(1)  # the upper left corner
    row, column = first // 9, first % 9
    for i in range(6000):
        assert hidden[i, 0, row[i] : row[i] + 3, column[i] : column[i] + 3].all()
    counts = np.bincount(row * 7 + column, minlength=42)
    assert len(counts) == 42
    assert stats.chisquare(counts).pvalue > 0.01
    assert (Occlusion(8)(x[..., :8], labels)[0] == 0).all()


# Labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_permuted_labels_are_a_bijection_without_fixed_point(num_classes):
    for seed in range(20):
        view = PermutedLabels(num_classes, seed)
        assert sorted(view.permutation.tolist()) == list(range(num_classes))
        assert not (view.permutation == torch.arange(num_classes)).any()
        assert torch.equal(view.permutation, PermutedLabels(num_classes, seed).permutation)
        labels = torch.arange(num_classes).repeat(2)
        assert torch.equal(view(labels, labels)[1], view.permutation.repeat(2))


def test_permutations_are_drawn_uniformly_from_those_without_fixed_point():
    drawn = [tuple(PermutedLabels(4, seed).permutation.tolist()) for seed in range(900)]
    counts = [drawn.count(one) for one in set(drawn)]
    assert len(counts) == 9  # derangements of 4
    assert stats.chisquare(counts).pvalue > 0.01


def test_noisy_labels_change_the_share_that_they_should():
    labels = torch.arange(20_000) % 10
    for share in (0.0, 0.3, 1.0):
        noisy = NoisyLabels(share, 10)(labels, labels)[1]
        wrong = (noisy != labels).sum().item()
        assert stats.binomtest(wrong, round(20_000 * share) or 1, 0.9 * (share > 0)).pvalue > 0.01
    assert torch.equal(NoisyLabels(0.0, 10)(labels, labels)[1], labels)
    assert torch.equal(labels, torch.arange(20_000) % 10)  # not changed in place


def test_random_labels_are_uniform_and_tell_nothing_of_the_true_ones():
    labels = (torch.arange(20_000) % 10).clamp(max=3)  # most of class 3
    random = NoisyLabels(1.0, 10, seed=1)(labels, labels)[1]
    assert stats.chisquare(torch.bincount(random, minlength=10)).pvalue > 0.01
    table = torch.bincount(labels * 10 + random, minlength=40).reshape(4, 10).numpy()
    assert stats.chi2_contingency(table).pvalue > 0.01
    assert torch.equal(random, NoisyLabels(1.0, 10, seed=1)(labels, labels)[1])


def test_the_noisy_labels_of_a_smaller_share_are_among_those_of_a_larger():
    few, many = (NoisyLabels(share, 10)(LABELS, LABELS)[1] for share in (0.2, 0.6))
    changed = few != LABELS
    assert changed.any()
    assert torch.equal(few[changed], many[changed])


def test_soft_labels_are_ones_of_the_dtype_of_inputs():
    soft = SoftLabels(10)(noise(200, 3), LABELS)[1]
    assert soft.dtype == torch.float64
    assert torch.equal(soft, torch.eye(10, dtype=torch.float64)[LABELS])


# Fewer examples -----------------------------------------------------------------------------------


def test_a_reduced_set_shows_its_examples_equally_often_at_the_places_of_all():
    inputs = torch.arange(200.0)
    shown, targets = ReducedSet(60)(inputs, LABELS)
    values, counts = shown.unique(return_counts=True)
    assert len(values) == 60
    assert sorted(counts.unique().tolist()) == [3, 4]
    assert torch.equal(targets, LABELS[shown.long()])  # pairs stay together
    kept = torch.isin(inputs, values)
    assert torch.equal(shown[kept], inputs[kept])
    smaller = ReducedSet(20)(inputs, LABELS)[0].unique()
    assert torch.isin(smaller, values).all()
    assert torch.equal(ReducedSet(200)(inputs, LABELS)[0], inputs)


def test_deficits_of_one_seed_are_drawn_independently():
    labels = torch.arange(10_000) % 10
    noisy = (NoisyLabels(0.5, 10)(labels, labels)[1] != labels).numpy()
    kept = torch.zeros(10_000, dtype=torch.bool)
    kept[ReducedSet(5000).indices(10_000).unique()] = True
    table = [[(noisy & kept.numpy()).sum(), (noisy & ~kept.numpy()).sum()],
             [(~noisy & kept.numpy()).sum(), (~noisy & ~kept.numpy()).sum()]]  # fmt: skip
    assert stats.chi2_contingency(table).pvalue > 0.01


# In runs ------------------------------------------------------------------------------------------


def a_run(name="a", **changes):
    given = {"make_model": MLP, "data": examples(50), "epochs": 4, "batch_size": 16, "lr": 0.05}
    return Run(**{"name": name, **given, **changes})


def batches_of(run):
    pool, starts = pooled([run], CPU), run.timeline.starts
    for epoch in range(run.epochs):
        yield from epoch_batches(pool, [run], epoch, starts[epoch], CPU)


@pytest.mark.parametrize("view", [v for v in VIEWS if v != SoftLabels(10)], ids=str)
def test_batches_are_the_view_inside_its_window_and_untouched_outside(view):
    plain = a_run()
    data = plain.data
    seen = a_run(data=data, views=(During(view, Window(1, 2.5)),))
    changed = Batches(*view(data.inputs, data.targets))
    deficient = a_run(data=changed)
    on = range(plain.timeline.step_of(1), plain.timeline.step_of(2.5))
    triples = zip(batches_of(seen), batches_of(plain), batches_of(deficient), strict=True)
    for step, (got, whole, other) in enumerate(triples):
        for a, b in zip(got, other if step in on else whole, strict=True):
            assert torch.equal(a, b)


def test_tests_never_see_a_deficit(tmp_path):
    views = [Blur(size=2), flip_vertical, NoiseImages(), PermutedLabels(4)]
    runs = [
        a_run(f"r{i}", lr=0.0, test=examples(30, seed=1), views=(During(v),) if v else ())
        for i, v in enumerate([None, *views])
    ]
    train(runs, tmp_path, device="cpu", progress=False)
    records = [results.load(tmp_path / run.name / "record.h5") for run in runs]
    for record in records[1:]:
        assert_allclose(record["test_loss"], records[0]["test_loss"], rtol=1e-6)
        assert (abs(record["train_loss"] - records[0]["train_loss"]) > 1e-3).all()


def test_runs_of_a_stack_have_their_own_deficits(tmp_path):
    data = examples(50)
    runs = [
        a_run(f"r{i}", data=data, views=tuple(During(v, Window(i % 3, 4)) for v in views))
        for i, views in enumerate([(), *[(view,) for view in VIEWS[:3]], VIEWS[5:8]])
    ]
    train(runs, tmp_path / "at once", device="cpu", progress=False, stack=len(runs))
    train(runs, tmp_path / "alone", device="cpu", progress=False, stack=1)
    for run in runs:
        a, b = (results.load(tmp_path / where / run.name / "record.h5")
                for where in ("at once", "alone"))  # fmt: skip
        assert_allclose(a["train_loss"], b["train_loss"], rtol=1e-4)
        assert_allclose(a["weight_norm"], b["weight_norm"], rtol=1e-4)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_views_leave_their_data_alone_describe_themselves_and_travel(view):
    x, y = noise(200, 1, 8, 8), LABELS.clone()
    before, state = x.clone(), torch.random.get_rng_state()
    got = view(x, y)
    assert torch.equal(x, before)
    assert torch.equal(y, LABELS)
    assert torch.equal(torch.random.get_rng_state(), state)
    copy = pickle.loads(pickle.dumps(view))
    assert all(torch.equal(a, b) for a, b in zip(copy(x, y), got, strict=True))
    assert described(copy) == described(view)
    assert "landscape.experiments.deficits:" in str(described(view))


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (lambda: Blur(), "a blur takes size or factor, got None and None"),
        (lambda: Blur(8, 2), "a blur takes size or factor, got 8 and 2"),
        (lambda: Blur(size=0), "size or factor must be at least 1, got 0"),
        (lambda: Blur(factor=0.5), "size or factor must be at least 1, got 0.5"),
        (lambda: Blur(size=9), r"Blur\(size=9.*does not fit images of 8 x 8 pixels; choose a size"),
        (lambda: Blur(factor=20), r"does not fit images of 8 x 8 .* or a factor of 1 to 8"),
        (lambda: Occlusion(9), "does not fit images of 8 x 8 pixels; choose a size of 1 to 8"),
        (lambda: PermutedLabels(1), "num_classes must be at least 2, got 1"),
        (lambda: PermutedLabels(9), "is for labels 0 to 8, got 0 to 9"),
        (lambda: NoisyLabels(1.2, 10), "share must lie in 0 to 1, got 1.2"),
        (lambda: NoisyLabels(0.2, 5), "is for labels 0 to 4, got 0 to 9"),
        (lambda: SoftLabels(5), "is for labels 0 to 4, got 0 to 9"),
        (lambda: ReducedSet(0), "a reduced set of 200 examples has 1 to 200, got 0"),
        (lambda: ReducedSet(201), "a reduced set of 200 examples has 1 to 200, got 201"),
    ],
)
def test_what_does_not_fit_is_refused(view, message):
    with pytest.raises(ValueError, match=message):
        view()(noise(200, 1, 8, 8), LABELS)


@pytest.mark.parametrize("view", IMAGES, ids=str)
def test_views_of_images_want_floating_point_numbers(view):
    with pytest.raises(ValueError, match="of floating-point numbers, got"):
        view(torch.zeros(200, 1, 8, 8, dtype=torch.uint8), LABELS)


def test_views_of_labels_want_integers():
    with pytest.raises(ValueError, match=r"labels \(N,\) of integers, got \(200, 10\) of torch.fl"):
        NoisyLabels(0.1, 10)(LABELS, torch.eye(10)[LABELS])

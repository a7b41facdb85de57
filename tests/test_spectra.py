import numpy as np
import pytest
from numpy.testing import assert_allclose

from landscape.maths.spectra import cosine_content, principal_components

RNG = np.random.default_rng(0)


def test_components_of_a_gram_matrix_are_those_of_the_vectors():
    vectors = RNG.normal(size=(6, 40)) * np.arange(1, 41)
    values, loadings = principal_components(vectors @ vectors.T, 3)
    left, singular, right = np.linalg.svd(vectors, full_matrices=False)
    assert_allclose(values, singular[:3] ** 2, rtol=1e-9)
    coordinates = loadings * np.sqrt(values)
    assert_allclose(abs(coordinates), abs(left[:, :3] * singular[:3]), rtol=1e-7)
    assert (coordinates[0] <= 0).all()
    axes = (loadings / np.sqrt(values)).T @ vectors
    assert_allclose(axes @ axes.T, np.eye(3), atol=1e-9)
    assert_allclose(axes, right[:3] * np.sign((axes * right[:3]).sum(1))[:, None], atol=1e-9)


def test_what_spans_too_little_is_refused():
    with pytest.raises(ValueError, match="span 1 directions, 2 components were asked for"):
        principal_components(np.ones((4, 4)), 2)


@pytest.mark.parametrize("n", [3, 10, 101])
def test_waves_are_the_components_of_a_random_walk(n):
    """The covariance of a walk about its end is the smaller number of steps before it."""
    before_last = np.arange(n)[::-1]
    covariance = np.minimum.outer(before_last, before_last).astype(float)
    values, vectors = principal_components(covariance, 2)
    assert_allclose(cosine_content(vectors * np.sqrt(values), pinned=True), 1, rtol=1e-9)
    centring = np.eye(n) - 1 / n
    values, vectors = principal_components(centring @ covariance @ centring, 2)
    assert_allclose(cosine_content(vectors * np.sqrt(values)), 1, rtol=1e-9)


def test_the_content_is_a_squared_cosine():
    n = 50
    t = (np.arange(n) + 0.5) / n
    one, two = np.cos(np.pi * t), np.cos(2 * np.pi * t)
    mixed = np.stack([3 * one + 4 * two, 3 * one + 4 * two], axis=1)
    assert_allclose(cosine_content(mixed), [9 / 25, 16 / 25], rtol=1e-12)
    assert_allclose(cosine_content(np.stack([two, one], axis=1)), 0, atol=1e-25)
    assert_allclose(cosine_content(np.zeros((n, 2))), 0)
    straight = cosine_content((t - 0.5)[:, None])
    assert_allclose(straight, 96 / np.pi**4, rtol=1e-3)  # 2 (2 / pi^2)^2 / (1 / 12)

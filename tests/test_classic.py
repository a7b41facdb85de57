import h5py
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from landscape import plots, results
from landscape.classic import is_classic, read_surface


def written(path, x, y=None, *, shape=None, fill=None, **functions):
    """A file as Li et al.'s tool makes it: points in the order of a meshgrid, x fastest."""
    grid = np.meshgrid(x, y) if y is not None else [np.asarray(x)]
    points = [axis.ravel() for axis in grid]
    with h5py.File(path, "w") as file:
        file["dir_file"] = "directions.h5"
        file["xcoordinates"] = x
        if y is not None:
            file["ycoordinates"] = y
        for name, function in functions.items():
            values = -np.ones((len(x), len(y)) if y is not None else len(x))
            flat = values.ravel()
            flat[:fill] = function(*points)[:fill]
            file[name] = values
    return path


@pytest.mark.parametrize(("nx", "ny"), [(3, 5), (5, 3), (4, 4), (1, 6), (2, 2)])
def test_values_are_where_they_were_evaluated(nx, ny, tmp_path):
    x, y = np.linspace(-1, 1, nx), np.linspace(0, 3, ny)
    path = written(
        tmp_path / "a.h5", x, y,
        train_loss=lambda a, b: a + 10 * b, train_acc=lambda a, b: 50 + a - b,
    )  # fmt: skip
    found = read_surface(path).sel(split="train")
    assert_allclose(found["loss"].transpose("x", "y"), np.add.outer(x, 10 * y))
    assert_allclose(found["error"], 1 - (50 + np.subtract.outer(x, y)) / 100)
    assert_array_equal(found["x"], x)
    assert_array_equal(found["y"], y)
    assert (found["status"] == 1).all()


def test_a_line_and_both_splits(tmp_path):
    x = np.linspace(-1, 1, 5)
    path = written(tmp_path / "a.h5", x, train_loss=np.square, test_loss=lambda a: a**2 + 1)
    found = read_surface(path)
    assert found["loss"].dims == ("split", "x")
    assert_allclose(found["loss"].sel(split="test"), x**2 + 1)
    assert "error" not in found
    assert_allclose(plots.figure(found).axes[0].lines[0].get_ydata(), x**2)


def test_unfilled_points_are_pending_and_nan_is_not_finite(tmp_path):
    x, y = np.arange(3.0), np.arange(4.0)

    def loss(a, b):
        values = a - 1 + b  # goes through -1 with an accuracy, and through 0
        values[4] = np.nan
        return values

    path = written(
        tmp_path / "a.h5", x, y, fill=7,
        train_loss=loss, train_acc=lambda a, b: 10 * a, test_loss=loss, test_acc=loss,
    )  # fmt: skip
    with h5py.File(path, "a") as file:
        file["test_loss"][:] = file["test_acc"][:] = -1
    found = read_surface(path)
    assert_array_equal(found["split"], ["train"])  # nothing was computed for test
    status = found["status"].transpose("y", "x").values.ravel()
    assert_array_equal(status, [1, 1, 1, 1, 2, 1, 1, 0, 0, 0, 0, 0])
    values = found["loss"].sel(split="train").transpose("y", "x").values.ravel()
    assert_allclose(values, [-1, 0, 1, 0, np.nan, 2, 1, *[np.nan] * 5])
    assert found["error"].isnull().sum() == 5


def test_a_split_that_lags_behind_makes_points_pending(tmp_path):
    x = np.arange(4.0)
    path = written(tmp_path / "a.h5", x, train_loss=np.square, test_loss=np.square)
    with h5py.File(path, "a") as file:
        file["test_loss"][2:] = -1
    found = read_surface(path)
    assert_array_equal(found["status"], [1, 1, 0, 0])
    assert_allclose(found["loss"].sel(split="train"), x**2)


def test_a_file_without_any_value_is_all_pending(tmp_path):
    found = read_surface(written(tmp_path / "a.h5", np.arange(3.0), fill=0, test_loss=np.square))
    assert (found["status"] == 0).all()
    assert list(found["split"].values) == ["test"]


def test_the_result_is_one_of_ours(tmp_path):
    x, y = np.linspace(-1, 1, 7), np.linspace(-1, 2, 9)
    path = written(
        tmp_path / "classic.h5", x, y,
        train_loss=lambda a, b: a**2 + b**2, train_acc=lambda a, b: 90 - a,
    )  # fmt: skip
    found = read_surface(path)
    assert results.problems(found) == []
    results.save(found, tmp_path / "ours.h5")
    again = results.load(tmp_path / "ours.h5")
    assert again.identical(found)
    assert found.attrs["source"] == "classic.h5"
    labels = [ax.get_xlabel() for ax in plots.figure(again).axes[:2]]
    assert labels[1] == "x, in multiples of the direction"
    assert is_classic(path)
    assert not is_classic(tmp_path / "ours.h5")
    assert plots.write_vts(again, tmp_path / "a.vts", y="error").exists()


def test_a_projection_becomes_a_path(tmp_path):
    x = y = np.linspace(-1, 1, 3)
    path = written(tmp_path / "a.h5", x, y, train_loss=lambda a, b: a**2 + b**2)
    with h5py.File(tmp_path / "proj.h5", "w") as file:
        file["proj_xcoord"], file["proj_ycoord"] = [0.9, 0.5, 0.0], [0.1, 0.2, 0.0]
    found = read_surface(path, projection=tmp_path / "proj.h5")
    assert_allclose(found["path_x"].sel(step=1), 0.5)
    assert_allclose(found["path_y"], [0.1, 0.2, 0.0])
    assert "path_distance" not in found
    drawn = [line.get_label() for line in plots.figure(found).axes[0].lines]
    assert "training path" in drawn


def test_what_is_no_classic_file(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("x")
    with pytest.raises(ValueError, match="that is HDF5 with 'xcoordinates'.*; this is no HDF5"):
        read_surface(text)
    with pytest.raises(ValueError, match="there is no such file"):
        read_surface(tmp_path / "none.h5")
    path = written(tmp_path / "a.h5", np.arange(3.0), train_acc=np.square)
    with pytest.raises(ValueError, match="this one has dir_file, train_acc, xcoordinates"):
        read_surface(path)
    assert not is_classic(path)
    begun = written(tmp_path / "b.h5", np.arange(3.0), train_loss=np.square)
    with h5py.File(begun, "a") as file:  # a line that was taken for a surface
        file["ycoordinates"] = np.arange(4.0)
    with pytest.raises(ValueError, match=r"shape \(3,\), the coordinates make 3 x 4 points"):
        read_surface(begun)
    good = written(tmp_path / "c.h5", np.arange(3.0), train_loss=np.square)
    with pytest.raises(ValueError, match="no projection file.*this one has dir_file, train_loss"):
        read_surface(good, projection=good)

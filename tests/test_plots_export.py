import base64
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from landscape import plots
from landscape.results import dataset

X, Y, Z = np.array([0.0, 1.0, 4.0]), np.array([-1.0, 0.0, 0.5, 2.0, 3.0]), np.array([0.0, 2.0])


@pytest.fixture
def surface():
    """x + 10 y on a 3 x 5 grid, one point lost and one pending, with a mark, a curve and a path."""
    loss = np.add.outer(X, 10 * Y)
    loss = np.stack([loss, loss + 1])
    status = np.ones((3, 5), np.uint8)
    loss[:, 2, 4], status[2, 4] = np.inf, 2
    loss[:, 0, 0], status[0, 0] = np.nan, 0
    dims, step, none = ("split", "x", "y"), np.arange(4), np.zeros_like(loss)
    return dataset(
        {"loss": (dims, loss), "loss_stderr": (dims, none), "status": (dims[1:], status),
         "mark_x": ("mark", [1.0]), "mark_y": ("mark", [2.0]),
         "curve_x": ("curve_t", [0.0, 4.0]), "curve_y": ("curve_t", [0.0, 0.5]),
         "path_x": ("step", step / 4), "path_y": ("step", step / 2)},
        {"x": ("x", X, {"units": "distance"}), "y": Y, "split": ["train", "test"],
         "mark": ["a<b"], "curve_t": [0.0, 1.0], "step": step},
        analysis="surface", title="a plane",
    ).isel(x=[2, 0, 1])  # fmt: skip


def parsed(path):
    """The extent, the points and the point data of a `.vts` file."""
    root = ElementTree.parse(path).getroot()
    assert root.attrib["byte_order"] == "LittleEndian"
    assert root.attrib["header_type"] == "UInt64"
    grid = root.find("StructuredGrid")
    assert grid.attrib["WholeExtent"] == grid.find("Piece").attrib["Extent"]
    arrays = {}
    for element in grid.iter("DataArray"):
        raw = base64.b64decode(element.text)
        assert np.frombuffer(raw[:8], "<u8") == len(raw) - 8
        kind = {"Float64": "<f8", "UInt8": "u1"}[element.attrib["type"]]
        arrays[element.attrib["Name"]] = np.frombuffer(raw[8:], kind)
    points = arrays.pop("Points").reshape(-1, 3)
    return [int(n) for n in grid.attrib["WholeExtent"].split()], points, arrays


def test_a_vts_file_holds_the_surface(surface, tmp_path):
    path = plots.write_vts(surface, tmp_path / "a.vts")
    extent, points, data = parsed(path)
    assert extent == [0, 2, 0, 4, 0, 0]
    x, y, z = points.T
    assert_allclose(x, np.tile(X, 5))  # x is the fastest
    assert_allclose(y, np.repeat(Y, 3))
    seen = data["vtkGhostType"] == 0
    assert_array_equal(np.flatnonzero(~seen), [0, 14])
    assert_allclose(z[seen], (x + 10 * y)[seen])
    assert_allclose(z[~seen], z[seen].max())
    assert_allclose(data["loss_train"][seen], (x + 10 * y)[seen])
    assert_allclose(data["loss_test"][seen], (1 + x + 10 * y)[seen])
    assert_array_equal(data["status"], np.where(seen, 1, [0] * 14 + [2]))
    assert data["loss_train"][14] == np.inf
    assert set(data) == {"loss_train", "loss_test", "status", "vtkGhostType"}


def test_heights_can_be_logarithmic_and_scaled(surface, tmp_path):
    _, points, data = parsed(
        plots.write_vts(surface, tmp_path / "a.vts", split="test", log=True, scale=3.0)
    )
    seen = data["vtkGhostType"] == 0
    loss = data["loss_test"][seen]
    assert_allclose(points[seen, 2], 3 * np.log1p(loss - loss.min()))


def test_a_volume_keeps_its_coordinates(tmp_path):
    loss = X[:, None, None] + 10 * Y[None, :, None] + 100 * Z
    variables = {"loss": (("x", "y", "z"), loss), "loss_stderr": (("x", "y", "z"), 0 * loss)}
    result = dataset(variables, {"x": X, "y": Y, "z": Z}, analysis="surface", title="")
    extent, points, data = parsed(plots.write_vts(result, tmp_path / "a.vts"))
    assert extent == [0, 2, 0, 4, 0, 1]
    assert_allclose(data["loss"], points @ [1, 10, 100])
    assert_allclose(points[:4, 0], [0, 1, 4, 0])


def test_a_file_is_replaced_as_a_whole(surface, tmp_path, monkeypatch):
    path = plots.write_vts(surface, tmp_path / "a.vts")
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        plots.write_vts(surface * 2, path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.vts"]


def test_what_cannot_be_exported(surface, tmp_path):
    with pytest.raises(ValueError, match=r"a.vtk: a VTK structured grid has the ending .vts"):
        plots.write_vts(surface, tmp_path / "a.vtk")
    with pytest.raises(ValueError, match="only a surface over x and y"):
        plots.write_vts(surface.isel(x=0, drop=True), tmp_path / "a.vts")
    with pytest.raises(ValueError, match="has no 'error' along 'x', 'y'; it has loss"):
        plots.write_vts(surface, tmp_path / "a.vts", y="error")
    with pytest.raises(ValueError, match="no value of 'loss' is finished and finite"):
        plots.write_vts(surface.assign(loss=np.inf * surface["loss"]), tmp_path / "a.vts")


def test_without_plotly_the_error_says_how_to_get_it(surface, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'landscape\[html\]'"):
        plots.write_html(surface, tmp_path / "a.html")


def test_an_html_surface_needs_no_network_and_shows_all(surface, tmp_path):
    pytest.importorskip("plotly")
    text = plots.write_html(surface, tmp_path / "a.html", split="train").read_text()
    again = plots.write_html(surface, tmp_path / "b.html", split="train").read_text()
    assert text == again
    assert 'id="landscape"' in text
    assert "<script src=" not in text
    assert 'src="http' not in text
    assert len(text) > 1e6  # plotly.js is inside


def test_marks_curve_and_path_lie_on_the_html_surface(surface, tmp_path, monkeypatch):
    plotly = pytest.importorskip("plotly.graph_objects")
    figures = []
    monkeypatch.setattr(
        plotly.Figure, "to_html", lambda figure, **_: figures.append(figure) or "text"
    )
    plots.write_html(surface, tmp_path / "a.html")
    drawn, curve, path, mark = figures[0].data
    assert_allclose(drawn.z[1:4], (X[:, None] + 10 * Y[None, 1:4]).T)
    assert_allclose(drawn.x, X)
    assert_allclose(mark.z, 21)
    assert list(mark.text) == ["a&lt;b"]
    assert_allclose(curve.z, [0, 9])
    assert_allclose(path.z[:2], [0, 0.25 + 5])
    assert figures[0].layout.scene.xaxis.title.text == "x (distance)"
    assert "error" not in drawn.hovertemplate

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.testing import assert_allclose

from landscape import plots, results
from landscape.results import dataset


@pytest.fixture
def line():
    """A line of two splits: test has one point that is not finite, and one is pending."""
    t = np.linspace(0, 1, 6)
    loss = np.stack([1 + t * (1 - t), 2 + t])
    loss[1, 2] = np.inf
    own = np.full((2, 6), np.nan)
    own[:, 0], own[:, -1] = 0.5, 0.7
    error = loss / 10
    variables = {
        "loss": (("split", "t"), loss),
        "loss_stderr": (("split", "t"), np.full((2, 6), 0.1)),
        "own_loss": (("split", "t"), own),
        "error": (("split", "t"), error),
        "error_stderr": (("split", "t"), 0 * t + np.full((2, 6), 0.01)),
        "status": ("t", np.array([1, 1, 2, 1, 0, 1], np.uint8)),
    }
    coords = {"t": t, "split": ["train", "test"]}
    return dataset(variables, coords, analysis="interpolation", title="a line")


def drawn(ax):
    """The data of the lines of an axes, by what they look like."""
    return [
        (artist.get_marker(), artist.get_linestyle(), *artist.get_data()) for artist in ax.lines
    ]


def test_lines_show_what_is_finished_and_mark_what_is_not_finite(line):
    ax = plots.lines(line, Figure().subplots())
    curves = [one for one in drawn(ax) if one[0] == "None"]
    assert len(curves) == 2
    assert_allclose(curves[0][2], [0, 0.2, 0.4, 0.6, 1])  # t = 0.8 is pending
    assert_allclose(curves[0][3], 1 + curves[0][2] * (1 - curves[0][2]))
    assert np.isnan(curves[1][3][2])
    ((_, _, where, height),) = (one for one in drawn(ax) if one[0] == "x")
    assert_allclose([where, height], [[0.4], [1]])
    circles = [one for one in drawn(ax) if one[0] == "o"]
    assert_allclose([one[2] for one in circles], [[0, 1], [0, 1]])
    assert_allclose([one[3] for one in circles], [[0.5, 0.7], [0.5, 0.7]])


def test_the_band_is_two_standard_errors_wide(line):
    ax = plots.lines(line, Figure().subplots())
    low, high = ax.collections[0].get_datalim(ax.transData).intervaly
    assert_allclose([low, high], [1 - 0.196, 1.24 + 0.196], atol=1e-9)
    assert not plots.lines(line, Figure().subplots(), band=0).collections


def test_splits_differ_in_dashes_and_colour(line):
    ax = plots.lines(line, Figure().subplots())
    first, second = (one for one in ax.lines if one.get_marker() == "None")
    assert first.get_linestyle() != second.get_linestyle()
    assert first.get_color() != second.get_color()


def test_a_figure_has_a_panel_for_each_measure_and_the_width_of_the_venue(line):
    figure = plots.figure(line, venue="icml")
    assert figure.get_size_inches()[0] == 3.25
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "error"]
    assert len(plots.figure(line, y=["loss"]).axes) == 1
    dotted = [one for one in drawn(figure.axes[0]) if one[1] == ":"]
    assert_allclose([one[3] for one in dotted], [[1, 1], [2, 3]])


@pytest.mark.parametrize("venue", ["icml", "neurips"])
@pytest.mark.parametrize("num", [1, 2, 9])
def test_panels_legend_and_labels_have_room(line, venue, num):
    words = "the mean error of the point and of both ends less that of their ensemble"
    extra = {f"m{k}": line["loss"].assign_attrs(long_name=words) for k in range(num)}
    names = ["loss", *extra][:num]
    figure = plots.figure(line.assign(extra), y=names, venue=venue)
    figure.draw_without_rendering()
    page = figure.bbox
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 2
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    for number, box in enumerate(boxes):
        assert page.x0 <= box.x0 < box.x1 <= page.x1 + 1
        assert page.y0 <= box.y0 < box.y1 <= page.y1 + 1
        assert not any(box.overlaps(other) for other in [*boxes[:number], legend.get_tightbbox()])
    inches = figure.axes[0].get_window_extent().size / figure.dpi
    assert inches.min() > 0.6


def test_the_axis_of_a_single_component_says_its_share(line):
    result = line.rename(t="x").assign(explained_variance=("component", [0.87]))
    assert plots.lines(result, Figure().subplots(), x="x").get_xlabel() == "PC 1 (87 %)"


@pytest.mark.parametrize(("dpi", "dots"), [(None, 300), (100, 100)])
def test_pixels_are_those_of_the_style_or_as_asked(line, dpi, dots, tmp_path):
    fig = plots.figure(line, venue="icml")
    path = plots.save_figure(fig, tmp_path / "a.png", dpi=dpi)
    assert imread(path).shape[1] == round(3.25 * dots)


@pytest.mark.parametrize("kind", ["pdf", "svg", "png"])
def test_two_runs_give_the_same_bytes(line, kind, tmp_path):
    for name in ("one", "two"):
        plots.save_figure(plots.figure(line), tmp_path / f"{name}.{kind}", subject="from line.h5")
    assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_figure_comes_from_the_file_alone(line, tmp_path):
    results.save(line, tmp_path / "line.h5")
    for name, result in (("now", line), ("later", results.load(tmp_path / "line.h5"))):
        plots.save_figure(plots.figure(result), tmp_path / f"{name}.svg")
    assert (tmp_path / "now.svg").read_bytes() == (tmp_path / "later.svg").read_bytes()


def test_fonts_in_a_pdf_are_truetype(line, tmp_path):
    text = plots.save_figure(plots.figure(line), tmp_path / "a.pdf").read_bytes()
    assert b"/Type3" not in text
    assert b"/FontFile2" in text or b"/CIDFontType2" in text


def test_the_users_settings_are_left_alone(line, tmp_path):
    before = dict(mpl.rcParams)
    plots.save_figure(plots.figure(line), tmp_path / "a.png")
    assert dict(mpl.rcParams) == before


def test_what_cannot_be_drawn(line, tmp_path):
    with pytest.raises(ValueError, match="has no 'accuracy' along 't'; it has loss, error"):
        plots.figure(line, y=["accuracy"])
    with pytest.raises(ValueError, match="venue must be one of icml.*got 'nips'"):
        plots.figure(line, venue="nips")
    with pytest.raises(ValueError, match="no plot for the analysis 'interpolation'"):
        plots.figure(line.isel(t=0, drop=True))
    with pytest.raises(ValueError, match=r"a.doc: the ending must be one of .*pdf"):
        plots.save_figure(plots.figure(line), tmp_path / "a.doc")

"""How does a result look in a paper? A dataset and axes in, axes out; nothing is computed here.

`figure` picks the right plot for a result, `save_figure` writes it so that two runs give the same
bytes. The style is `paper.mplstyle`, or any other that matplotlib knows.
"""

from landscape.plots.figures import WIDTHS, figure, save_figure
from landscape.plots.lines import lines

__all__ = ["WIDTHS", "figure", "lines", "save_figure"]

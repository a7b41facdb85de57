"""How does a result look in a paper? A dataset and axes in, axes out; nothing is computed here.

`figure` picks the right plot for a result, `save_figure` writes it so that two runs give the same
bytes; `write_vts` and `write_html` are for viewers in three dimensions. The style is
`paper.mplstyle`, or any other that matplotlib knows.
"""

from landscape.plots.curvature import density, eigenvalues, sharpness
from landscape.plots.dynamics import distribution, movement, progress
from landscape.plots.export import write_html, write_vts
from landscape.plots.figures import WIDTHS, figure, paper_style, save_figure
from landscape.plots.information import fisher_layers, fisher_trace, traces
from landscape.plots.layers import convergence, frequencies, similarity, spectra
from landscape.plots.levels import colour_bar, levels_for
from landscape.plots.lines import lines
from landscape.plots.matrices import heatmap, matrix
from landscape.plots.overlays import path
from landscape.plots.sparsity import layer_densities, perturbations, pruning, stability
from landscape.plots.steps import instability
from landscape.plots.surfaces import contours, surface3d

__all__ = [
    "WIDTHS", "colour_bar", "contours", "convergence", "density", "distribution", "eigenvalues",
    "figure", "fisher_layers", "fisher_trace", "frequencies", "heatmap", "instability",
    "layer_densities", "levels_for", "lines", "matrix", "movement", "paper_style", "path",
    "perturbations", "progress", "pruning", "save_figure", "sharpness", "similarity", "spectra",
    "stability", "surface3d", "traces", "write_html", "write_vts",
]  # fmt: skip

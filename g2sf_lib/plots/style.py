"""What all figures share: style, colours, names, and the panels that they start from."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy import ndimage

COLOUR_MAP = "cividis"
MODALITY_NAMES = {"pcd": "points", "rgb": "RGB"}
METRIC_NAMES = {
    "i_auroc": "image AUROC",
    "p_auroc": "pixel AUROC",
    "aupro_30": "AUPRO at 30 %",
    "aupro_10": "AUPRO at 10 %",
    "aupro_5": "AUPRO at 5 %",
    "aupro_1": "AUPRO at 1 %",
}
MM = 1000.0  # metres to millimetres
WIDTH_INCHES = 7.5  # the text column of the book, at 96 px an inch
BLUE, ORANGE, GREEN, VERMILLION, PURPLE = sns.color_palette("colorblind").as_hex()[:5]
OF_CLASS = {"normal": (BLUE, "-"), "anomalous": (VERMILLION, "--")}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "h")
_STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "lines.linewidth": 1.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.alpha": 0.3,
    "image.cmap": COLOUR_MAP, "image.interpolation": "nearest",
}  # fmt: skip
styled = matplotlib.rc_context(_STYLE)  # a decorator: the style holds inside, and nowhere else


def one_panel(xlabel: str, ylabel: str, size: tuple[float, float] = (4.8, 2.8)):
    """Return a figure and its only axes."""
    fig = Figure(figsize=size, layout="constrained")
    return fig, fig.add_subplot(xlabel=xlabel, ylabel=ylabel)


def titled_panels(titles: Sequence[str], num_columns: int, height: float, more=0.0, **shared):
    """Return a figure with rows of panels `height` inches high, and a list of axes, one a title."""
    num_rows = -(-len(titles) // num_columns)
    size = (WIDTH_INCHES, num_rows * height + more)
    fig = Figure(figsize=size, layout="constrained")
    axes = list(fig.subplots(num_rows, num_columns, squeeze=False, **shared).flat)
    for ax in axes[len(titles) :]:
        ax.set_visible(False)
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title)
    return fig, axes[: len(titles)]


def image_panels(num_rows: int, num_columns: int):
    """Return a figure and (num_rows, num_columns) square axes for images, without ticks."""
    side = min(1.9, WIDTH_INCHES / num_columns)
    size = (side * num_columns + 0.6, side * num_rows + 0.5)
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(num_rows, num_columns, squeeze=False)
    for ax in axes.flat:
        no_ticks(ax)
    return fig, axes


def no_ticks(ax) -> None:
    """Leave nothing of the axes but what is drawn in them."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def label_rows(axes: np.ndarray, labels: Sequence[str]) -> None:
    """Write a label to the left of each row of axes."""
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)


def outline(ax, mask: np.ndarray, width: float = 1.0) -> None:
    """Draw a line around a mask (H, W): dark below light, so that it shows on any ground."""
    around = ndimage.binary_dilation(mask, iterations=3)  # outside, or it would hide a thin cut
    if around.any() and not around.all():
        ax.contour(around, levels=[0.5], colors="black", linewidths=1.6 * width)
        ax.contour(around, levels=[0.5], colors=[ORANGE], linewidths=0.8 * width)


def colour_bar(fig: Figure, axes, norm: Normalize, label: str, location: str = "right") -> None:
    """Draw the one colour bar of some axes."""
    scale = matplotlib.cm.ScalarMappable(norm=norm, cmap=COLOUR_MAP)
    bar = fig.colorbar(scale, ax=list(np.ravel(axes)), location=location, shrink=0.85, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def line_styles(num: int) -> list[tuple[str, str]]:
    """Return a colour and a line style each; the first 20 differ."""
    colours, lines = sns.color_palette("colorblind").as_hex(), ["-", "--", "-.", ":"]
    return [(colours[i % len(colours)], lines[i % len(lines)]) for i in range(num)]

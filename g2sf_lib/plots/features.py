"""Features, their memory bank, and scores of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from g2sf_lib.plots.style import (
    BLUE,
    GREEN,
    MODALITY_NAMES,
    OF_CLASS,
    OF_MODALITY,
    ORANGE,
    VERMILLION,
    WIDTH_INCHES,
    image_panels,
    line_styles,
    one_panel,
    styled,
)


@styled
def feature_maps(
    image: np.ndarray,
    feat: Mapping[str, Any],
    grid: tuple[int, int],
    foreground: Any,
) -> Figure:
    """Return the image beside the cells of each modality in false colour.

    Red, green and blue are the first three principal components over the foreground cells,
    each stretched between its 2nd and 98th percentile: cells of like colour have like
    features. Colours of two modalities, or of two figures, are not comparable.

    Args:
        image: (H, W, 3) uint8.
        feat: mod -> (N, D_mod) features, cells in row-major order, D_mod >= 3.
        grid: (rows, columns), rows * columns = N.
        foreground: (N,) bool; other cells are left white.
    """
    fig, axes = image_panels(1, 1 + len(feat))
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image")
    foreground = np.asarray(foreground, dtype=bool)
    for ax, (mod, features) in zip(axes[0, 1:], feat.items(), strict=True):
        features = np.asarray(features, dtype=np.float64)[foreground]
        centred = features - features.mean(axis=0)
        _, directions = np.linalg.eigh(centred.T @ centred)  # rising order
        components = centred @ directions[:, :-4:-1]  # (foreground cells, 3)
        low, high = np.percentile(components, (2, 98), axis=0)
        picture = np.ones((len(foreground), 3))
        picture[foreground] = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
        ax.imshow(picture.reshape(*grid, 3))
        ax.set_title(f"{MODALITY_NAMES[mod]}, false colour")
    return fig


@styled
def coverage_curve(radius: Mapping[str, np.ndarray], chosen: int | None = None) -> Figure:
    """Return how the largest distance to a prototype falls with their number.

    Args:
        radius: name -> (num,) radius after 1, 2, ... prototypes, in units of the features;
            a name is a modality ("pcd", "rgb") or any text.
        chosen: the number of prototypes that the bank keeps, marked by a line.
    """
    fig, ax = one_panel("number of prototypes", "coverage radius\n(units of the features)")
    styles = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (VERMILLION, ":")]
    for order, (name, values) in enumerate(radius.items()):
        colour, line = OF_MODALITY.get(name, styles[order % len(styles)])[:2]
        values = np.asarray(values)
        ax.plot(
            np.arange(1, len(values) + 1),
            values,
            color=colour,
            linestyle=line,
            label=MODALITY_NAMES.get(name, name),
        )
    if chosen is not None:
        ax.axvline(chosen, color="0.3", linestyle=":", label=f"bank: {chosen:,}")
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.legend()
    return fig


@styled
def score_histograms(
    normal: Sequence[Any], anomalous: Sequence[Any], names: Sequence[str]
) -> Figure:
    """Return the distributions of a score over good and anomalous cells, a panel a score.

    Args:
        normal: a (N,) array a score.
        anomalous: a (N,) array a score.
        names: what each score is called.
    """
    fig = Figure(figsize=(WIDTH_INCHES, 2.5), layout="constrained")
    axes = np.atleast_1d(fig.subplots(1, len(names)))
    for ax, good, bad, name in zip(axes, normal, anomalous, names, strict=True):
        good, bad = np.asarray(good).ravel(), np.asarray(bad).ravel()
        high = float(max(np.percentile(good, 99.9), np.percentile(bad, 99)))
        low = float(min(good.min(), bad.min()))
        bins = np.linspace(low, max(high, low + 1e-9), 50)
        for kind, values in (("normal", good), ("anomalous", bad)):
            colour, line = OF_CLASS[kind]
            shared = {"bins": bins, "density": True, "color": colour}
            ax.hist(values, histtype="stepfilled", alpha=0.25, **shared)
            ax.hist(values, histtype="step", linestyle=line, label=kind, **shared)
        ax.set_xlabel(name)
    axes[0].set_ylabel("density")
    axes[-1].legend()
    return fig


@styled
def axis_shares(shares: Mapping[str, np.ndarray]) -> Figure:
    """Return how much of the directions lies in their leading principal axes.

    Args:
        shares: name -> (D,) share of each axis, falling, with sum 1.

    Returns:
        Cumulated share over the fraction of axes; the diagonal is an even spread.
    """
    fig, ax = one_panel("fraction of the principal axes", "share of the directions")
    styles = line_styles(len(shares))
    for (name, values), (colour, line) in zip(shares.items(), styles, strict=True):
        share = np.concatenate([[0.0], np.cumsum(values)])
        ax.plot(np.linspace(0, 1, len(share)), share, color=colour, linestyle=line, label=name)
    ax.plot([0, 1], [0, 1], color="0.4", linestyle=":", linewidth=1, label="all directions alike")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.legend(loc="lower right")
    return fig

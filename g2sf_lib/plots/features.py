"""Distributions of scores over cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from g2sf_lib.plots.style import OF_CLASS, WIDTH_INCHES, styled


@styled
def score_histograms(
    normal: Sequence[Any], anomalous: Sequence[Any], names: Sequence[str]
) -> Figure:
    """Return the distributions of some scores over normal and anomalous cells, a panel a score."""
    fig = Figure(figsize=(WIDTH_INCHES, 2.5), layout="constrained")
    axes = np.atleast_1d(fig.subplots(1, len(names)))
    for ax, good, bad, name in zip(axes, normal, anomalous, names, strict=True):
        good, bad = np.asarray(good).ravel(), np.asarray(bad).ravel()
        low = float(min(good.min(), bad.min()))
        high = float(max(np.percentile(good, 99.9), np.percentile(bad, 99), low + 1e-9))
        for kind, values in (("normal", good), ("anomalous", bad)):
            colour, line = OF_CLASS[kind]
            shared = {"bins": np.linspace(low, high, 50), "density": True, "color": colour}
            ax.hist(values, histtype="stepfilled", alpha=0.25, **shared)
            ax.hist(values, histtype="step", linestyle=line, label=kind, **shared)
        ax.set_xlabel(name)
    axes[0].set_ylabel("density")
    axes[-1].legend()
    return fig

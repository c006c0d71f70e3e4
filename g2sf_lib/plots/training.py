"""How training went: losses, scale factors, influence of the modalities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from g2sf_lib.plots.style import (
    BLUE,
    LOSS_NAMES,
    MODALITY_NAMES,
    OF_CLASS,
    OF_MODALITY,
    ORANGE,
    WIDTH_INCHES,
    one_panel,
    styled,
)


@styled
def loss_curves(history: pd.DataFrame) -> Figure:
    """Return each term of Eq. 10 over the epochs, and the held-out criterion.

    Args:
        history: columns `epoch`, `sep`, `mar`, `cns`, `sc`, `cma` (mean over training
            batches), `heldout` (the criterion on held-out images), and where there are any
            `heldout_sep` ... `heldout_cma`. A column with gaps is drawn with gaps.

    Returns:
        2 x 3 panels; the epoch with the lowest `heldout`, the one that is kept, is marked.
    """
    fig = Figure(figsize=(WIDTH_INCHES, 4.0), layout="constrained")
    axes = fig.subplots(2, 3, sharex=True).ravel()
    epoch = history["epoch"]
    best = history.loc[history["heldout"].idxmin(), "epoch"]
    for ax, (term, name) in zip(axes, LOSS_NAMES.items(), strict=False):
        ax.plot(epoch, history[term], color=BLUE, label="training")
        if f"heldout_{term}" in history:
            ax.plot(epoch, history[f"heldout_{term}"], "--", color=ORANGE, label="held-out images")
        ax.set_title(name)
    axes[0].legend()
    axes[5].plot(epoch, history["heldout"], "--", color=ORANGE)
    axes[5].set_title(f"held-out criterion\n(epoch {best:g} is kept)")
    for ax in axes:
        ax.axvline(best, color="0.4", linestyle=":")
    for ax in axes[3:]:
        ax.set_xlabel("epoch")
    for ax in (axes[0], axes[3]):
        ax.set_ylabel("loss, mean over cells")
    return fig


@styled
def scale_factors(w_normal: Any, w_synthetic: Any) -> Figure:
    """Return the distribution of w_i0 over normal and synthetic cells, a panel a modality.

    Args:
        w_normal: (N, 2) scale factors of normal cells, columns ("pcd", "rgb").
        w_synthetic: (N, 2) those of synthetic anomalies.
    """
    fig = Figure(figsize=(WIDTH_INCHES, 2.6), layout="constrained")
    axes = fig.subplots(1, 2, sharex=True)
    bins = np.linspace(1 / math.e, math.e, 61)
    for column, (ax, mod) in enumerate(zip(axes, MODALITY_NAMES, strict=True)):
        for kind, w in (("normal", w_normal), ("anomalous", w_synthetic)):
            colour, line = OF_CLASS[kind]
            values = np.asarray(w)[:, column]
            shared = {"bins": bins, "density": True, "color": colour}
            name = "synthetic anomalies" if kind == "anomalous" else "normal cells"
            ax.hist(values, histtype="stepfilled", alpha=0.25, **shared)
            ax.hist(values, histtype="step", linestyle=line, label=name, **shared)
        ax.axvline(1, color="0.3", linestyle=":")
        ax.set_title(MODALITY_NAMES[mod])
        ax.set_xlabel("scale factor $w_{i,0}$")
        ax.set_xticks([1 / math.e, 1, 2, math.e], ["1/e", "1", "2", "e"])
    axes[0].set_ylabel("density")
    axes[1].legend()
    return fig


@styled
def scale_curve(history: pd.DataFrame) -> Figure:
    """Return mean w_i0 and its spread over the epochs, by class, a panel a modality.

    Args:
        history: columns `epoch` and, for both modalities, `w_normal_pcd`,
            `w_synthetic_pcd` (means over held-out cells), `w_std_normal_pcd`,
            `w_std_synthetic_pcd` (standard deviations).
    """
    fig = Figure(figsize=(WIDTH_INCHES, 2.6), layout="constrained")
    axes = fig.subplots(1, 2, sharex=True, sharey=True)
    for ax, mod in zip(axes, MODALITY_NAMES, strict=True):
        for side, kind in (("normal", "normal"), ("synthetic", "anomalous")):
            colour, line = OF_CLASS[kind]
            mean, spread = history[f"w_{side}_{mod}"], history[f"w_std_{side}_{mod}"]
            ax.fill_between(history["epoch"], mean - spread, mean + spread, color=colour, alpha=0.2)
            ax.plot(history["epoch"], mean, linestyle=line, color=colour, label=side)
        ax.axhline(1, color="0.3", linestyle=":")
        ax.set_title(MODALITY_NAMES[mod])
        ax.set_xlabel("epoch")
        ax.set_yticks([1 / math.e, 1, 2, math.e], ["1/e", "1", "2", "e"])
        ax.set_ylim(0.3, 2.8)
    axes[0].set_ylabel("$w_{i,0}$: mean, one\nstandard deviation")
    axes[1].legend()
    return fig


@styled
def sigma_curve(history: pd.DataFrame) -> Figure:
    """Return the influence sigma of each modality over the epochs.

    Args:
        history: columns `epoch`, `sigma_pcd`, `sigma_rgb`.
    """
    fig, ax = one_panel("epoch", "influence $\\sigma$ (sum 1)")
    for mod, name in MODALITY_NAMES.items():
        colour, line, _ = OF_MODALITY[mod]
        values = history[f"sigma_{mod}"]
        ax.plot(history["epoch"], values, color=colour, linestyle=line, label=name)
    ax.set_ylim(0, 1)
    ax.legend()
    return fig

"""How training went: losses, scale factors, influence of the modalities."""

from __future__ import annotations

import math

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
    """Return each term of Eq. 10 over the epochs, and the criterion; the kept epoch is marked.

    Args:
        history: columns `epoch`, `sep` ... `cma` (means over training batches), `heldout_sep` ...
            `heldout_cma`, and `heldout`, the criterion: its lowest epoch is the one that is kept.
    """
    fig = Figure(figsize=(WIDTH_INCHES, 4.0), layout="constrained")
    axes = fig.subplots(2, 3, sharex=True).ravel()
    epoch, best = history["epoch"], history.loc[history["heldout"].idxmin(), "epoch"]
    for ax, (term, name) in zip(axes, LOSS_NAMES.items(), strict=False):
        ax.plot(epoch, history[term], color=BLUE, label="training")
        ax.plot(epoch, history[f"heldout_{term}"], "--", color=ORANGE, label="held-out images")
        ax.set_title(name)
    axes[0].legend()
    axes[5].plot(epoch, history["heldout"], "--", color=ORANGE)
    axes[5].set_title(f"held-out criterion\n(epoch {best:g} is kept)")
    for ax in axes:
        ax.axvline(best, color="0.4", linestyle=":")
    for ax in axes[3:]:
        ax.set_xlabel("epoch")
    for ax in axes[::3]:
        ax.set_ylabel("loss, mean over cells")
    return fig


@styled
def scale_curve(history: pd.DataFrame) -> Figure:
    """Return w_i0 of held-out cells over the epochs, mean ± deviation, a panel a modality.

    Args:
        history: columns `epoch`, `w_normal_<mod>`, `w_synthetic_<mod>` (means) and
            `w_std_normal_<mod>`, `w_std_synthetic_<mod>`.
    """
    fig = Figure(figsize=(WIDTH_INCHES, 2.6), layout="constrained")
    axes = fig.subplots(1, 2, sharex=True, sharey=True)
    for ax, (mod, title) in zip(axes, MODALITY_NAMES.items(), strict=True):
        for side, (colour, line) in zip(("normal", "synthetic"), OF_CLASS.values(), strict=True):
            mean, spread = history[f"w_{side}_{mod}"], history[f"w_std_{side}_{mod}"]
            ax.fill_between(history["epoch"], mean - spread, mean + spread, color=colour, alpha=0.2)
            ax.plot(history["epoch"], mean, linestyle=line, color=colour, label=side)
        ax.axhline(1, color="0.3", linestyle=":")
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.set_yticks([1 / math.e, 1, 2, math.e], ["1/e", "1", "2", "e"])
        ax.set_ylim(0.3, 2.8)
    axes[0].set_ylabel("$w_{i,0}$: mean, one\nstandard deviation")
    axes[1].legend()
    return fig


@styled
def sigma_curve(history: pd.DataFrame) -> Figure:
    """Return the influence `sigma_<mod>` of each modality over the column `epoch`."""
    fig, ax = one_panel("epoch", "influence $\\sigma$ (sum 1)")
    for mod, name in MODALITY_NAMES.items():
        colour, line, _ = OF_MODALITY[mod]
        ax.plot(history["epoch"], history[f"sigma_{mod}"], line, color=colour, label=name)
    ax.set_ylim(0, 1)
    ax.legend()
    return fig

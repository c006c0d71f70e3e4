"""Still figures of the toy, and the controls of JupyterLab that draw them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

from g2sf_lib.plots.page import bundle
from g2sf_lib.plots.playground.planes import (
    OF_HOW,
    TERMS,
    limits_of,
    some_balls,
    top_of,
)
from g2sf_lib.plots.style import (
    BLUE,
    MODALITY_NAMES,
    OF_MODALITY,
    VERMILLION,
    WIDTH_INCHES,
    colour_bar,
    require_columns,
    styled,
)


@styled
def subset_dots(
    rows: pd.DataFrame, value: str, reference: str = "w = 1", label: str = "AUROC"
) -> Figure:
    """Return a metric of every subset of the losses, above a table of which are on.

    Args:
        rows: columns `losses` (a text), `mar`, `cns`, `sc`, `cma` (bool) and `value`, one row a
            subset and a seed; those with `losses` = `reference` become a line across.
        value: the column that is drawn: a dot a seed, and a bar at their mean.
        reference: see `rows`.
        label: of the axis.
    """
    require_columns("subset_dots", rows, ["losses", *TERMS, value])
    is_reference = rows["losses"] == reference
    trained = rows[~is_reference]
    order = list(dict.fromkeys(trained["losses"]))
    fig = Figure(figsize=(WIDTH_INCHES, 4.2), layout="constrained")
    ax, table = fig.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    if is_reference.any():
        level = rows.loc[is_reference, value].mean()
        ax.axhline(level, color="0.3", linestyle=":", label=f"{reference}, mean")
    for n, name in enumerate(order):
        values = trained.loc[trained["losses"] == name, value]
        ax.plot([n] * len(values), values, "o", color=BLUE, markersize=4, alpha=0.7,
                label="a seed" if n == 0 else None)  # fmt: skip
        ax.plot([n - 0.3, n + 0.3], [values.mean()] * 2, color=VERMILLION, linewidth=2,
                label="mean" if n == 0 else None)  # fmt: skip
        is_on = trained[trained["losses"] == name].iloc[0]
        for row, term in enumerate(TERMS):
            table.plot(n, row, "o", markersize=8, color="0.15" if is_on[term] else "0.85")
    ax.set_ylabel(label)
    ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    table.set_yticks(range(len(TERMS)), [f"$L_{{{term}}}$" for term in TERMS])
    table.set_ylim(len(TERMS) - 0.5, -0.5)
    table.set_xticks([])
    table.set_xlabel("losses that are on (dark) beside $L_{sep}$")
    table.grid(False)
    table.spines[:].set_visible(False)
    return fig


@styled
def toy_panels(
    toy: Any, circles: Mapping, balls: Mapping, maps: Mapping[str, Any], how: str, title: str
) -> Figure:
    """Return both planes with balls, and below them their scores by one aggregation.

    Args:
        toy: see the module.
        circles: balls of the untrained metric, dotted.
        balls: of the metric.
        maps: mod -> an object with `x`, `y` and `scores` (aggregation -> (H, W)).
        how: which of the scores.
        title: above all.
    """
    fig = Figure(figsize=(WIDTH_INCHES, 5.4), layout="constrained")
    axes = fig.subplots(2, 2)
    is_bad = toy.is_anomalous
    top = top_of([one.scores[how] for one in maps.values()])
    x, y = limits_of(toy)
    for column, mod in enumerate(MODALITY_NAMES):
        ax, below = axes[:, column]
        xy = toy.points[mod]
        ax.plot(*xy[~is_bad].T, "o", color=BLUE, markersize=1.5, alpha=0.4, label="normal")
        ax.plot(*xy[is_bad].T, "x", color=VERMILLION, markersize=2.5, alpha=0.5, label="anomalies")
        ax.plot(*toy.prototypes[mod].T, "kD", markersize=4, label="prototypes")
        for line, of, style in (("before", circles, "k:"), ("now", balls, "k-")):
            for n, ball in enumerate(some_balls(of[mod])):
                label = line if n == 0 else None
                ax.plot(*ball.T, style, linewidth=1.0 if line == "now" else 0.7, label=label)
        field = maps[mod]
        extent = (field.x[0], field.x[-1], field.y[0], field.y[-1])
        image = below.imshow(
            field.scores[how], origin="lower", extent=extent, vmin=0, vmax=top, aspect="equal"
        )
        below.plot(*toy.prototypes[mod].T, "D", color="white", markeredgecolor="k", markersize=4)
        for one in (ax, below):
            one.set(xlim=x, ylim=y, aspect="equal", xlabel="feature 1")
            one.grid(False)
        colour, _, _ = OF_MODALITY[mod]
        ax.set_title(MODALITY_NAMES[mod], color=colour)
    axes[0, 0].set_ylabel("feature 2")
    axes[1, 0].set_ylabel("feature 2")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    colour_bar(fig, axes[1], image.norm, f"score, {how}")
    fig.suptitle(title, fontsize=9)
    return fig


def playground_controls(trainings: Any) -> ipywidgets.Widget:
    """Return the controls for JupyterLab: each change trains, if need be, and draws again.

    Args:
        trainings: with `settings` (`losses`, `epochs`, `how`, `anomalies_in`), and the methods
            `toy(anomalies_in)`, `training(losses, anomalies_in, keep_states=True)` whose states
            have `epoch`, `metric`, `balls` and `numbers`, and `maps(metric, anomalies_in)`.

    Returns:
        Four boxes (losses), a slider (epoch), two lists (aggregation, anomalies), a picture.
    """
    settings = trainings.settings
    boxes = {
        term: ipywidgets.Checkbox(term in settings.losses, description=words, indent=False)
        for term, words in TERMS.items()
    }
    epoch = ipywidgets.IntSlider(
        settings.epochs, 0, settings.epochs, description="epoch", continuous_update=False
    )
    how = ipywidgets.Dropdown(options=list(OF_HOW), value=settings.how, description="aggregation")
    kinds = {"off both curves": "both", "off points' only": "pcd", "off RGB's only": "rgb",
             "a third each": "either"}  # fmt: skip
    kind = ipywidgets.Dropdown(options=kinds, value=settings.anomalies_in, description="anomalies")
    picture, note = ipywidgets.HTML(), ipywidgets.HTML()

    def draw(_change: Any = None) -> None:
        note.value = "training …"
        losses = tuple(term for term, box in boxes.items() if box.value)
        toy = trainings.toy(kind.value)
        training = trainings.training(losses, kind.value, keep_states=True)
        state = training.states[epoch.value]
        title = (
            f"{' + '.join(['sep', *training.losses])}, epoch {state.epoch} "
            f"({training.kept} is kept): AUROC of test anomalies {state.numbers['AUROC']:.3f}, "
            f"σ {state.numbers['sigma pcd']:.2f} and {state.numbers['sigma rgb']:.2f}"
        )
        maps = trainings.maps(state.metric, kind.value)
        first = training.states[0].balls
        fig = toy_panels(toy, first, state.balls, maps, how.value, title)
        picture.value = bundle(fig, f"Balls of the metric and scores of both planes: {title}")[
            "text/html"
        ]
        note.value = ""

    for control in (*boxes.values(), epoch, how, kind):
        control.observe(draw, names="value")
    draw()
    rows = [ipywidgets.HBox(list(boxes.values())), ipywidgets.HBox([epoch, how, kind])]
    return ipywidgets.VBox([*rows, note, picture])

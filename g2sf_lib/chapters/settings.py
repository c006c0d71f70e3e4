"""Chapters 90 and 92: candidates of settings, as judged on synthetic anomalies."""

from __future__ import annotations

import numpy as np
import pandas as pd

from g2sf_lib.config import Config, LossConfig
from g2sf_lib.results import METHOD_NAMES
from g2sf_lib.training import COLLAPSED

# ---------------------------------------------------------------- 90: loss weights


def weight_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a candidate: its weights, mean average precision, and whether w collapsed.

    Args:
        rows: of `tuning.select_loss_weights`.

    Returns:
        Sorted by ``average precision`` (mean over categories), the best first; ``standard
        error`` is that over categories, ``smallest spread of w`` the least over categories
        and modalities, ``collapsed`` says in how many categories w is a constant, ``w at its
        ends`` the share of normal cells whose w is near an end in both modalities.
    """
    names = ["alpha", "beta", "gamma", "mu"]
    groups = rows.groupby(names, sort=False)
    precision = groups["cell_ap"]
    table = pd.DataFrame(
        {
            "average precision": precision.mean(),
            "standard error": precision.std().fillna(0.0) / precision.count() ** 0.5,
            "AUROC": groups["cell_auroc"].mean(),
            "image AUROC": groups["image_auroc"].mean(),
            "smallest spread of w": groups["w_std"].min(),
            "collapsed": groups["w_std"].agg(lambda spread: int((spread < COLLAPSED).sum())),
            "w at its ends": groups["w_ends"].mean(),
        }
    )
    return table.sort_values("average precision", ascending=False, kind="stable").reset_index()


def weight_names(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with ``method``, a text for each candidate, for `plots.method_dots`."""
    names = [
        f"α {row.alpha:g}, β {row.beta:g}, γ {row.gamma:g}, μ {row.mu:g}"
        for row in rows.itertuples()
    ]
    return rows.assign(method=names).rename(columns={"cell_ap": "average precision"})


def weight_verdict(rows: pd.DataFrame, loss: LossConfig) -> str:
    """Return, in Markdown, how the config's loss weights compare with the best candidate."""
    table = weight_table(rows)
    names = ["alpha", "beta", "gamma", "mu"]
    words = dict(zip(names, "αβγμ", strict=True))

    def text(row) -> str:
        return ", ".join(f"{words[name]} = {row[name]:g}" for name in names)

    chosen = {name: getattr(loss, name) for name in names}
    is_chosen = (table[names] == pd.Series(chosen)).all(axis=1)
    if not is_chosen.any():
        return f"The weights of this run ({text(chosen)}) are not among the candidates."
    own, best = table[is_chosen].iloc[0], table.iloc[0]
    precision = own["average precision"]
    if text(own) == text(best):
        second = table.iloc[1]
        return (
            f"The weights of this run ({text(own)}) are the best of the candidates: mean average "
            f"precision {precision:.3f}, {precision - second['average precision']:.3f} more than "
            f"the next ({text(second)})."
        )
    wide = rows.pivot(index="category", columns=names, values="cell_ap")
    gaps = wide[tuple(best[names])] - wide[tuple(own[names])]
    error = gaps.std() / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
    return (
        f"The weights of this run ({text(own)}) are number {int(is_chosen.idxmax()) + 1} of "
        f"{len(table)}: mean average precision {precision:.3f}, {gaps.mean():.3f} less than the "
        f"best ({text(best)}), with a standard error of the difference over categories of "
        f"{error:.3f}."
    )


def collapse_report(rows: pd.DataFrame) -> str:
    """Return, in Markdown, which candidates of loss weights collapsed, and where."""
    named = weight_names(rows)
    flat = named[named["w_std"] < COLLAPSED]
    if flat.empty:
        return "None of the candidates collapsed in any category."
    lines = [
        f"- {method}: {', '.join(group['category'])}"
        for method, group in flat.groupby("method", sort=False)
    ]
    return "\n".join(["Collapsed (w is a constant in at least one modality):", "", *lines])


# ---------------------------------------------------------------- 92: settings of peers


def candidate_rows(rows: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Return the candidates of CFM and AST in words, for `plots.candidate_dots`.

    Args:
        rows: of `tuning.select_peer_settings`.
        config: of the run, whose settings are the chosen ones.

    Returns:
        Columns ``method`` (its name), ``candidate``, ``category``, ``value`` (average precision
        over cells), ``is_chosen``.
    """
    named = []
    for row in rows.itertuples():
        settings = getattr(config, row.method)
        words = ", ".join(
            f"{name.removeprefix(row.method + '_').replace('_', ' ')} {value:g}"
            for name, value in row.settings.items()
        )
        is_chosen = all(getattr(settings, name) == value for name, value in row.settings.items())
        named.append((METHOD_NAMES[row.method], words, row.category, row.cell_ap, is_chosen))
    columns = ["method", "candidate", "category", "value", "is_chosen"]
    return pd.DataFrame(named, columns=columns)


def candidate_table(candidates: pd.DataFrame) -> pd.DataFrame:
    """Return a row a candidate: mean average precision and its error over categories, as text."""
    groups = candidates.groupby(["method", "candidate"], sort=False)
    table = pd.DataFrame(
        {
            "average precision": groups["value"].mean().map("{:.3f}".format),
            "standard error": groups["value"].sem().fillna(0.0).map("{:.3f}".format),
            "setting of this run": groups["is_chosen"].first().map({True: "yes", False: ""}),
        }
    )
    return table.reset_index()


def candidate_verdict(candidates: pd.DataFrame) -> str:
    """Return, in Markdown, whether the settings of this run are the best of the candidates."""
    lines = []
    for method, of_method in candidates.groupby("method", sort=False):
        wide = of_method.pivot(index="category", columns="candidate", values="value")
        best = wide.mean().idxmax()
        own = of_method.loc[of_method["is_chosen"], "candidate"].unique()
        if not len(own):
            lines.append(f"- {method}: the settings of this run are not among the candidates")
        elif own[0] == best:
            lines.append(f"- {method}: {best}, the best of {wide.shape[1]} candidates")
        else:
            gap = wide[best] - wide[own[0]]
            error = f" ± {gap.sem():.3f} (standard error over categories)" if len(gap) > 1 else ""
            lines.append(
                f"- {method}: {own[0]}; the best of {wide.shape[1]} candidates is {best}, by "
                f"{gap.mean():.3f}{error}"
            )
    return "\n".join(lines)


def edge_report(rows: pd.DataFrame) -> str:
    """Return, in Markdown, which settings of the best candidates lie at the end of their range.

    Where a setting is at an end, a candidate beyond might be better; how much the last step
    within the range brought says how much so.

    Args:
        rows: of `tuning.select_peer_settings`.
    """
    lines = []
    for method, of_method in rows.groupby("method", sort=False):
        keyed = of_method.assign(key=[tuple(row.items()) for row in of_method["settings"]])
        means = keyed.groupby("key", sort=False)["cell_ap"].mean()
        best = dict(means.idxmax())
        ends = []
        for name, value in best.items():
            tried = sorted({dict(key)[name] for key in means.index})
            if len(tried) < 2 or value not in (tried[0], tried[-1]):
                continue
            next_value = tried[1] if value == tried[0] else tried[-2]
            gain = means.max() - means.get(tuple((best | {name: next_value}).items()), np.nan)
            end = "smallest" if value == tried[0] else "largest"
            words = name.removeprefix(f"{method}_").replace("_", " ")
            ends.append(f"{words} {value:g} is the {end} tried ({gain:+.3f} over {next_value:g})")
        told = "; ".join(ends) or "no setting of the best candidate is at an end of its range"
        lines.append(f"- {METHOD_NAMES[method]}: {told}")
    return "\n".join(lines)

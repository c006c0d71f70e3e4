"""Chapter 11: how near the cells that a bank was made of lie to it, beside cells it never saw."""

from __future__ import annotations

import pandas as pd
import torch

from g2sf_lib.ablations import RUN
from g2sf_lib.benchmark import Split
from g2sf_lib.chapters.analyses import Study
from g2sf_lib.config import MODALITIES, Config, with_settings
from g2sf_lib.experiments import fitted


def leak_rows(config: Config, study: Study) -> pd.DataFrame:
    """Return how near normal training cells lie to the bank, beside cells that it never saw.

    Both are cells outside the pastes of synthetic scans: on training scans, which the bank was
    made of, and on validation scans. The targets of pastes are turned and shifted, so a training
    cell is not the same as the one in the bank, but nearly.

    Args:
        config: of the run.
        study: of bank fractions. Of its seeds the first is looked at; they hardly differ in this.

    Returns:
        A row a category and variant: for each modality ``num_<mod>`` prototypes and
        ``ratio_<mod>``, mean nearest distance of the training cells over that of the validation
        cells. 1: nothing leaks.
    """
    lines, seed = [], int(study.rows["seed"].iloc[0])
    for category in study.rows["category"].unique():
        for name, number in study.numbers.items():
            settings = {"bank_fraction": number, "category": category, "seed": seed}
            of_one = with_settings(config, settings)
            s_mean = fitted(of_one).metric.s_mean.cpu()
            unseen = Split(of_one, "synthetic_validation")
            each = zip(unseen.cell_labels, unseen.patches, strict=True)
            normal = ~torch.cat([labels[p.foreground] for labels, p in each]).cpu()
            line = {"category": category, "variant": name}
            for m, (mod, (_, s)) in enumerate(unseen.nearest(MODALITIES).items()):
                line[f"num_{mod}"] = len(unseen.stored.banks[mod].prototypes)
                line[f"ratio_{mod}"] = float(s_mean[m] / s.cpu()[normal].mean())
            lines.append(line)
    return pd.DataFrame(lines)


def leak_table(found: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return means of `leak_rows` over categories as text, a row a bank fraction."""
    mean = found.groupby("variant")[["num_pcd", "num_rgb", "ratio_pcd", "ratio_rgb"]].mean()
    mean = mean.loc[list(study.labels)]
    names = {"pcd": "points", "rgb": "RGB"}
    columns = {
        f"prototypes, {names[mod]}": mean[f"num_{mod}"].map("{:.0f}".format) for mod in names
    }
    columns |= {
        f"training / unseen distance, {names[mod]}": mean[f"ratio_{mod}"].map("{:.2f}".format)
        for mod in names
    }
    return pd.DataFrame(columns).rename(index=study.labels).rename_axis("bank fraction")


def leak_report(found: pd.DataFrame, study: Study) -> str:
    """Return, in a sentence, how much nearer to the bank the training cells are."""
    mean = found.groupby("variant")[["ratio_pcd", "ratio_rgb"]].mean()
    most = list(study.numbers)[-1]
    own, full = mean.loc[RUN.name], mean.loc[most]
    return (
        "Normal training cells lie at so much of the distance of unseen normal cells from the "
        f"bank: points {own['ratio_pcd']:.0%}, RGB {own['ratio_rgb']:.0%} in the run; points "
        f"{full['ratio_pcd']:.0%}, RGB {full['ratio_rgb']:.0%} with the largest bank. What is "
        "missing to 100 % is leakage, as far as both kinds of scans are alike otherwise."
    )

"""Chapter 03: what the network promises untrained, and what training made of its cells."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from g2sf_lib.config import MODALITIES, Config
from g2sf_lib.detector import G2SF, query_banks
from g2sf_lib.evaluation import image_auroc
from g2sf_lib.experiments import best_epoch, counted_features, fitted, load_banks
from g2sf_lib.fusion import LSPN, encode, local_metric
from g2sf_lib.training import COLLAPSED


def untouched_network(config: Config, num_cells: int = 500) -> tuple[LSPN, pd.DataFrame]:
    """Return an untrained LSPN of the config's size, and three statements checked on real cells.

    Returns:
        The network; and a row a statement with the largest error in `num_cells` validation cells
        and their k + 1 neighbourhoods.
    """
    stored = load_banks(config)
    every = stored.standardiser(counted_features(config, "validation")[0])
    feat = {mod: every[mod][:num_cells] for mod in MODALITIES}
    index, s = query_banks(stored.banks, feat, config.model.k + 1)
    bank = {mod: stored.banks[mod].prototypes for mod in MODALITIES}
    proto = {mod: bank[mod][index[mod]] for mod in MODALITIES}
    d = {mod: encode(feat[mod], proto[mod])[0] for mod in MODALITIES}
    lspn = LSPN({mod: feat[mod].shape[1] for mod in MODALITIES}, config.model.hidden,
                config.model.embed, config.model.dropout).eval()  # fmt: skip
    with torch.no_grad():
        untrained = lspn(proto, d)
        lspn.head.weight.normal_(generator=torch.Generator().manual_seed(0))  # any but zero
        shortcut = (lspn.from_bank(feat, bank, index, s) - lspn(proto, d)).abs().max()
        lspn.head.weight.zero_()
    back = max(
        (proto[mod] + s[..., m, None] * d[mod] - feat[mod][:, None]).abs().max()
        for m, mod in enumerate(MODALITIES)
    )
    errors = {
        "prototype + distance · direction = feature": back,
        "w of the untrained network = 1": (untrained - 1).abs().max(),
        "w without building the directions = w with them": shortcut,
    }
    rows = [(name, f"{float(error):.1e}") for name, error in errors.items()]
    return lspn, pd.DataFrame(rows, columns=["statement", "largest error"]).set_index("statement")


def stored_detector(config: Config, seed: int) -> G2SF:
    """Return the detector that chapter 03 stored for a training seed."""
    return fitted(dataclasses.replace(config, seed=seed))


@dataclass(frozen=True)
class JudgedCells:
    """Counted cells as a trained detector sees them in their nearest neighbourhood.

    Attributes:
        s: (N, M) distances divided by their mean over normal training cells.
        w: (N, M) scale factors.
        plain: (N,) the metric before training: w = 1, sigma = 1/2.
        learned: (N,) the metric after it, l_i0.
        is_anomalous: (N,) bool.
    """

    s: np.ndarray
    w: np.ndarray
    plain: np.ndarray
    learned: np.ndarray
    is_anomalous: np.ndarray


def judged_cells(
    config: Config, detector: G2SF, split: str = "synthetic_validation"
) -> JudgedCells:
    """Return the counted cells of a split as the detector sees them."""
    feat, is_anomalous = counted_features(config, split)
    scores = detector.score_cells(feat)
    s, w = scores.s[:, 0].cpu(), scores.w[:, 0].cpu()
    plain = local_metric(torch.ones_like(w), s, torch.full((len(MODALITIES),), 0.5))
    learned = scores.ell[:, 0].cpu()
    return JudgedCells(*(x.numpy() for x in (s, w, plain, learned, is_anomalous)))


def training_report(detector: G2SF) -> str:
    """Return, in Markdown, which epoch was kept and what the scale factors are there."""
    best = detector.history[best_epoch(detector)]
    flat = [mod for mod in MODALITIES if best[f"w_std_{mod}"] < COLLAPSED]
    words = {"pcd": "points", "rgb": "RGB"}
    lines = [
        f"Kept: epoch {best['epoch']} of {len(detector.history) - 1}. On its held-out images, in "
        "the nearest neighbourhood:",
        "",
        "| modality | σ | w of normal cells | w of synthetic anomalies |",
        "|:--|:--|:--|:--|",
    ]
    for mod in MODALITIES:
        cells = (
            f"{best[f'w_{side}_{mod}']:.2f} ± {best[f'w_std_{side}_{mod}']:.2f}"
            for side in ("normal", "synthetic")
        )
        lines.append(f"| {words[mod]} | {best[f'sigma_{mod}']:.2f} | {' | '.join(cells)} |")
    verdict = (
        f"**Collapsed**: w of {' and '.join(words[mod] for mod in flat)} is a constant."
        if flat
        else "Not collapsed: w differs between cells in both modalities."
    )
    ends = (
        f"Of the normal cells {best['w_ends']:.0%} have a w near one end of its range in both "
        f"modalities; both log w correlate by {best['w_correlation']:.2f}. Near 100 % and 1, LSPN "
        "gives two answers only, the same for both modalities."
    )
    return "\n".join([*lines, "", verdict, "", ends])


def separation_report(cells: JudgedCells) -> str:
    """Return, in Markdown, how well four scores tell synthetic anomalies from normal cells."""
    names = {"w = 1": "metric before training", "trained": "metric after training"}
    areas = {
        names.get(name, name): image_auroc(score, cells.is_anomalous)
        for name, score in cell_quantities(cells).items()
    }
    told = ", ".join(f"{name} {area:.3f}" for name, area in areas.items())
    return f"AUROC over cells, synthetic anomalies against normal ones: {told}."


def cell_quantities(cells: JudgedCells) -> dict[str, np.ndarray]:
    """Return the scores that training starts from, and what it makes of them."""
    return {
        "points alone": cells.s[:, 0],
        "RGB alone": cells.s[:, 1],
        "w = 1": cells.plain,
        "trained": cells.learned,
    }

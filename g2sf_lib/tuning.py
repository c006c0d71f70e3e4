"""Settings chosen on synthetic anomalies on validation scans, as many candidates a method.

No test scan and no real defect takes part.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib.benchmark import Split, fitted_method
from g2sf_lib.cells import kept_cells, labelled_scans
from g2sf_lib.config import MODALITIES, Config, with_settings
from g2sf_lib.detector import G2SF
from g2sf_lib.experiments import best_epoch, fitted
from g2sf_lib.stages import BANK, LSPN, recorded

WEIGHT_CANDIDATES = (
    {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "mu": 0.0},
    {"alpha": 0.0, "beta": 1.0, "gamma": 0.03, "mu": 0.0},
    {"alpha": 0.1, "beta": 1.0, "gamma": 0.03, "mu": 0.01},
    {"alpha": 0.1, "beta": 1.0, "gamma": 1.0, "mu": 0.03},
    {"alpha": 1.0, "beta": 1.0, "gamma": 0.3, "mu": 0.1},
    {"alpha": 10.0, "beta": 40.0, "gamma": 3.0, "mu": 20.0},
)
_RATES = {"cfm": (1e-3, 3e-3, 1e-2), "ast": (1e-4, 3e-4, 1e-3)}
_EPOCHS = {"cfm": (15, 30), "ast": (3, 6)}
PEER_CANDIDATES = {
    m: [{f"{m}_learning_rate": rate, f"{m}_epochs": num} for rate in rates for num in _EPOCHS[m]]
    for m, rates in _RATES.items()
}


def select_loss_weights(config: Config, categories: Sequence[str]) -> pd.DataFrame:
    """Return a row a category and candidate of loss weights, trained and then `_judged`."""
    rows = []
    with recorded(config, "loss_weights", LSPN) as result:
        pairs = [(c, weights) for c in categories for weights in WEIGHT_CANDIDATES]
        for category, weights in tqdm(pairs, desc="loss weights"):
            trial = with_settings(config, weights | {"category": category})
            rows.append({"category": category} | weights | _judged(fitted(trial), trial))
        result["rows"] = rows
    return pd.DataFrame(rows)


def select_peer_settings(config: Config, categories: Sequence[str]) -> pd.DataFrame:
    """Return a row a category, peer and candidate, trained; ``settings`` are name -> value."""
    rows = []
    with recorded(config, "peer_settings", BANK) as result:
        for category in categories:
            of_category = config.replace(category=category)
            train = Split(of_category, "train")
            pasted = Split(of_category, "synthetic_validation", categories)
            pairs = [(m, c) for m, candidates in PEER_CANDIDATES.items() for c in candidates]
            for method, candidate in tqdm(pairs, desc=f"{category}: peers"):
                trial = with_settings(of_category, candidate)
                cells = fitted_method(trial, method, train).score_cells(pasted)
                row = {"category": category, "method": method, "settings": candidate}
                rows.append(row | _cells_told_apart(cells, pasted))
        result["rows"] = rows
    return pd.DataFrame(rows)


def _judged(detector: G2SF, config: Config) -> dict[str, float]:
    """Return how well a detector tells pasted validation scans, and their cells, from others."""
    splits = [Split(config, name) for name in ("validation", "synthetic_validation")]
    scores = [detector.score_cells(split.feat).cell_score.cpu() for split in splits]
    each, rule = zip(scores, splits, strict=True), config.scoring.silhouette
    images = torch.cat([split.largest(cells[:, None], rule) for cells, split in each])
    is_pasted = torch.arange(len(images)) >= len(splits[0].patches)
    best = detector.history[best_epoch(detector)]
    return {
        "image_auroc": roc_auc_score(is_pasted, images),
        **_cells_told_apart(scores[1], splits[1]),
        "w_std": min(best[f"w_std_{mod}"] for mod in MODALITIES),
        "w_ends": best["w_ends"],
        "best_epoch": best["epoch"],
    }


def _cells_told_apart(scores: Tensor, pasted: Split) -> dict[str, float]:
    """Return how well scores of foreground cells tell pasted ones, among those that count."""
    config, patches = pasted.config, pasted.patches
    labels = [label[:, None] for label in pasted.cell_labels]  # in which modality is all one
    scans = labelled_scans(patches, patches, labels, is_untouched=False)
    counts = torch.cat([kept_cells(s, config.cells, config.scoring.silhouette) for s in scans])
    truth = torch.cat([scan.labels.any(1)[scan.patches.foreground] for scan in scans])
    return {
        "cell_ap": float(average_precision_score(truth[counts], scores[counts])),
        "cell_auroc": float(roc_auc_score(truth[counts], scores[counts])),
    }

"""Settings chosen on synthetic anomalies on validation scans, as many candidates a method.

No test scan and no real defect takes part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib.baselines import Baseline
from g2sf_lib.benchmark import TRAINED, Split, train_peer
from g2sf_lib.config import MODALITIES, Config, make_config, stage_dir
from g2sf_lib.detector import G2SF, flat_settings, kept_cells, labelled_scans, to_prediction
from g2sf_lib.experiments import (
    best_epoch,
    fitted,
    load_features,
    recorded,
    synthetic_scans,
)
from g2sf_lib.features import foreground_features

WEIGHT_CANDIDATES = (
    {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "mu": 0.0},
    {"alpha": 0.0, "beta": 1.0, "gamma": 0.03, "mu": 0.0},
    {"alpha": 0.1, "beta": 1.0, "gamma": 0.03, "mu": 0.01},
    {"alpha": 0.1, "beta": 1.0, "gamma": 1.0, "mu": 0.03},
    {"alpha": 1.0, "beta": 1.0, "gamma": 0.3, "mu": 0.1},
    {"alpha": 10.0, "beta": 40.0, "gamma": 3.0, "mu": 20.0},
)
PEER_CANDIDATES = {
    "cfm": tuple(
        {"cfm_learning_rate": rate, "cfm_epochs": epochs}
        for rate in (1e-3, 3e-3, 1e-2)
        for epochs in (15, 30)
    ),
    "ast": tuple(
        {"ast_learning_rate": rate, "ast_epochs": epochs}
        for rate in (1e-4, 3e-4, 1e-3)
        for epochs in (3, 6)
    ),
}


def select_loss_weights(config: Config, categories: Sequence[str]) -> pd.DataFrame:
    """Train with every candidate of loss weights; judge it on synthetic validation scans.

    No test scan and no real defect takes part. The candidates differ in nothing but the
    weights of Eq. 10; their trainings are kept, and shared with chapters 03 and 07.

    Returns:
        One row a category and candidate: ``alpha`` ... ``mu``, ``image_auroc`` of scans with
        pastes against untouched ones, ``cell_ap`` and ``cell_auroc`` of counted cells, ``w_std``
        (spread of w over held-out cells, the smaller modality), ``w_ends`` (see
        `training._observe`), ``best_epoch``.
    """
    rows = []
    with recorded(config, "loss_weights", hash_of="lspn") as result:
        pairs = [(c, weights) for c in categories for weights in WEIGHT_CANDIDATES]
        for category, weights in tqdm(pairs, desc="loss weights"):
            settings = flat_settings(config) | weights | {"category": category}
            trial = make_config(**settings)
            rows.append({"category": category} | weights | _judge(fitted(trial), trial))
        result["rows"] = rows
    return pd.DataFrame(rows)


def _judge(detector: G2SF, config: Config) -> dict[str, float]:
    """Return how well a detector tells pasted validation scans, and their cells, from others."""
    patches, labels = load_features(config, "synthetic_validation")
    scores = detector.score_cells(foreground_features(patches)).cell_score.cpu()
    untouched = load_features(config, "validation")[0]
    plain = detector.score_cells(foreground_features(untouched)).cell_score.cpu()
    images = [
        to_prediction(part, scan, config.scoring).image_score
        for cells, scans in ((plain, untouched), (scores, patches))
        for part, scan in zip(
            cells.split([int(p.foreground.sum()) for p in scans]), scans, strict=True
        )
    ]
    best = detector.history[best_epoch(detector)]
    return {
        "image_auroc": roc_auc_score(np.arange(len(images)) >= len(untouched), images),
        **_judged_cells(scores, patches, labels, config),
        "w_std": min(best[f"w_std_{mod}"] for mod in MODALITIES),
        "w_ends": best["w_ends"],
        "best_epoch": best["epoch"],
    }


def _judged_cells(scores: Tensor, patches, labels, config: Config) -> dict[str, float]:
    """Return how well scores of foreground cells tell pasted ones, among those that count.

    Cells within reach of a paste are neither.
    """
    rule = config.scoring.silhouette
    scans = labelled_scans(patches, patches, labels, is_untouched=False)
    counts = torch.cat([kept_cells(scan, config.cells, rule) for scan in scans])
    truth = torch.cat([scan.labels.any(1)[scan.patches.foreground] for scan in scans])
    return {
        "cell_ap": float(average_precision_score(truth[counts], scores[counts])),
        "cell_auroc": float(roc_auc_score(truth[counts], scores[counts])),
    }


def select_peer_settings(config: Config, categories: Sequence[str]) -> pd.DataFrame:
    """Train CFM and AST with every candidate; judge them as `select_loss_weights` does G2SF.

    Each has as many candidates as the loss weights. What was trained is kept, and serves the
    benchmark where a candidate is the config's own setting.

    Returns:
        One row a category, method and candidate: ``method``, ``settings`` (name -> value),
        ``cell_ap`` and ``cell_auroc`` of counted cells.
    """
    rows = []
    with recorded(config, "peer_settings", hash_of="bank") as result:
        for category in categories:
            of_category = dataclasses.replace(config, category=category)
            train, pasted = Split(of_category, "train"), Split(of_category, "synthetic_validation")
            scans = list(synthetic_scans(of_category, "validation", categories))
            pairs = [(m, c) for m in TRAINED for c in PEER_CANDIDATES[m]]
            for method, candidate in tqdm(pairs, desc=f"{category}: peers"):
                trial = make_config(**(flat_settings(of_category) | candidate))
                peer = _trained(trial, method, train)
                depths = [peer.depth(scan) for scan in scans] if method == "ast" else None
                cells = torch.cat([s.cells for s in peer.score_scans(pasted.patches, depths)])
                judged = _judged_cells(cells, pasted.patches, pasted.cell_labels, trial)
                rows.append(
                    {"category": category, "method": method, "settings": candidate} | judged
                )
        result["rows"] = rows
    return pd.DataFrame(rows)


def _trained(config: Config, method: str, train: Split) -> Baseline:
    """Return a trained peer, from its folder where it is there."""
    folder = stage_dir(config, method)
    if not (folder / "baseline.json").exists():
        peer = Baseline(method, config)
        peer.standardiser = train.stored.standardiser
        train_peer(peer, train)
        peer.save(folder)
    return Baseline.load(folder, config.device)

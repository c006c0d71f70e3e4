"""What G2SF computes of a cell, each part taken as a score of its own, measured once and kept.

A file a quantity lies in a folder named by the hash of all that it depends on, so an ablation
finds what another one, or an earlier run, has computed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from g2sf_lib.benchmark import Split, measure
from g2sf_lib.config import MODALITIES, Config, ConfigError
from g2sf_lib.detector import G2SF, CellScores, query_banks, to_prediction
from g2sf_lib.experiments import at_epoch, best_epoch, fitted, kept_epochs
from g2sf_lib.fusion import aggregate
from g2sf_lib.stages import BANK, stage_dir
from g2sf_lib.store import StoredFileError, write_json

PARTS = ("s_pcd", "s_rgb", "w_pcd", "w_rgb", "fused")  # of Table 3
RULES = ("nearest", "max", "mean", "min")  # of Table 5


class TestCells(Split):
    """The test scans of a category: what the detectors that look at them share is computed once."""

    def __init__(self, config: Config):
        super().__init__(config, "test")
        self._known = (None, ())

    def seen_by(self, detector: G2SF) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Return standardised features, and 2k + 1 neighbours as `query_banks` gives them."""
        num = 2 * detector.config.model.k + 1
        key = (BANK.hash(detector.config), num)
        if self._known[0] != key:
            feat = detector.standardiser(self.feat)
            feat = {mod: feat[mod][:].to(detector.device) for mod in MODALITIES}
            self._known = key, (feat, *query_banks(detector.banks, feat, num, detector.device))
        return self._known[1]


def neighbourhoods(detector: G2SF, test: TestCells) -> CellScores:
    """Return what a detector computes of the test scans' cells in 2k + 1 neighbourhoods."""
    found = detector.fuse_cells(*test.seen_by(detector))
    return CellScores(**{name: value.cpu() for name, value in vars(found).items()})


def checked_quantity(name: str, config: Config) -> str:
    """Return a quantity by its one name, of `PARTS`, `RULES` or "min_J", the least of j = 0 ... J.

    "nearest" is "min_0", "min" is "min_k", and "fused" the config's aggregation; J is up to 2k.
    """
    k = config.model.k
    one_name = config.scoring.aggregate if name == "fused" else name
    one_name = {"nearest": "min_0", "min": f"min_{k}"}.get(one_name, one_name)
    upto = re.fullmatch(r"min_(\d+)", one_name)
    if upto is not None and int(upto[1]) <= 2 * k:
        return f"min_{int(upto[1])}"
    if one_name not in (*PARTS, *RULES):
        allowed = ", ".join((*PARTS, *RULES))
        raise ConfigError(f"quantity is {name!r}; expected one of {allowed}, min_0 to min_{2 * k}")
    return one_name


def cell_quantity(name: str, found: CellScores, config: Config) -> Tensor:
    """Return (n,) a quantity of each cell (Tables 3 and 5).

    Parts are those of the nearest neighbourhood, j = 0; "max" and "mean" go over j = 0 ... k.
    """
    name = checked_quantity(name, config)
    if name in ("max", "mean"):
        return aggregate(found.ell[:, : config.model.k + 1], name)
    kind, which = name.split("_")
    if kind == "min":
        return aggregate(found.ell[:, : int(which) + 1], "min")
    return getattr(found, kind)[:, 0, MODALITIES.index(which)]


def cell_maps(cells: Tensor, split: Split, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return maps (N, map_size, map_size) and image scores (N,) from scores (n,) of all cells."""
    parts = zip(cells.split(split.sizes), split.patches, strict=True)
    made = [to_prediction(part, patches, config.scoring) for part, patches in parts]
    return np.stack([p.score_map for p in made]), np.array([p.image_score for p in made])


def run_quantities(
    config: Config, names: Sequence[str], test: TestCells | None = None
) -> pd.DataFrame:
    """Measure some quantities on the test scans of the config's category, for its seed.

    Returns:
        A row a name: ``category``, ``seed``, ``quantity``; metrics as in `benchmark.measure`; of
        the training ``best_epoch``, ``sigma_pcd`` and ``w_std``, the spread of w over held-out
        cells in the modality where it is less (near 0: collapsed).
    """
    folder = stage_dir(config, "quantities")
    files = {name: folder / f"{checked_quantity(name, config)}.json" for name in names}
    missing = {path: name for name, path in files.items() if not path.exists()}
    if missing:
        test, detector = test or TestCells(config), fitted(config)
        found, best = neighbourhoods(detector, test), detector.history[best_epoch(detector)]
        training = {"best_epoch": best["epoch"], "sigma_pcd": best["sigma_pcd"]}
        training["w_std"] = min(best[f"w_std_{mod}"] for mod in MODALITIES)
        for path, name in missing.items():
            row = _measured(config, test, cell_quantity(name, found, config))
            write_json(path, {"row": row | training})
    return _table(config, "quantity", files)


def run_epochs(config: Config, test: TestCells | None = None) -> pd.DataFrame:
    """Measure the fused score of the config's detector as it was after each kept epoch.

    Returns:
        A row a kept epoch, from 0 (before training): ``category``, ``seed``, ``epoch``,
        ``heldout`` (what training chooses the epoch by), and metrics.
    """
    epochs, folder = kept_epochs(config.training.epochs), stage_dir(config, "quantities")
    files = {epoch: folder / f"epoch_{epoch:04d}.json" for epoch in epochs}
    missing = {epoch: path for epoch, path in files.items() if not path.exists()}
    detector, test = fitted(config), test or TestCells(config)
    for epoch, path in missing.items():
        found = neighbourhoods(at_epoch(config, detector, epoch), test)
        write_json(path, {"row": _measured(config, test, cell_quantity("fused", found, config))})
    table, heldout = _table(config, "epoch", files), [row["heldout"] for row in detector.history]
    table.insert(3, "heldout", [heldout[epoch] for epoch in epochs])
    return table


def _table(config: Config, what: str, files: dict[str | int, Path]) -> pd.DataFrame:
    """Return kept metrics, a row a name."""
    rows = []
    for name, path in files.items():
        try:
            known = {"category": config.category, "seed": config.seed, what: name}
            rows.append(known | json.loads(path.read_text())["row"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoredFileError(f"{path}: truncated or changed ({error!r}); delete it") from error
    return pd.DataFrame(rows)


def _measured(config: Config, test: TestCells, cells: Tensor) -> dict[str, float]:
    """Return every metric of one score of the cells of the test scans."""
    maps, image = cell_maps(cells, test, config)
    of_rule = {config.scoring.silhouette: image}
    (row,), _ = measure(config, test.truth, maps, of_rule, num_resamples=0)
    return {name: value for name, value in row.items() if name != "silhouette"}

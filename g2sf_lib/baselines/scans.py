"""What a method reads of some scans, and the few functions that every method has."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from g2sf_lib.baselines.banks import SideBySide
from g2sf_lib.cells import counted_cells
from g2sf_lib.config import Config
from g2sf_lib.datasets import Sample
from g2sf_lib.detector import pick_device, query_banks
from g2sf_lib.features import PackedPatches, foreground_features, nearest_index
from g2sf_lib.memory import Rows
from g2sf_lib.store import read_described, write_described

SILHOUETTES = ("exclude", "count")
FILL_ROUNDS = 3  # holes of the depth image are closed from their rims
UNITS_PER_METRE = 1000.0  # millimetres: relief and defects are of order one


@dataclass(eq=False)
class Scans:
    """Some scans of a category; what is asked for is computed once."""

    config: Config
    patches: Sequence[PackedPatches]
    stored: Any  # standardiser, banks and calibration of the category: `experiments.Banks`
    samples: Iterable[Sample] = ()  # the preprocessed scans, which only `depths` reads

    @cached_property
    def feat(self) -> dict[str, Rows]:
        """Mod -> (n, D_mod) of all foreground cells, scan after scan, as extracted."""
        return foreground_features(self.patches)

    @cached_property
    def standard(self) -> dict[str, Rows]:
        """The same, standardised."""
        return self.stored.standardiser(self.feat)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of foreground cells of each scan."""
        return [int(p.foreground.sum()) for p in self.patches]

    @cached_property
    def _kept(self) -> dict:
        return {}

    def nearest(self, name: str) -> tuple[Tensor, Tensor]:
        """Return (n,) nearest prototypes in a bank, and (n,) distances to them, of all cells."""
        if name not in self._kept:
            rows = SideBySide(self.standard) if name == "concat" else self.standard[name]
            found = self.stored.banks[name].query(rows, 1, pick_device(self.config.device))
            self._kept[name] = tuple(part[:, 0] for part in found)
        return self._kept[name]

    def distances(self, names: Sequence[str]) -> Tensor:
        """Return (n, B) distances of all cells to the nearest prototype of each bank."""
        return torch.stack([self.nearest(name)[1] for name in names], dim=-1)

    def neighbours(self, num: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return mod -> (n, num) prototypes, and (n, num, M) distances, nearest first."""
        if num not in self._kept:
            device = pick_device(self.config.device)
            self._kept[num] = query_banks(self.stored.banks, self.standard, num, device)
        return self._kept[num]

    def depths(self, px: int) -> list[Tensor]:
        """Return the `depth_map` of each scan, with `px` samples along a cell's side."""
        if ("depths", px) not in self._kept:
            side = self.config.features.grid_size
            self._kept["depths", px] = [depth_map(s.xyz, side, px) for s in self.samples]
        return self._kept["depths", px]

    def largest(self, values: Tensor, silhouette: str) -> Tensor:
        """Return (I, B): the largest of (n, B) values of the cells of each scan that count."""
        parts = zip(values.split(self.sizes), self.patches, strict=True)
        return torch.stack([part[counted(p, silhouette)].amax(0) for part, p in parts])


def counted(patches: PackedPatches, silhouette: str) -> Tensor:
    """Return (n,) bool on the CPU: which foreground cells of a scan count."""
    return counted_cells(patches, silhouette)[patches.foreground].cpu()


def depth_map(xyz: np.ndarray, grid_size: int, px: int) -> Tensor:
    """Return (px * px, grid_size, grid_size) depth samples of each cell, in millimetres.

    Depth is relative to the mean of the scan. Three times, a pixel without a point takes the mean
    of its neighbours that have one; others are zero. Channel i * px + j is the sample in row i and
    column j of a cell; `xyz` is (H, W, 3) in metres, (0, 0, 0) where there is no point.

    Source: as of `AST`, whose paper unshuffles its depth images too. Ours: the unit, and how
    holes are closed.
    """
    has_depth = (xyz != 0).any(-1)
    z = xyz[..., 2].astype(np.float64)
    depth = np.where(has_depth, (z - z[has_depth].mean()) * UNITS_PER_METRE, 0.0)
    for _ in range(FILL_ROUNDS):
        share = ndimage.uniform_filter(has_depth.astype(np.float64), 3, mode="constant")
        mean = ndimage.uniform_filter(depth, 3, mode="constant") / np.maximum(share, 1e-9)
        is_rim = ~has_depth & (share > 0.1)  # a ninth: one neighbour
        depth[is_rim] = mean[is_rim]
        has_depth |= is_rim
    rows, columns = (nearest_index(side, grid_size * px) for side in depth.shape)
    samples = torch.from_numpy(depth[np.ix_(rows, columns)].astype(np.float32))
    return pixel_unshuffle(samples[None], px)


class Scorer:
    """A method: fitted to normal scans, it says how anomalous every cell of a scan is."""

    network: nn.Module  # what it trains, if anything

    def __init__(self, config: Config, banks: Sequence[str] = ()):
        self.config, self.banks = config, banks
        self.device = pick_device(config.device)

    def fit(self, train: Scans, folder: Path | None = None, progress: bool = False) -> Self:
        """Fit to normal scans, going on with what an interrupted training left in `folder`."""
        return self

    def score_cells(self, scans: Scans) -> Tensor:
        """Return (n,) scores, not negative, of all foreground cells, scan after scan."""
        raise NotImplementedError

    def score_images(self, scans: Scans, cells: Tensor, silhouette: str) -> Tensor:
        """Return (I,) image scores: the largest of the cell scores that count."""
        return scans.largest(cells[:, None], silhouette)[:, 0]

    def score(
        self, scans: Scans, silhouettes: Sequence[str] = SILHOUETTES
    ) -> tuple[Tensor, dict[str, np.ndarray]]:
        """Return (n,) cell scores on the CPU, and silhouette rule -> (I,) image scores."""
        cells = self.score_cells(scans).cpu()
        image = {rule: self.score_images(scans, cells, rule) for rule in silhouettes}
        return cells, {rule: value.double().numpy() for rule, value in image.items()}

    def save(self, folder: Path) -> None:
        """Write the network: ``method.json`` and ``method.safetensors``."""
        write_described(folder / "method.json", {}, self.network.state_dict())

    def load(self, folder: Path) -> Self:
        """Read what `save` wrote."""
        tensors = read_described(folder / "method.json")[1]
        self.network = self.build(tensors).to(self.device).eval()
        self.network.load_state_dict(tensors)
        return self

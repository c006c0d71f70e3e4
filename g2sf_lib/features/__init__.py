"""Features of both modalities on one common grid of cells.

The networks and Open3D are imported where they are first used, so that reading stored
patches does not wait for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy import ndimage
from torch import Tensor

from g2sf_lib.config import MODALITIES, FeatureConfig
from g2sf_lib.datasets import Sample
from g2sf_lib.memory import Rows
from g2sf_lib.store import write_tensors

MIN_COVER = 0.25  # of a cell's pixels


@dataclass(frozen=True)
class Patches:
    """Features of one scan: mod -> (cells, D_mod) float32, zero where a cell is background.

    Cells are those of a common `grid` (rows, columns), row-major. The RGB feature is the same in
    every square of `shared` cells on a side (2 where 28 x 28 tokens are paired with 56 x 56 point
    features), but for background.
    """

    feat: dict[str, Tensor]
    grid: tuple[int, int]
    foreground: Tensor
    shared: int = 1

    @property
    def cells(self) -> dict[str, Rows]:
        """Features of the foreground cells, mod -> (n, D_mod), row-major."""
        return {mod: Rows([self.feat[mod][self.foreground]]) for mod in MODALITIES}


@dataclass(frozen=True)
class PackedPatches:
    """The patches of one scan in half precision, without what is redundant.

    `cells` are mod -> (n, D_mod), those of the n foreground cells; an RGB feature that several
    cells share is stored once.
    """

    cells: dict[str, Rows]
    grid: tuple[int, int]
    foreground: Tensor

    @property
    def feat(self) -> dict[str, Tensor]:
        """Features of all cells as in `Patches`, mod -> (cells, D_mod); made anew on every call."""
        feat = {}
        for mod, rows in self.cells.items():
            feat[mod] = torch.zeros(len(self.foreground), rows.shape[1], device=rows.device)
            feat[mod][self.foreground] = rows[:]
        return feat


def pack(patches: Patches) -> PackedPatches:
    """Return patches in half precision, background left out, shared features once."""
    inside = torch.nonzero(patches.foreground)[:, 0]
    cells = {"pcd": Rows([patches.feat["pcd"][inside].half()])}
    row, column = inside // patches.grid[1], inside % patches.grid[1]
    columns = -(-patches.grid[1] // patches.shared)
    square = row // patches.shared * columns + column // patches.shared
    used, place = torch.unique(square, return_inverse=True)
    # The first cell of each square; its others have the same feature.
    first = torch.full((len(used),), len(inside), device=inside.device)
    first.scatter_reduce_(0, place, torch.arange(len(inside), device=inside.device), "amin")
    rgb = patches.feat["rgb"][inside[first]].half()
    cells["rgb"] = Rows([rgb], place.int() if patches.shared > 1 else None)
    return PackedPatches(cells, patches.grid, patches.foreground)


def foreground_features(patches: Sequence[Patches | PackedPatches]) -> dict[str, Rows]:
    """Return mod -> (N, D_mod): the foreground cells of several scans, one after another."""
    cells = [p.cells for p in patches]
    return {mod: Rows.joined([c[mod] for c in cells]) for mod in MODALITIES}


class FeatureExtractor:
    """Turns a preprocessed scan into `Patches`; holds the frozen networks."""

    def __init__(self, config: FeatureConfig, device: torch.device) -> None:
        from g2sf_lib.features.rgb import RGBFeatures

        self.config, self.device = config, torch.device(device)
        self._rgb = RGBFeatures(config, self.device)
        self._net = None
        if config.pcd_features == "pointmae":
            from g2sf_lib.features.pointmae import PointMAE

            self._net = PointMAE(config.num_groups, config.group_size)
            self._net.load_checkpoint(config.pcd_weights)
            self._net.to(self.device)

    def __call__(self, sample: Sample, wanted: Tensor | None = None) -> Patches:
        """Return the features of a preprocessed scan, zero where a cell is background.

        `wanted` is (cells,) bool, on the CPU: the only cells whose features are needed, the others
        count as background; None: all. Where the networks allow it, others cost nothing. A
        ScanError where the scan has too few points for the point features.
        """
        pcd, foreground = self.points(sample, wanted)
        feat = {"pcd": pcd, "rgb": self.colour(sample, wanted)}
        feat = {mod: torch.where(foreground[:, None], feat[mod], 0.0) for mod in MODALITIES}
        grid = (self.config.grid_size, self.config.grid_size)
        return Patches(feat, grid, foreground, self._rgb.shared)

    def points(self, sample: Sample, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (cells, D_pcd) point features and (cells,) bool, which cells hold the object."""
        if self._net is None:
            from g2sf_lib.features.fpfh import fpfh_patches

            feat, foreground = fpfh_patches(sample.xyz, self.config, sample.name, wanted)
        else:
            from g2sf_lib.features.pointmae import pointmae_patches

            feat, foreground = pointmae_patches(sample.xyz, self.config, self._net, sample.name)
            if wanted is not None:
                foreground = foreground & wanted.to(foreground.device)
        return feat.to(self.device), foreground.to(self.device)

    def colour(self, sample: Sample, wanted: Tensor | None = None) -> Tensor:
        """Return (cells, D_rgb) RGB features, background included."""
        return self._rgb([sample.rgb], wanted)[0]


def half_precision(device: torch.device) -> torch.autocast:
    """Return the context in which a frozen network runs: float16 products where they are faster."""
    return torch.autocast(device.type, dtype=torch.float16, enabled=device.type == "cuda")


def nearest_index(size: int, num: int) -> np.ndarray:
    """Return the (num,) indices of the pixels at the centres of `num` equal parts of `size`."""
    return (2 * np.arange(num) + 1) * size // (2 * num)


def cell_labels(mask: np.ndarray, grid: int, rule: Literal["cover", "centre"] = "cover") -> Tensor:
    """Return (cells,) bool, row-major: which cells of a pasted (H, W) mask count as anomalous.

    "cover": at least a quarter of the cell is anomalous. "centre": the mask, dilated 3 x 3, is
    anomalous at the cell's centre, which overlooks the smaller pastes where cells are wide.

    Source: Section 3.7; "centre" is the rule of the authors' code (facts.md, section 4).
    """
    if rule == "cover":
        pixels = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
        cover = torch.nn.functional.adaptive_avg_pool2d(pixels, (grid, grid))
        return cover.reshape(-1) >= MIN_COVER
    dilated = ndimage.binary_dilation(mask, structure=np.ones((3, 3), bool))
    rows, columns = (nearest_index(side, grid) for side in dilated.shape)
    return torch.from_numpy(dilated[np.ix_(rows, columns)].reshape(-1))


def save_patches(
    path: Path, patches: Patches | PackedPatches, cell_mask: Tensor | None = None
) -> None:
    """Write patches, packed (see `pack`), as one safetensors file; all of it or nothing.

    `cell_mask` is (cells,) bool, True on anomalous cells, or (cells, M), where it is known
    which modalities are. A ValueError where a feature is not finite in float16.
    """
    packed = pack(patches) if isinstance(patches, Patches) else patches
    grid = torch.tensor(packed.grid)
    tensors = {"foreground": packed.foreground, "cell_mask": cell_mask, "grid": grid}
    for mod, rows in packed.cells.items():
        tensors |= {mod: torch.cat(rows.parts), f"{mod}_place": rows.place}
        if not torch.isfinite(tensors[mod]).all():
            raise ValueError(f"{path}: {mod} features are not finite, or above 65504, in float16")
    write_tensors(path, {name: value for name, value in tensors.items() if value is not None})


def load_patches(path: str | Path) -> tuple[PackedPatches, Tensor | None]:
    """Return the patches of a file of `save_patches`, read when used, and its cell mask if any.

    A damaged or foreign file raises a ValueError that names it.
    """
    try:
        tensors = load_file(path)
        rows, columns = tensors["grid"].tolist()
        cells = {mod: Rows([tensors[mod]], tensors.get(f"{mod}_place")) for mod in MODALITIES}
        foreground = tensors["foreground"]
        if any(len(cells[mod]) != int(foreground.sum()) for mod in MODALITIES):
            raise ValueError("as many features as foreground cells were expected")
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a readable patch file: {error}") from error
    return PackedPatches(cells, (rows, columns), foreground), tensors.get("cell_mask")

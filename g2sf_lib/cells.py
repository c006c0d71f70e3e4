"""The cells that LSPN is trained on: which they are, how they are labelled, what is near them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_dilation, binary_erosion
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib.config import MODALITIES, CellsConfig, Config
from g2sf_lib.datasets import Sample
from g2sf_lib.features import FeatureExtractor, PackedPatches, Patches, cell_labels, pack
from g2sf_lib.memory import MemoryBank, Rows, Standardiser
from g2sf_lib.store import read_tensors, write_tensors
from g2sf_lib.synthesis import CHANGED


@dataclass
class Cells:
    """Labelled cells and their neighbourhoods, as the loop reads them."""

    feat: dict[str, Tensor | Rows]  # (N, D_mod) standardised; `Rows` are read batch by batch
    index: dict[str, Tensor]  # (N, 2k + 1) nearest prototypes of each modality
    s: Tensor  # (N, 2k + 1, M) distances in the units of `feat`
    is_anomalous: Tensor  # (N,) bool
    image: Tensor  # (N,) number of the image a cell comes from
    changed: Tensor | None = None  # (N, M) bool, by a paste; None: both, on anomalous cells
    target: Tensor | None = None  # (N,) the normal scan that it is, or stands on; None: the image

    def __post_init__(self):
        if self.changed is None:
            self.changed = self.is_anomalous[:, None].expand(-1, len(MODALITIES))
        if self.target is None:
            self.target = self.image

    def __len__(self) -> int:
        return len(self.image)

    def _each(self, of: Callable) -> Cells:
        """Return the cells with a function applied to everything that is known of them."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Cells(*({m: of(v[m]) for m in v} if isinstance(v, dict) else of(v) for v in values))

    def take(self, rows: Tensor) -> Cells:
        """Return the cells of the given rows, or of a bool per cell."""
        return self._each(lambda part: part[rows])

    def without_features(self, rows: Tensor) -> Cells:
        """Return what is known of some cells beside their features and prototypes."""
        return dataclasses.replace(self, feat={}, index={}).take(rows)

    def to(self, device: torch.device) -> Cells:
        """Return the cells on a device."""
        return self._each(lambda part: part.to(device))


def counted_cells(patches: Patches | PackedPatches, silhouette: str) -> Tensor:
    """Return (cells,) bool: whose scores count, by one rule for every method.

    "exclude" leaves out foreground cells with a background cell among their eight neighbours, or
    at the edge of the image, where the support of a point feature is cut, unless nothing would
    be left. "count" leaves none out.
    """
    if silhouette == "count":
        return patches.foreground
    inner = binary_erosion(patches.foreground.cpu().numpy().reshape(patches.grid), np.ones((3, 3)))
    inner = torch.from_numpy(inner.reshape(-1)).to(patches.foreground.device)
    return inner if inner.any() else patches.foreground


def pasted_patches(
    sample: Sample, extract: FeatureExtractor, config: Config, whole: bool = False
) -> tuple[PackedPatches, Tensor]:
    """Return features of a synthetic scan, and (cells, M) bool: what a paste changed, and where.

    Only the cells that are trained on are described, unless `whole`.
    """
    synthesis = config.synthesis
    pasted = cell_labels(sample.mask, config.features.grid_size, synthesis.label_rule)
    labels = pasted[:, None] & torch.tensor(CHANGED[sample.label])
    needs_all = whole or synthesis.normal_cells == "pasted"
    return pack(extract(sample, None if needs_all else pasted)), labels


@dataclass(frozen=True)
class LabelledScan:
    """A scan whose cells are trained on: a normal one, or a synthetic anomaly."""

    patches: Patches | PackedPatches  # of a synthetic one only where they are needed
    labels: Tensor  # (cells, M) bool, which cells a paste changed, and in which modality
    target: int  # number of the normal training scan that it is, or that its pastes stand on
    outline: Patches | PackedPatches  # say which cells are at the outline of the object


def labelled_scans(
    normal: Sequence[Patches | PackedPatches],
    pasted: Sequence[Patches | PackedPatches],
    labels: Sequence[Tensor],
    is_untouched: bool,
) -> list[LabelledScan]:
    """Return the scans whose cells are trained on; pasted scan i stands on normal scan i modulo N.

    Normal cells are those of the training scans if `is_untouched`, else what pastes leave of them.
    """
    none = torch.zeros(normal[0].grid[0] * normal[0].grid[1], len(MODALITIES), dtype=torch.bool)
    found = [LabelledScan(p, none, t, p) for t, p in enumerate(normal)] if is_untouched else []
    for number, (patches, label) in enumerate(zip(pasted, labels, strict=True)):
        target = number % len(normal)
        outline = normal[target] if is_untouched else patches
        found.append(LabelledScan(patches, label, target, outline))
    return found


def kept_cells(scan: LabelledScan, cells: CellsConfig, outline: str) -> Tensor:
    """Return (n,) bool: which of a scan's foreground cells are trained on, or judged.

    Left out are cells at the outline (if that is "exclude"), and cells within reach of a paste that
    are not labelled themselves: their features are neither those of a sound part nor of a defect.
    """
    grid, pasted = scan.patches.grid, scan.labels.any(1)
    among = counted_cells(scan.outline, outline).cpu()
    if outline == "count":
        among = among | pasted
    side = 2 * cells.reach_cells + 1
    near = binary_dilation(pasted.numpy().reshape(grid), np.ones((side, side)))
    kept = among & (pasted | ~torch.from_numpy(near.reshape(-1)))
    return kept[scan.patches.foreground.cpu()]


def own_prototypes(
    banks: dict[str, MemoryBank], normal: Sequence[Patches | PackedPatches]
) -> list[dict[str, Tensor]]:
    """Return mod -> numbers of the prototypes that come from it, for each training scan."""
    found: list[dict[str, Tensor]] = [{} for _ in normal]
    for mod in MODALITIES:
        ends = torch.tensor([len(p.cells[mod].stored) for p in normal]).cumsum(0)
        scan = torch.searchsorted(ends, banks[mod].rows.cpu(), right=True)
        for number, own in enumerate(found):
            own[mod] = torch.nonzero(scan == number)[:, 0]
    return found


def labelled_cells(
    config: Config,
    standardiser: Standardiser,
    banks: dict[str, MemoryBank],
    scans: Sequence[LabelledScan],
    normal: Sequence[Patches | PackedPatches],
    device: torch.device,
    folder: Path | None = None,
    progress: bool = False,
) -> Cells:
    """Return the cells of scans that are trained on, with their 2k + 1 neighbourhoods.

    Args:
        config: which cells are kept, among which prototypes they are placed; k.
        standardiser: from normal training cells.
        banks: of both modalities.
        scans: of `labelled_scans`.
        normal: the training scans that the banks were made of.
        device: where the search runs.
        folder: neighbours are kept there, a file a scan, so that the search goes on where it was
            interrupted and trainings share it; None: they are not kept.
        progress: whether a bar is shown.
    """
    own, parts, num = own_prototypes(banks, normal), {}, 2 * config.model.k + 1
    for number, scan in enumerate(tqdm(scans, "neighbours", disable=not progress, mininterval=1)):
        file = folder and folder / f"{number:05d}.safetensors"
        if file and file.exists():
            found = read_tensors(file)
        else:
            feat, found = standardiser(scan.patches.cells), {}
            for mod in MODALITIES:  # of the features as stored, not cell by cell
                if config.cells.own_prototypes == "leave_out":
                    given = (feat[mod].stored, num, own[scan.target][mod])
                    index, s = banks[mod].query_without(*given, device=device)
                else:
                    index, s = banks[mod].query(feat[mod].stored, num, device=device)
                found |= {f"{mod}.index": index.int(), f"{mod}.s": s}
            if file:
                write_tensors(file, found)
        for name, value in _row(scan, number, found, config.cells).items():
            parts.setdefault(name, []).append(value)
    whole = {name: torch.cat(values) for name, values in parts.items()}
    return Cells(
        standardiser({mod: Rows([whole[mod]]) for mod in MODALITIES}),
        {mod: whole[f"{mod}.index"] for mod in MODALITIES},
        torch.stack([whole[f"{mod}.s"] for mod in MODALITIES], dim=-1),
        whole["changed"].any(1),
        whole["image"],
        whole["changed"],
        whole["target"],
    )


def _row(
    scan: LabelledScan, number: int, found: dict[str, Tensor], cells: CellsConfig
) -> dict[str, Tensor]:
    """Return what is known of the kept cells of one scan, a tensor an attribute of `Cells`."""
    kept = torch.nonzero(kept_cells(scan, cells, cells.outline_cells))[:, 0]
    row = {"changed": scan.labels[scan.patches.foreground.cpu()][kept]}
    row |= {"image": torch.full_like(kept, number), "target": torch.full_like(kept, scan.target)}
    for mod in MODALITIES:
        rows = scan.patches.cells[mod]
        place = kept if rows.place is None else rows.place.cpu().long()[kept]
        row[mod] = torch.cat(rows.parts)[place]  # as stored: half the memory
        row |= {f"{mod}.{name}": found[f"{mod}.{name}"][place] for name in ("index", "s")}
    return row

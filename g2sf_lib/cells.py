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
    """Labelled cells and their neighbourhoods, as the loop reads them.

    Attributes:
        feat: mod -> (N, D_mod) standardised features; as `Rows` they are read batch by batch.
        index: mod -> (N, 2k + 1) nearest prototypes of each modality.
        s: (N, 2k + 1, M) distances in the units of `feat`.
        is_anomalous: (N,) bool.
        image: (N,) number of the image a cell comes from.
        changed: (N, M) bool, which modalities a paste changed; None: both, on anomalous cells.
        target: (N,) number of the normal scan that the image is, or stands on; None: the image.
    """

    feat: dict[str, Tensor | Rows]
    index: dict[str, Tensor]
    s: Tensor
    is_anomalous: Tensor
    image: Tensor
    changed: Tensor | None = None
    target: Tensor | None = None

    def __post_init__(self):
        if self.changed is None:
            self.changed = self.is_anomalous[:, None].expand(-1, len(MODALITIES))
        if self.target is None:
            self.target = self.image

    def __len__(self) -> int:
        return len(self.image)

    def _each(self, of: Callable) -> Cells:
        """Return the cells with a function applied to everything that is known of them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Cells(
            **{
                name: {mod: of(part) for mod, part in value.items()}
                if isinstance(value, dict)
                else of(value)
                for name, value in values.items()
            }
        )

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
    """A scan whose cells are trained on: a normal one, or a synthetic anomaly.

    Attributes:
        patches: its features; of a synthetic one only where they are needed.
        labels: (cells, M) bool, which cells were changed by a paste, and in which modality.
        target: number of the normal training scan that it is, or that its pastes stand on.
        outline: the patches that say which cells are at the outline of the object.
    """

    patches: Patches | PackedPatches
    labels: Tensor
    target: int
    outline: Patches | PackedPatches


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


def scan_neighbours(
    banks: dict[str, MemoryBank],
    feat: dict[str, Rows],
    num: int,
    own: dict[str, Tensor] | None,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return ``MOD.index`` and ``MOD.s``, (n, num) each, of the stored features of one scan."""
    found = {}
    for mod in MODALITIES:
        ask = (feat[mod].stored, num) if own is None else (feat[mod].stored, num, own[mod])
        query = banks[mod].query if own is None else banks[mod].query_without
        index, s = query(*ask, device=device)
        found |= {f"{mod}.index": index.int(), f"{mod}.s": s}
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
        progress: whether a progress bar is shown.
    """
    own, parts = own_prototypes(banks, normal), {}
    for number, scan in enumerate(
        tqdm(scans, desc="neighbours", disable=not progress, mininterval=1)
    ):
        file = folder and folder / f"{number:05d}.safetensors"
        if file is None or not file.exists():
            others = own[scan.target] if config.cells.own_prototypes == "leave_out" else None
            feat = standardiser(scan.patches.cells)
            found = scan_neighbours(banks, feat, 2 * config.model.k + 1, others, device)
            if file is not None:
                write_tensors(file, found)
        else:
            found = read_tensors(file)
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
    known = {"image": number, "target": scan.target}
    row = {name: torch.full((len(kept),), value) for name, value in known.items()}
    row["changed"] = scan.labels[scan.patches.foreground.cpu()][kept]
    for mod in MODALITIES:
        rows = scan.patches.cells[mod]
        place = kept if rows.place is None else rows.place.cpu().long()[kept]
        row[mod] = torch.cat(rows.parts)[place]  # as stored: half the memory
        row |= {f"{mod}.{name}": found[f"{mod}.{name}"][place] for name in ("index", "s")}
    return row

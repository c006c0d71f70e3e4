"""Crossmodal feature mapping: each modality is predicted from the other (CFM).

Two networks that have only seen normal cells map RGB features to point features and back. They
miss where a cell is anomalous in one modality, or where the two do not belong together.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from g2sf_lib.baselines.loop import build_seeded, train_epochs
from g2sf_lib.baselines.scans import Scans, Scorer
from g2sf_lib.config import MODALITIES
from g2sf_lib.memory import Rows, as_rows

_CELLS_AT_ONCE = 8192


def _network(num_in: int, num_out: int) -> nn.Sequential:
    """Return three linear layers; the hidden ones are as wide as both ends on average."""
    hidden = (num_in + num_out) // 2
    inner = [nn.Linear(num_in, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
    return nn.Sequential(*inner, nn.Linear(hidden, num_out))


class Crossmodal(nn.Module):
    """Two networks, each predicts the features (n, D_mod) of one modality from the other's.

    Source: facts.md, section 7, after Costanzino et al., "Multimodal Industrial Anomaly
    Detection by Crossmodal Feature Mapping", CVPR 2024.
    """

    def __init__(self, dims: Mapping[str, int]):
        super().__init__()
        self.to_pcd = _network(dims["rgb"], dims["pcd"])
        self.to_rgb = _network(dims["pcd"], dims["rgb"])

    def forward(self, feat: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return mod -> (n, D_mod), the features that the other modality lets one expect."""
        return {"pcd": self.to_pcd(feat["rgb"]), "rgb": self.to_rgb(feat["pcd"])}

    @torch.no_grad()
    def errors(self, feat: Mapping[str, Tensor | Rows]) -> Tensor:
        """Return (n, M) distances, in [0, 2], of predicted and true features, both of unit norm."""
        cells = {mod: as_rows(feat[mod]) for mod in MODALITIES}
        device, found = self.to_pcd[0].weight.device, []
        for start in range(0, len(cells["rgb"]), _CELLS_AT_ONCE):
            part = slice(start, start + _CELLS_AT_ONCE)
            block = {mod: rows[part].to(device) for mod, rows in cells.items()}
            expected = self(block)
            gap = [normalize(expected[mod]) - normalize(block[mod]) for mod in MODALITIES]
            found.append(torch.stack([torch.linalg.vector_norm(g, dim=1) for g in gap], 1).cpu())
        return torch.cat(found)


class CFM(Scorer):
    """The product of both errors of prediction.

    The loss is the cosine distance between prediction and truth, summed over the two directions.

    Source: as of `Crossmodal`. Ours: trained on all cells of all scans, not scan by scan.
    """

    def fit(self, train: Scans, folder: Path | None = None, progress: bool = False) -> Self:
        """Train on the cells of normal scans; an epoch takes each once, in an order of its own."""
        settings, seed = self.config.cfm, self.config.seed
        cells = {mod: as_rows(train.standard[mod]) for mod in MODALITIES}
        num, dims = len(cells["rgb"]), {mod: rows.shape[1] for mod, rows in cells.items()}
        self.network = network = build_seeded(lambda: Crossmodal(dims), seed).to(self.device)
        optimiser = torch.optim.Adam(network.parameters(), lr=settings.cfm_learning_rate)

        def run_epoch(generator: torch.Generator) -> float:
            total = torch.zeros((), device=self.device)
            for rows in torch.randperm(num, generator=generator).split(settings.cfm_batch_size):
                batch = {mod: cells[mod][rows].to(self.device) for mod in MODALITIES}
                close = [cosine_similarity(x, batch[mod]) for mod, x in network(batch).items()]
                loss = sum((1 - one).mean() for one in close)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.detach() * (len(rows) / num)
            return float(total)

        place, epochs = folder and folder / "checkpoint.safetensors", settings.cfm_epochs
        train_epochs(network, optimiser, run_epoch, epochs, seed, place, "CFM", progress)
        return self

    def score_cells(self, scans: Scans) -> Tensor:
        """Return (n,) products, in [0, 4]."""
        return self.network.errors(scans.standard).prod(dim=1)

    def build(self, tensors: dict[str, Tensor]) -> Crossmodal:
        """Return networks for features of the lengths that were stored."""
        return Crossmodal({mod: len(tensors[f"to_{mod}.4.bias"]) for mod in MODALITIES})

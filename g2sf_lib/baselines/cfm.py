"""Crossmodal feature mapping: each modality is predicted from the other (CFM).

Two networks that have only seen normal cells map RGB features to point features and back.
Where a cell is anomalous in one modality, or each is normal but the two do not belong
together, the predictions miss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from g2sf_lib.baselines.loop import build_seeded, fingerprint, train_epochs
from g2sf_lib.config import MODALITIES, CFMConfig
from g2sf_lib.memory import Rows, as_rows

_CELLS_AT_ONCE = 8192
_CELLS_LOOKED_AT = 4096  # which a checkpoint knows its data by


def _network(num_in: int, num_out: int) -> nn.Sequential:
    """Return a network of three linear layers; the hidden ones are the mean of both ends wide."""
    hidden = (num_in + num_out) // 2
    return nn.Sequential(
        nn.Linear(num_in, hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, num_out),
    )


class CFM(nn.Module):
    """Two networks, each predicts the features of one modality from those of the other.

    Args:
        dims: {"pcd": D_pcd, "rgb": D_rgb}, the lengths of the features.

    Source: facts.md, section 7, after Costanzino et al., "Multimodal Industrial Anomaly
    Detection by Crossmodal Feature Mapping", CVPR 2024.
    """

    def __init__(self, dims: Mapping[str, int]):
        super().__init__()
        self.dims = {mod: int(dims[mod]) for mod in MODALITIES}
        self.to_pcd = _network(self.dims["rgb"], self.dims["pcd"])
        self.to_rgb = _network(self.dims["pcd"], self.dims["rgb"])

    def forward(self, feat: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return mod -> (n, D_mod), the features that the other modality lets one expect."""
        return {"pcd": self.to_pcd(feat["rgb"]), "rgb": self.to_rgb(feat["pcd"])}

    @torch.no_grad()
    def errors(self, feat: Mapping[str, Tensor | Rows]) -> Tensor:
        """Return how far each modality is from what the other lets one expect.

        Args:
            feat: mod -> (n, D_mod), on any device; `Rows` are read block by block.

        Returns:
            (n, M) on the CPU, M in the order ("pcd", "rgb"): Euclidean distance between the
            predicted and the true feature, both of unit norm; in [0, 2].

        Raises:
            ValueError: the features are not pairs of the lengths that this was trained on.
        """
        _check(feat, "CFM.errors")
        found = {mod: feat[mod].shape[1] for mod in MODALITIES}
        if found != self.dims:
            raise ValueError(f"CFM.errors: features of lengths {found}; expected {self.dims}")
        device = self.to_pcd[0].weight.device
        parts = [torch.empty(0, len(MODALITIES))]
        for block in _blocks(feat, device):
            expected = self(block)
            parts.append(
                torch.stack(
                    [
                        torch.linalg.vector_norm(
                            normalize(expected[mod], dim=1) - normalize(block[mod], dim=1), dim=1
                        )
                        for mod in MODALITIES
                    ],
                    dim=1,
                ).cpu()
            )
        return torch.cat(parts)

    def score(self, feat: Mapping[str, Tensor | Rows]) -> Tensor:
        """Return (n,) products of both errors, on the CPU, in [0, 4]; see `errors`."""
        return self.errors(feat).prod(dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """Return what `from_tensors` needs to make the same networks, name -> tensor."""
        return {name: value.detach() for name, value in self.state_dict().items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> CFM:
        """Return the networks that `tensors` came from, on the CPU.

        Raises:
            ValueError: a tensor is missing, of another shape, or one too many.
        """
        try:
            dims = {mod: len(tensors[f"to_{mod}.4.bias"]) for mod in MODALITIES}
            cfm = cls(dims)
            cfm.load_state_dict(dict(tensors))
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"CFM.from_tensors: not the tensors of a CFM: {error}") from error
        return cfm


def train_cfm(
    feat: Mapping[str, Tensor | Rows],
    settings: CFMConfig,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> CFM:
    """Return both networks, trained on the cells of normal scans.

    The loss is the cosine distance between prediction and truth, summed over the two
    directions and averaged over the cells of a batch. An epoch takes every cell once, in
    an order of its own.

    Args:
        feat: mod -> (N, D_mod) features of normal foreground cells; `Rows` are read batch by
            batch.
        settings: epochs, batch size, learning rate.
        seed: of the initial weights and of the orders.
        device: where the networks are trained and stay.
        checkpoint: see `train_epochs`; None: nothing is written.
        progress: whether a progress bar is shown.

    Raises:
        ValueError: there are no cells, or the modalities differ in their number.
        FloatingPointError: the loss is no longer finite.
        StoredFileError: the checkpoint is damaged.

    Source: as of `CFM`. Ours: one pair of networks is trained on all cells of all scans, not
    scan by scan.
    """
    _check(feat, "train_cfm")
    num = len(feat["rgb"])
    if not num:
        raise ValueError("train_cfm: no cells; expected those of normal scans")
    cells = {mod: as_rows(feat[mod]) for mod in MODALITIES}
    dims = {mod: cells[mod].shape[1] for mod in MODALITIES}
    cfm = build_seeded(lambda: CFM(dims), seed).to(device)
    optimiser = torch.optim.Adam(cfm.parameters(), lr=settings.cfm_learning_rate)

    def run_epoch(generator: torch.Generator) -> float:
        total = torch.zeros((), device=device)
        for rows in torch.randperm(num, generator=generator).split(settings.cfm_batch_size):
            batch = {mod: cells[mod][rows].to(device) for mod in MODALITIES}
            expected = cfm(batch)
            loss = sum(
                (1 - cosine_similarity(expected[mod], batch[mod], dim=1)).mean()
                for mod in MODALITIES
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach() * (len(rows) / num)
        return float(total)

    looked_at = torch.arange(0, num, max(num // _CELLS_LOOKED_AT, 1))
    data = (cells[mod][looked_at] for mod in MODALITIES)
    train_epochs(
        cfm,
        optimiser,
        run_epoch,
        settings.cfm_epochs,
        seed,
        checkpoint=checkpoint,
        fingerprint=fingerprint(settings, data),
        name="CFM",
        lower="cfm_learning_rate",
        progress=progress,
    )
    return cfm


def _check(feat: Mapping[str, Tensor | Rows], function: str) -> None:
    """Refuse features that are not one pair a cell."""
    shapes = {mod: tuple(feat[mod].shape) for mod in MODALITIES}
    if (
        any(len(shape) != 2 for shape in shapes.values())
        or len({s[0] for s in shapes.values()}) > 1
    ):
        raise ValueError(
            f"{function}: features of shapes {shapes}; expected (n, D_mod), the same n"
        )


def _blocks(feat: Mapping[str, Tensor | Rows], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Yield the features of a few thousand cells at a time on a device, in order."""
    cells = {mod: as_rows(feat[mod]) for mod in MODALITIES}
    for start in range(0, len(cells["rgb"]), _CELLS_AT_ONCE):
        part = slice(start, start + _CELLS_AT_ONCE)
        yield {mod: cells[mod][part].to(device) for mod in MODALITIES}

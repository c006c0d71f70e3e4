"""Point-MAE's encoder (Pang et al., 2022) in plain PyTorch, and its features on the grid.

Attributes of the modules carry the names of the official checkpoint.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import fpsample
import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from scipy.spatial import cKDTree
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from g2sf_lib.config import FeatureConfig
from g2sf_lib.datasets import ScanError
from g2sf_lib.features import half_precision, nearest_index
from g2sf_lib.features.checkpoints import WeightsError, read_checkpoint

WIDTH, DEPTH, NUM_HEADS = 384, 12, 6
TAPS = (4, 8, 12)  # blocks whose outputs are concatenated: 3 * 384 = 1152 numbers
PIXELS = 224  # side of the grid on which point features are laid before pooling
DECODER = ("mask_token", "decoder_pos_embed.", "MAE_decoder.", "increase_dim.")
URL = "https://github.com/Pang-Yatian/Point-MAE/releases/download/main/pretrain.pth"
DEFAULT_FILE = Path("data/weights/pointmae_pretrain.pth")  # where `make weights` puts it
WHERE = (
    f"Call `make weights`, or fetch {URL}, keep it where you like, and set pcd_weights to its path."
)


class GroupEncoder(nn.Module):
    """Mini-PointNet: one token for each group of points, whatever the points' order."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, WIDTH, 1)
        )

    def forward(self, groups: Tensor) -> Tensor:
        """Return (G, 384) tokens of (G, S, 3) points centred on their group's centre."""
        local = self.first_conv(groups.transpose(1, 2))  # (G, 256, S)
        whole = local.amax(2, keepdim=True).expand_as(local)
        return self.second_conv(torch.cat([whole, local], dim=1)).amax(2)


class PointMAE(nn.Module):
    """Point-MAE's frozen encoder: a feature for each of `num_groups` groups of `group_size` points.

    Source: Section 3.1; layers and sizes as in facts.md, section 2.
    """

    def __init__(self, num_groups: int, group_size: int) -> None:
        super().__init__()
        self.num_groups, self.group_size = num_groups, group_size
        self.encoder = GroupEncoder()
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, WIDTH))
        make = partial(Block, WIDTH, NUM_HEADS, qkv_bias=False, norm_layer=nn.LayerNorm)
        # The checkpoint has a level of this name above the twelve blocks.
        self.blocks = nn.ModuleDict({"blocks": nn.ModuleList(make() for _ in range(DEPTH))})
        self.norm = nn.LayerNorm(WIDTH)
        self.eval().requires_grad_(False)

    def load_checkpoint(self, path: str | Path | None) -> None:
        """Read the official pre-training checkpoint, without its decoder; None: `DEFAULT_FILE`.

        A WeightsError where it is missing, cannot be read without running code, or does not fit.
        """
        found = f"{str(path)!r}" if path is not None else f"not set, which means {DEFAULT_FILE}"
        path = DEFAULT_FILE if path is None else Path(os.path.expanduser(path))
        if not path.is_file():
            what = f"pcd_weights is {found}, where there is no file"
            raise WeightsError(f"Point-MAE needs its weights; {what}. {WHERE}")
        try:
            state = read_checkpoint(path)
        except WeightsError as error:
            raise WeightsError(f"{error}. {WHERE}") from error.__cause__
        table = state.get("base_model") if isinstance(state, dict) else None
        if not isinstance(table, dict):
            keys = sorted(map(str, state)) if isinstance(state, dict) else [type(state).__name__]
            raise WeightsError(
                f"{path}: found {', '.join(keys[:8])}; expected a table of tensors under "
                f"'base_model'. {WHERE}"
            )
        named = {str(k).removeprefix("module."): v for k, v in table.items()}
        ours = {
            key.removeprefix("MAE_encoder."): value
            for key, value in named.items()
            if isinstance(value, Tensor) and not key.startswith(DECODER)
        }
        try:
            self.load_state_dict(ours)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise WeightsError(
                f"{path}: not Point-MAE's encoder; expected its tensors and no others; {reason}"
            ) from None

    @torch.no_grad()
    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return (G, 1152) features of groups of (N, 3) points in metres, and their centres (G,).

        Features are outputs of blocks 4, 8 and 12 after the final norm; centres are points by
        number, farthest points from point 0 on.
        """
        device = self.norm.weight.device
        host = np.ascontiguousarray(points.detach().cpu().numpy(), dtype=np.float32)
        # The plain variant: the bucketed ones break ties of organised clouds differently.
        centre = fpsample.fps_sampling(host, self.num_groups, start_idx=0).astype(np.int64)
        member = cKDTree(host).query(host[centre], k=range(1, self.group_size + 1))[1]  # (G, S)
        groups = torch.from_numpy(host[member] - host[centre][:, None]).to(device)  # (G, S, 3)
        # 64 groups at a time: the widest layer of all groups at once would take 270 MB.
        taps = []
        with half_precision(device):
            x = torch.cat([self.encoder(part) for part in groups.split(64)])[None]  # (1, G, 384)
            position = self.pos_embed(torch.from_numpy(host[centre]).to(device))
            for number, block in enumerate(self.blocks["blocks"], start=1):
                x = block(x + position)
                if number in TAPS:
                    taps.append(self.norm(x)[0].float())
        return torch.cat(taps, dim=1), torch.from_numpy(centre).to(device)


def interpolate(points: Tensor, centres: Tensor, feat: Tensor) -> Tensor:
    """Return (N, C), every point's feature: the mean over its 3 nearest centres, near ones more.

    Weights of points (N, 3) to centres (G, 3), metres, are 1 / (squared distance + 1e-8) over
    their sum.
    """
    near = range(1, min(3, len(centres)) + 1)
    distance, index = cKDTree(centres.cpu().numpy()).query(points.cpu().numpy(), k=near)
    index = torch.from_numpy(index).to(feat.device)
    weight = 1 / (np.square(distance) + 1e-8)
    weight = torch.from_numpy(weight / weight.sum(1, keepdims=True)).to(feat)
    # One neighbour at a time: (N, 3, C) would be three times the memory.
    return sum(weight[:, j : j + 1] * feat[index[:, j]] for j in range(len(near)))


@torch.no_grad()
def pointmae_patches(
    xyz: np.ndarray, config: FeatureConfig, net: PointMAE, name: str = "scan"
) -> tuple[Tensor, Tensor]:
    """Return (cells, 1152) Point-MAE's features on the common grid, and (cells,) which have one.

    They are means in which pixels of `xyz` (H, W, 3), metres, without a point count as zero. A
    ScanError where a point is not finite, or there are too few.

    Source: facts.md, section 2.
    """
    rows, columns = (nearest_index(side, PIXELS) for side in xyz.shape[:2])
    flat = xyz[np.ix_(rows, columns)].reshape(-1, 3)
    pixel = np.flatnonzero(np.any(flat != 0, axis=1))
    points = torch.from_numpy(np.ascontiguousarray(flat[pixel], dtype=np.float32))
    if not torch.isfinite(points).all():
        raise ScanError(f"{name}: points with NaN or infinite coordinates; expected finite metres")
    if len(points) < (need := max(net.group_size, net.num_groups)):
        raise ScanError(
            f"{name}: a cloud of {len(points)} points; Point-MAE with num_groups ="
            f" {net.num_groups} and group_size = {net.group_size} needs at least {need}"
        )
    group_feat, centre = net(points)
    point_feat = interpolate(points, points[centre.cpu()], group_feat)  # (N, 1152)
    feat = torch.sparse.mm(_pool_matrix(pixel, config.grid_size).to(point_feat), point_feat)
    return feat, (feat != 0).any(dim=1)


def _pool_matrix(pixel: np.ndarray, grid: int) -> Tensor:
    """Return the sparse (grid * grid, N) matrix that pools points on row-major pixels (N,)."""
    # The 3 x 3 mean (stride 1, no padding), then the mean over cells: both linear and separable,
    # so the (224, 224, 1152) array that pooling layers would want is never built.
    pixels = torch.eye(PIXELS, dtype=torch.float64)
    side = F.adaptive_avg_pool1d(F.avg_pool1d(pixels, 3, stride=1), grid).T.numpy()
    matrix = sparse.kron(sparse.csr_array(side), sparse.csr_array(side), format="csc")
    matrix = matrix[:, pixel].tocoo()
    index = torch.from_numpy(np.stack(matrix.coords).astype(np.int64))
    data = torch.from_numpy(matrix.data)
    return torch.sparse_coo_tensor(index, data, matrix.shape, check_invariants=True).coalesce()

"""Point-MAE's encoder (Pang et al., 2022) in plain PyTorch, and its features on the grid.

Attributes of the modules carry the names of the official checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path

import fpsample
import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from scipy.spatial import cKDTree
from torch import nn

from g2sf_lib.config import FeatureConfig
from g2sf_lib.datasets import ScanError
from g2sf_lib.features import WeightsError, half_precision, nearest_index, reading_checkpoint

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
        """Make the layers with random weights."""
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, WIDTH, 1)
        )

    def forward(self, groups: torch.Tensor) -> torch.Tensor:
        """Return (G, 384) tokens of (G, S, 3) points centred on their group's centre."""
        local = self.first_conv(groups.transpose(1, 2))  # (G, 256, S)
        whole = local.amax(2, keepdim=True).expand_as(local)
        return self.second_conv(torch.cat([whole, local], dim=1)).amax(2)


class Block(nn.Module):
    """Pre-norm transformer block without bias in query, key and value."""

    def __init__(self) -> None:
        """Make the layers with random weights."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(WIDTH, 3 * WIDTH, bias=False), "proj": nn.Linear(WIDTH, WIDTH)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (G, 384) from (G, 384)."""
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(1, (3, NUM_HEADS, -1))  # (G, 3, 6, 64)
        query, key, value = qkv.permute(1, 2, 0, 3)[:, None]  # each (1, 6, G, 64)
        heads = F.scaled_dot_product_attention(query, key, value)[0]
        x = x + self.attn["proj"](heads.transpose(0, 1).flatten(1))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Blocks(nn.Module):
    """The twelve blocks; a module of its own because the checkpoint has this level."""

    def __init__(self) -> None:
        """Make the layers with random weights."""
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))


class PointMAE(nn.Module):
    """Encoder of Point-MAE: a feature for each group of neighbouring points; frozen.

    Args:
        num_groups: G, groups a cloud.
        group_size: S, points a group; groups overlap.

    Source: Section 3.1; layers and sizes as in facts.md, section 2.
    """

    def __init__(self, num_groups: int, group_size: int) -> None:
        """Make the layers with random weights; `load_checkpoint` brings the real ones."""
        super().__init__()
        self.num_groups, self.group_size = num_groups, group_size
        self.encoder = GroupEncoder()
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, WIDTH))
        self.blocks = Blocks()
        self.norm = nn.LayerNorm(WIDTH)
        self.eval().requires_grad_(False)

    def load_checkpoint(self, path: str | Path | None) -> None:
        """Read the official pre-training checkpoint; its decoder is ignored.

        Args:
            path: a .pth file whose key ``base_model`` holds names with the prefixes
                ``module.`` (optional) and ``MAE_encoder.``; ``~`` is the home folder; None:
                `DEFAULT_FILE`.

        Raises:
            WeightsError: there is no such file, it cannot be read without running code in
                it, or a tensor is missing, left over or of another shape.
        """
        found = f"{str(path)!r}" if path is not None else f"not set, which means {DEFAULT_FILE}"
        path = DEFAULT_FILE if path is None else Path(os.path.expanduser(path))
        if not path.is_file():
            raise WeightsError(
                f"Point-MAE needs its weights; pcd_weights is {found}, where there is no file. "
                f"{WHERE}"
            )
        try:
            with reading_checkpoint(path):
                state = torch.load(path, map_location="cpu", weights_only=True)
        except WeightsError as error:
            raise WeightsError(f"{error}. {WHERE}") from error.__cause__
        keys = sorted(map(str, state)) if isinstance(state, dict) else [type(state).__name__]
        if "base_model" not in keys or not isinstance(state["base_model"], dict):
            raise WeightsError(
                f"{path}: found {', '.join(keys[:8])}; expected a table of tensors under "
                f"'base_model'. {WHERE}"
            )
        ours = {}
        for key, value in state["base_model"].items():
            key = str(key).removeprefix("module.")
            if isinstance(value, torch.Tensor) and not key.startswith(DECODER):
                ours[key.removeprefix("MAE_encoder.")] = value
        expected = self.state_dict()
        problems = {
            "missing": sorted(expected.keys() - ours.keys()),
            "unexpected": sorted(ours.keys() - expected.keys()),
            "of another shape": sorted(
                f"{key} {tuple(ours[key].shape)}, expected {tuple(expected[key].shape)}"
                for key in ours.keys() & expected.keys()
                if ours[key].shape != expected[key].shape
            ),
        }
        if any(problems.values()):
            text = "; ".join(f"{what}: {', '.join(k)}" for what, k in problems.items() if k)
            raise WeightsError(f"{path}: not Point-MAE's encoder; {text}")
        self.load_state_dict(ours)

    @torch.no_grad()
    def forward(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one feature for each group, and the points on which the groups are centred.

        Args:
            points: (N, 3) float32, metres.

        Returns:
            feat: (G, 1152) float32: outputs of blocks 4, 8 and 12 after the final norm.
            centre_index: (G,) int64 into points, farthest points first to last from
                point 0. The order of the other points does not matter.

        Raises:
            ScanError: fewer points than a group has, or than there are groups.
        """
        need = max(self.group_size, self.num_groups)
        if len(points) < need:
            raise ScanError(
                f"a cloud of {len(points)} points; Point-MAE with num_groups = {self.num_groups} "
                f"and group_size = {self.group_size} needs at least {need}"
            )
        device = self.norm.weight.device
        host = np.ascontiguousarray(points.detach().cpu().numpy(), dtype=np.float32)
        # The plain variant: the bucketed ones break ties of organised clouds differently.
        centre = fpsample.fps_sampling(host, self.num_groups, start_idx=0).astype(np.int64)
        _, member = cKDTree(host).query(host[centre], k=self.group_size)  # (G, S)
        member = member.reshape(self.num_groups, self.group_size)
        groups = torch.from_numpy(host[member] - host[centre][:, None]).to(device)  # (G, S, 3)
        # 64 groups at a time: the widest layer of all groups at once would take 270 MB.
        taps = []
        with half_precision(device):
            x = torch.cat([self.encoder(part) for part in groups.split(64)])  # (G, 384)
            position = self.pos_embed(torch.from_numpy(host[centre]).to(device))
            for number, block in enumerate(self.blocks.blocks, start=1):
                x = block(x + position)
                if number in TAPS:
                    taps.append(self.norm(x).float())
        return torch.cat(taps, dim=1), torch.from_numpy(centre).to(device)


def interpolate(points: torch.Tensor, centres: torch.Tensor, feat: torch.Tensor) -> torch.Tensor:
    """Return every point's feature: the mean over its 3 nearest centres, near ones more.

    Weights are 1 / (squared distance + 1e-8), divided by their sum, so that a point on a
    centre has that centre's feature, and no feature leaves the range of its three.

    Args:
        points: (N, 3), metres.
        centres: (G, 3), metres.
        feat: (G, C), one row a centre.

    Returns:
        (N, C), on the device of feat.
    """
    near = min(3, len(centres))
    distance, index = cKDTree(centres.cpu().numpy()).query(points.cpu().numpy(), k=near)
    index = torch.from_numpy(index.reshape(-1, near)).to(feat.device)
    weight = 1 / (np.square(distance.reshape(-1, near)) + 1e-8)
    weight = torch.from_numpy(weight / weight.sum(1, keepdims=True)).to(feat)
    out = weight[:, :1] * feat[index[:, 0]]
    for j in range(1, near):  # one neighbour at a time: (N, 3, C) would be three times the memory
        out += weight[:, j : j + 1] * feat[index[:, j]]
    return out


@torch.no_grad()
def pointmae_patches(
    xyz: np.ndarray, config: FeatureConfig, net: PointMAE, name: str = "scan"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Point-MAE's features on the common grid, and which cells have one.

    Args:
        xyz: (H, W, 3), metres; (0, 0, 0) where there is no point.
        config: ``grid_size``.
        net: with its weights, on the device to compute on.
        name: what the scan is called in messages.

    Returns:
        feat: (grid_size * grid_size, 1152) float32, on the device of net. The mean over a
            cell counts pixels without a point as zero, as published.
        foreground: (grid_size * grid_size,) bool; False where the whole feature is zero.

    Raises:
        ScanError: a point is not finite, or there are too few for the groups.

    Source: facts.md, section 2.
    """
    rows, columns = (nearest_index(side, PIXELS) for side in xyz.shape[:2])
    flat = xyz[np.ix_(rows, columns)].reshape(-1, 3)
    pixel = np.flatnonzero(np.any(flat != 0, axis=1))
    points = torch.from_numpy(np.ascontiguousarray(flat[pixel], dtype=np.float32))
    if not torch.isfinite(points).all():
        raise ScanError(f"{name}: points with NaN or infinite coordinates; expected finite metres")
    try:
        group_feat, centre = net(points)
    except ScanError as error:
        raise ScanError(f"{name}: {error}") from error
    point_feat = interpolate(points, points[centre.cpu()], group_feat)  # (N, 1152)
    feat = torch.sparse.mm(_pool_matrix(pixel, config.grid_size).to(point_feat), point_feat)
    return feat, (feat != 0).any(dim=1)


def _pool_matrix(pixel: np.ndarray, grid: int) -> torch.Tensor:
    """Return the sparse (grid * grid, N) matrix that pools points lying on some pixels.

    It is the 3 x 3 mean (stride 1, no padding) followed by the mean over cells; both are
    linear and separable, and a pixel without a point counts as zero. So the (224, 224,
    1152) array that the pooling layers would want, 230 MB of mostly zeros, is never built.

    Args:
        pixel: (N,) row-major pixels of the 224 x 224 grid, one a point, ascending.
        grid: cells along each side.
    """
    pixels = torch.eye(PIXELS, dtype=torch.float64)
    side = F.adaptive_avg_pool1d(F.avg_pool1d(pixels, 3, stride=1), grid).T.numpy()
    matrix = sparse.kron(sparse.csr_array(side), sparse.csr_array(side), format="csc")
    matrix = matrix[:, pixel].tocoo()
    index = torch.from_numpy(np.stack(matrix.coords).astype(np.int64))
    data = torch.from_numpy(matrix.data)
    return torch.sparse_coo_tensor(index, data, matrix.shape, check_invariants=True).coalesce()

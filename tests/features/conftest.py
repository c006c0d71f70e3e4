import numpy as np
import pytest
import torch

PITCH_M = 0.00046  # at the distance of 0.45 m


def make_xyz(size=256, seed=0, noise_m=1.2e-4, radius=0.36, bump=None):
    """A wavy disc seen from 0.45 m; bump = (row, column, height in m, sigma in px)."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:size, :size].astype(float)
    pitch = PITCH_M * 256 / size
    z = 0.45 + 0.002 * np.sin(row / size * 7) * np.cos(column / size * 5)
    z += rng.normal(scale=noise_m, size=z.shape) if noise_m else 0
    if bump is not None:
        z -= bump[2] * np.exp(-((row - bump[0]) ** 2 + (column - bump[1]) ** 2) / 2 / bump[3] ** 2)
    x, y = ((at - size / 2) * pitch / 0.45 * z for at in (column, row))
    xyz = np.stack([x, y, z], axis=-1).astype(np.float32)
    # Off centre, so that no mirror image of the foreground is the foreground.
    outside = (row - 0.47 * size) ** 2 + (column - 0.53 * size) ** 2 > (radius * size) ** 2
    xyz[outside] = 0
    return xyz


def make_rgb(size=256, seed=0):
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(90, 160, size=(1, 3, 16, 16)))
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")[0]
    return fine.permute(1, 2, 0).clamp(0, 255).round().to(torch.uint8).numpy()


@pytest.fixture
def scan_xyz():
    return make_xyz


@pytest.fixture
def scan_rgb():
    return make_rgb


@pytest.fixture
def pointmae_checkpoint():
    """Writes a file laid out like the official one, from a network's own weights."""

    def write(path, net, *, drop=(), add=()):
        state = {f"module.MAE_encoder.{key}": value for key, value in net.state_dict().items()}
        decoder = ("mask_token", "decoder_pos_embed.0.weight", "MAE_decoder.blocks.0.attn.qkv.bias")
        state |= {f"module.{key}": torch.ones(1) for key in (*decoder, *add)}
        kept = {key: value for key, value in state.items() if key not in drop}
        torch.save({"base_model": kept, "epoch": 300}, path)
        return path

    return write

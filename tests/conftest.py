"""Small worlds that several tests share: labelled cells, made-up patches, prepared scans."""

import dataclasses

import faiss
import numpy as np
import pytest
import torch

from g2sf_lib.config import MODALITIES, make_config, scans_dir
from g2sf_lib.datasets import Sample
from g2sf_lib.datasets.preprocess import save_prepared
from g2sf_lib.experiments import patch_file
from g2sf_lib.features import Patches, save_patches
from g2sf_lib.memory import MemoryBank
from g2sf_lib.training import Cells

DIMS = {"pcd": 6, "rgb": 8}
GRID = 8


def _moved(generator, num, dim, is_anomalous):
    """Normal cells leave their prototype along the first half of the axes, anomalous ones along
    the second half and a little farther: distance alone tells them apart badly, direction well.
    """
    step = torch.zeros(num, dim)
    half = dim // 2
    step[:, :half] = 0.3 * torch.randn(num, half, generator=generator)
    other = 0.4 * torch.randn(num, dim - half, generator=generator)
    step[is_anomalous, half:] = other[is_anomalous]
    step[is_anomalous, :half] *= 0.3
    return step


@pytest.fixture
def one_thread():
    """Keep torch and faiss on one thread: for small tensors more of them only wait in turns."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


@pytest.fixture
def toy():
    """Return a function (seed, images) -> labelled `Cells` and their banks, k = 2."""

    def make(seed=0, images=12, cells=30):
        generator = torch.Generator().manual_seed(seed)
        bank = {m: MemoryBank(2 * torch.randn(40, d, generator=generator), torch.arange(40))
                for m, d in DIMS.items()}  # fmt: skip
        num = images * cells
        is_anomalous = torch.arange(num) % cells < 8
        row = torch.randint(40, (num,), generator=generator)
        feat = {
            mod: bank[mod].prototypes[row] + _moved(generator, num, dim, is_anomalous)
            for mod, dim in DIMS.items()
        }
        found = {mod: bank[mod].query(feat[mod], 5) for mod in MODALITIES}
        index = {mod: found[mod][0] for mod in MODALITIES}
        s = torch.stack([found[mod][1] for mod in MODALITIES], dim=-1)
        return Cells(feat, index, s, is_anomalous, torch.arange(num) // cells), bank

    return make


@pytest.fixture
def small_config(tmp_path):
    """Return a config of seconds: 8 x 8 cells, 32 px maps, five epochs."""
    return make_config(
        "smoke",
        runs_root=str(tmp_path / "runs"),
        category="foam",
        device="cpu",
        grid_size=GRID,
        num_synthetic=6,
        num_synthetic_validation=3,
        k=2,
        hidden=24,
        embed=12,
        epochs=5,
        batch_size=64,
        bank_fraction=0.3,
        map_size=32,
        blur_sigma_px=1.0,
    )


@pytest.fixture
def make_patches():
    """Return a function (seed, anomalous cells) -> patches and labels of one made-up scan.

    The object is a disc on an 8 x 8 grid; its cells are copies of twelve kinds of surface, with
    noise. The scans of one category share their kinds.
    """
    kinds = torch.Generator().manual_seed(99)
    centres = {mod: 2 * torch.randn(12, dim, generator=kinds) for mod, dim in DIMS.items()}
    axis = torch.arange(GRID) - (GRID - 1) / 2
    foreground = (axis[:, None].square() + axis.square() < 14).reshape(-1)

    def make(seed, anomalous=()):
        generator = torch.Generator().manual_seed(seed)
        num = GRID * GRID
        labels = torch.zeros(num, dtype=torch.bool)
        labels[list(anomalous)] = True
        kind = torch.randint(12, (num,), generator=generator)
        feat = {}
        for mod, dim in DIMS.items():
            value = centres[mod][kind] + _moved(generator, num, dim, labels)
            feat[mod] = torch.where(foreground[:, None], value, 0.0)
        return Patches(feat, (GRID, GRID), foreground), labels & foreground

    return make


@pytest.fixture
def synthetic(make_patches):
    """Return patches and labels of six scans with pasted cells."""
    pasted = [(18, 19, 26), (27, 28, 35, 36), (42, 43), (20, 21, 29), (34, 35, 26), (44, 45, 36)]
    made = [make_patches(100 + n, cells) for n, cells in enumerate(pasted)]
    return [patches for patches, _ in made], [labels for _, labels in made]


@pytest.fixture
def make_sample():
    """Return a function (seed, label) -> a scan of a bumpy textured dome, 96 px, 0.1 m across."""

    def make(seed, label="good", name=None, size=96):
        rng = np.random.default_rng(seed)
        axis = (np.arange(size) - size / 2) * (0.1 / size)
        x, y = np.meshgrid(axis, axis)
        inside = np.hypot(x, y) < 0.04
        dome = 0.012 * (1 - (np.hypot(x, y) / 0.04) ** 2)
        waves = 0.0008 * np.sin(x * 600 + rng.uniform(0, 6)) * np.sin(y * 500 + rng.uniform(0, 6))
        z = 0.45 - dome - waves + 0.0001 * rng.standard_normal(x.shape)
        raw = np.stack([x, y, np.where(inside, z, 0.45)], axis=-1).astype(np.float32)
        shade = 120 + 60 * np.sin(x * 800 + y * 300) + 10 * rng.standard_normal(x.shape)
        rgb = np.stack([shade, 0.8 * shade, 0.5 * shade], axis=-1).clip(1, 255).astype(np.uint8)
        mask = np.zeros(inside.shape, dtype=bool)
        if label != "good":
            mask[40:52, 44:56] = True
            raw[mask, 2] += 0.004
            rgb[mask] = (10, 200, 240)
        xyz = np.where(inside[..., None], raw, np.float32(0))
        rgb = np.where(inside[..., None], rgb, np.uint8(0))
        return Sample(rgb, xyz, mask, label, name or f"train/{label}/{seed:03d}", raw_xyz=raw)

    return make


@pytest.fixture
def write_prepared():
    """Return a function that writes a scan where `list_prepared` finds it."""

    def write(config, split, sample, number):
        name = f"{split}/{sample.label}/{number:03d}"
        path = scans_dir(config) / config.category / f"{name}.safetensors"
        save_prepared(dataclasses.replace(sample, name=name), path)
        return path

    return write


@pytest.fixture
def made_run(make_patches, make_sample, write_prepared, synthetic):
    """Return a function that lays out a run of made-up features, ready for the bank stage.

    Six good training scans, three validation scans, four good and four defective test scans.
    """

    def store(config, split, name, patches, labels):
        path = patch_file(config, split, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_patches(path, patches, labels)

    def make(config, category="foam", test_seed=500):
        config = dataclasses.replace(config, category=category)
        good = make_sample(0)
        for split, first, num in (("train", 0, 6), ("validation", 50, 3), ("test", test_seed, 4)):
            for number in range(num):
                write_prepared(config, split, good, number)
                store(config, split, f"good/{number:03d}", *make_patches(first + number))
        for label in ("dent", "stain"):
            for number in range(2):
                scan = make_sample(1, label)
                write_prepared(config, "test", scan, number)
                store(config, "test", f"{label}/{number:03d}",
                      *make_patches(test_seed + 50 + number, (27, 28, 35, 36)))  # fmt: skip
        for number, (patches, labels) in enumerate(zip(*synthetic, strict=True)):
            store(config, "synthetic", f"{number:04d}", patches, labels)
            if number < config.synthesis.num_synthetic_validation:
                store(config, "synthetic_validation", f"{number:04d}", patches, labels)
        return config

    return make

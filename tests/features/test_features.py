import dataclasses
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from g2sf_lib.config import make_config
from g2sf_lib.datasets import Sample, ScanError
from g2sf_lib.features import (
    FeatureExtractor,
    Patches,
    cell_labels,
    foreground_features,
    load_patches,
    nearest_index,
    pack,
    save_patches,
)
from g2sf_lib.features.checkpoints import WeightsError
from g2sf_lib.features.pointmae import PointMAE

CONFIG = make_config().features
CPU = torch.device("cpu")


@pytest.fixture
def make_sample(scan_xyz, scan_rgb):
    def make(bump=None, blot=None):
        xyz, rgb = scan_xyz(bump=bump), scan_rgb()
        if blot is not None:
            rgb[blot[0] - 5 : blot[0] + 5, blot[1] - 5 : blot[1] + 5] = (200, 30, 30)
        rgb[~(xyz != 0).any(-1)] = 0
        return Sample(rgb, xyz, np.zeros(xyz.shape[:2], bool), "good", "train/good/000")

    return make


@pytest.fixture(scope="module")
def extractor():
    return FeatureExtractor(CONFIG, CPU)


@pytest.fixture
def patches():
    generator = torch.Generator().manual_seed(0)
    foreground = torch.rand(12, generator=generator) > 0.3
    feat = {
        mod: torch.randn(12, dim, generator=generator) * foreground[:, None]
        for mod, dim in (("pcd", 33), ("rgb", 152))
    }
    return Patches(feat, (3, 4), foreground)


def test_reading_patches_does_not_load_the_networks():
    code = "import sys, g2sf_lib.features; print({'timm', 'open3d', 'fpsample'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_a_defect_of_one_modality_is_seen_there_and_at_its_place(extractor, make_sample):
    plain = extractor(make_sample())
    row, column = 9, 19
    centre = [round((part + 0.5) * 256 / 28) for part in (row, column)]
    assert plain.grid == (28, 28) and 200 < int((~plain.foreground).sum()) < 600
    for mod, length in (("pcd", 33), ("rgb", 152)):
        feat = plain.feat[mod]
        assert feat.shape == (784, length) and feat.dtype == torch.float32
        assert torch.equal(feat.any(dim=1), plain.foreground)
    dented = extractor(make_sample(bump=(*centre, -0.0015, 4)))
    stained = extractor(make_sample(blot=centre))
    for mod, other, defect in (("pcd", "rgb", dented), ("rgb", "pcd", stained)):
        change = (defect.feat[mod] - plain.feat[mod]).norm(dim=1)
        assert divmod(int(change.argmax()), 28) == (row, column)
        assert torch.equal(defect.feat[other], plain.feat[other])


def test_a_scan_without_points_is_refused_by_name(extractor, make_sample):
    empty = replace(make_sample(), xyz=np.zeros((256, 256, 3), np.float32), name="test/hole/012")
    with pytest.raises(ScanError, match="test/hole/012: 0 points"):
        extractor(empty)


def test_point_mae_stands_behind_the_same_call(tmp_path, make_sample, pointmae_checkpoint):
    torch.manual_seed(0)
    path = pointmae_checkpoint(tmp_path / "pretrain.pth", PointMAE(32, 16))
    config = CONFIG.replace(
        pcd_features="pointmae", pcd_weights=str(path), num_groups=32, group_size=16
    )
    patches = FeatureExtractor(config, CPU)(make_sample())
    assert patches.feat["pcd"].shape == (784, 1152) and patches.feat["rgb"].shape == (784, 152)
    assert not patches.feat["rgb"][~patches.foreground].any()
    with pytest.raises(WeightsError, match="pcd_weights is not set"):
        FeatureExtractor(config.replace(pcd_weights=None), CPU)


def test_nearest_index_is_the_pixel_at_the_centre():
    assert nearest_index(8, 4).tolist() == [1, 3, 5, 7]
    assert nearest_index(9, 3).tolist() == [1, 4, 7]
    assert nearest_index(2, 4).tolist() == [0, 0, 1, 1]
    assert nearest_index(256, 28).tolist() == [int((i + 0.5) * 256 / 28) for i in range(28)]


def test_cell_labels_by_hand():
    mask = np.zeros((8, 8), bool)  # centres of the 4 x 4 cells: pixels 1, 3, 5, 7
    mask[2, 5] = True  # dilated: rows 1-3, columns 4-6
    labels = cell_labels(mask, 4, "centre").reshape(4, 4)
    assert labels.nonzero().tolist() == [[0, 2], [1, 2]]
    mask[:] = False
    mask[0, 0] = True  # one of the four pixels of cell (0, 0): a quarter
    mask[2:4, 6:8] = True  # all of cell (1, 3)
    assert cell_labels(mask, 4).reshape(4, 4).nonzero().tolist() == [[0, 0], [1, 3]]
    assert cell_labels(mask, 2).tolist() == [False, True, False, False]  # one of 16 pixels, four


@pytest.fixture
def shared_patches():
    """Return patches of a 6 x 6 grid whose RGB feature is one in every 2 x 2 cells."""
    generator = torch.Generator().manual_seed(3)
    foreground = torch.rand(36, generator=generator) > 0.4
    tokens = torch.randn(1, 7, 3, 3, generator=generator)
    rgb = torch.nn.functional.interpolate(tokens, (6, 6)).flatten(2)[0].T
    feat = {"pcd": torch.randn(36, 5, generator=generator), "rgb": rgb}
    feat = {mod: value * foreground[:, None] for mod, value in feat.items()}
    return Patches(feat, (6, 6), foreground, shared=2)


def test_packing_keeps_every_feature_and_shared_ones_once(shared_patches):
    packed = pack(shared_patches)
    inside = shared_patches.foreground
    squares = inside.view(3, 2, 3, 2).any(3).any(1).sum()
    assert len(packed.cells["rgb"]) == inside.sum() and len(packed.cells["rgb"].stored) == squares
    assert len(packed.cells["pcd"].stored) == inside.sum()
    for mod in ("pcd", "rgb"):
        assert torch.equal(packed.feat[mod], shared_patches.feat[mod].half().float())
        assert torch.equal(packed.cells[mod][:], shared_patches.cells[mod][:].half().float())


def test_packed_patches_of_several_scans_are_joined_in_order(shared_patches):
    other = dataclasses.replace(
        shared_patches, feat={m: 2 * v for m, v in shared_patches.feat.items()}
    )
    both = foreground_features([pack(shared_patches), pack(other)])
    plain = foreground_features([shared_patches, other])
    for mod in ("pcd", "rgb"):
        assert torch.equal(both[mod][:], plain[mod][:].half().float())
    assert len(both["rgb"].stored) == 2 * len(pack(other).cells["rgb"].stored)


@pytest.mark.parametrize("cell_mask", [None, torch.arange(12) % 5 == 0])
def test_saved_patches_come_back_in_half_precision(tmp_path, patches, cell_mask):
    path = tmp_path / "000.safetensors"
    save_patches(path, patches, cell_mask)
    loaded, loaded_mask = load_patches(path)
    assert loaded.grid == (3, 4) and torch.equal(loaded.foreground, patches.foreground)
    for mod in ("pcd", "rgb"):
        assert loaded.feat[mod].dtype == torch.float32
        assert torch.equal(loaded.feat[mod], patches.feat[mod].half().float())
    assert (loaded_mask is None) == (cell_mask is None)
    if cell_mask is not None:
        assert loaded_mask.dtype == torch.bool and torch.equal(loaded_mask, cell_mask)
    assert [file.name for file in tmp_path.iterdir()] == ["000.safetensors"]
    again = tmp_path / "again.safetensors"
    save_patches(again, loaded, loaded_mask)
    assert again.read_bytes() == path.read_bytes()
    assert path.stat().st_size < 2 * 12 * 185 + 1000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_what_half_precision_cannot_hold_is_refused(tmp_path, patches, value):
    patches.feat["rgb"][torch.nonzero(patches.foreground)[2], 7] = value
    with pytest.raises(ValueError, match="bad.safetensors: rgb features are not finite"):
        save_patches(tmp_path / "bad.safetensors", patches)
    assert not list(tmp_path.iterdir())


def test_a_damaged_or_foreign_file_is_named(tmp_path, patches):
    path = tmp_path / "000.safetensors"
    save_patches(path, patches)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="000.safetensors: not a readable patch file"):
        load_patches(path)
    save_file({"pcd": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="000.safetensors: not a readable patch file"):
        load_patches(path)
    with pytest.raises(FileNotFoundError, match="001.safetensors"):
        load_patches(tmp_path / "001.safetensors")

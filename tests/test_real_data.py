"""Every stage of profile `paper` on made-up trees of both data sets, with random networks.

Real scans and trained weights cannot be fetched here. What is made up has their formats and
shapes: DINO's ViT-B/8 and Point-MAE are there in full, only with fewer groups of points.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from g2sf_lib.benchmark import METHODS, SIMPLE, run_benchmark, run_scores
from g2sf_lib.config import flat_settings, make_config
from g2sf_lib.experiments import (
    load_features,
    run_bank,
    run_data,
    run_features,
    run_lspn,
)
from g2sf_lib.features.pointmae import PointMAE
from g2sf_lib.stages import done_file, stage_dir

ROOT = Path(__file__).resolve().parent.parent
CATEGORY = {"mvtec3d": "bagel", "eyecandies": "CandyCane"}
FEWER = {
    "num_groups": 128, "group_size": 32, "num_synthetic": 4, "num_synthetic_validation": 2,
    "epochs": 2, "batch_size": 512, "cfm_epochs": 1, "ast_epochs": 1, "ast_student_channels": 32,
}  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return the two weight files: a safetensors file for timm, an official-looking checkpoint."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch8_224.dino", pretrained=False)
    save_file(model.state_dict(), folder / "dino.safetensors")
    encoder = PointMAE(FEWER["num_groups"], FEWER["group_size"]).state_dict()
    state = {f"module.MAE_encoder.{name}": value for name, value in encoder.items()}
    state["module.MAE_decoder.blocks.0.norm1.weight"] = torch.ones(384)  # to be ignored
    torch.save({"base_model": state, "epoch": 300}, folder / "pretrain.pth")
    return {
        "rgb_weights": str(folder / "dino.safetensors"),
        "pcd_weights": str(folder / "pretrain.pth"),
    }


@pytest.fixture
def configure(tmp_path, weights, mvtec_tree, eyecandies_tree):
    """Return a function data set -> config of profile `paper` on a tree that it writes."""

    def make(dataset: str, num=(3, 2, 1, 2), **parameters):
        root = tmp_path / dataset
        {"mvtec3d": mvtec_tree, "eyecandies": eyecandies_tree}[dataset](root, num=num)
        given = FEWER | weights | {"runs_root": str(tmp_path / "runs"), "device": "cpu"}
        given |= {"dataset": dataset, "data_root": str(root), "category": CATEGORY[dataset]}
        return make_config("paper", **(given | parameters))

    return make


def contents(folder: Path) -> dict[str, str]:
    """Return path -> SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("dataset", ["mvtec3d", "eyecandies"])
def test_every_stage_of_profile_paper(configure, dataset):
    config = configure(dataset)
    before = contents(Path(config.data_root))
    assert run_data(config, [config.category]) == {config.category: 8}
    counts = run_features(config, [config.category])
    assert counts.pop("pastes_without_cell") == 0
    assert counts == {
        "train": 3, "validation": 2, "test": 3, "synthetic": 4, "synthetic_validation": 2,
    }  # fmt: skip
    for split in counts:
        patches, labels = load_features(config, split)
        for one, label in zip(patches, labels, strict=True):
            # Of a scan with pastes for training only pasted cells are described.
            low, high = (1, 1000) if split == "synthetic" else (300, 2500)
            assert one.grid == (56, 56) and low < one.foreground.sum() < high
            assert {mod: rows.shape[1] for mod, rows in one.cells.items()} == {
                "pcd": 1152, "rgb": 768,
            }  # fmt: skip
            stored = one.cells["rgb"].stored.shape[0]
            assert 0.25 <= stored / int(one.foreground.sum()) < 0.7  # up to four cells share one
            assert one.cells["pcd"].parts[0].dtype == torch.float16
            assert label.any() == (split.startswith("synthetic")) or split == "test"

    banks = run_bank(config)
    num = sum(int(p.foreground.sum()) for p in load_features(config, "train")[0])
    for mod, dim in (("pcd", 1152), ("rgb", 768), ("concat", 1920)):
        assert banks.banks[mod].prototypes.shape == (round(0.1 * num), dim)
    assert banks.standardiser.mean["pcd"] == 0 and banks.standardiser.std["pcd"] == 1
    nearest = stage_dir(config, "cells") / "11-nearest"
    assert len(list(nearest.iterdir())) == 3 + 4  # normal scans, and those with pastes

    detector = run_lspn(config)
    assert detector.metric.lspn.proto_in.weight.shape == (512, 1920)
    assert len(detector.history) == 3 and np.isfinite(detector.history[-1]["heldout"])
    scores, table = run_scores(config, [0])
    assert scores.maps["g2sf", 0].shape == (3, 224, 224)
    assert np.isfinite(scores.maps["g2sf", 0]).all() and scores.masks.any(axis=(1, 2)).sum() == 2
    assert set(table["method"]) == set(SIMPLE)

    compared = run_benchmark(config, [config.category])
    assert compared.methods == tuple(method for method in METHODS if method != "other_pastes")
    found = compared.scores[config.category]
    for key in found.maps:
        image = found.image[*key, "count"]  # the rule of this profile
        assert found.maps[key].shape == (3, 224, 224) and np.isfinite(found.maps[key]).all()
        assert image.shape == (3,) and np.isfinite(image).all() and (image > 0).all(), key
    assert found.maps["g2sf", 0].tobytes() == scores.maps["g2sf", 0].tobytes()
    rows = compared.table[compared.table["silhouette"] == "count"]
    assert rows[["i_auroc", "p_auroc", "aupro_30", "aupro_1_published"]].notna().all(axis=None)
    for stage in ("data", "features", "bank", "lspn", "scores", "benchmark"):
        assert json.loads(done_file(config, stage).read_text())["config"]["profile"] == "paper"
    assert contents(Path(config.data_root)) == before  # the data set is only read


STAGES = """
import json, sys, warnings
from g2sf_lib.config import make_config
from g2sf_lib import experiments
given = json.loads(sys.argv[1])
warnings.simplefilter("ignore")
config = make_config(**given)
experiments.run_data(config, [config.category])
experiments.run_features(config, [config.category])
experiments.run_bank(config)
experiments.run_lspn(config)
"""


def stages(config, runs: Path) -> subprocess.Popen:
    """Start all stages up to training in a process of its own."""
    given = flat_settings(config) | {"runs_root": str(runs)}
    return subprocess.Popen(
        [sys.executable, "-c", STAGES, json.dumps(given)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )


def results(runs: Path) -> dict[str, str]:
    """Return path -> SHA-256 of what the stages computed; records say when, so they differ."""
    kept = contents(runs)
    return {name: sha for name, sha in kept.items() if name.endswith(".safetensors")}


def test_a_killed_run_goes_on_to_the_same_bytes(configure, tmp_path):
    torch.manual_seed(0)
    small = timm.create_model("vit_tiny_patch16_224", pretrained=False)  # DINO's would take longer
    save_file(small.state_dict(), tmp_path / "vit.safetensors")
    config = configure(
        "eyecandies",
        num=(2, 2, 1, 1),
        rgb_model="vit_tiny_patch16_224",
        rgb_weights=str(tmp_path / "vit.safetensors"),
        num_groups=64,
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert stages(config, whole).wait(timeout=600) == 0
    expected = results(whole)
    assert len(expected) > 20
    # Killed outright once during preprocessing, during features, and after the bank was begun.
    for reached in ("scans-*/*/train/good/*.safetensors", "*/features-*/train/good_001.safetensors",
                    "*/pastes-*/synthetic/0001.safetensors"):  # fmt: skip
        process = stages(config, killed)
        deadline = time.monotonic() + 300
        while not list(killed.glob(f"paper/eyecandies/{reached}")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    made = {p: p.stat().st_mtime_ns for p in killed.rglob("features-*/train/*.safetensors")}
    assert stages(config, killed).wait(timeout=600) == 0
    assert results(killed) == expected
    assert made and all(path.stat().st_mtime_ns == at for path, at in made.items())

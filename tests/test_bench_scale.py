"""The scale benchmark measures what it says, here at a hundredth of the size."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from g2sf_lib.features import load_patches

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"train": 4, "synthetic": 4}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_scale", ROOT / "benchmarks/bench_scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def work(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    bench.write_scans(folder, SIZES)
    return folder


def test_made_up_scans_have_the_papers_shape(bench, work):
    for kind, num in (("train", 3136), ("synthetic", 1500)):
        packed, mask = load_patches(work / kind / "0000.safetensors")
        assert packed.grid == (56, 56) and len(packed.cells["pcd"]) == num
        assert packed.cells["pcd"].shape[1] == 1152 and packed.cells["rgb"].shape == (num, 768)
        assert len(packed.cells["rgb"].stored) <= num / 3  # four cells share one, but for a rim
        assert mask.any() == (kind == "synthetic")
    shared = load_patches(work / "train" / "0000.safetensors")[0].feat["rgb"]
    squares = shared.view(28, 2, 28, 2, 768)
    assert torch.equal(squares, squares[:, :1, :, :1].expand_as(squares))


def test_every_measurement_is_taken_and_the_result_can_be_read(bench, work, tmp_path):
    arguments = bench.argparse.Namespace(work=work, fraction=1.0, coreset="greedy")
    rows = {}
    for what in ("bank", "plain_bank", "coverage", "neighbours", "epoch"):
        arguments.measure = what
        bench.measure(arguments, SIZES)
        rows[what] = json.loads((work / f"{what}-greedy-1.json").read_text())
    assert rows["bank"]["cells"] == 4 * 3136 and rows["epoch"]["cells"] == 4 * 1500
    assert all(row["peak_mb"] > 100 and row["seconds"] > 0 for row in rows.values())
    assert rows["coverage"]["radius"] > 0
    kinds = {what: row["kind"] for what, row in rows.items()}
    assert kinds["neighbours"] == kinds["plain_bank"] == "extrapolated"
    assert kinds["bank"] == kinds["epoch"] == "measured"
    per_scan = {"preprocess": 1.0, "synthesis": 1.0, "rgb": 2.0, "pcd": 3.0}
    whole = bench.whole_category(list(rows.values()), per_scan)
    assert whole["hours"]["preprocess"] == pytest.approx(376 / 3600, abs=0.01)
    coverage = [{k: rows["coverage"][k] for k in ("fraction", "coreset", "radius", "seconds")}]
    result = {"machine": {}, "rows": [rows["bank"], rows["epoch"]], "coverage": coverage}
    result |= {"per_scan_s": per_scan, "paper_category": whole}
    (tmp_path / "scale.json").write_text(json.dumps(result))
    committed = json.loads((ROOT / "data/results/scale.json").read_text(encoding="utf-8"))
    assert committed.keys() == result.keys()  # which chapter 91 reads
    assert all(set(row) == set(committed["rows"][0]) for row in result["rows"])

"""Parts and variants of the score: by hand, as the detector has them, and measured once."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from g2sf_lib import experiments, quantities
from g2sf_lib.benchmark import run_methods
from g2sf_lib.config import MODALITIES, ConfigError, flat_settings, make_config
from g2sf_lib.detector import CellScores, query_banks, to_prediction
from g2sf_lib.evaluation import image_auroc
from g2sf_lib.experiments import best_epoch, fitted, kept_epochs, run_bank
from g2sf_lib.fusion import local_metric
from g2sf_lib.memory import MemoryBank
from g2sf_lib.quantities import (
    PARTS,
    RULES,
    TestCells,
    cell_maps,
    cell_quantity,
    checked_quantity,
    neighbourhoods,
    run_epochs,
    run_quantities,
)
from g2sf_lib.stages import stage_dir
from g2sf_lib.store import StoredFileError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]
TestCells.__test__ = False  # its name is that of cells, not of a test


@pytest.fixture(scope="module")
def kept():
    """What the first test made, for the others to copy."""
    return {}


@pytest.fixture
def run(kept, small_config, made_run, tmp_path, tmp_path_factory):
    """A config whose bank and detector are there, and nothing is measured."""
    if not kept:
        runs = tmp_path_factory.mktemp("quantities") / "runs"
        config = made_run(small_config.replace(runs_root=str(runs)))
        run_bank(config)
        fitted(config)
        kept["runs"] = runs
    shutil.copytree(kept["runs"], tmp_path / "runs")
    return small_config.replace(runs_root=str(tmp_path / "runs"))


def changed(config, **settings):
    return make_config(**(flat_settings(config) | settings))


@pytest.fixture
def counted(monkeypatch):
    """Name -> how often something costly was done."""
    counts = {"measured": 0, "trained": 0, "searched": 0, "seen": 0}

    def watch(place, name, key):
        real = getattr(place, name)

        def watched(*given, **named):
            counts[key] += 1
            return real(*given, **named)

        monkeypatch.setattr(place, name, watched)

    watch(quantities, "_measured", "measured")
    watch(quantities, "neighbourhoods", "seen")
    watch(experiments, "_train", "trained")
    watch(MemoryBank, "query", "searched")
    return counts


# ------------------------------------------------------------------ names


def test_what_is_the_same_has_one_name(small_config):
    of = {"s_pcd": "s_pcd", "w_rgb": "w_rgb", "max": "max", "nearest": "min_0", "min_0": "min_0"}
    of |= {"min": "min_2", "min_2": "min_2", "fused": "min_2", "min_4": "min_4"}
    assert {name: checked_quantity(name, small_config) for name in of} == of
    for how in RULES:
        config = changed(small_config, aggregate=how)
        assert checked_quantity("fused", config) == checked_quantity(how, config)


@pytest.mark.parametrize("name", ["median", "", "s_xyz", "min_", "min_-1", "min_5"])
def test_another_name_is_refused_with_those_that_are_known(small_config, name):
    message = f"quantity is {name!r}; expected one of s_pcd, .*, nearest, .*, min_0 to min_4"
    with pytest.raises(ConfigError, match=message):  # before anything is read
        run_quantities(small_config, ["fused", name])


# ------------------------------------------------------------------ by hand


def test_quantities_by_hand(small_config):
    """Two cells in 2k + 1 = 5 neighbourhoods; everything differs from everything."""
    s = torch.arange(20.0).reshape(2, 5, 2)
    ell = torch.tensor([[3.0, 5, 1, 0.5, 9], [2, 2, 4, 7, 1]])
    cells = CellScores(s, 100 + s, ell, None, None)
    expected = {
        "s_pcd": [0, 10], "s_rgb": [1, 11], "w_pcd": [100, 110], "w_rgb": [101, 111],
        "nearest": [3, 2], "min_1": [3, 2], "min": [1, 2], "fused": [1, 2],  # over j = 0, 1, 2
        "min_3": [0.5, 2], "min_4": [0.5, 1], "max": [5, 4], "mean": [3, 8 / 3],
    }  # fmt: skip
    for name, values in expected.items():
        found = cell_quantity(name, cells, small_config)
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float32), msg=name)
    nearer = changed(small_config, k=1)
    assert cell_quantity("max", cells, nearer).tolist() == [5, 2]
    assert cell_quantity("min", cells, nearer).tolist() == [3, 2]


# ------------------------------------------------------------------ as the detector has them


def test_neighbourhoods_are_those_of_the_detector(run):
    detector, test = fitted(run), TestCells(run)
    found, seen = neighbourhoods(detector, test), detector.score_cells(test.feat)
    assert found.s.shape == found.w.shape == (len(test.feat["pcd"]), 5, 2)
    for name in ("s", "w", "ell"):
        first = getattr(found, name)[:, :3]  # scoring looks at k + 1 of 2k + 1
        torch.testing.assert_close(first, getattr(seen, name).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cell_quantity("fused", found, run), seen.cell_score)
    torch.testing.assert_close(
        found.ell, local_metric(found.w, found.s, detector.metric.sigma()).detach()
    )
    assert not found.ell.requires_grad


def test_maps_and_image_scores_are_made_scan_by_scan(run):
    test = TestCells(run)
    cells = cell_quantity("w_rgb", neighbourhoods(fitted(run), test), run)
    maps, image = cell_maps(cells, test, run)
    assert maps.shape == (8, 32, 32) and image.shape == (8,)
    start = sum(test.sizes[:3])
    one = to_prediction(cells[start : start + test.sizes[3]], test.patches[3], run.scoring)
    assert maps[3].tobytes() == one.score_map.tobytes() and image[3] == one.image_score


def test_the_fused_score_is_that_of_the_benchmark(run):
    (row,) = run_quantities(run, ["fused"]).to_dict("records")
    _, table = run_methods(run, ("g2sf", "pcd", "rgb"), (0,), progress=False)
    theirs = table[table["silhouette"] == run.scoring.silhouette].set_index("method")
    shared = [name for name in row if name in theirs and name.startswith(("i_", "p_", "aupro"))]
    assert {"i_auroc", "i_auroc_dent", "p_auroc", "aupro_30", "aupro_1_published"} <= set(shared)
    for name in shared:
        assert row[name] == pytest.approx(theirs.loc["g2sf", name], abs=1e-9), name
    # A distance of one modality is a bank's score in other units: the same order of cells.
    for mod in MODALITIES:
        (row,) = run_quantities(run, [f"s_{mod}"]).to_dict("records")
        for name in ("i_auroc", "p_auroc", "aupro_30"):
            assert row[name] == pytest.approx(theirs.loc[mod, name], abs=1e-6), (mod, name)


# ------------------------------------------------------------------ measured once


def test_what_was_measured_is_found_again(run, counted):
    first = run_quantities(run, PARTS)
    assert counted["measured"] == len(PARTS) and counted["trained"] == 0 and counted["seen"] == 1
    pd.testing.assert_frame_equal(run_quantities(run, PARTS), first)
    assert counted["measured"] == len(PARTS) and counted["seen"] == 1
    more = run_quantities(run, (*RULES, "s_rgb", "min_0"))
    assert counted["measured"] == len(PARTS) + 3  # "min" is "fused", "min_0" is "nearest"
    rows = more.drop(columns="quantity").set_index(more["quantity"])
    pd.testing.assert_series_equal(rows.loc["nearest"], rows.loc["min_0"], check_names=False)
    fused = first.set_index("quantity").loc["fused"]
    pd.testing.assert_series_equal(rows.loc["min"], fused, check_names=False)


def test_a_damaged_file_is_named_and_a_missing_one_measured_again(run, counted):
    first = run_quantities(run, ["fused", "max"])
    path = stage_dir(run, "quantities") / "max.json"
    before = path.read_bytes()
    path.unlink()
    pd.testing.assert_frame_equal(run_quantities(run, ["fused", "max"]), first)
    assert counted["measured"] == 3 and path.read_bytes() == before
    for text in ('{"row": {"i_auroc": 0', "[]", '{"rows": {}}'):
        path.write_text(text)
        with pytest.raises(StoredFileError, match=r"max\.json: truncated or changed .*; delete it"):
            run_quantities(run, ["max"])


def test_the_rule_of_the_run_counts_and_not_that_of_the_stored_detector(run):
    """The detector was stored by a run that takes the minimum; its parameters are the same."""
    most = run_quantities(changed(run, aggregate="max"), ["fused", "min"]).set_index("quantity")
    plain = run_quantities(run, ["max", "fused"]).set_index("quantity")
    metrics = ["i_auroc", "p_auroc", "aupro_30", "aupro_1"]
    assert most.loc["fused", metrics].tolist() == plain.loc["max", metrics].tolist()
    assert most.loc["min", metrics].tolist() == plain.loc["fused", metrics].tolist()
    assert plain.loc["max", metrics].tolist() != plain.loc["fused", metrics].tolist()


# ------------------------------------------------------------------ what detectors share


@pytest.mark.parametrize("setting", [{"bank_fraction": 0.2}, {"k": 1}])
def test_neighbours_are_looked_up_anew_for_another_bank_or_number(run, setting):
    test, first = TestCells(run), fitted(run)
    seen = test.seen_by(first)
    detector = fitted(changed(run, **setting))
    feat, index, s = test.seen_by(detector)
    num = 2 * detector.config.model.k + 1
    expected = query_banks(detector.banks, feat, num)
    assert torch.equal(s, expected[1]) and s.shape[1] == num
    assert all(torch.equal(index[mod], expected[0][mod]) for mod in MODALITIES)
    assert torch.equal(test.seen_by(first)[2], seen[2])


# ------------------------------------------------------------------ epochs


def test_epochs_are_measured_as_they_were(run, counted):
    table = run_epochs(run)
    assert table["epoch"].tolist() == list(kept_epochs(5)) == [0, 1, 2, 3, 4, 5]
    assert counted["measured"] == 6 and counted["trained"] == 0
    detector = fitted(run)
    assert table["heldout"].tolist() == [row["heldout"] for row in detector.history]
    # The epoch that was kept is the detector itself.
    metrics = [name for name in table if name.startswith(("i_auroc", "p_auroc", "aupro"))]
    fused = run_quantities(run, ["fused"]).iloc[0]
    best = table.set_index("epoch").loc[best_epoch(detector)]
    assert best[metrics].tolist() == fused[metrics].tolist()
    # Before training, every w is 1 and sigma one half: the plain mean of distances.
    test = TestCells(run)
    plain = neighbourhoods(detector, test).s[:, :3].mean(-1).amin(-1)
    maps, image = cell_maps(plain, test, run)
    labels = np.array([label != "good" for label in test.truth[1]])
    assert table["i_auroc"][0] == pytest.approx(image_auroc(image, labels))
    assert table["p_auroc"].nunique() > 1
    counts = dict(counted)
    pd.testing.assert_frame_equal(run_epochs(run), table)
    assert counted["measured"] == counts["measured"]

"""Every peer behind one table: what is normal scores low, what is planted high."""

import dataclasses

import numpy as np
import pytest
import torch

from g2sf_lib.baselines import METHODS
from g2sf_lib.baselines.scans import depth_map
from g2sf_lib.baselines.simple import reweighted
from g2sf_lib.cells import counted_cells
from g2sf_lib.config import MODALITIES
from g2sf_lib.detector import to_prediction
from g2sf_lib.memory import MemoryBank
from g2sf_lib.store import StoredFileError

pytestmark = pytest.mark.usefixtures("one_thread")

OUTLIER = 27  # row 3, column 3 of 8 x 8: inside the object
PEERS = [name for name, row in METHODS.items() if not row.is_ours]
# method -> where a planted outlier is seen: features of one modality, of both, or depth
SEES = {method: ("rgb", "pcd", "both") for method in PEERS} | {
    "rgb": ("rgb", "both"),
    "pcd": ("pcd", "both"),
    "ast": ("rgb", "depth", "both"),
}
each_peer = pytest.mark.parametrize("method", PEERS)


def with_outlier(pair, where):
    """The same scan with one cell far from every normal surface."""
    patches, depth = pair
    feat = {mod: value.clone() for mod, value in patches.feat.items()}
    for mod in MODALITIES if where == "both" else {where} & set(MODALITIES):
        feat[mod][OUTLIER] += 25.0
    depth = depth.clone()
    if where in ("depth", "both"):
        depth[:, OUTLIER // 8, OUTLIER % 8] += 8.0
    return dataclasses.replace(patches, feat=feat), depth


@pytest.fixture
def predict(scans_of):
    """Return a function (method, pair) -> score map and image score of one scan."""

    def make(scorer, pair):
        scans, rule = scans_of([pair], scorer.config), scorer.config.scoring.silhouette
        cells, image = scorer.score(scans)
        assert cells.shape == (int(pair[0].foreground.sum()),) and (cells >= 0).all()
        return to_prediction(cells, pair[0], scorer.config.scoring).score_map, image[rule][0]

    return make


# ------------------------------------------------------------------ the table


def test_the_table_says_what_there_is():
    for name, row in METHODS.items():
        code = {part for stage in row.score_stage.chain() for part in stage.code}
        assert row.scorer.__module__.removeprefix("g2sf_lib.").replace(".", "/") + ".py" in code
        assert set(row.banks) <= {*MODALITIES, "concat"} and set(row.modalities) <= set(MODALITIES)
        assert row.variant_of is None or METHODS[row.variant_of].is_ours, name
    assert len({row.title for row in METHODS.values()}) == len(METHODS)


# ------------------------------------------------------------------ scores


@each_peer
def test_normal_scores_low_and_a_planted_outlier_high(fit, scan, config, predict, method):
    cfm = config.cfm.replace(cfm_epochs=30, cfm_batch_size=64, cfm_learning_rate=5e-3)
    ast = config.ast.replace(ast_epochs=15, ast_learning_rate=3e-3)
    scorer = fit(method, config.replace(cfm=cfm, ast=ast))
    normal = [predict(scorer, scan(n))[1] for n in (*range(6), 8, 9)]
    for where in SEES[method]:
        score_map, image = predict(scorer, with_outlier(scan(8), where))
        place = np.unravel_index(score_map.argmax(), score_map.shape)
        assert (place[0] // 4, place[1] // 4) == (3, 3), where
        assert image > 2 * max(normal), where
    for where in {"rgb", "pcd", "depth"} - set(SEES[method]):  # what it does not read
        changed, plain = (predict(scorer, p) for p in (with_outlier(scan(8), where), scan(8)))
        assert changed[0].tobytes() == plain[0].tobytes(), where


@pytest.mark.parametrize("method", ["cfm", "ast"])
def test_saved_then_loaded_gives_the_same_scores(fit, scan, predict, tmp_path, method):
    scorer = fit(method)
    scorer.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["method.json", "method.safetensors"]
    loaded = METHODS[method].scorer(scorer.config).load(tmp_path)
    for pair in (scan(8), with_outlier(scan(9), "both")):
        ours, theirs = predict(scorer, pair), predict(loaded, pair)
        assert ours[0].tobytes() == theirs[0].tobytes() and ours[1] == theirs[1]
    path = tmp_path / "method.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoredFileError, match=r"method\.safetensors: truncated or changed"):
        scorer.load(tmp_path)


@each_peer
def test_the_same_seed_gives_the_same_bytes_and_another_where_there_is_chance(
    fit, scan, config, predict, method
):
    scorers = [fit(method), fit(method), fit(method, config.replace(seed=5))]
    maps = [predict(scorer, scan(8))[0].tobytes() for scorer in scorers]
    assert maps[0] == maps[1]
    assert (maps[0] == maps[2]) == (not METHODS[method].is_seeded)


@each_peer
def test_scans_scored_together_score_as_each_alone(fit, scan, scans_of, method):
    scorer, pairs = fit(method), [scan(8), with_outlier(scan(9), "both"), scan(10)]
    together = scans_of(pairs)
    cells, image = scorer.score(together)
    for number, (part, pair) in enumerate(zip(cells.split(together.sizes), pairs, strict=True)):
        alone, image_alone = scorer.score(scans_of([pair]))
        torch.testing.assert_close(part, alone)
        for rule, values in image.items():
            assert values[number] == pytest.approx(image_alone[rule][0])
        assert image["exclude"][number] <= image["count"][number] * (1 + 1e-6)


@each_peer
def test_the_silhouette_rule_says_which_cells_an_image_score_may_come_from(
    fit, scan, scans_of, method
):
    """An outlier on the rim of the disc: counted, or not."""
    scorer, (patches, depth) = fit(method), scan(8)
    rim = int(patches.foreground.nonzero()[0])
    for value in patches.feat.values():
        value[rim] += 25.0
    cells, image = scorer.score(scans_of([(patches, depth)]))
    counted = counted_cells(patches, "exclude")[patches.foreground]
    assert not counted[0] and image["count"] > image["exclude"]
    if method != "m3dm":  # which has a machine of its own for images
        assert image["exclude"] == pytest.approx(float(cells[counted].max()))
        assert image["count"] == pytest.approx(float(cells.max()))


@pytest.mark.parametrize("method", ["rgb", "pcd"])
def test_one_modality_is_the_distance_to_the_nearest_prototype(fit, scan, scans_of, method):
    scans = scans_of([scan(8)])
    proto = scans.stored.banks[method].prototypes
    expected = torch.cdist(scans.standard[method][:], proto).amin(1)
    torch.testing.assert_close(fit(method).score(scans)[0], expected, rtol=1e-3, atol=1e-4)


def test_neighbours_are_searched_once(scan, scans_of, fit, monkeypatch):
    scans, methods = scans_of([scan(8)]), [fit(m) for m in PEERS if METHODS[m].banks]
    first = [scorer.score(scans)[0] for scorer in methods]
    index, s = scans.neighbours(3)
    monkeypatch.setattr(MemoryBank, "query", None)
    assert all(torch.equal(m.score(scans)[0], f) for m, f in zip(methods, first, strict=True))
    assert scans.neighbours(3) == (index, s) and s.shape == (len(first[0]), 3, 2)


@pytest.mark.parametrize("method", ["rgb", "pcd", "concat"])
def test_reweighting_changes_the_image_score_of_one_modality(fit, scan, config, scans_of, method):
    rules = config.rules.replace(reweight_neighbours=4)
    plain, other = fit(method), fit(method, config.replace(rules=rules))
    for pair in (scan(8), with_outlier(scan(9), "both")):
        scans = scans_of([pair])
        cells, (ours, theirs) = plain.score(scans)[0], (m.score(scans)[1] for m in (plain, other))
        assert torch.equal(other.score(scans)[0], cells)
        if method == "concat":
            assert ours == theirs
            continue
        bank, feat = scans.stored.banks[method], scans.standard[method][:]
        counted = counted_cells(pair[0], "exclude")[pair[0].foreground]
        cell = torch.where(counted, cells, -1.0).argmax()
        proto = int(torch.cdist(feat[cell : cell + 1], bank.prototypes).argmin())
        expected = reweighted(float(cells[cell]), feat[cell], proto, bank, 4)
        assert 0 < theirs["exclude"] < ours["exclude"]
        assert theirs["exclude"] == pytest.approx(expected)


def test_bank_points_score_zero(scan, scans_of, config):
    bank = config.bank.replace(bank_fraction=1.0)
    scans = scans_of([scan(0)], config.replace(bank=bank), num=1)
    for method in ("rgb", "pcd", "concat", "sum", "product"):
        row = METHODS[method]
        assert row.scorer(config, row.banks).fit(scans).score(scans)[0].eq(0).all()
    with pytest.raises(ValueError, match="distances to a bank are all zero"):
        METHODS["m3dm"].scorer(config, METHODS["m3dm"].banks).fit(scans)


# ------------------------------------------------------------------ depth


def test_depth_is_relative_in_millimetres_and_unshuffled():
    """A 4 x 4 picture, 2 x 2 cells of 2 x 2 samples: nothing is resized."""
    height = np.arange(16.0).reshape(4, 4)  # millimetres
    xyz = np.ones((4, 4, 3), np.float32)
    xyz[..., 2] = 0.4 + height / 1000
    found = depth_map(xyz, 2, 2)
    assert found.shape == (4, 2, 2) and found.dtype == torch.float32
    relative = torch.from_numpy(height - 7.5).float()
    for i in range(2):
        for j in range(2):
            assert torch.allclose(found[2 * i + j], relative[i::2, j::2], atol=1e-4)
    farther = xyz + np.array([0.1, 0, 0.25], np.float32)
    assert torch.allclose(depth_map(farther, 2, 2), found, atol=1e-3)


def test_small_holes_are_closed_and_the_rest_is_zero():
    xyz = np.zeros((40, 40, 3), np.float32)
    xyz[:, :20] = (0.1, 0.1, 0.5)
    xyz[:20, :20, 2] = 0.502
    xyz[5:11, 5:11] = 0  # six pixels wide
    found = depth_map(xyz, 40, 1)[0]
    top = found[0, 0]
    assert 0.5 < float(top) < 1.5 and torch.allclose(found[5:11, 5:11], top.expand(6, 6))
    assert found[:, 23:].eq(0).all() and found[:, 22].ne(0).all()

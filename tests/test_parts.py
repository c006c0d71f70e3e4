"""Chapter 10: false alarms of each part by hand; parts are those of detector and benchmark."""

import dataclasses
import itertools
import re

import numpy as np
import pandas as pd
import pytest
import torch

from g2sf_lib import chapters, plots
from g2sf_lib.benchmark import CellMaps, Scores, run_methods
from g2sf_lib.chapters.parts import FACTORS, PART_NAMES, WORDS, CountedCells, Parts
from g2sf_lib.config import ScoringConfig, make_config
from g2sf_lib.detector import counted_cells
from g2sf_lib.experiments import fitted, load_features, run_bank, run_lspn
from g2sf_lib.features import foreground_features

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]
SEEDS = (0, 1)
RULE = "exclude"


def by_hand(cells, labels, seeds=(0,), category="foam", anomalous=None):
    """Return `Parts` of scans with two counted cells each; foreground cell 0 does not count.

    Args:
        cells: part -> (2 * scans,) values; a part that is not there has zeros.
        labels: of the scans.
        seeds: all have the same values.
        category: of the scans.
        anomalous: (2 * scans,) bool; None: every cell of a defective scan.
    """
    labels, num = list(labels), 2 * len(labels)
    scan = np.repeat(np.arange(len(labels)), 2)
    is_good = np.array([label == "good" for label in labels])[scan]
    values = {name: np.asarray(cells.get(name, np.zeros(num)), float) for name in PART_NAMES}
    whole = {  # with a foreground cell in front that does not count, and would be flagged
        (name, seed): torch.from_numpy(np.concatenate([[99.0], x]))
        for name, x in values.items()
        for seed in seeds
    }
    image = {
        (name, seed, RULE): x.reshape(-1, 2).max(axis=1)
        for name, x in values.items()
        for seed in seeds
    }
    maps = CellMaps(whole, [], ScoringConfig())
    names = [f"test/{label}/{n:03d}" for n, label in enumerate(labels)]
    scores = Scores(names, labels, np.zeros((len(labels), 4, 4), bool), maps, image)
    bad = ~is_good if anomalous is None else np.array(anomalous)
    truth = CountedCells(np.arange(num + 1) > 0, scan, bad, is_good)
    config = make_config("smoke", category=category)
    known = (category,), tuple(PART_NAMES), tuple(seeds)
    return Parts(config, *known, {category: scores}, pd.DataFrame(), {category: truth})


def together(*parts):
    """Return the parts of several categories as one."""
    return dataclasses.replace(
        parts[0],
        categories=tuple(p.categories[0] for p in parts),
        scores={p.categories[0]: p.scores[p.categories[0]] for p in parts},
        truth={p.categories[0]: p.truth[p.categories[0]] for p in parts},
    )


FIVE_BAD = ["dent", "dent", "dent", "stain", "stain"]
BAD_CELLS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
GOOD_CELLS = [0.0, 2.0, 5.0, 1.5]


def hand(part="s_rgb", **more):
    cells = {part: BAD_CELLS + GOOD_CELLS} | more
    return by_hand(cells, [*FIVE_BAD, "good", "good"])


# ------------------------------------------------------------------ false alarms by hand


@pytest.mark.parametrize(
    ("recall", "kinds", "expected"),
    [
        (0.9, None, 0.5),  # nine of ten reach 2; so do 2 and 5
        (1.0, None, 0.75),  # all reach 1; so do 2, 5 and 1.5
        (0.91, None, 0.75),  # at least as many
        (0.5, None, 0.0),  # five reach 6
        (0.9, ("stain",), 0.0),  # all of 7, 8, 9 and 10: no normal cell
        (0.5, ("dent",), 0.25),  # 4, 5 and 6
    ],
)
def test_false_alarms_by_hand(recall, kinds, expected):
    found = chapters.part_alarms(hand(), recall, kinds).set_index("part")["fpr"]
    assert found["s_rgb"] == expected
    assert (found.drop("s_rgb") == 1).all()  # a constant finds everything and flags everything


def test_normal_cells_of_defective_scans_are_on_neither_side():
    anomalous = [True, False, *[True] * 8, *[False] * 4]
    cells = {"s_rgb": [5, 50, *[9] * 8, 4, 4, 4, 60]}
    parts = by_hand(cells, [*FIVE_BAD, "good", "good"], anomalous=anomalous)
    found = chapters.part_alarms(parts, 1.0).set_index("part")["fpr"]
    assert found["s_rgb"] == 0.25  # 60 alone: 50 lies on a defective scan


@pytest.mark.parametrize("recall", [0.0, -1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(recall):
    with pytest.raises(ValueError, match="recall is .*; expected a share above 0, up to 1"):
        chapters.part_alarms(hand(), recall)


def test_nothing_to_find_is_told_with_the_category():
    good = by_hand({}, ["good", "good"], category="rope")
    with pytest.raises(ValueError, match="rope: 0 anomalous cells and 4 cells of good scans"):
        chapters.part_alarms(good)
    with pytest.raises(ValueError, match="foam: 10 anomalous cells and 0 cells of good scans"):
        chapters.part_alarms(by_hand({}, FIVE_BAD))
    with pytest.raises(ValueError, match="foam: 0 anomalous cells and 4"):
        chapters.part_alarms(hand(), 0.9, ("cut",))


def test_groups_are_what_the_kinds_of_defect_change():
    table = chapters.group_alarms(hand(), 1.0)
    assert list(dict.fromkeys(table["group"])) == ["geometry only", "appearance only"]
    found = table.set_index(["group", "part"])["fpr"]
    assert found["geometry only", "s_rgb"] == 0.75 and found["appearance only", "s_rgb"] == 0
    shown = chapters.group_alarm_table(table)
    assert list(shown) == ["geometry only", "appearance only"]
    assert list(shown.index) == list(WORDS.values())
    assert shown.loc["distance, RGB", "geometry only"] == "75.0 ± –"


def test_what_becomes_of_alarms_by_hand():
    """Normal cells: the factor flags the first three, the final score the last two of four."""
    bad = [10] * 10
    parts = by_hand(
        {
            "w_rgb": [*bad, 11, 12, 13, 1],
            "w_pcd": [*bad, 1, 1, 1, 1],
            "fused": [*bad, 0, 1, 10, 12],
            "s_rgb": [*bad, 1, 2, 3, 4],
            "s_pcd": [*bad, 0, 0, 3, 8],
        },
        [*FIVE_BAD, "good", "good"],
    )
    rows = chapters.alarm_flow(parts, 0.5).set_index("part")
    rgb, pcd = rows.loc["w_rgb"], rows.loc["w_pcd"]
    assert (rgb["gone"], rgb["kept"], rgb["new"]) == (0.5, 0.25, 0.25)
    assert (rgb["s_gone"], rgb["s_kept"], rgb["s_new"]) == (0.75, 3.0, 6.0)
    assert (pcd["gone"], pcd["kept"], pcd["new"]) == (0.0, 0.0, 0.5)
    assert np.isnan(pcd["s_gone"]) and pcd["s_new"] == 4.5
    first, second = chapters.flow_report(rows.reset_index()).splitlines()
    assert "of 1000 normal cells it flags 750" in first
    assert "drops 500 of them (67%;" in first and "would drop 50%" in first
    assert "keeps 250, and flags 250 others: fewer in all" in first
    assert "0.75 where it drops, 3.00 where it keeps, 6.00 where it adds" in first
    assert first.endswith("What it drops lies closer to the bank, as the paper says.")
    assert "it flags 0. The final score drops 0 of them (none" in second and "more in all" in second
    assert "– where it drops" in second and "nan" not in second
    assert second.endswith("There is nothing to compare.")


def test_dropped_cells_that_lie_farther_are_no_proof_of_the_papers_reason():
    row = {"category": "foam", "seed": 0, "gone": 0.5, "kept": 0.25, "new": 0.5}
    row |= {"s_gone": 2.0, "s_kept": 1.0, "s_new": 1.0}
    text = chapters.flow_report(pd.DataFrame([row | {"part": name} for name in FACTORS]))
    assert text.count("not the paper's reason") == 2 and text.count("as many in all") == 2


# ------------------------------------------------------------------ words and tables


def alarms(values, categories=("foam", "rope", "cookie"), seeds=SEEDS, spread=0.01):
    """Return rows of `part_alarms` around values; a part that is not named has 0.5."""
    rows = []
    for (n, category), seed in itertools.product(enumerate(categories), seeds):
        for m, name in enumerate(PART_NAMES):
            moved = spread * ((n + m) % 3 - 1) + 0.001 * seed
            rows.append((category, seed, name, values.get(name, 0.5) + moved))
    return pd.DataFrame(rows, columns=["category", "seed", "part", "fpr"])


def test_the_claim_is_told_as_it_is_here():
    text = chapters.part_report(alarms({"w_rgb": 0.9, "w_pcd": 0.1, "s_rgb": 0.5, "fused": 0.5}))
    lines = text.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("- The claim for wᴿ **holds here**: it flags 90.")
    assert "more in 6 of 6 pairs" in lines[0] and "+40.0 ± " in lines[0]
    assert lines[1].startswith("- The claim for wᴾ is **reversed here**: it flags 10.")
    assert "−40.0 ± " in lines[1] and "more in 0 of 6 pairs" in lines[1]
    assert lines[2].startswith("- The same for sᴿ **stays open here**")
    assert lines[4].endswith("whether they suppress anything that distances do not is open.")


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (0.9, "they suppress what distances alone do not."),
        (0.1, "they add false alarms to those of distances alone."),
    ],
)
def test_the_control_is_told_in_both_directions(control, words):
    assert chapters.part_report(alarms({"w1": control})).splitlines()[-1].endswith(words)


def test_one_category_or_one_seed_is_told_and_never_nan():
    one = alarms({"w_rgb": 0.9}, categories=("foam",))
    assert "- One category: p is over training seeds" in chapters.part_report(one)
    draw = alarms({"w_rgb": 0.9}, categories=("foam",), seeds=(3,))
    text = chapters.part_report(draw)
    assert text.count("a single draw, no p") == 5 and "nan" not in text
    assert text.count("stays open here") == 4 and "One category" not in text
    table = chapters.part_alarm_table(draw)
    assert table.loc["scale factor, RGB"].tolist() == ["91.3 ± –"] * 2
    assert set(chapters.alarm_dots(draw)) == {"method", "category", "normal cells left alone"}
    assert "one training seed, so no spread is known" in chapters.parts_scope(hand())


def test_tables_by_hand():
    rows = pd.DataFrame(
        [
            (category, seed, name, value + 0.1 * seed)
            for category, value in (("foam", 0.2), ("rope", 0.4))
            for seed in (0, 1, 2)
            for name in PART_NAMES
        ],
        columns=["category", "seed", "part", "fpr"],
    )
    table = chapters.part_alarm_table(rows)
    assert list(table.index) == list(WORDS.values()) and list(table) == ["foam", "rope", "mean"]
    assert table.loc["final score"].tolist() == ["30.0 ± 10.0", "50.0 ± 10.0", "40.0 ± 10.0"]
    dots = chapters.alarm_dots(rows).set_index(["category", "method"])
    assert dots.loc[("foam", "final score"), "normal cells left alone"] == pytest.approx(0.7)
    assert dots.loc[("rope", "final score"), "error"] == pytest.approx(0.1 / 3**0.5)


def test_the_scope_counts_cells():
    text = chapters.parts_scope(hand())
    assert text.startswith("foam; ") and "10 anomalous cells and 4 cells of good scans" in text


@pytest.mark.parametrize(("turn", "text"), [(1, "1.00."), (-1, "-1.00.")])
def test_correlation_of_the_factors_by_hand(turn, text):
    w = np.exp(np.linspace(-1, 1, 14))
    parts = by_hand({"w_rgb": w, "w_pcd": w**turn}, [*FIVE_BAD, "good", "good"])
    assert f"each category and seed: {text}" in chapters.factor_report(parts)


def test_factors_that_are_constants_are_called_that():
    flat = {name: np.full(14, 2.0) for name in FACTORS}
    parts = by_hand(flat, [*FIVE_BAD, "good", "good"])
    assert chapters.factor_report(parts).endswith("LSPN has collapsed.")


# ------------------------------------------------------------------ scans that are shown


def test_cases_follow_their_rules():
    """Two categories; the factor flags 10 and more, the final score too."""
    labels = ["dent", "dent", "dent", "good", "good", "good"]
    bad = [10, 10, 11, 11, 12, 12]
    foam = by_hand({"fused": [*bad, 1, 1, 50, 1, 2, 2], "w_rgb": [*bad, 99, 99, 99, 1, 1, 1]},
                   labels, category="foam")  # fmt: skip
    rope = by_hand({"fused": [*bad, 0, 0, 11, 11, 1, 1], "w_rgb": [*bad, 1, 99, 1, 1, 1, 1]},
                   labels, category="rope")  # fmt: skip
    # w_pcd and the others are zero everywhere: they would flag every cell
    for parts in (foam, rope):
        (scores,) = parts.scores.values()
        scores.maps.cells["w_pcd", 0] = scores.maps.cells["w_rgb", 0]
    cases = chapters.part_cases(together(foam, rope), 1.0)
    found = [(case.rule.replace("\n", " "), case.category, case.number) for case in cases]
    assert found == [
        ("median find", "foam", 1),
        ("median find", "rope", 1),
        ("worst false alarm", "foam", 4),  # outscores all three
        ("w's alarms most dropped", "foam", 3),  # both cells; of scan 4 one, of rope's 3 one
        ("final score's own alarms", "rope", 4),
    ]
    assert [case.label for case in cases] == ["dent", "dent", "good", "good", "good"]


def test_no_scan_is_shown_for_what_does_not_happen():
    bad = [10] * 6
    cells = {name: [*bad, 1, 1, 2, 2] for name in ("fused", *FACTORS)}
    cases = chapters.part_cases(by_hand(cells, ["dent"] * 3 + ["good"] * 2), 1.0)
    assert [case.rule for case in cases] == ["median find", "highest\ngood scan"]


# ------------------------------------------------------------------ parts of a run


@pytest.fixture(scope="module")
def kept():
    """What the first test made, for the others."""
    return {}


@pytest.fixture
def run(kept, small_config, made_run, tmp_path_factory):
    """A config with two trained categories, and the parts of both."""
    if not kept:
        runs = str(tmp_path_factory.mktemp("parts") / "runs")
        config = dataclasses.replace(small_config, runs_root=runs, category="cookie")
        run_bank(made_run(config, "gland", test_seed=700))
        run_bank(made_run(config, "cookie"))
        run_lspn(config)  # of the others, chapter 03 has trained none
        kept["run"] = config, chapters.part_scores(config, None, SEEDS, progress=False)
    return kept["run"]


def test_parts_are_what_the_detector_computes(run):
    config, parts = run
    assert parts.categories == ("cookie", "gland") and parts.seeds == SEEDS
    for category, seed in itertools.product(parts.categories, SEEDS):
        one = dataclasses.replace(config, category=category, seed=seed)
        detector = fitted(one)
        seen = detector.score_cells(foreground_features(load_features(one, "test")[0]))
        plain = (seen.s * detector.metric.sigma().detach()).sum(-1).amin(-1)
        expected = {
            "s_rgb": seen.s[:, 0, 1], "s_pcd": seen.s[:, 0, 0], "w_rgb": seen.w[:, 0, 1],
            "w_pcd": seen.w[:, 0, 0], "fused": seen.cell_score, "w1": plain,
        }  # fmt: skip
        for name, values in expected.items():
            found = parts.scores[category].maps.cells[name, seed]
            torch.testing.assert_close(found, values, atol=1e-6, rtol=1e-5)


def test_maps_image_scores_and_units_are_those_of_the_benchmark(run):
    config, parts = run
    theirs, _ = run_methods(config, ("g2sf", "w1", "pcd"), (0,), progress=False)
    ours = parts.scores["cookie"]
    assert ours.names == theirs.names and np.array_equal(ours.masks, theirs.masks)
    for name, method in (("fused", "g2sf"), ("w1", "w1")):
        np.testing.assert_allclose(ours.maps[name, 0], theirs.maps[method, 0], atol=1e-5)
        key, other = (name, 0, RULE), (method, 0, RULE)
        np.testing.assert_allclose(ours.image[key], theirs.image[other], rtol=1e-4)
        assert ours.normal[name, 0] == pytest.approx(theirs.normal[method, 0], rel=1e-4)


def test_the_aggregation_of_the_run_is_used_whatever_the_detector_was_trained_with(run):
    config, parts = run
    scoring = dataclasses.replace(config.scoring, aggregate="max")
    other = dataclasses.replace(config, scoring=scoring)
    found = chapters.part_scores(other, ["cookie"], [0], progress=False)
    least, most = (p.cells("cookie", "fused", 0) for p in (parts, found))
    assert (most >= least).all() and (most > least).mean() > 0.9
    units = [p.scores["cookie"].normal["fused", 0][1] for p in (parts, found)]
    assert units[1] > units[0]


def test_counted_cells_and_their_truth(run):
    config, parts = run
    patches, labels = load_features(config, "test")
    truth = parts.truth["cookie"]
    counts = [counted_cells(p, RULE) for p in patches]
    assert np.array_equal(np.bincount(truth.scan), [int(c.sum()) for c in counts])
    assert truth.among.sum() == len(truth.scan) < len(truth.among)
    inside = torch.cat([lab[c] for lab, c in zip(labels, counts, strict=True)]).numpy()
    assert np.array_equal(truth.is_anomalous, inside) and inside.sum() == 16
    good = np.array([label == "good" for label in parts.scores["cookie"].labels])
    assert np.array_equal(truth.is_normal, good[truth.scan])
    assert not (truth.is_normal & truth.is_anomalous).any()


@pytest.mark.parametrize("recall", [0.3, 0.9, 1.0])
def test_alarms_dropped_kept_and_new_add_up(run, recall):
    _, parts = run
    rates = chapters.part_alarms(parts, recall).set_index(["category", "seed", "part"])["fpr"]
    for row in chapters.alarm_flow(parts, recall).itertuples():
        place = row.category, row.seed
        assert row.gone + row.kept == pytest.approx(rates[*place, row.part])
        assert row.kept + row.new == pytest.approx(rates[*place, "fused"])
    more = chapters.part_alarms(parts, min(1.0, recall + 0.1))["fpr"]
    assert (more.to_numpy() >= rates.to_numpy()).all()  # who finds more flags more
    groups = chapters.group_alarms(parts, recall)
    worst = groups.groupby(["category", "seed", "part"])["fpr"].max()
    assert (worst.reindex(rates.index) >= rates - 1e-12).all()


def test_a_map_of_factors_is_one_where_nothing_counts_and_w_where_it_does(run):
    config, parts = run
    scoring = dataclasses.replace(config.scoring, map_size=8, blur_sigma_px=0.0, quantise=True)
    scores = parts.scores["cookie"]
    maps = CellMaps(scores.maps.cells, scores.maps.patches, scoring)
    plain = dataclasses.replace(
        parts, scores=parts.scores | {"cookie": dataclasses.replace(scores, maps=maps)}
    )
    cases = [case for case in chapters.part_cases(plain) if case.category == "cookie"][:1]
    _, found, factors = chapters.part_maps(plain, cases)
    assert factors == (PART_NAMES["w_rgb"], PART_NAMES["w_pcd"])
    number = cases[0].number
    counted = counted_cells(scores.maps.patches[number], RULE).numpy()
    here = parts.truth["cookie"].scan == number
    for name in FACTORS:
        shown = found[PART_NAMES[name]][0].reshape(-1)
        np.testing.assert_allclose(shown[counted], parts.cells("cookie", name, 0)[here], rtol=1e-5)
        assert (shown[~counted] == 1).all()


def test_columns_come_as_in_the_figure_and_fit_its_scales(run):
    _, parts = run
    cases = chapters.part_cases(parts)
    scans, maps, factors = chapters.part_maps(parts, cases)
    assert list(maps) == [PART_NAMES[n] for n in ("s_rgb", "s_pcd", "w_rgb", "w_pcd", "fused")]
    assert len(scans) == len(cases) and all(len(column) == len(cases) for column in maps.values())
    for heading, column in maps.items():
        low = np.exp(-1) - 1e-6 if heading in factors else 0
        assert all(one.min() >= low and one.shape == (32, 32) for one in column)
    unit = parts.scores[cases[0].category]
    raw = unit.maps.one(("fused", 0), cases[0].number)
    low, top = unit.normal["fused", 0]
    np.testing.assert_allclose(maps[PART_NAMES["fused"]][0], ((raw - low) / (top - low)).clip(0))


def test_flagged_cells_are_counted_cells_on_one_side_each(run):
    _, parts = run
    cases = chapters.part_cases(parts, 0.5)
    scans, classes, grid = chapters.alarm_cells(parts, cases, 0.5)
    assert tuple(grid) == (8, 8) and len(scans) == len(classes) == len(cases)
    total = {name: 0 for name in classes[0]}
    for case, of_scan in zip(cases, classes, strict=True):
        patches = parts.scores[case.category].maps.patches[case.number]
        counted = counted_cells(patches, RULE).numpy()
        stack = np.stack(list(of_scan.values()))
        assert stack.sum(axis=0).max() <= 1 and not stack[:, ~counted].any()
        for name, member in of_scan.items():
            total[name] += member.sum()
    assert total["both"] > 0 and sum(total.values()) > total["both"]


def test_defaults_and_unknown_names(small_config):
    for bad in ({"categories": ["nut"]}, {"seeds": [-1]}):
        with pytest.raises(ValueError, match="is .*; expected a list of"):
            chapters.part_scores(small_config, **bad)


# ------------------------------------------------------------------ the figure


def panel(name, fig):
    (ax,) = [ax for ax in fig.axes if ax.get_title() == name]
    return ax.images[0]


def test_factors_have_their_own_scale_around_one(make_sample):
    scan = make_sample(0, "dent", size=64)
    maps = {"s": [np.full((9, 9), 0.5)], "w": [np.full((9, 9), 1.0)]}
    fig = plots.method_panels([scan], maps, ["x"], factors=("w",))
    assert panel("s", fig).get_clim() == (0, 2)
    w = panel("w", fig)
    assert w.get_clim() == pytest.approx((np.exp(-1), np.e))
    assert w.norm(1.0) == pytest.approx(0.5)  # as far from either end, in equal ratios
    assert w.norm(2.0) - 0.5 == pytest.approx(0.5 - w.norm(0.5))
    middle, low, high = (w.cmap(x)[:3] for x in (0.5, 0.0, 1.0))
    assert min(middle) > 0.9 and low[2] > low[0] and high[0] > high[2]  # white, purple, orange
    bars = [ax for ax in fig.axes if ax.get_label() == "<colorbar>"]
    texts = [[tick.get_text() for tick in bar.get_xticklabels()] for bar in bars]
    assert len(bars) == 2 and any("1 = Euclidean" in found for found in texts)
    assert any("1 = highest of normal scans" in found for found in texts)
    alone = plots.method_panels([scan], maps, ["x"])
    assert sum(ax.get_label() == "<colorbar>" for ax in alone.axes) == 1
    assert panel("w", alone).get_clim() == (0, 2)


def test_a_factor_without_a_map_is_refused(make_sample):
    with pytest.raises(ValueError, match=re.escape("factors are ['v']; expected some of ['s']")):
        plots.method_panels([make_sample(0)], {"s": [np.eye(9)]}, ["x"], factors=("v",))

"""Rows of a table: which there are, what they share, what is measured and kept of them."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from g2sf_lib import experiments, quantities
from g2sf_lib.ablations import (
    LOSSES,
    RUN,
    STEPS,
    UNTRAINED,
    Variant,
    counted_neighbourhoods,
    loss_variant,
    loss_variants,
    own_variant,
    run_variants,
    summary,
    write_summary,
)
from g2sf_lib.config import ConfigError, flat_settings, make_config, with_settings
from g2sf_lib.experiments import fitted, kept_epochs, run_bank
from g2sf_lib.fusion import local_metric
from g2sf_lib.quantities import TestCells, run_epochs, run_quantities
from g2sf_lib.results import origin
from g2sf_lib.stages import results_file
from g2sf_lib.stats import METRIC_NAMES

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]
TestCells.__test__ = False  # its name is that of cells, not of a test
ALL = tuple(LOSSES)


# ------------------------------------------------------------------ rows of Table 4


def test_the_steps_of_table_4_and_those_with_one_loss_left_out():
    names = [variant.name for variant in loss_variants(None, make_config())]
    assert names[:5] == ["sep", "sep+cns", "sep+cns+mar", "sep+cns+mar+sc", "sep+cns+mar+sc+cma"]
    assert names[5:] == ["sep+mar+sc+cma", "sep+cns+sc+cma", "sep+cns+mar+cma"]
    assert len(STEPS) == 5


@pytest.mark.parametrize(
    ("losses", "name", "off"),
    [
        (["sep"], "sep", {"beta", "alpha", "gamma", "mu"}),
        (["mar", "sep"], "sep+mar", {"beta", "gamma", "mu"}),  # in the order of the table
        (ALL, "sep+cns+mar+sc+cma", set()),
    ],
)
def test_losses_that_are_off_weigh_nothing(losses, name, off):
    variant = loss_variant(losses)
    assert variant.name == name and variant.label == name.replace("+", " + ")
    assert variant.settings == dict.fromkeys(off, 0.0)


def test_one_subset_stands_beside_all():
    names = ["sep+mar", "sep+cns+mar+sc+cma"]
    for asked, expected in ((["sep", "mar"], names), ("['mar', 'sep']", names), (ALL, names[1:])):
        assert [variant.name for variant in loss_variants(asked, make_config())] == expected


@pytest.mark.parametrize(
    "asked", ["sep", "[sep]", {"sep": 1}, [3], [], ["mar"], ["sep", "mse"], "['sep', 'sep', 'l1']"]
)
def test_what_is_no_list_of_losses_with_sep_is_refused(asked):
    with pytest.raises(ConfigError, match="losses is .*; expected a list of"):
        loss_variants(asked, make_config())


@pytest.mark.parametrize("losses", [None, ["sep"]])  # all losses stand beside it
def test_a_loss_that_is_on_and_weighs_nothing_is_refused(losses):
    with pytest.raises(ConfigError, match="beta is 0, so the loss 'cns' cannot be on"):
        loss_variants(losses, make_config(beta=0.0))


# ------------------------------------------------------------------ studies and a row of one's own


def test_every_row_of_chapter_11_is_a_setting_that_differs_from_the_run():
    path = Path(__file__).parents[1] / "notebooks" / "11_analyses.ipynb"
    (cell,) = [c for c in json.loads(path.read_text())["cells"] if c["id"] == "11-03b"]
    names = {"Variant": Variant}
    exec("".join(cell["source"]), names)
    base = make_config()
    rows = [row for study in names["known_studies"]().values() for row in study]
    for row in rows:
        found = flat_settings(with_settings(base, row.settings))
        assert {name: found[name] for name in row.settings} == row.settings and row.label
    assert len({RUN.name, *(row.name for row in rows)}) == 1 + len(rows) > 20
    assert with_settings(base, RUN.settings) == base


def test_a_row_of_the_readers_own():
    assert own_variant(None) == ()
    for asked in ({"hidden": 24, "l1": 0.1}, "{'hidden': 24, 'l1': 0.1}"):
        (row,) = own_variant(asked)
        assert row == Variant("own", "hidden 24, l1 0.1", {"hidden": 24, "l1": 0.1})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("hidden=24", "expected settings in braces, e.g. {'hidden': 128}"),
        ("3", "expected settings in braces"),
        ({3: 4}, "expected settings in braces"),
        ({"category": "rope", "seed": 1}, "own holds category, seed, which belong to the whole"),
        ({"hiden": 3}, "unknown parameter 'hiden'; allowed: .*hidden"),
        ({"hidden": "3"}, "hidden is '3'; expected"),
    ],
)
def test_a_row_of_ones_own_that_makes_no_sense_is_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        own_variant(asked)


# ------------------------------------------------------------------ what is run


@pytest.fixture(scope="module")
def kept():
    """What the first test made, for the others to copy."""
    return {}


@pytest.fixture
def run(kept, small_config, made_run, tmp_path, tmp_path_factory):
    """A config of two categories whose banks are there, and nothing is trained."""
    if not kept:
        runs = tmp_path_factory.mktemp("ablations") / "runs"
        config = small_config.replace(runs_root=str(runs), category="cookie")
        for category, seed in (("cookie", 500), ("gland", 700)):
            run_bank(made_run(config, category, test_seed=seed))
        kept["runs"] = runs
    shutil.copytree(kept["runs"], tmp_path / "runs")
    return small_config.replace(runs_root=str(tmp_path / "runs"), category="gland")


@pytest.fixture
def counted(monkeypatch):
    """Lists of (category, seed) trained, of rows measured, and of categories read."""
    seen = {"trained": [], "measured": [], "read": []}

    def watch(place, name, key, what):
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a: seen[key].append(what(*a)) or real(*a))

    watch(experiments, "_train", "trained", lambda config, *rest: (config.category, config.seed))
    watch(quantities, "_measured", "measured", lambda config, *rest: (config.category, config.seed))
    watch(TestCells, "__init__", "read", lambda self, config: config.category)
    return seen


TWO = (RUN, Variant("sep", "sep", {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "mu": 0.0}))
PLACES = list(itertools.product(("cookie", "gland"), (0, 1)))


def test_every_variant_is_measured_everywhere_and_once(run, counted):
    table = run_variants(run, TWO, None, [0, 1], ("fused", "s_rgb"), progress=False)
    rows = table[["category", "variant", "seed", "quantity"]].itertuples(index=False, name=None)
    places = (("cookie", "gland"), ("run", "sep"), (0, 1), ("fused", "s_rgb"))
    assert list(rows) == list(itertools.product(*places))
    assert sorted(counted["trained"]) == sorted(2 * PLACES)
    assert counted["read"] == ["cookie", "gland"]  # once, for all variants and seeds
    assert len(counted["measured"]) == 16
    again = run_variants(run, TWO, None, [0, 1], ("fused", "s_rgb"), progress=False)
    pd.testing.assert_frame_equal(again, table)
    assert len(counted["trained"]) == 8 and len(counted["measured"]) == 16
    # Nothing of a distance is learned: it is the same in every training.
    distance = table[table["quantity"] == "s_rgb"].groupby("category")["aupro_30"]
    assert (distance.max() - distance.min()).max() < 1e-9
    of_one = with_settings(run, TWO[1].settings).replace(seed=1)
    (expected,) = run_quantities(of_one, ["fused"]).to_dict("records")
    assert table.to_dict("records")[14] == expected | {"variant": "sep"}


def test_a_variant_in_which_nothing_is_changed_shares_the_training_of_the_run(run, counted):
    everything = loss_variant(ALL)
    same = Variant("same", "the same value", {"k": run.model.k, "mu": run.loss.mu})
    scored = Variant("silhouette", "outline", {"silhouette": "count"})
    rows = (RUN, everything, same, scored)
    table = run_variants(run, rows, ["cookie"], [0], progress=False)
    assert counted["trained"] == [("cookie", 0)] and len(counted["measured"]) == 2
    metrics = table.drop(columns="variant").set_index(table["variant"])
    for name in (everything.name, "same"):
        pd.testing.assert_series_equal(metrics.loc["run"], metrics.loc[name], check_names=False)
    assert metrics.loc["run", "p_auroc"] != metrics.loc["silhouette", "p_auroc"]


def test_epochs_of_a_variant(run, counted):
    longer = Variant("longer", "longer", {"epochs": 6})
    table = run_variants(run, [longer], ["gland"], [0, 1], None, progress=False)
    assert set(table["variant"]) == {"longer"}
    assert table["epoch"].tolist() == 2 * list(kept_epochs(6))
    assert counted["trained"] == [("gland", 0), ("gland", 1)] and counted["read"] == ["gland"]
    config = with_settings(run, longer.settings).replace(seed=1)
    expected = run_epochs(config).assign(variant="longer")
    second = table[table["seed"] == 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(second, expected)


# ------------------------------------------------------------------ what chapters 06 to 08 look at


def test_untrained_is_the_sum_of_normalised_distances(run):
    changed = with_settings(run, UNTRAINED.settings)
    ((place, cells, is_anomalous),) = counted_neighbourhoods(changed, ["gland"], [0])
    assert place == {"category": "gland", "seed": 0} and len(is_anomalous) == len(cells.ell)
    assert torch.equal(cells.w, torch.ones_like(cells.w))
    assert torch.allclose(cells.ell, cells.s.sum(dim=-1) / 2, rtol=1e-5)


def test_counted_neighbourhoods_are_those_of_the_counted_test_cells(run):
    loss = {"beta": 0.0, "gamma": 0.0, "mu": 0.0}
    config = with_settings(run, loss | {"learning_rate": 0.02, "epochs": 20})  # w differs
    ((_, cells, is_anomalous),) = counted_neighbourhoods(config, ["gland"], [0])
    detector, test = fitted(config), TestCells(config)
    sigma = detector.metric.sigma().detach()
    assert torch.allclose(local_metric(cells.w, cells.s, sigma), cells.ell, rtol=1e-5)
    assert cells.w.std() > 0.01 and 0 < is_anomalous.sum() < len(is_anomalous)
    every = with_settings(config, {"silhouette": "count"})
    ((_, more, labels),) = counted_neighbourhoods(every, ["gland"], [0])
    assert len(labels) == sum(test.sizes) > len(is_anomalous)
    assert more.ell.shape == (len(labels), 2 * run.model.k + 1)


# ------------------------------------------------------------------ what is kept of it


def made_up(values):
    """Return rows of variant -> category -> values by seed; each metric is a multiple of them."""
    return pd.DataFrame(
        [
            {"variant": variant, "category": category, "seed": seed}
            | {name: n * value for n, name in enumerate(METRIC_NAMES, start=1)}
            for variant, of_category in values.items()
            for category, seeds in of_category.items()
            for seed, value in enumerate(seeds)
        ]
    )


def test_a_summary_is_written_and_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    some = {"run": {"x": [0.1, 0.3], "y": [0.2, 0.2]}, "b": {"x": [0.2, 0.2], "y": [0.2, 0.4]}}
    config, rows = make_config("demo"), made_up(some)
    content = summary(config, rows, "run")
    path = write_summary(content, config, "table4")
    assert path == Path("data/results/table4_demo.json") == results_file(config, "table4")
    assert json.loads(path.read_text()) == content
    assert content["categories"] == ["x", "y"] and content["seeds"] == [0, 1]
    assert content["reference"] == "run" and content["profile"] == "demo"
    assert origin(config, ["x", "y"]).items() <= content.items()
    first, second = content["rows"]
    assert (first["variant"], first["i_auroc"]) == ("run", 0.2)
    assert second["i_auroc_seed_std"] == round(float(np.std([0.2, 0.3], ddof=1)), 4)
    places = [(row["variant"], row["category"], row["i_auroc"]) for row in content["per_category"]]
    assert places == [("run", "x", 0.2), ("run", "y", 0.2), ("b", "x", 0.2), ("b", "y", 0.3)]
    assert [row["difference"] for row in content["effects"]] == [0.05, 0.1, 0.15, 0.2]

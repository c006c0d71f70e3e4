"""Frame rates: what is counted, in which order, and what is left out."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from g2sf_lib import timing
from g2sf_lib.baselines import BANKS
from g2sf_lib.benchmark import METHODS, Comparison
from g2sf_lib.config import ConfigError
from g2sf_lib.experiments import run_bank, run_lspn
from g2sf_lib.features import Patches

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]
TIMED = tuple(method for method in METHODS if method not in ("w1", "other_pastes"))


@pytest.fixture
def extractor(make_patches, monkeypatch):
    """Replace the feature extractor by one of made-up features, and return its list of calls."""
    calls = []

    class Made:
        def __init__(self, config, device):
            assert device == torch.device("cpu")

        def points(self, sample):
            calls.append("points")
            patches, _ = make_patches(7)
            return patches.feat["pcd"], patches.foreground

        def colour(self, sample):
            calls.append("colour")
            return make_patches(7)[0].feat["rgb"]

        def __call__(self, sample):
            feat, foreground = self.points(sample)
            return Patches({"pcd": feat, "rgb": self.colour(sample)}, (8, 8), foreground)

    monkeypatch.setattr(timing, "FeatureExtractor", Made)
    return calls


@pytest.fixture
def steps(made_run, small_config, extractor, monkeypatch):
    """A made-up run in which every step takes what is said; returns its config and (scan, method)s.

    RGB features take 1 s, point features 10 s, AST's depth 0.5 s, neighbours 3 s.
    """
    seen, scans = [], itertools.count()

    def fixed(config, method, train, test):
        def score(sample, patches, device):
            seen.append((sample.name, method))
            if method == "ast":
                yield "features", 0.5
            if BANKS.get(method, ("pcd", "rgb")):
                yield "neighbours", 3.0
            yield "fusion", 0.25
            yield "post-processing", 0.125

        return score

    def features(extract, sample, device):
        next(scans)
        return {"rgb": 1.0, "pcd": 10.0}, extract(sample)

    monkeypatch.setattr(timing, "_steps", fixed)
    monkeypatch.setattr(timing, "_features", features)
    return made_run(small_config), seen


def seconds(rates, method, step):
    chosen = rates[(rates["method"] == method) & (rates["step"] == step)]
    return set(chosen["seconds"])


def test_features_are_counted_by_the_modalities_that_a_method_needs(steps):
    config, _ = steps
    rates = timing.frame_rates(config, METHODS, seed=0, num_scans=4, num_warm_up=1)
    assert set(rates["method"]) == set(TIMED)
    expected = dict.fromkeys(TIMED, 11.0) | {"rgb": 1.0, "pcd": 10.0, "ast": 1.5}
    for method, needed in expected.items():
        assert seconds(rates, method, "features") == {needed}, method
        assert seconds(rates, method, "neighbours") == {0.0 if method in ("cfm", "ast") else 3.0}
        assert seconds(rates, method, "fusion") == {0.25}
        assert seconds(rates, method, "post-processing") == {0.125}


def test_warm_up_is_left_out_and_scans_come_again(steps):
    """Eight test scans: three to warm up, and ten more that are counted from 0."""
    config, seen = steps
    rates = timing.frame_rates(config, ["g2sf", "rgb"], seed=0, num_scans=10, num_warm_up=3)
    assert sorted(rates["scan"].unique()) == list(range(10))
    assert len(rates) == 10 * 2 * len(timing.STEPS)
    names = [name for name, method in seen if method == "rgb"]
    assert len(names) == 13 and len(set(names)) == 8
    assert names[8:] == names[:5]


def test_methods_take_turns_in_being_first(steps):
    config, seen = steps
    asked = ["g2sf", "w1", "other_pastes", "rgb", "cfm"]
    timing.frame_rates(config, asked, seed=0, num_scans=4, num_warm_up=2)
    methods = [method for _, method in seen]
    orders = [tuple(methods[i : i + 3]) for i in range(0, len(methods), 3)]
    first = ("g2sf", "rgb", "cfm")
    assert orders[:3] == [first, ("rgb", "cfm", "g2sf"), ("cfm", "g2sf", "rgb")]
    assert orders[3] == first and len(orders) == 6
    for i in range(0, len(seen), 3):  # a scan is seen by all before the next one
        assert len({name for name, _ in seen[i : i + 3]}) == 1


def test_every_method_is_timed_in_a_run(made_run, small_config, extractor):
    """The real steps of all methods on features made up: what has no neighbours takes none."""
    config = made_run(small_config)
    run_bank(config)
    run_lspn(config)
    extractor.clear()
    rates = timing.frame_rates(config, METHODS, seed=0, num_scans=2, num_warm_up=1)
    found = rates.groupby(["method", "step"])["seconds"].agg(["size", "min"])
    assert set(found.index) == set(itertools.product(TIMED, timing.STEPS))
    assert (found["size"] == 2).all()
    for (method, step), row in found.iterrows():
        is_missing = step == "neighbours" and method in ("cfm", "ast")
        assert row["min"] == 0 if is_missing else row["min"] > 0, (method, step)
    # Of each scan the parts are timed once, and the whole extracted once for all methods.
    assert extractor == ["colour", "points", "points", "colour"] * 3
    table = timing.rate_table(rates)
    assert set(table["method"]) == set(TIMED) and set(table["step"]) == {*timing.STEPS, "total"}


# ---------------------------------------------------------------- the table


def made_rates():
    """A method whose scans take 100 + 100, 100 + 300 and 100 + 500 ms."""
    rows = []
    for scan, neighbours in enumerate((0.1, 0.3, 0.5)):
        for step, spent in zip(timing.STEPS, (0.1, neighbours, 0.0, 0.0), strict=True):
            for method, factor in (("cfm", 0.5), ("rgb", 1.0)):  # not in the order of the tables
                row = {"method": method, "scan": scan, "step": step}
                rows.append(row | {"seconds": spent * factor})
    return pd.DataFrame(rows)


def test_the_table_has_medians_quartiles_and_the_whole():
    table = timing.rate_table(made_rates()).set_index(["method", "step"])
    assert list(table.index.unique("method")) == ["rgb", "cfm"] and len(table) == 2 * 5
    assert table.loc[("rgb", "neighbours"), ["low", "ms", "high"]].tolist() == pytest.approx(
        [200, 300, 400]
    )
    assert set(table.loc[("rgb", "features"), ["low", "ms", "high"]]) == {100}
    assert set(table.loc[("cfm", "fusion"), ["low", "ms", "high"]]) == {0}
    total = table.loc[("rgb", "total")]
    assert total[["low", "ms", "high", "fps"]].tolist() == pytest.approx([300, 400, 500, 2.5])
    assert table.loc[("cfm", "total"), "fps"] == pytest.approx(5.0)
    assert table.drop("total", level="step")["fps"].isna().all()


def test_the_whole_is_summed_scan_by_scan():
    """The median of sums is not the sum of medians: 4 ms a scan, of steps of 1 or 3."""
    rows = [
        {"method": "rgb", "scan": scan, "step": step, "seconds": spent}
        for scan, parts in enumerate(((0.001, 0.003), (0.003, 0.001), (0.003, 0.001)))
        for step, spent in zip(timing.STEPS, (*parts, 0.0, 0.0), strict=True)
    ]
    table = timing.rate_table(pd.DataFrame(rows)).set_index("step")
    assert table["ms"][["features", "neighbours", "total"]].tolist() == pytest.approx([3, 1, 4])
    assert table.loc["total", "low"] == table.loc["total", "high"] == pytest.approx(4)


def test_medians_for_the_paper_s_table():
    rates = timing.median_rates(timing.rate_table(made_rates()))
    assert list(rates.columns) == ["method", "median_fps"]
    assert rates["method"].tolist() == ["rgb", "cfm"]
    assert rates["median_fps"].tolist() == pytest.approx([2.5, 5.0])


def test_time_is_taken_when_the_work_is_done():
    spent, result = timing._timed(torch.device("cpu"), lambda a, b: np.add(a, b), 2, 3)
    assert result == 5 and 0 < spent < 1


# ---------------------------------------------------------------- of a comparison


def comparison(config, methods=("rgb", "pcd"), seeds=(4, 5)):
    return Comparison(config, ("rope", "foam"), methods, seeds, {}, pd.DataFrame())


def test_the_first_category_and_seed_are_timed(small_config, monkeypatch):
    def caught(config, methods, seed, num_scans):
        assert (config.category, methods, seed, num_scans) == ("rope", ("rgb", "pcd"), 4, 6)
        return made_rates()

    monkeypatch.setattr(timing, "frame_rates", caught)
    assert len(timing.measure_rates(comparison(small_config), 6)) == 10


def test_nothing_is_timed_for_no_scan_or_no_method(small_config):
    assert timing.measure_rates(comparison(small_config), 0) is None
    assert timing.measure_rates(comparison(small_config, ("w1", "other_pastes")), 5) is None


@pytest.mark.parametrize("num", [-1, 2.5, "20", None, True])
def test_a_number_of_scans_that_is_none_is_named(small_config, num):
    with pytest.raises(ConfigError, match=f"frame_scans is {num!r}; expected a whole number >= 0"):
        timing.measure_rates(comparison(small_config), num)


def test_the_machine_is_told():
    told = timing.machine("cpu")
    assert told["device"].endswith(" CPU") and told["torch"] == torch.__version__
    assert told["cores"] >= 1 and told["threads"] >= 1

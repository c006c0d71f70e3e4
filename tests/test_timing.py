"""Frame rates: what is counted, in which order, and what is left out."""

import itertools

import pandas as pd
import pytest

from g2sf_lib import timing
from g2sf_lib.baselines import METHODS
from g2sf_lib.benchmark import Comparison
from g2sf_lib.config import ConfigError
from g2sf_lib.experiments import run_bank, run_lspn

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]
TIMED = tuple(method for method, row in METHODS.items() if row.variant_of is None)


@pytest.fixture
def extractor(make_patches, monkeypatch):
    """Replace the feature extractor by one of made-up features, and return its list of calls."""
    calls = []

    class Made:
        def __init__(self, config, device):
            self.made = make_patches(7)[0]

        def points(self, sample):
            calls.append("points")

        def colour(self, sample):
            calls.append("colour")

        def __call__(self, sample):
            calls.append("both")
            return self.made

    monkeypatch.setattr(timing, "FeatureExtractor", Made)
    return calls


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock by one that goes on only when a step is taken, by what is said of it.

    RGB features take 1 s, point features 10 s, AST's depth 0.5 s, neighbours 3 s. Returns the
    list of (scan, method) that were scored.
    """
    now, seen = [0.0], []

    def spend(seconds):
        now[0] += seconds

    class Extractor:
        def __init__(self, config, device):
            pass

        def __call__(self, sample):
            return None

        def colour(self, sample):
            spend(1.0)

        def points(self, sample):
            spend(10.0)

    class Scorer:
        def __init__(self, method):
            self.method = method

        def score(self, scan, silhouettes):
            seen.append((scan.name, self.method))
            if self.method == "ast":
                scan.timed("features", spend, 0.5)
            elif self.method != "cfm":
                scan.timed("neighbours", spend, 3.0)
            return spend(0.25), None

    def start(self, config, patches, stored, sample):
        self.config, self.patches, self.name = config, [patches], sample.name
        self.spent = dict.fromkeys(timing.STEPS, 0.0)

    monkeypatch.setattr(timing, "FeatureExtractor", Extractor)
    monkeypatch.setattr(timing, "fitted_method", lambda config, method, train: Scorer(method))
    monkeypatch.setattr(timing, "to_prediction", lambda *given: spend(0.125))
    monkeypatch.setattr(timing.TimedScan, "__init__", start)
    monkeypatch.setattr(timing.TimedScan, "_clock", lambda self: now[0])
    monkeypatch.setattr(timing.Split, "stored", None)
    return seen


def test_features_are_counted_by_the_modalities_that_a_method_needs(made_run, small_config, clock):
    rates = timing.frame_rates(made_run(small_config), METHODS, seed=0, num_scans=4, num_warm_up=1)
    expected = dict.fromkeys(TIMED, 11.0) | {"rgb": 1.0, "pcd": 10.0, "ast": 1.5}
    found = {
        method: set(zip(rows["step"], rows["seconds"], strict=True))
        for method, rows in rates.groupby("method")
    }
    for method, features in expected.items():
        neighbours = 0.0 if method in ("cfm", "ast") else 3.0
        spent = dict(zip(timing.STEPS, (features, neighbours, 0.25, 0.125), strict=True))
        assert found.pop(method) == set(spent.items()), method
    assert not found


def test_scans_come_again_warm_up_is_left_out_and_methods_take_turns(made_run, small_config, clock):
    """Eight test scans: three to warm up, and ten more that are counted from 0."""
    asked = ["g2sf", "w1", "other_pastes", "rgb", "cfm"]
    rates = timing.frame_rates(made_run(small_config), asked, 0, 10, 3)
    assert sorted(rates["scan"].unique()) == list(range(10))
    assert len(rates) == 10 * 3 * len(timing.STEPS)
    seen = [clock[i : i + 3] for i in range(0, len(clock), 3)]
    names = [{name for name, _ in each} for each in seen]  # all see a scan before the next one
    assert len(names) == 13 and all(len(name) == 1 for name in names) and names[8:] == names[:5]
    orders = [tuple(method for _, method in each) for each in seen]
    first, second, third = ("g2sf", "rgb", "cfm"), ("rgb", "cfm", "g2sf"), ("cfm", "g2sf", "rgb")
    assert orders[:4] == [first, second, third, first]


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
    assert extractor == ["both", "colour", "points"] * 3
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


# ---------------------------------------------------------------- of a comparison


def comparison(config, methods=("rgb", "pcd")):
    return Comparison(config, ("rope", "foam"), methods, (4, 5), {}, pd.DataFrame())


def test_the_first_category_and_seed_are_timed(small_config, monkeypatch):
    def caught(config, methods, seed, num_scans):
        assert (config.category, methods, seed, num_scans) == ("rope", ("rgb", "pcd"), 4, 6)
        return made_rates()

    monkeypatch.setattr(timing, "frame_rates", caught)
    assert len(timing.measure_rates(comparison(small_config), 6)) == 10
    assert timing.measure_rates(comparison(small_config), 0) is None
    assert timing.measure_rates(comparison(small_config, ("w1", "other_pastes")), 5) is None
    for num in (-1, 2.5, "20", None, True):
        with pytest.raises(ConfigError, match=f"frame_scans is {num!r}; expected a whole number"):
            timing.measure_rates(comparison(small_config), num)

"""Chapter 11: thresholds, promises and alarm rates, by hand, simulated, and on a made-up run."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

from g2sf_lib import benchmark, chapters, plots
from g2sf_lib.benchmark import Split, run_methods
from g2sf_lib.chapters import calibration
from g2sf_lib.config import ConfigError
from g2sf_lib.detector import to_prediction
from g2sf_lib.distributions import counted_pixels
from g2sf_lib.experiments import run_bank, run_lspn

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Where the folder of the made-up run is, so that it is made once."""
    return tmp_path_factory.mktemp("calibration")


@pytest.fixture
def ready(run, small_config, made_run):
    """A config whose detectors are there for both seeds."""
    config = small_config.replace(runs_root=str(run))
    if not any(run.iterdir()):
        made_run(config)
        run_bank(config)
        for seed in SEEDS:
            run_lspn(config.replace(seed=seed))
    return config


@pytest.fixture
def one_category(monkeypatch):
    """The made-up run has the category foam only."""
    monkeypatch.setattr(calibration, "checked_categories", lambda config, asked: ("foam",))


@pytest.mark.parametrize("bad", ["categories", "methods", "seeds"])
def test_unknown_names_are_refused_before_anything_runs(small_config, monkeypatch, bad):
    monkeypatch.setattr(calibration, "run_methods", None)
    with pytest.raises(ConfigError, match=bad):
        chapters.alarm_rows(small_config, **{bad: ["plum"]})


def test_thresholds_by_hand():
    normal = np.array([4.0, 9, 1, 7, 3, 2, 8, 6, 5])
    assert calibration.threshold(normal, 0.1) == (9, pytest.approx(0.1))
    assert calibration.threshold(normal, 0.25) == (8, pytest.approx(0.2))
    assert calibration.threshold(normal, 0.3) == (7, pytest.approx(0.3))
    level, promised = calibration.threshold(normal, 0.05)  # nine scans cannot say it
    assert level == np.inf and np.isnan(promised)
    for rate in (0, 1, -0.1, 1.5):
        with pytest.raises(ValueError, match="rate is"):
            calibration.threshold(normal, rate)
    with pytest.raises(ValueError, match="no normal scores"):
        calibration.threshold(normal[:0], 0.1)


@pytest.mark.parametrize("rate", [0.2, 0.45, 0.6])
def test_a_promise_is_kept_over_all_orders(rate):
    alarms, promises = [], set()
    for *known, new in itertools.permutations([1.0, 2.0, 3.0, 4.0, 5.0]):
        level, promised = calibration.threshold(np.array(known), rate)
        alarms.append(new > level)
        promises.add(promised)
    (promised,) = promises
    assert np.mean(alarms) == pytest.approx(promised) and promised <= rate


def test_each_scan_is_judged_by_the_others():
    scans = [np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([2.5, 9.0])]
    # of four others, one in five may be above: the highest is the threshold
    # 1, 2 against 9: none; 3, 4 against 9: none; 2.5, 9 against 4: half
    assert calibration.held_out_rate(scans, 0.2) == pytest.approx(0.5 / 3)
    assert np.isnan(calibration.held_out_rate([np.array([1.0]), np.array([2.0])], 0.3))


@pytest.mark.parametrize("method", ["g2sf", "w1", "max", "cfm", "m3dm"])
def test_validation_scans_are_scored_as_by_the_benchmark(ready, method):
    """Its median and highest pixel are known from the benchmark."""
    scores, _ = run_methods(ready, (method,), (1,), progress=False)
    seed = 1 if method in benchmark.SEEDED else 0
    config = dataclasses.replace(ready, seed=seed)
    train, validation = Split(config, "train"), Split(config, "validation")
    scans = calibration.validation_scores(config, method, train, validation)
    maps = [to_prediction(scan.cells, p, config.scoring).score_map
            for scan, p in zip(scans, validation.patches, strict=True)]  # fmt: skip
    where = counted_pixels(validation.patches, config.scoring)
    inside = np.concatenate([one[w] for one, w in zip(maps, where, strict=True)])
    expected = scores.normal[method, seed]
    assert (np.median(inside), np.max(maps)) == pytest.approx(expected, rel=1e-5)
    if method in ("g2sf", "w1"):
        own = benchmark._g2sf_scans(benchmark.trained_detector(config), validation)[method]
        assert [s.image["exclude"] for s in scans] == [s.image["exclude"] for s in own]


def test_alarms_of_a_run(ready, one_category):
    rows = chapters.alarm_rows(ready, None, ["w1", "max"], SEEDS, (0.05, 0.2), (0.1, 0.3, 0.5))
    assert len(rows) == 3 * 5  # two seeds of w1, one of the maximum
    assert (rows["num"] == 3).all()
    scores, _ = run_methods(ready, ("w1", "max"), SEEDS, progress=False)
    where = counted_pixels(scores.maps.patches, ready.scoring)[:4]
    place = ["method", "seed", "level", "nominal"]
    row = rows.set_index(place).loc[("w1", 1, "pixel", 0.2)]
    config = dataclasses.replace(ready, seed=1)
    validation = Split(config, "validation")
    scans = calibration.validation_scores(config, "w1", validation, validation)
    inside = counted_pixels(validation.patches, ready.scoring)
    known = [to_prediction(s.cells, p, ready.scoring).score_map[w]
             for s, p, w in zip(scans, validation.patches, inside, strict=True)]  # fmt: skip
    level, promised = calibration.threshold(np.concatenate(known), 0.2)
    good = [label == "good" for label in scores.labels]
    assert row["promised"] == promised and row["unit"] == 1 / where.sum()
    counted = counted_pixels(scores.maps.patches, ready.scoring)[good]
    assert row["observed"] == pytest.approx((scores.maps["w1", 1][good][counted] > level).mean())
    images = rows[rows["level"] == "image"].set_index(["method", "seed", "nominal"])
    assert images.loc[("max", 0, 0.1), ["promised", "observed"]].isna().all()  # 1 in 4 at least
    top = max(s.image["exclude"] for s in scans)
    of_good = scores.image["w1", 1, "exclude"][good]
    assert images.loc[("w1", 1, 0.3), "observed"] == (of_good > top).mean()
    assert images.loc[("w1", 1, 0.3), "promised"] == 0.25

    points = chapters.alarm_points(rows)
    assert set(points["method"]) == {"G²SF with w = 1", "calibrated maximum"}
    assert 0.1 not in set(chapters.alarm_points(rows).query("level == 'image'")["nominal"])
    plots.alarm_rates(points)
    assert "asked for and impossible: 10% of images." in chapters.alarm_report(rows)


def alarms(observed, level="pixel", promised=0.01, unit=1e-5, num=10):
    """Rows of (method, category) -> rates of two seeds."""
    rows = [
        {"category": category, "method": method, "seed": seed, "level": level, "nominal": 0.01,
         "promised": promised, "observed": rate, "held_out": 0.02, "scans": 4, "num": num,
         "unit": unit}
        for (method, category), rates in observed.items()
        for seed, rate in enumerate(rates)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_factors_by_hand():
    rows = alarms({
        ("g2sf", "cookie"): (0.01, 0.03), ("g2sf", "foam"): (0.04, 0.04),
        ("g2sf", "rope"): (0.08, 0.08), ("max", "cookie"): (0.005, 0.005),
        ("max", "foam"): (0.02, 0.02), ("max", "rope"): (0, 0),
    })  # fmt: skip
    table = chapters.factor_table(rows)
    row = table.loc["g2sf"]
    assert row["factor"] == pytest.approx(4)  # 2, 4 and 8 times
    assert (row["low"], row["lowest"], row["high"], row["highest"]) == (
        pytest.approx(2), "cookie", pytest.approx(8), "rope",
    )  # fmt: skip
    # logarithms: mean 2, error 1 / sqrt(3) in units of log 2; two degrees of freedom; two methods
    t = 2 * 3**0.5
    one_sided = 0.5 * (1 - t / (2 + t**2) ** 0.5)
    assert row["p"] == pytest.approx(2 * 2 * one_sided)
    # no alarm counts as half a pixel
    assert table.loc["max", "factor"] == pytest.approx((0.5 * 2 * 0.0005) ** (1 / 3))
    text = chapters.alarm_report(rows)
    assert "G²SF, 1% of pixels asked for: 4.00 times as many" in text and "(cookie)" in text
    assert "only 4.0 of the 10 scans" in text and "2.00% of the pixels left out" in text
    assert text.splitlines()[-1].endswith("G²SF 4.00, calibrated maximum 2.00.")
    shown = chapters.alarm_table(rows)
    assert shown.loc[("pixels", "1.0%"), "G²SF"] == "4.67% ± 0.47%"


def test_alarms_of_images_are_judged_as_counts():
    """Ten known scans, 40 new ones a category, one in eleven promised: as simulated."""
    categories = ("cookie", "foam", "rope", "dowel", "gland")
    draw = np.random.default_rng(0)
    known, new = draw.random((20_000, 5, 10)), draw.random((20_000, 5, 40))
    total = (new > known.max(axis=2, keepdims=True)).mean(axis=(1, 2))

    def p_of(rate):
        rows = alarms({("g2sf", c): (rate, rate) for c in categories}, "image", 1 / 11, 1 / 40)
        return chapters.factor_table(rows, "image", 0.1).loc["g2sf"]

    assert total.mean() == pytest.approx(1 / 11, abs=0.002)
    far = 1 / 11 + 2 * total.std()
    assert p_of(far)["p"] == pytest.approx(0.0455, abs=0.003)  # two standard deviations
    assert p_of(far)["factor"] == pytest.approx(11 * far)
    assert p_of(1 / 11)["p"] == pytest.approx(1)
    assert p_of(0.0)["factor"] == 0


def test_alarm_rates_lie_where_they_were_seen():
    rows = [(level, method, promised, 2 * promised, promised, 3 * promised)
            for level, rates in (("pixel", (0.001, 0.1)), ("image", (0.1, 0.3)))
            for method in ("G²SF", "CFM") for promised in rates]  # fmt: skip
    table = pd.DataFrame(rows, columns=["level", "method", "promised", "observed", "low", "high"])
    pixel, image = plots.alarm_rates(table).axes
    assert (pixel.get_xscale(), image.get_xscale()) == ("log", "linear")
    for ax, rates in ((pixel, [0.001, 0.1]), (image, [0.1, 0.3])):
        for bar in ax.containers:
            assert list(bar.lines[0].get_ydata()) == pytest.approx([2 * rate for rate in rates])
            assert bar.lines[0].get_xdata() == pytest.approx(rates, rel=0.07)  # beside each other
        assert list(ax.get_xticks()) == pytest.approx(rates)
    pixel.figure.draw_without_rendering()
    assert [label.get_text() for label in pixel.get_xticklabels()] == ["0.1 %", "10 %"]
    assert "10 %" in [label.get_text() for label in pixel.get_yticklabels()]

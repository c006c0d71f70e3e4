"""The one paired test: by hand, against scipy, and what a verdict needs."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from g2sf_lib.stats import (
    against_good,
    compare,
    effects,
    gaps,
    holm,
    means,
    metric_columns,
    paired,
    share_of_good_below,
    threshold,
)


def table(values, key="variant", metric="i_auroc"):
    """Return rows from variant -> category -> [value of seed 0, of seed 1, ...]."""
    rows = [
        (variant, category, seed, value)
        for variant, of_category in values.items()
        for category, seeds in of_category.items()
        for seed, value in enumerate(seeds)
    ]
    return pd.DataFrame(rows, columns=[key, "category", "seed", metric])


HAND = {"a": {"x": [0.6, 0.9], "y": [0.5, 0.8]}, "b": {"x": [0.5, 0.6], "y": [0.5, 0.6]}}


def test_a_paired_difference_by_hand():
    """Gaps 0.1 and 0.3 in x, 0 and 0.2 in y: variances of both means 0.01, so se = sqrt(0.005)."""
    found = paired(table(HAND), "a", "b", "i_auroc")
    assert found["difference"] == pytest.approx(0.15)
    assert found["se"] == pytest.approx(0.005**0.5)
    t = 0.15 / 0.005**0.5  # two degrees of freedom, for which p has a closed form
    assert found["p"] == pytest.approx(1 - t / (2 + t**2) ** 0.5)
    assert (found["wins"], found["num"]) == (3, 4)
    back = paired(table(HAND).sample(frac=1, random_state=0), "b", "a", "i_auroc")
    assert back["difference"] == pytest.approx(-0.15) and back["p"] == pytest.approx(found["p"])


def test_images_add_their_variance():
    draws = {"x": {"a": np.array([0.7, 0.9]), "b": np.zeros(2)}, "y": {"a": np.ones(2), "b": 0.5}}
    found = paired(table(HAND), "a", "b", "i_auroc", images=draws)
    assert found["se"] == pytest.approx((0.005 + 0.05**2) ** 0.5)  # means 0.6 and 0.7
    one = table({v: {c: [s[0]] for c, s in of.items()} for v, of in HAND.items()})
    assert paired(one, "a", "b", "i_auroc", images=draws)["se"] == pytest.approx(0.05)


def test_in_one_category_it_is_students_test_over_seeds():
    rows = table({"a": {"x": [0.6, 0.8, 0.7]}, "b": {"x": [0.5, 0.5, 0.4]}})
    assert paired(rows, "a", "b", "i_auroc")["p"] == pytest.approx(
        ttest_1samp([0.1, 0.3, 0.3], 0).pvalue
    )
    assert paired(rows, "a", None, "i_auroc")["p"] == pytest.approx(
        ttest_1samp([0.6, 0.8, 0.7], 0).pvalue
    )


def test_what_has_one_seed_holds_for_every_seed_of_the_other():
    rows = table({"a": {"x": [0.6, 0.8, 0.7]}, "b": {"x": [0.5]}})
    found = paired(rows, "a", "b", "i_auroc")
    assert found["p"] == pytest.approx(ttest_1samp([0.1, 0.3, 0.2], 0).pvalue)
    assert found["num"] == 3


def test_one_seed_leaves_a_difference_and_nothing_more():
    rows = table({"a": {"x": [0.6], "y": [0.9]}, "b": {"x": [0.5], "y": [0.6]}})
    found = paired(rows, "a", "b", "i_auroc")
    assert found["difference"] == pytest.approx(0.2)
    assert np.isnan(found["se"]) and np.isnan(found["p"])
    assert compare(rows, [("a", "b")], "i_auroc")["verdict"].tolist() == ["open"]


@pytest.mark.parametrize(("gap", "p"), [(0.0, 1.0), (0.25, 0.0)])
def test_differences_without_any_spread(gap, p):
    rows = table({"a": {"x": [0.5 + gap] * 2}, "b": {"x": [0.5] * 2}})
    found = paired(rows, "a", "b", "i_auroc")
    assert (found["difference"], found["se"], found["p"]) == (gap, 0.0, p)


def test_holms_rule_and_what_is_no_test():
    """The smallest times three, the next times two but no smaller, the largest as it is."""
    assert holm([0.01, 0.04, 0.011, np.nan])[:3] == pytest.approx([0.03, 0.04, 0.03])
    assert np.isnan(holm([0.01, np.nan])[1]) and np.isnan(holm([np.nan])[0])


def test_claims_hold_are_reversed_or_stay_open():
    def around(middle):
        return {"x": [middle, middle + 0.001, middle - 0.001], "y": [middle] * 3}

    rows = table(
        {"high": around(0.9), "low": around(0.5), "mixed": {"x": [0.1, 0.9, 0.5], "y": [0.5] * 3}},
        key="quantity",
    )
    pairs = [("high", "low"), ("low", "high"), ("mixed", "low")]
    rows.loc[rows["quantity"] == "low", "i_auroc"] += [0.002, 0, 0, 0, 0, 0]
    found = compare(rows, pairs, "i_auroc", "quantity")
    assert found[["higher", "lower"]].to_numpy().tolist() == [list(pair) for pair in pairs]
    assert found["verdict"].tolist() == ["holds", "reversed", "open"]
    single = [paired(rows, *pair, "i_auroc", "quantity")["p"] for pair in pairs]
    assert found["p"].tolist() == pytest.approx([3 * single[0], 3 * single[0], single[2]])


def test_effects_and_the_differences_behind_them():
    rows = table(HAND | {"c": HAND["b"]}).assign(p_auroc=lambda x: 2 * x["i_auroc"])
    metrics = ["i_auroc", "p_auroc"]
    found = effects(rows, "b", metrics=metrics)
    assert found[["metric", "variant"]].to_numpy().tolist() == [
        ["i_auroc", "a"], ["i_auroc", "c"], ["p_auroc", "a"], ["p_auroc", "c"],
    ]  # fmt: skip
    assert found["difference"].tolist() == pytest.approx([0.15, 0, 0.3, 0])
    points = gaps(rows, "b", metrics=metrics)
    assert set(points) == {"variant", "metric", "category", "seed", "difference"}
    each = points.set_index(["metric", "variant", "category", "seed"])["difference"]
    assert len(each) == 16 and each["p_auroc", "a", "x", 1] == pytest.approx(0.6)
    again = points.groupby(["metric", "variant"])["difference"].mean()
    assert again.to_numpy() == pytest.approx(found["difference"])


def test_means_go_over_categories_and_then_over_seeds():
    rows = table({"a": {"x": [0.1, 0.3], "y": [0.2, 0.2]}}).assign(i_auroc_dent=1, w_std=2)
    assert metric_columns(rows.assign(aupro_1_published=0)) == ["i_auroc", "aupro_1_published"]
    found = means(rows).loc["a"]
    assert found["i_auroc"] == pytest.approx(0.2)  # 0.15 of seed 0, 0.25 of seed 1
    assert found["i_auroc_seed_std"] == pytest.approx(np.std([0.15, 0.25], ddof=1))
    assert np.isnan(means(rows[rows["seed"] == 0]).loc["a", "i_auroc_seed_std"])


def test_share_of_good_below_counts_ties_half():
    labels = ["good", "good", "good", "good", "dent", "stain", "stain"]
    share = share_of_good_below(np.array([1.0, 2, 2, 4, 3, 2, 0]), labels)
    assert share[4:] == pytest.approx([0.75, 0.5, 0.0])


def test_maps_against_good_scans_by_hand():
    maps = np.zeros((3, 1, 4))
    maps[0, 0] = [0, 1, 2, 3]  # good: median 2, highest 3
    maps[2, 0] = [0, 2.5, 1, 7]
    (shown,) = against_good(maps, ["good", "good", "dent"], [2])
    assert shown.ravel() == pytest.approx([0, 0.5, 0, 1])


def test_thresholds_by_hand():
    normal = np.array([4.0, 9, 1, 7, 3, 2, 8, 6, 5])
    assert threshold(normal, 0.1) == (9, pytest.approx(0.1))
    assert threshold(normal, 0.25) == (8, pytest.approx(0.2))
    assert threshold(normal, 0.3) == (7, pytest.approx(0.3))
    level, promised = threshold(normal, 0.05)  # nine scans cannot say it
    assert level == np.inf and np.isnan(promised)


@pytest.mark.parametrize("rate", [0.2, 0.45, 0.6])
def test_a_promise_is_kept_over_all_orders(rate):
    alarms, promises = [], set()
    for *known, new in itertools.permutations([1.0, 2.0, 3.0, 4.0, 5.0]):
        level, promised = threshold(np.array(known), rate)
        alarms.append(new > level)
        promises.add(promised)
    (promised,) = promises
    assert np.mean(alarms) == pytest.approx(promised) and promised <= rate

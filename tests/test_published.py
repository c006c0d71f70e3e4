"""The paper's tables are typed as printed, agree with themselves or are told, and stand apart."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from g2sf_lib import published
from g2sf_lib.config import CATEGORIES

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "data" / "paper"
PAPER = published.read_paper(FOLDER)
TABLE1, TABLE2, TABLE3, TABLE4, TABLE5, TABLE6 = PAPER.tables.values()


def printed(table, method, metric, dataset="mvtec3d", category="mean"):
    chosen = table[
        (table["method"] == method)
        & (table["metric"] == metric)
        & (table["dataset"] == dataset)
        & (table["category"] == category)
    ]
    (value,) = chosen["value"]
    return value


def wrong(paper):
    """What does not come out."""
    found = published.statements(paper)
    return found[~found["holds"]]


# ---------------------------------------------------------------- tables


def test_tables_have_the_paper_s_size():
    """12 methods with I-AUROC and 11 with AUPRO, of ten categories and a mean; 9 and 6 methods."""
    sizes = TABLE1.groupby("metric")["method"].nunique().to_dict()
    assert sizes == {"i_auroc": 12, "aupro_30": 11}
    assert len(TABLE1) == 23 * 11
    assert set(TABLE1["category"]) == {*CATEGORIES["mvtec3d"], "mean"}
    assert TABLE2.groupby("dataset")["method"].nunique().to_dict() == {
        "mvtec3d": 9,
        "eyecandies": 6,
    }
    assert len(TABLE2) == 15 * 4 and set(TABLE2["category"]) == {"mean"}
    dashes = TABLE2[TABLE2["value"].isna()]
    assert len(dashes) == 5 + 2 + 3  # of MVTec 3D-AD; of 2M3DF and of LSFA on Eyecandies
    assert dashes["note"].str.contains("not reported").all()
    sizes = [(table["method"].nunique(), len(table)) for table in (TABLE3, TABLE4, TABLE5, TABLE6)]
    assert sizes == [(5, 5 * 4), (5, 5 * 3), (4, 4 * 4), (4, 4)]
    for table in (TABLE3, TABLE4, TABLE5, TABLE6):
        assert set(table["dataset"]) == {"mvtec3d"} and set(table["category"]) == {"mean"}
        assert table["value"].notna().all()
    assert set(TABLE6["metric"]) == {"frame_rate"} and TABLE6["note"].str.contains("4090").all()


@pytest.mark.parametrize(
    ("table", "method", "metric", "dataset", "category", "value"),
    [
        (TABLE1, "DepthGAN", "i_auroc", "mvtec3d", "bagel", 0.538),
        (TABLE1, "EasyNet", "i_auroc", "mvtec3d", "cable_gland", 0.998),
        (TABLE1, "G2SF", "i_auroc", "mvtec3d", "foam", 0.991),
        (TABLE1, "G2SF", "i_auroc", "mvtec3d", "tire", 0.922),
        (TABLE1, "VoxelGAN", "aupro_30", "mvtec3d", "foam", 0.332),
        (TABLE1, "Shape-Guided", "aupro_30", "mvtec3d", "foam", 0.978),
        (TABLE1, "DAUP", "aupro_30", "mvtec3d", "tire", 0.980),
        (TABLE2, "G2SF", "i_auroc", "mvtec3d", "mean", 0.971),
        (TABLE2, "G2SF", "aupro_1", "mvtec3d", "mean", 0.468),
        (TABLE2, "Shape-Guided", "p_auroc", "mvtec3d", "mean", 0.996),
        (TABLE2, "AST", "i_auroc", "eyecandies", "mean", 0.780),
        (TABLE2, "LSFA", "p_auroc", "eyecandies", "mean", 0.974),
        (TABLE2, "G2SF", "aupro_1", "eyecandies", "mean", 0.357),
        (TABLE3, "s_rgb", "p_auroc", "mvtec3d", "mean", 0.988),
        (TABLE3, "s_pcd", "i_auroc", "mvtec3d", "mean", 0.854),
        (TABLE3, "w_rgb", "aupro_30", "mvtec3d", "mean", 0.916),
        (TABLE3, "w_pcd", "aupro_1", "mvtec3d", "mean", 0.443),
        (TABLE4, "sep", "i_auroc", "mvtec3d", "mean", 0.868),
        (TABLE4, "sep+cns", "p_auroc", "mvtec3d", "mean", 0.995),
        (TABLE4, "sep+cns+mar+sc", "aupro_30", "mvtec3d", "mean", 0.978),
        (TABLE5, "nearest", "aupro_1", "mvtec3d", "mean", 0.461),
        (TABLE5, "max", "p_auroc", "mvtec3d", "mean", 0.986),
        (TABLE5, "mean", "i_auroc", "mvtec3d", "mean", 0.972),
        (TABLE6, "CFM", "frame_rate", "mvtec3d", "mean", 21.8),
        (TABLE6, "G2SF", "frame_rate", "mvtec3d", "mean", 6.04),
    ],
)
def test_numbers_picked_by_eye(table, method, metric, dataset, category, value):
    assert printed(table, method, metric, dataset, category) == value


def test_what_does_not_come_out():
    """A mean of ten numbers with three digits has four; 0.9446 is printed as 0.944. Of the text
    one claim fails: "min" has not the highest I-AUROC of Table 5, "mean" has."""
    found = wrong(PAPER)
    rows = [
        (row.kind, row.method, row.metric, row.printed, round(row.other, 4), row.other_name)
        for row in found.itertuples()
    ]
    assert rows == [
        ("mean", "2M3DF", "AUPRO@30 %", 0.975, 0.9756, "computed"),
        ("mean", "AST", "AUPRO@30 %", 0.944, 0.9446, "computed"),
        ("claim", "min", "I-AUROC", 0.971, 0.972, "the best other (mean)"),
    ]
    assert "superior overall performance" in found.iloc[-1]["where"]
    for (metric, method), rows in TABLE1.groupby(["metric", "method"]):
        values = rows.set_index("category")["value"]
        off = abs(values.drop("mean").mean() - values["mean"])
        assert off < 0.001, (metric, method)  # no mistake in typing is larger than a rounding


def test_everything_that_can_be_computed_again_is():
    """23 means; 18 of them in Table 2 too, and 4 + 3 + 4 numbers of Tables 3, 4 and 5."""
    found = published.statements(PAPER)
    assert found["kind"].value_counts().to_dict() == {
        "mean": 23,
        "repeated": 18 + 4 + 3 + 4,
        "claim": len(PAPER.claims),
    }
    assert found["metric"].notna().all() and np.isfinite(found[["printed", "other"]]).all(axis=None)
    assert not found.duplicated(["where", "method", "metric", "other_name"]).any()
    used = set(PAPER.claims["table"])
    assert used == {f"table{number}" for number in range(2, 7)}


def test_a_number_typed_wrong_is_found_wherever_another_depends_on_it():
    """Each cell of Tables 2 to 6 that a statement needs, moved by a hundredth, breaks one."""
    sound = len(wrong(PAPER))
    for name, method, metric in (
        ("table2", "LSFA", "aupro_30"),
        ("table3", "fused", "p_auroc"),
        ("table4", "sep", "i_auroc"),
        ("table4", "sep+cns+mar+sc+cma", "aupro_30"),
        ("table5", "nearest", "aupro_1"),
        ("table5", "min", "aupro_30"),
        ("table6", "G2SF", "frame_rate"),
    ):
        table = PAPER.tables[name].copy()
        at = (table.method == method) & (table.metric == metric) & (table.dataset == "mvtec3d")
        table.loc[at, "value"] -= 0.01
        changed = PAPER._replace(tables=PAPER.tables | {name: table})
        assert len(wrong(changed)) > sound, (name, method)


@pytest.mark.parametrize(
    ("relation", "other", "printed", "result", "holds"),
    [
        ("is", "", 0.971, 0.971, True),
        ("is", "", 0.972, 0.971, False),
        ("gain", "LSFA", 0.000, 0.000, True),
        ("gain", "Shape-Guided", 0.024, 0.024, True),
        ("gain", "Shape-Guided", 0.025, 0.024, False),
        ("above", "CFM", np.nan, 0.954, True),
        ("above", "others", np.nan, 0.971, False),  # LSFA has the same
        ("not below", "others", np.nan, 0.971, True),
        ("above", "table5 mean", np.nan, 0.972, False),
    ],
)
def test_each_relation_of_a_claim(relation, other, printed, result, holds):
    row = ("Section 0", "so", relation, "table2", "mvtec3d", "i_auroc", "G2SF", other, printed)
    claims = pd.DataFrame([row], columns=published.CLAIM_COLUMNS)
    found = published.statements(PAPER._replace(claims=claims)).iloc[-1]
    assert found["kind"] == "claim" and found["where"] == "Section 0, “so”"
    assert found["other"] == pytest.approx(result) and found["holds"] == holds
    expected = 0.971 if np.isnan(printed) else printed
    assert found["printed"] == pytest.approx(expected)
    claims["dataset"] = "procedural"
    with pytest.raises(ValueError, match="needs i_auroc of G2SF on procedural from table2"):
        published.statements(PAPER._replace(claims=claims))


def test_both_tables_print_the_same_means():
    """Every mean that both tables give, compared one by one."""
    both = TABLE1[TABLE1["category"] == "mean"].merge(
        TABLE2, on=["dataset", "metric", "method", "category"]
    )
    assert len(both) == 9 + 9
    assert (both["value_x"] == both["value_y"]).all()


def test_a_category_and_a_mean_typed_wrong_are_found():
    """One category moved by 0.02 moves its mean by 0.002; another mean in Table 2."""
    one, two = TABLE1.copy(), TABLE2.copy()
    at = (one.method == "CFM") & (one.metric == "i_auroc") & (one.category == "rope")
    one.loc[at, "value"] -= 0.02
    two.loc[(two.method == "BTF") & (two.metric == "aupro_30"), "value"] = 0.9
    found = wrong(PAPER._replace(tables=PAPER.tables | {"table1": one, "table2": two}))
    assert sorted(found["method"]) == ["2M3DF", "AST", "BTF", "CFM", "min"]
    computed = found.set_index("method")["other"]
    assert computed["CFM"] == pytest.approx(0.9524) and computed["BTF"] == 0.9


def test_quotes_are_short_and_have_a_place():
    """They are there for a reader who looks for the place, not instead of the paper."""
    for rows, quote in ((PAPER.claims, "quote"), (PAPER.slips, "printed")):
        assert rows[quote].str.split().str.len().max() <= 12
        assert (rows["place"].str.len() > 0).all() and not rows.duplicated().any()


def test_tables_for_the_page_read_as_printed():
    means = published.as_printed(TABLE2[TABLE2["dataset"] == "mvtec3d"], "metric")
    assert list(means.columns) == ["I-AUROC", "P-AUROC", "AUPRO@30 %", "AUPRO@1 %"]
    assert list(means.loc["G²SF"]) == ["0.971", "0.997", "0.979", "0.468"]
    assert list(means.loc["LSFA"]) == ["0.971", "0.993", "0.968", "–"]
    assert list(means.index)[0] == "BTF" and list(means.index)[-1] == "G²SF"
    each = published.as_printed(TABLE1[TABLE1["metric"] == "aupro_30"], "category")
    assert list(each.columns)[:2] == ["bagel", "cable gland"] and each.columns[-1] == "mean"
    assert each.loc["G²SF", "cable gland"] == "0.977" and "EasyNet" not in each.index


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "columns are"),
        ("dataset,metric,method,category,value,note\nm,i,x,c,97.1,\n", "holds values outside"),
        (
            "dataset,metric,method,category,value,note\nm,i,x,c,0.5,\nm,i,x,c,0.6,\n",
            "holds a number",
        ),
    ],
)
def test_a_damaged_table_is_named(tmp_path, content, message):
    (tmp_path / "table1.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"table1\.csv: {message}"):
        published.read_table("table1", tmp_path)

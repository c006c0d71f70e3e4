"""The paper's tables are typed as printed, agree with themselves or are told, and stand apart."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from g2sf_lib import published
from g2sf_lib.config import CATEGORIES
from g2sf_lib.results import METHOD_NAMES

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
    found = published.disagreements(PAPER)
    rows = [
        (row.kind, row.method, row.metric, row.printed, round(row.other, 4), row.other_name)
        for row in found.itertuples()
    ]
    assert rows == [
        ("mean", "AST", "AUPRO@30 %", 0.944, 0.9446, "computed"),
        ("mean", "2M3DF", "AUPRO@30 %", 0.975, 0.9756, "computed"),
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
    assert set(PAPER.claims["relation"]) == set(published.RELATIONS)


def test_a_number_typed_wrong_is_found_wherever_another_depends_on_it():
    """Each cell of Tables 2 to 6 that a statement needs, moved by a hundredth, breaks one."""
    sound = len(published.disagreements(PAPER))
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
        assert len(published.disagreements(changed)) > sound, (name, method)


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


def test_disagreements_are_found_and_told():
    """One category moved by 0.02 moves its mean by 0.002; another mean in Table 2."""
    one, two = TABLE1.copy(), TABLE2.copy()
    at = (one.method == "CFM") & (one.metric == "i_auroc") & (one.category == "rope")
    one.loc[at, "value"] -= 0.02
    two.loc[(two.method == "BTF") & (two.metric == "aupro_30"), "value"] = 0.9
    changed = PAPER._replace(tables=PAPER.tables | {"table1": one, "table2": two})
    found = published.disagreements(changed)
    assert list(found["method"]) == ["CFM", "AST", "2M3DF", "BTF", "min"]
    assert found.iloc[0]["other"] == pytest.approx(0.9524)
    report = published.disagreement_report(changed)
    num = 52 + len(PAPER.claims)
    assert report.startswith(f"{num} of the paper's numbers") and "23 means of Table 1" in report
    assert f"{num - 5} come out, 5 do not:" in report
    assert "- Table 1 and Table 2: BTF, AUPRO@30 %: printed 0.959, Table 2 0.900" in report
    assert "AST, AUPRO@30 %: printed 0.944, computed 0.9446" in report
    assert "- Table 2, “DUAP [23]”: DAUP in Table 1" in report
    sound = one[one.method == "DepthGAN"]
    little = PAPER._replace(
        tables=PAPER.tables | {"table1": sound},
        claims=PAPER.claims[PAPER.claims.table == "table4"],
        slips=PAPER.slips[:0],
    )
    assert published.disagreement_report(little).endswith("All come out.")


def test_quotes_are_short_and_have_a_place():
    """They are there for a reader who looks for the place, not instead of the paper."""
    for rows, quote in ((PAPER.claims, "quote"), (PAPER.slips, "printed")):
        assert rows[quote].str.split().str.len().max() <= 12
        assert (rows["place"].str.len() > 0).all() and not rows.duplicated().any()


def test_tables_for_the_page_read_as_printed():
    means = published.mean_table(TABLE2, "mvtec3d")
    assert list(means.columns) == ["I-AUROC", "P-AUROC", "AUPRO@30 %", "AUPRO@1 %"]
    assert list(means.loc["G²SF"]) == ["0.971", "0.997", "0.979", "0.468"]
    assert list(means.loc["LSFA"]) == ["0.971", "0.993", "0.968", "–"]
    assert list(means.index)[0] == "BTF" and list(means.index)[-1] == "G²SF"
    each = published.category_table(TABLE1, "aupro_30")
    assert list(each.columns)[:2] == ["bagel", "cable gland"] and each.columns[-1] == "mean"
    assert each.loc["G²SF", "cable gland"] == "0.977" and "EasyNet" not in each.index
    with pytest.raises(ValueError, match="dataset is 'procedural'"):
        published.mean_table(TABLE2, "procedural")
    with pytest.raises(ValueError, match="metric is 'p_auroc'"):
        published.category_table(TABLE1, "p_auroc")


def test_a_run_s_own_means_stand_below_the_paper_s_by_the_same_protocol(tmp_path):
    row = {"method": "g2sf", "i_auroc": 0.5, "p_auroc": 0.6, "aupro_30": 0.7, "aupro_1": 0.8}
    row |= {"aupro_30_published": 0.71, "aupro_1_published": 0.81}
    other = row | {"method": "sum", "i_auroc": 0.9}
    summary = {"dataset": "mvtec3d", "profile": "paper", "categories": ["bagel", "foam"]}
    file = tmp_path / "mvtec3d_paper.json"
    file.write_text(json.dumps(summary | {"methods": [other, row]}))
    table = published.mean_table(TABLE2, "mvtec3d", file)
    assert list(table.loc["G²SF here (paper, 2 categories)"]) == [
        "0.500",
        "0.600",
        "0.710",
        "0.810",
    ]
    assert len(published.mean_table(TABLE2, "eyecandies", file)) == 6  # another data set's
    assert len(published.mean_table(TABLE2, "mvtec3d", tmp_path / "none.json")) == 9


def test_ranking_is_counted_by_category():
    """Of the printed I-AUROC G2SF has the highest value in foam, peach and potato only."""
    report = published.ranking_report(TABLE1, "i_auroc")
    assert "in 3 of 10 categories (foam, peach, potato)" in report
    assert "its mean is +0.000 to the best other one's, LSFA" in report
    dots = published.category_dots(TABLE1, "i_auroc", 5)
    assert list(dots["method"].unique()) == ["CFM", "2M3DF", "DAUP", "LSFA", "G²SF"]
    assert set(dots.columns) == {"method", "category", "I-AUROC"}
    assert len(dots) == 5 * 11 and "cable gland" in set(dots["category"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "columns are"),
        ("dataset,metric,method,category,value,note\nm,i,x,c,97.1,\n", "holds values outside"),
        ("dataset,metric,method,category,value,note\nm,frame_rate,x,c,0,\n", "holds frame rates"),
        ("dataset,metric,method,category,value,note\nm,i,x,c,0.5,\nm,i,x,c,0.6,\n", "holds twice"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, content, message):
    (tmp_path / "table1.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"table1\.csv: {message}"):
        published.read_table("table1", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"table9\.csv: not there"):
        published.read_table("table9", tmp_path)


def test_a_damaged_claim_is_named(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "paper")
    claims = tmp_path / "paper" / "claims.csv"
    claims.write_text(claims.read_text().replace(",not below,", ",below,"))
    with pytest.raises(
        ValueError, match=r"claims\.csv: relation 'below'; expected one of is, gain"
    ):
        published.read_paper(tmp_path / "paper")
    (tmp_path / "paper" / "slips.csv").unlink()
    claims.write_text((FOLDER / "claims.csv").read_text())
    with pytest.raises(FileNotFoundError, match=r"slips\.csv: not there"):
        published.read_paper(tmp_path / "paper")


# ---------------------------------------------------------------- beside a run


def a_run(dataset="mvtec3d", methods=("g2sf", "cfm", "rgb"), categories=2, spread=0.004):
    """Rows of a run whose numbers nobody measured: 0.5 for the first method, then 0.6, 0.7."""
    rows = []
    metrics = ("i_auroc", "p_auroc", "aupro_30", "aupro_30_published", "aupro_1_published")
    for place, method in enumerate(methods):
        for category in (*CATEGORIES[dataset][:categories], "mean"):
            for metric in metrics:
                value = 0.5 + place / 10 + (0.05 if metric.endswith("_published") else 0.0)
                rows.append((method, category, metric, value, spread))
    return pd.DataFrame(rows, columns=["method", "category", "metric", "value", "spread"])


def test_all_methods_of_the_paper_are_either_rerun_or_only_quoted():
    rerun = set(published.METHODS_RERUN)
    assert not rerun & set(published.PUBLISHED_ONLY)
    assert rerun | set(published.PUBLISHED_ONLY) == set(TABLE1["method"]) | set(TABLE2["method"])
    assert set(published.METHODS_RERUN.values()) <= set(METHOD_NAMES)
    report = published.rerun_report()
    assert "BTF as “concatenated bank”" in report and "LSFA, DAUP. Of Shape-Guided" in report


def test_means_of_a_run_stand_below_those_of_the_method_that_it_reran():
    table = published.beside_table(a_run(), "mvtec3d", None, FOLDER)
    assert list(table.columns) == [
        "source",
        "I-AUROC",
        "P-AUROC",
        "AUPRO@30 %, published protocol",
        "AUPRO@1 %, published protocol",
    ]
    place = list(table.index).index("CFM")
    assert list(table.index)[place : place + 3] == ["CFM", "CFM", "2M3DF"]
    assert list(table.iloc[place]) == ["published", "0.954", "0.993", "0.971", "0.455"]
    assert list(table.iloc[place + 1]) == [
        "this run, 2 of 10 categories",
        *("0.600 ± 0.004", "0.600 ± 0.004", "0.650 ± 0.004", "0.650 ± 0.004"),
    ]
    assert list(table.index)[-3:] == ["G²SF", "G²SF", "RGB alone"]
    assert list(table.loc["EasyNet"]) == ["published", "0.926", "–", "–", "–"]  # Table 1 alone
    assert (table["source"] == "published").sum() == 12 and len(table) == 12 + 3


def test_categories_of_a_run_stand_below_those_of_table_1():
    table = published.beside_table(a_run(spread=np.nan), "mvtec3d", "aupro_30", FOLDER)
    names = [name.replace("_", " ") for name in CATEGORIES["mvtec3d"]]
    assert list(table.columns) == ["source", *names, "mean"]
    ours = table[table["source"] != "published"]
    assert list(ours.index) == ["CFM", "G²SF", "RGB alone"]
    assert list(ours.loc["CFM"])[1:] == ["0.650", "0.650", *["–"] * 8, "0.650"]
    paper = table[table["source"] == "published"]
    assert len(paper) == 11 and paper.loc["G²SF", "cable gland"] == "0.977"
    complete = published.beside_table(a_run(categories=10), "mvtec3d", "i_auroc", FOLDER)
    assert set(complete["source"]) == {"published", "this run"}


def test_of_eyecandies_the_paper_has_means_alone():
    """BTF is not in its table, so that the concatenated bank stands with those at the end."""
    run = a_run("eyecandies", ("g2sf", "concat", "ast"))
    table = published.beside_table(run, "eyecandies", "i_auroc", FOLDER)
    assert list(table.index) == ["AST", "AST", "M3DM", "CFM", "2M3DF", "G²SF", "G²SF",
                                 "concatenated bank"]  # fmt: skip
    assert list(table.loc["M3DM"])[1:] == ["–"] * 10 + ["0.882"]
    assert table.iloc[1]["CandyCane"] == "0.700 ± 0.004"
    means = published.beside_table(run, "eyecandies", None, FOLDER)
    assert list(means.loc["LSFA"]) == ["published", "–", "0.974", "–", "–"]


def test_what_cannot_stand_beside_the_paper_is_refused():
    run = a_run()
    every = run[run["metric"] != "aupro_1_published"]
    nameless = run.assign(method="tea")
    for ours, dataset, metric, message in (
        (run, "procedural", None, "dataset is 'procedural'.*published_only_table"),
        (run, "mvtec3d", "aupro_10", "metric is 'aupro_10'; the paper has i_auroc"),
        (every, "mvtec3d", None, "expected aupro_1_published too"),
        (run.drop(columns="spread"), "mvtec3d", None, "beside_table: .* expected spread"),
        (nameless, "mvtec3d", None, "method 'tea' has no name"),
    ):
        with pytest.raises(ValueError, match=message):
            published.beside_table(ours, dataset, metric, FOLDER)


def test_beside_other_data_everything_is_marked_published():
    table = published.published_only_table("i_auroc", FOLDER)
    assert list(table.columns)[:2] == ["source", "bagel"] and len(table) == 12
    assert set(table["source"]) == {"published"}
    assert table.loc["G²SF", "mean"] == "0.971"
    assert set(table.index) - {"G²SF"} == set(TABLE1["method"]) - {"G2SF"}
    with pytest.raises(ValueError, match="metric is 'p_auroc'"):
        published.published_only_table("p_auroc", FOLDER)


def test_frame_rates_stand_beside_those_of_the_paper_s_card():
    ours = pd.DataFrame({"method": ["rgb", "g2sf", "cfm"], "median_fps": [123.4, 0.5678, 31.26]})
    table = published.frame_rate_table(ours, FOLDER)
    rows = list(table.reset_index().itertuples(index=False, name=None))
    assert rows == [
        ("AST", "published, RTX 4090", "4.97"),
        ("M3DM", "published, RTX 4090", "2.12"),
        ("CFM", "published, RTX 4090", "21.8"),
        ("CFM", "this run", "31.3"),
        ("G²SF", "published, RTX 4090", "6.04"),
        ("G²SF", "this run", "0.568"),
        ("RGB alone", "this run", "123"),
    ]
    with pytest.raises(ValueError, match="frame_rate_table: .* expected median_fps"):
        published.frame_rate_table(ours.drop(columns="median_fps"), FOLDER)
    with pytest.raises(ValueError, match="'g2sf' is there twice"):
        published.frame_rate_table(pd.concat([ours, ours[1:2]]), FOLDER)

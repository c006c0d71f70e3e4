"""The paper's tables are typed as printed; costs are told as they were measured, and marked."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from g2sf_lib import published
from g2sf_lib.config import CATEGORIES, PROFILES

ROOT = Path(__file__).resolve().parent.parent
TABLE1 = published.read_table("table1", ROOT / "data" / "paper")
TABLE2 = published.read_table("table2", ROOT / "data" / "paper")


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
    ],
)
def test_numbers_picked_by_eye(table, method, metric, dataset, category, value):
    assert printed(table, method, metric, dataset, category) == value


def test_printed_means_come_out_but_for_the_two_that_the_paper_cut_off():
    """A mean of ten numbers with three digits has four; 0.9446 is printed as 0.944."""
    found = published.disagreements(TABLE1, TABLE2)
    rows = [
        (row.method, row.metric, row.printed, round(row.other, 4)) for row in found.itertuples()
    ]
    assert rows == [
        ("AST", "AUPRO@30 %", 0.944, 0.9446),
        ("2M3DF", "AUPRO@30 %", 0.975, 0.9756),
    ]
    for (metric, method), rows in TABLE1.groupby(["metric", "method"]):
        values = rows.set_index("category")["value"]
        off = abs(values.drop("mean").mean() - values["mean"])
        assert off < 0.001, (metric, method)  # no mistake in typing is larger than a rounding


def test_both_tables_print_the_same_means():
    """Every mean that both tables give, compared one by one."""
    both = TABLE1[TABLE1["category"] == "mean"].merge(
        TABLE2, on=["dataset", "metric", "method", "category"]
    )
    assert len(both) == 9 + 9
    assert (both["value_x"] == both["value_y"]).all()


def test_claims_of_the_paper_s_text_agree_with_its_tables():
    gain = printed(TABLE2, "G2SF", "aupro_1") - printed(TABLE2, "Shape-Guided", "aupro_1")
    assert gain == pytest.approx(0.012)  # "+1.2% AUPRO@1% advantage over Shape-guided"
    sweets = [printed(TABLE2, name, "aupro_1", "eyecandies") for name in ("G2SF", "CFM")]
    assert sweets[0] - sweets[1] == pytest.approx(0.022)  # "+2.2% AUPRO@1% over CFM"


def test_disagreements_are_found_and_told():
    """One category moved by 0.02 moves its mean by 0.002; another mean in Table 2."""
    one, two = TABLE1.copy(), TABLE2.copy()
    at = (one.method == "CFM") & (one.metric == "i_auroc") & (one.category == "rope")
    one.loc[at, "value"] -= 0.02
    two.loc[(two.method == "BTF") & (two.metric == "aupro_30"), "value"] = 0.9
    found = published.disagreements(one, two)
    assert list(found["method"]) == ["CFM", "BTF", "AST", "2M3DF"]
    assert found.iloc[0]["other"] == pytest.approx(0.9524)
    report = published.disagreement_report(one, two)
    assert "prints 23 means" in report and "4 of the printed numbers do not come out" in report
    assert "- Table 1 and Table 2: BTF, AUPRO@30 %: printed 0.959, the other 0.9000" in report
    sound = one[one.method == "DepthGAN"]
    assert published.disagreement_report(sound, two).endswith("all come out.")


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
        ("dataset,metric,method,category,value,note\nm,i,x,c,0.5,\nm,i,x,c,0.6,\n", "holds twice"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, content, message):
    (tmp_path / "table1.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"table1\.csv: {message}"):
        published.read_table("table1", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"table9\.csv: not there"):
        published.read_table("table9", tmp_path)


def test_settings_of_the_paper_are_those_of_the_profile():
    table = published.paper_settings()
    assert set(table.index) <= set(PROFILES["paper"])
    assert table.loc["epochs", "paper"] == "80" and table.loc["alpha", "paper"] == "10.0"
    assert (table["paper"] != table["demo"]).all() and table["reason"].str.len().min() > 3


# ---------------------------------------------------------------- costs


@pytest.fixture
def made_up_scale():
    """Numbers that nobody measured, laid out like data/results/scale.json."""

    def row(what, fraction, cells, seconds, peak_mb, kind="measured", coreset=None, note=""):
        names = ("what", "fraction", "cells", "seconds", "peak_mb", "kind", "coreset", "note")
        values = (what, fraction, cells, seconds, peak_mb, kind, coreset, note)
        return dict(zip(names, values, strict=True))

    extrapolated = {"kind": "extrapolated", "note": "from the curve"}
    coverage = [
        {"fraction": fraction, "coreset": name, "radius": radius, "seconds": seconds}
        for fraction, name, radius, seconds in (
            (0.25, "greedy", 3.0, 1000.0),
            (0.5, "greedy", 2.0, 4000.0),
            (0.5, "approximate", 2.2, 300.0),
            (0.5, "random", 3.0, 0.0),
            (1.0, "approximate", 2.0, 900.0),
        )
    ]
    return {
        "machine": {"cores": 2, "processor": "made up", "gpu": None},
        "rows": [
            row("bank", 0.25, 200_000, 1000.0, 2000.0, coreset="greedy"),
            row("bank", 0.5, 400_000, 4000.0, 3500.0, coreset="greedy"),
            row("bank", 1.0, 800_000, 16000.0, 6000.0, coreset="greedy", **extrapolated),
            row("bank", 1.0, 800_000, 900.0, 6100.0, coreset="approximate"),
            row("epoch", 0.5, 600_000, 100.0, 3000.0),
            row("epoch", 1.0, 1_200_000, 200.0, 4000.0),
        ],
        "coverage": coverage,
        "per_scan_s": {"rgb": 0.2, "pcd": 0.5},
        "paper_category": {"hours": {"bank": 4.0, "search": 0.01}, "disk_gb": {"features": 5.0}},
    }


@pytest.fixture
def scale_file(tmp_path, made_up_scale):
    path = tmp_path / "scale.json"
    path.write_text(json.dumps(made_up_scale))
    return path


def test_every_row_is_shown_with_how_it_is_known(scale_file):
    scale = published.read_scale(scale_file)
    table = published.cost_table(scale)
    assert len(table) == len(scale["rows"])
    assert set(table["kind"]) == {"measured", "extrapolated"}
    assert table.index[0].startswith("building the bank")
    full = table[(table["size"] == "100 %") & (table.index == "building the bank, greedy coreset")]
    assert full.iloc[0].to_dict() == {
        "size": "100 %", "cells": "800,000", "time": "4.4 h", "peak memory": "6.0 GB",
        "kind": "extrapolated", "note": "from the curve",
    }  # fmt: skip


def test_memory_is_held_against_the_limit(scale_file, made_up_scale):
    report = published.memory_report(published.read_scale(scale_file))
    assert "- building the bank, greedy coreset, 100 % of the paper's size: 6.0 GB (extrapolated), within 8 GB" in report  # fmt: skip # noqa: E501
    made_up_scale["rows"][-1]["peak_mb"] = 8001.0
    assert "8.0 GB (measured), **above** 8 GB" in published.memory_report(made_up_scale)
    made_up_scale["rows"] = [made_up_scale["rows"][0] | {"peak_mb": None}]
    assert published.memory_report(made_up_scale) == ""
    assert published.cost_table(made_up_scale)["peak memory"].iloc[0] == "–"


def test_growth_is_the_slope_of_what_was_measured(made_up_scale):
    """Bank: 1000 s for 200,000 cells, 4000 s for 400,000: power 2. Epoch: linear."""
    report = published.growth_report(made_up_scale)
    assert "- building the bank, greedy coreset: time grows with the size to the power of 2.0" in report  # fmt: skip # noqa: E501
    assert "- one training epoch: time grows with the size to the power of 1.0" in report
    alone = made_up_scale | {"rows": made_up_scale["rows"][:1]}
    assert published.growth_report(alone).endswith("measured at one size only")
    guessed = {**made_up_scale, "rows": [made_up_scale["rows"][2]]}
    assert published.growth_report(guessed).endswith("extrapolated at every size")


def test_coresets_are_compared_where_both_were_measured(made_up_scale):
    report = published.coverage_report(made_up_scale)
    assert report.startswith("At 50 % of the paper's size:")
    assert "- approximate: radius 1.100 times that of greedy, chosen in 5.0 min" in report
    assert "- random: radius 1.500 times that of greedy, chosen at once" in report
    made_up_scale["coverage"] = made_up_scale["coverage"][:1]
    assert "nothing can be compared" in published.coverage_report(made_up_scale)


def test_costs_of_a_category_and_of_ten(made_up_scale):
    table = published.category_costs(made_up_scale)
    assert list(table.columns) == ["one category", "10 categories", "kind"]
    assert list(table.loc["DINO, one scan"]) == ["200 ms", "", "measured"]
    assert list(table.loc["time: bank"]) == ["4.0 h", "40.0 h", "extrapolated"]
    assert list(table.loc["time: search"]) == ["under 1 min", "6.0 min", "extrapolated"]
    assert list(table.loc["disk: features"]) == ["5.0 GB", "50.0 GB", "extrapolated"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.05, "50 ms"), (1.0, "1.0 s"), (119.0, "119.0 s"), (120.0, "2.0 min"), (7200.0, "2.0 h"),
     (172800.0, "2.0 days")],
)  # fmt: skip
def test_a_time_is_told_in_a_unit_that_reads_well(seconds, text):
    assert published.duration(seconds) == text


def test_what_was_not_tried_depends_on_a_gpu_file(tmp_path, scale_file, made_up_scale):
    assert "**No GPU**" in published.tried_report(tmp_path / "none.json")
    made_up_scale["machine"] |= {"gpu": "a card"}
    scale_file.write_text(json.dumps(made_up_scale))
    report = published.tried_report(scale_file)
    assert "No GPU" not in report and "gpu a card" in report
    assert "None" not in published.machine_report({"machine": {"cores": 2, "gpu": None}})


def test_missing_measurements_say_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scale\.json: not there.*bench_scale\.py"):
        published.read_scale(tmp_path / "scale.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("machine"), "machine is missing"),
        (lambda s: s.update(rows={}), "rows is missing or no list"),
        (lambda s: s["rows"][1].pop("kind"), "row 1 lacks kind"),
        (lambda s: s["rows"][0].update(kind="guessed"), "row 0 is 'bank', 'guessed'"),
        (lambda s: s["rows"][0].update(what="tea"), "row 0 is 'tea'"),
        (lambda s: s["coverage"][0].pop("radius"), "coverage 0 lacks radius"),
        (lambda s: s["paper_category"].pop("hours"), "paper_category has no hours"),
    ],
)
def test_damaged_measurements_are_named(scale_file, made_up_scale, change, message):
    change(made_up_scale)
    scale_file.write_text(json.dumps(made_up_scale))
    with pytest.raises(ValueError, match=rf"scale\.json: {message}"):
        published.read_scale(scale_file)
    scale_file.write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        published.read_scale(scale_file)


def test_steps_come_in_the_order_of_a_run(made_up_scale):
    steps = list(published.scale_rows(made_up_scale)["step"].unique())
    assert steps == [
        "building the bank, approximate coreset",
        "building the bank, greedy coreset",
        "one training epoch",
    ]
    assert isinstance(published.scale_rows(made_up_scale), pd.DataFrame)
    assert np.isfinite(published.scale_rows(made_up_scale)["seconds"]).all()
    assert all(re.match(r"^[a-z]", step) for step in steps)


@pytest.mark.slow
def test_the_chapter_runs_on_whatever_was_measured(tmp_path, scale_file):
    """The notebook as the book runs it, in a folder with made-up measurements."""
    shutil.copytree(ROOT / "data" / "paper", tmp_path / "data" / "paper")
    (tmp_path / "data" / "results").mkdir()
    notebook, out = ROOT / "notebooks" / "91_real_data.ipynb", tmp_path / "out.ipynb"
    command = [sys.executable, str(ROOT / "workflow" / "run_notebook.py"), str(notebook), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shutil.copy(scale_file, tmp_path / "data" / "results" / "scale.json")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs = [x for c in nbformat.read(out, as_version=4).cells for x in c.get("outputs", [])]
    shown = [x.data for x in outputs if "data" in x]
    assert sum("<img" in x.get("text/html", "") for x in shown) == 3
    text = "\n".join(x.get("text/markdown", "") + x.get("text/html", "") for x in shown)
    assert "extrapolated" in text and "<td>0.971</td>" in text and "**No GPU**" in text

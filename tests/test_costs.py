"""Costs of a run are told as they were measured, and marked."""

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

from g2sf_lib import costs
from g2sf_lib.config import PROFILES

ROOT = Path(__file__).resolve().parent.parent


def test_settings_of_the_paper_are_those_of_the_profile():
    table = costs.paper_settings()
    assert set(table.index) <= set(PROFILES["paper"])
    assert table.loc["epochs", "paper"] == "80" and table.loc["l1", "paper"] == "0.0005"
    assert (table["paper"] != table["demo"]).all() and table["reason"].str.len().min() > 3


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
    scale = costs.read_scale(scale_file)
    table = costs.cost_table(scale)
    assert len(table) == len(scale["rows"])
    assert set(table["kind"]) == {"measured", "extrapolated"}
    assert table.index[0].startswith("building the bank")
    full = table[(table["size"] == "100 %") & (table.index == "building the bank, greedy coreset")]
    assert full.iloc[0].to_dict() == {
        "size": "100 %", "cells": "800,000", "time": "4.4 h", "peak memory": "6.0 GB",
        "kind": "extrapolated", "note": "from the curve",
    }  # fmt: skip


def test_memory_is_held_against_the_limit(scale_file, made_up_scale):
    report = costs.memory_report(costs.read_scale(scale_file))
    assert "- building the bank, greedy coreset, 100 % of the paper's size: 6.0 GB (extrapolated), within 8 GB" in report  # fmt: skip # noqa: E501
    made_up_scale["rows"][-1]["peak_mb"] = 8001.0
    assert "8.0 GB (measured), **above** 8 GB" in costs.memory_report(made_up_scale)
    made_up_scale["rows"] = [made_up_scale["rows"][0] | {"peak_mb": None}]
    assert costs.memory_report(made_up_scale) == ""
    assert costs.cost_table(made_up_scale)["peak memory"].iloc[0] == "–"


def test_growth_is_the_slope_of_what_was_measured(made_up_scale):
    """Bank: 1000 s for 200,000 cells, 4000 s for 400,000: power 2. Epoch: linear."""
    report = costs.growth_report(made_up_scale)
    assert "- building the bank, greedy coreset: time grows with the size to the power of 2.0" in report  # fmt: skip # noqa: E501
    assert "- one training epoch: time grows with the size to the power of 1.0" in report
    alone = made_up_scale | {"rows": made_up_scale["rows"][:1]}
    assert costs.growth_report(alone).endswith("measured at one size only")
    guessed = {**made_up_scale, "rows": [made_up_scale["rows"][2]]}
    assert costs.growth_report(guessed).endswith("extrapolated at every size")


def test_coresets_are_compared_where_both_were_measured(made_up_scale):
    report = costs.coverage_report(made_up_scale)
    assert report.startswith("At 50 % of the paper's size:")
    assert "- approximate: radius 1.100 times that of greedy, chosen in 5.0 min" in report
    assert "- random: radius 1.500 times that of greedy, chosen at once" in report
    made_up_scale["coverage"] = made_up_scale["coverage"][:1]
    assert "nothing can be compared" in costs.coverage_report(made_up_scale)


def test_costs_of_a_category_and_of_ten(made_up_scale):
    table = costs.category_costs(made_up_scale)
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
    assert costs.duration(seconds) == text


def test_what_was_not_tried_depends_on_a_gpu_file(tmp_path, scale_file, made_up_scale):
    assert "**No GPU**" in costs.tried_report(tmp_path / "none.json")
    made_up_scale["machine"] |= {"gpu": "a card"}
    scale_file.write_text(json.dumps(made_up_scale))
    report = costs.tried_report(scale_file)
    assert "No GPU" not in report and "gpu a card" in report
    assert "None" not in costs.machine_report({"machine": {"cores": 2, "gpu": None}})


def test_missing_measurements_say_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scale\.json: not there.*bench_scale\.py"):
        costs.read_scale(tmp_path / "scale.json")


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
        costs.read_scale(scale_file)
    scale_file.write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        costs.read_scale(scale_file)


def test_steps_come_in_the_order_of_a_run(made_up_scale):
    steps = list(costs.scale_rows(made_up_scale)["step"].unique())
    assert steps == [
        "building the bank, approximate coreset",
        "building the bank, greedy coreset",
        "one training epoch",
    ]
    assert isinstance(costs.scale_rows(made_up_scale), pd.DataFrame)
    assert np.isfinite(costs.scale_rows(made_up_scale)["seconds"]).all()
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
    for name in ("mvtec3d_demo.json", "preprocessing_mvtec3d_demo.json"):
        shutil.copy(ROOT / "data" / "results" / name, tmp_path / "data" / "results" / name)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs = [x for c in nbformat.read(out, as_version=4).cells for x in c.get("outputs", [])]
    shown = [x.data for x in outputs if "data" in x]
    assert sum("<img" in x.get("text/html", "") for x in shown) == 3
    text = "\n".join(x.get("text/markdown", "") + x.get("text/html", "") for x in shown)
    assert "extrapolated" in text and "<td>0.971</td>" in text and "**No GPU**" in text

"""What a run of the paper's size takes: for the book's chapter on real data.

Costs are read from `data/results/scale.json`, which `benchmarks/bench_scale.py` writes; each is
marked as measured or extrapolated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from g2sf_lib.config import CATEGORIES, make_config, settings_table

SCALE_FILE = Path("data/results/scale.json")
GPU_FILE = Path("data/results/scale_gpu.json")  # the same, measured on a GPU; need not be there
MEMORY_LIMIT_MB = 8000.0  # what a laptop with 16 GB can give beside everything else
STEP_NAMES = {
    "features": "features of all scans",
    "bank": "building the bank",
    "neighbours": "neighbours of the training cells",
    "epoch": "one training epoch",
}
MEASURED, EXTRAPOLATED = "measured", "extrapolated"
SCAN_NAMES = {
    "preprocess": "preprocessing",
    "synthesis": "pasting",
    "rgb": "DINO",
    "pcd": "Point-MAE",
}


def paper_settings() -> pd.DataFrame:
    """Return every setting in which profile `paper` differs from `demo`, with its reason."""
    demo = {row["name"]: row["value"] for row in settings_table(make_config("demo"))}
    rows = [
        {"setting": row["name"], "paper": str(row["value"]), "demo": str(demo[row["name"]]),
         "reason": row["reason"]}
        for row in settings_table(make_config("paper"))
        if row["value"] != demo[row["name"]] and row["name"] != "profile"
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("setting")


def read_scale(path: Path = SCALE_FILE) -> dict[str, Any]:
    """Return what `benchmarks/bench_scale.py` measured.

    Returns:
        ``machine`` (name -> value); ``rows`` (dicts with ``what``, ``fraction`` of the paper's
        size, ``cells``, ``seconds``, ``peak_mb``, ``kind``: "measured" or "extrapolated",
        ``coreset`` or None, ``note``); ``coverage`` (dicts with ``fraction``, ``coreset``,
        ``radius``, ``seconds``); ``per_scan_s`` (work -> seconds); ``paper_category``
        (``hours`` and ``disk_gb``, each name -> value for one category).

    Raises:
        FileNotFoundError: nothing was measured yet.
        ValueError: the file says something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not there; expected the measurements that "
            "`python benchmarks/bench_scale.py` writes"
        )
    try:
        scale = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from error
    fields = {"machine": dict, "rows": list, "coverage": list, "per_scan_s": dict}
    fields["paper_category"] = dict
    for name, kind in fields.items():
        if not isinstance(scale.get(name), kind):
            raise ValueError(f"{path}: {name} is missing or no {kind.__name__}")
    needed = ("what", "fraction", "cells", "seconds", "peak_mb", "kind", "coreset", "note")
    for place, row in enumerate(scale["rows"]):
        missing = [name for name in needed if name not in row]
        if missing:
            raise ValueError(f"{path}: row {place} lacks {', '.join(missing)}")
        if row["what"] not in STEP_NAMES or row["kind"] not in (MEASURED, EXTRAPOLATED):
            raise ValueError(f"{path}: row {place} is {row['what']!r}, {row['kind']!r}")
    for place, row in enumerate(scale["coverage"]):
        missing = [n for n in ("fraction", "coreset", "radius", "seconds") if n not in row]
        if missing:
            raise ValueError(f"{path}: coverage {place} lacks {', '.join(missing)}")
    for name in ("hours", "disk_gb"):
        if not isinstance(scale["paper_category"].get(name), dict):
            raise ValueError(f"{path}: paper_category has no {name}")
    return scale


def scale_rows(scale: dict[str, Any]) -> pd.DataFrame:
    """Return a row a measurement or extrapolation, for `plots.scale_curves`.

    Columns: those of ``rows`` and ``step``, what was done in words, with the coreset's name.
    """
    rows = pd.DataFrame(scale["rows"])
    names = [
        STEP_NAMES[row["what"]] + (f", {row['coreset']} coreset" if row["coreset"] else "")
        for row in scale["rows"]
    ]
    rows = rows.assign(step=names, order=[list(STEP_NAMES).index(what) for what in rows["what"]])
    return rows.sort_values(["order", "step", "fraction"], kind="stable").drop(columns="order")


def cost_table(scale: dict[str, Any]) -> pd.DataFrame:
    """Return every row of the measurements as text, each marked measured or extrapolated."""
    rows = scale_rows(scale)
    return pd.DataFrame(
        {
            "step": rows["step"],
            "size": [f"{100 * fraction:.0f} %" for fraction in rows["fraction"]],
            "cells": [f"{cells:,}" for cells in rows["cells"]],
            "time": [duration(seconds) for seconds in rows["seconds"]],
            "peak memory": [
                "–" if peak is None or np.isnan(peak) else f"{peak / 1000:.1f} GB"
                for peak in rows["peak_mb"]
            ],
            "kind": rows["kind"],
            "note": rows["note"],
        }
    ).set_index("step")


def duration(seconds: float) -> str:
    """Return a time in the unit in which it is a number that can be read."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def machine_report(scale: dict[str, Any]) -> str:
    """Return, in a sentence, on what the numbers were measured."""
    machine = {name: value for name, value in scale["machine"].items() if value is not None}
    parts = [f"{name.replace('_', ' ')} {value}" for name, value in machine.items()]
    return f"Measured on: {', '.join(parts)}."


def memory_report(scale: dict[str, Any], limit_mb: float = MEMORY_LIMIT_MB) -> str:
    """Return, as Markdown, whether the largest size of every step stays within a memory limit."""
    lines = []
    for step, rows in scale_rows(scale).groupby("step", sort=False):
        known = rows.dropna(subset=["peak_mb"])
        if known.empty:
            continue
        last = known.iloc[-1]
        word = "within" if last.peak_mb <= limit_mb else "**above**"
        lines.append(
            f"- {step}, {100 * last.fraction:.0f} % of the paper's size: "
            f"{last.peak_mb / 1000:.1f} GB ({last.kind}), {word} {limit_mb / 1000:.0f} GB"
        )
    return "\n".join(lines)


def growth_report(scale: dict[str, Any]) -> str:
    """Return, as Markdown, by what power of the size the time of every step grows.

    The power is the slope between the smallest and the largest *measured* size; extrapolated
    rows would only give back what they were made with.
    """
    lines = []
    for step, rows in scale_rows(scale).groupby("step", sort=False):
        known = rows[rows["kind"] == MEASURED]
        if known["cells"].nunique() < 2:
            how = "measured at one size only" if len(known) else "extrapolated at every size"
            lines.append(f"- {step}: {how}")
            continue
        first, last = known.iloc[0], known.iloc[-1]
        power = np.log(last.seconds / first.seconds) / np.log(last.cells / first.cells)
        lines.append(f"- {step}: time grows with the size to the power of {power:.1f}")
    return "\n".join(lines)


def coverage_rows(scale: dict[str, Any]) -> pd.DataFrame:
    """Return a row a coreset and size: ``fraction``, ``coreset``, ``radius``, ``seconds``."""
    rows = pd.DataFrame(scale["coverage"], columns=["fraction", "coreset", "radius", "seconds"])
    return rows.sort_values(["coreset", "fraction"], kind="stable")


def coverage_report(scale: dict[str, Any]) -> str:
    """Return, as Markdown, how the coresets compare at the largest size that two of them share."""
    rows = coverage_rows(scale)
    shared = rows.groupby("fraction")["coreset"].nunique()
    shared = shared[shared > 1]
    if shared.empty:
        return "No two coresets were measured at the same size, so nothing can be compared."
    at = rows[rows["fraction"] == shared.index.max()].set_index("coreset")
    base = "greedy" if "greedy" in at.index else at.index[0]
    lines = [f"At {100 * shared.index.max():.0f} % of the paper's size:", ""]
    for name, row in at.iterrows():
        lines.append(
            f"- {name}: radius {row.radius / at.loc[base, 'radius']:.3f} times that of {base}, "
            + (f"chosen in {duration(row.seconds)}" if row.seconds > 0 else "chosen at once")
        )
    return "\n".join(lines)


def category_costs(scale: dict[str, Any]) -> pd.DataFrame:
    """Return what one category of MVTec 3D-AD takes, and all of it, with how each is known."""
    rows, num_categories = [], len(CATEGORIES["mvtec3d"])
    for name, seconds in scale["per_scan_s"].items():
        rows.append((f"{SCAN_NAMES.get(name, name)}, one scan", duration(seconds), "", MEASURED))
    for name, hours in scale["paper_category"]["hours"].items():
        each, all_of_them = (
            duration(3600 * part) if part >= 1 / 60 else "under 1 min"  # hours have two digits
            for part in (hours, hours * num_categories)
        )
        rows.append((f"time: {name}", each, all_of_them, EXTRAPOLATED))
    for name, size in scale["paper_category"]["disk_gb"].items():
        each, all_of_them = f"{size:.1f} GB", f"{size * num_categories:.1f} GB"
        rows.append((f"disk: {name}", each, all_of_them, EXTRAPOLATED))
    columns = ["what", "one category", f"{num_categories} categories", "kind"]
    return pd.DataFrame(rows, columns=columns).set_index("what")


def tried_report(gpu_file: Path = GPU_FILE) -> str:
    """Return, as Markdown, on what this was run, and on what not; a GPU file changes the text."""
    lines = [
        "- **One real category**, `cable_gland` of MVTec 3D-AD, with profile `demo`. For the other "
        "nine, and for Eyecandies, every stage was run on small trees in the published formats, "
        "made by the tests.",
        "- **No published weights**: DINO and Point-MAE were run with random weights; that the "
        "official Point-MAE file fits is checked when it is fetched.",
        "- **No result of the paper**: none of its numbers was reproduced or tried.",
    ]
    if Path(gpu_file).is_file():
        machine = machine_report(read_scale(gpu_file))
        lines.append(
            f"- **A GPU** was there for the costs and for the tests that need one. {machine}"
        )
    else:
        lines.append(
            "- **No GPU**: costs are those of a CPU, and tests that compare a GPU with it have "
            "not been run."
        )
    return "\n".join(lines)

"""The paper's numbers with those of a run beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from g2sf_lib.config import CATEGORIES
from g2sf_lib.published.tables import (
    DATASET_NAMES,
    DISPLAY_NAMES,
    PAPER_DIR,
    PAPER_METRICS,
    category_table,
    published_key,
    read_table,
)
from g2sf_lib.results import METHOD_NAMES, METRIC_NAMES

METHODS_RERUN = {"BTF": "concat", "AST": "ast", "M3DM": "m3dm", "CFM": "cfm", "G2SF": "g2sf"}
PUBLISHED_ONLY = ("DepthGAN", "VoxelGAN", "EasyNet", "Shape-Guided", "2M3DF", "LSFA", "DAUP")
PUBLISHED, THIS_RUN = "published", "this run"


def beside_table(
    ours: pd.DataFrame, dataset: str, metric: str | None = None, folder: Path = PAPER_DIR
) -> pd.DataFrame:
    """Return the paper's methods with this run's below those that were rerun, as text.

    AUPRO of this run is that of the published protocol (100 thresholds), which alone may be
    compared with the paper's; `ours` has to have it, as ``aupro_30_published`` and so on.

    Args:
        ours: columns ``method`` (code), ``category`` (including "mean"), ``metric``, ``value``
            and ``spread`` (standard deviation over seeds; NaN: none). Other metrics are left out.
        dataset: "mvtec3d" or "eyecandies".
        metric: None for the metrics of Table 2, means over categories (of methods that Table 1
            alone has, those that it gives); otherwise one of them, by category as in Table 1. Of
            Eyecandies the paper prints no categories: its methods then have the mean alone.
        folder: where the paper's tables lie.

    Returns:
        A row a method by name, in the paper's order, our methods that it lacks at the end; the
        column ``source`` ("published", or "this run" with the number of its categories where it
        has not all), then metrics or categories. A dash where there is no number.

    Raises:
        ValueError: the paper has no such data set or metric; `ours` lacks a column or metric, or
            has a method without a name.
    """
    if dataset not in DATASET_NAMES:
        raise ValueError(
            f"dataset is {dataset!r}; the paper has {', '.join(DATASET_NAMES)}: "
            "published_only_table is for others"
        )
    if metric is not None and metric not in PAPER_METRICS:
        raise ValueError(f"metric is {metric!r}; the paper has {', '.join(PAPER_METRICS)}")
    wanted = PAPER_METRICS if metric is None else (metric,)
    ours = _with_metrics(ours, wanted)
    printed = pd.concat([read_table("table1", folder), read_table("table2", folder)])
    printed = printed[printed["dataset"].eq(dataset) & printed["metric"].isin(wanted)]
    printed = printed.dropna(subset=["value"]).drop_duplicates(["method", "category", "metric"])
    categories = CATEGORIES[dataset]
    num = ours.loc[ours["category"] != "mean", "category"].nunique()
    source = THIS_RUN
    if 0 < num < len(categories):
        source += f", {num} of {len(categories)} categories"
    if metric is None:
        across = "metric"
        columns = {
            name: METRIC_NAMES[name] + (", published protocol" if "aupro" in name else "")
            for name in PAPER_METRICS
        }
        printed, ours = (rows[rows["category"] == "mean"] for rows in (printed, ours))
    else:
        across = "category"
        columns = {name: name.replace("_", " ") for name in (*categories, "mean")}
    cells = (_cells(rows, across, columns) for rows in (printed, ours))
    return _beside(*cells, PUBLISHED, source)


def published_only_table(metric: str, folder: Path = PAPER_DIR) -> pd.DataFrame:
    """Return the paper's Table 1 as text, every row marked as published, G2SF's among them.

    For runs on other data: nothing of this run may stand beside it.

    Args:
        metric: "i_auroc" or "aupro_30".
        folder: where the paper's tables lie.

    Returns:
        A row a method; the column ``source``, the ten categories and their mean.

    Raises:
        ValueError: Table 1 does not have the metric.
    """
    wide = category_table(read_table("table1", folder), metric)
    wide.insert(0, "source", PUBLISHED)
    return wide


def rerun_report() -> str:
    """Return, as Markdown, which of the paper's methods a run has, and which are only quoted."""
    rerun = [
        f"{DISPLAY_NAMES.get(name, name)} as “{METHOD_NAMES[code]}”"
        for name, code in METHODS_RERUN.items()
    ]
    return (
        f"- Rerun here: {', '.join(rerun)}.\n"
        f"- Only as published: {', '.join(PUBLISHED_ONLY)}. Of Shape-Guided its rule is rerun, the "
        f"larger of two calibrated scores (“{METHOD_NAMES['max']}”), without its signed distances."
    )


def frame_rate_table(ours: pd.DataFrame, folder: Path = PAPER_DIR) -> pd.DataFrame:
    """Return the frame rates of the paper's Table 6 with this run's beside them, as text.

    The paper's were measured on an RTX 4090; on another machine only ratios can be compared.

    Args:
        ours: columns ``method`` (code) and ``median_fps`` (scans per second).
        folder: where the paper's tables lie.

    Returns:
        A row a method; the columns ``source`` and ``frames per second``.

    Raises:
        ValueError: `ours` lacks a column, has a method twice, or one without a name.
    """
    ours = _with_columns(ours, ("method", "median_fps"), "frame_rate_table")
    name = {"value": "frames per second"}
    printed = read_table("table6", folder).set_index("method")[["value"]].rename(columns=name)
    here = ours.set_index("method")[["median_fps"]].set_axis(list(name.values()), axis=1)
    if here.index.has_duplicates:
        raise ValueError(
            f"frame_rate_table: {here.index[here.index.duplicated()][0]!r} is there twice; "
            "expected one median a method"
        )
    as_text = [rows.map(lambda fps: f"{fps:#.3g}" if fps < 100 else f"{fps:.0f}") for rows in
               (printed, here)]  # fmt: skip
    return _beside(*as_text, f"{PUBLISHED}, RTX 4090", THIS_RUN)


def _with_columns(ours: pd.DataFrame, columns: tuple[str, ...], where: str) -> pd.DataFrame:
    lacking = [name for name in columns if name not in ours]
    if lacking:
        raise ValueError(
            f"{where}: the run's rows have {', '.join(ours.columns)}; expected {', '.join(lacking)}"
        )
    unnamed = [method for method in ours["method"].unique() if method not in METHOD_NAMES]
    if unnamed:
        raise ValueError(
            f"{where}: method {unnamed[0]!r} has no name; expected one of {', '.join(METHOD_NAMES)}"
        )
    return ours


def _with_metrics(ours: pd.DataFrame, wanted: tuple[str, ...]) -> pd.DataFrame:
    """Return the rows of a run of the wanted metrics, under the paper's names for them."""
    columns = ("method", "category", "metric", "value", "spread")
    ours = _with_columns(ours, columns, "beside_table")
    names = {published_key(metric): metric for metric in wanted}
    lacking = set(names) - set(ours["metric"])
    if lacking:
        raise ValueError(
            f"beside_table: the run has {', '.join(ours['metric'].unique())}; expected "
            f"{', '.join(sorted(lacking))} too, by the protocol that the paper follows"
        )
    kept = ours[ours["metric"].isin(list(names))]
    return kept.assign(metric=kept["metric"].map(names))


def _cells(rows: pd.DataFrame, across: str, columns: dict[str, str]) -> pd.DataFrame:
    """Return a row a method (its code or the paper's name) and a named column a metric or category.

    Cells are "value" or "value ± spread", and a dash where there is no number.
    """
    spread = rows["spread"] if "spread" in rows else pd.Series(np.nan, rows.index)
    text = [
        f"{value:.3f}" + ("" if pd.isna(width) else f" ± {width:.3f}")
        for value, width in zip(rows["value"], spread, strict=True)
    ]
    wide = rows.assign(text=text).pivot(index="method", columns=across, values="text")
    wide = wide.reindex(index=rows["method"].unique(), columns=list(columns))
    return wide.rename(columns=columns).astype(object).fillna("–")


def _beside(
    printed: pd.DataFrame, ours: pd.DataFrame, source: str, our_source: str
) -> pd.DataFrame:
    """Return the rows of both, those of a method rerun below the paper's."""
    rows, placed = [], set()
    for method in printed.index:
        rows.append((DISPLAY_NAMES.get(method, method), source, *printed.loc[method]))
        code = METHODS_RERUN.get(method)
        if code in ours.index:
            rows.append((METHOD_NAMES[code], our_source, *ours.loc[code]))
            placed.add(code)
    rows += [
        (METHOD_NAMES[code], our_source, *ours.loc[code])
        for code in ours.index
        if code not in placed
    ]
    table = pd.DataFrame(rows, columns=["method", "source", *printed.columns])
    return table.set_index("method")

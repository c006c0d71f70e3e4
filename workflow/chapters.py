"""The notebooks of the book: what each depends on, and for what it runs. A new one is a row."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import NamedTuple

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


class Chapter(NamedTuple):
    """A notebook as the workflow sees it.

    Attributes:
        notebook: its name.
        stages: stages of the library whose settings and code its results depend on; "peers" stands
            for those of all compared peers.
        after: chapters whose results it reads.
        per: "run": once; "seed": for each category and seed; "category"; "showcase": for the
            category that the book shows; "both": for each category, so that these run side by side,
            then once for all, which finds what they computed.
        of: with "both": "all" categories, or the "analysed" ones of the plan.
        record: of `stages.done_file`, written by the library when all is done.
        summary: name of the results file that it writes once for all; "" is the comparison's.
        is_alone: whether nothing may run beside it, for it measures time or uses all cores.
        trains: why profile `paper` leaves it out, if it does.
        needs: memory in MB and minutes of a job in profile `paper`; more when a job is tried again.
        on_gpu: whether it can use a GPU.
    """

    notebook: str
    stages: tuple[str, ...]
    after: tuple[str, ...] = ()
    per: str = "run"
    of: str = "all"
    record: str | None = None
    summary: str | None = None
    is_alone: bool = False
    trains: str | None = None
    needs: tuple[int, int] = (12000, 480)
    on_gpu: bool = True

    @property
    def name(self) -> str:
        """The notebook's name without its number."""
        return self.notebook.split("_", 1)[1]

    def parameters(self) -> set[str]:
        """Return the names of the notebook's parameters."""
        cells = json.loads((NOTEBOOKS / f"{self.notebook}.ipynb").read_text())["cells"]
        tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", ())]
        tree = ast.parse("".join(tagged[0]["source"]) if tagged else "")
        return {node.targets[0].id for node in tree.body if isinstance(node, ast.Assign)}


VARIANTS = (
    "This chapter trains the method in many ways, each as long as the training itself, and at the "
    "size of profile `paper` that takes days. `make chapter CHAPTER={notebook}` with the same "
    "profile and data runs it; so does papermill, for one category or a few rows."
)
CHOICES = "Profile `paper` takes the settings that profile `demo` or the authors chose."
DAY = 1440
CHAPTERS = (
    Chapter("00_data", ("data",), record="data", is_alone=True, needs=(32000, 120), on_gpu=False),
    Chapter(
        "01_feature_extraction", ("pastes",), ("00_data",), "category", record="features",
        needs=(12000, 240),
    ),
    Chapter(
        "02_memory_bank", ("cells",), ("01_feature_extraction",), "category", record="bank",
        needs=(12000, 120),
    ),
    Chapter(
        "03_lspn_training", ("lspn",), ("02_memory_bank",), "seed", record="lspn",
        needs=(12000, 720),
    ),
    Chapter("04_anomaly_scoring", ("scores",), ("03_lspn_training",), "showcase", record="scores"),
    Chapter(
        "05_benchmark", ("scores", "peers"), ("03_lspn_training",), "both", record="benchmark",
        summary="", is_alone=True, needs=(12000, DAY),
    ),
    Chapter("06_table3_score_metrics", ("quantities",), ("03_lspn_training",), summary="table3"),
    Chapter(
        "07_table4_loss_ablation", ("quantities",), ("03_lspn_training",), "both",
        summary="table4", trains=VARIANTS, needs=(12000, 7 * DAY),
    ),
    Chapter("08_table5_aggregation", ("quantities",), ("03_lspn_training",), summary="table5"),
    Chapter(
        "09_figure6_distributions", ("quantities", "peers"), ("05_benchmark",), summary="figure6"
    ),
    Chapter("10_figure7_maps", ("quantities",), ("03_lspn_training",)),
    Chapter(
        "11_analyses", ("quantities", "peers"), ("03_lspn_training",), "both", "analysed",
        summary="analyses", trains=VARIANTS, needs=(12000, 14 * DAY),
    ),
    Chapter("12_metric_playground", ("lspn",), needs=(3000, 240), on_gpu=False),
    Chapter(
        "13_training_cells", ("quantities",), ("03_lspn_training",), "both", "analysed",
        summary="staircase", trains=VARIANTS, needs=(12000, 14 * DAY),
    ),
    Chapter(
        "90_loss_weights", ("lspn",), ("02_memory_bank",), record="loss_weights", trains=CHOICES,
        needs=(12000, 7 * DAY),
    ),
    Chapter(
        "92_peer_settings", ("peers",), ("02_memory_bank",), record="peer_settings",
        trains=CHOICES, needs=(12000, 7 * DAY),
    ),
    Chapter("91_real_data", ("data",), ("05_benchmark",), needs=(3000, 240), on_gpu=False),
)  # fmt: skip
BY_NOTEBOOK = {chapter.notebook: chapter for chapter in CHAPTERS}

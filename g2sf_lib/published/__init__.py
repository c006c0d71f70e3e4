"""What the paper reports, for comparison: its tables, and whether they agree with themselves."""

from g2sf_lib.published.beside import (
    METHODS_RERUN,
    PUBLISHED_ONLY,
    beside_table,
    frame_rate_table,
    published_only_table,
    rerun_report,
)
from g2sf_lib.published.consistency import (
    disagreement_report,
    disagreements,
    statements,
)
from g2sf_lib.published.tables import (
    CLAIM_COLUMNS,
    DATASET_NAMES,
    RELATIONS,
    Paper,
    category_dots,
    category_table,
    mean_table,
    ranking_report,
    read_paper,
    read_table,
)

__all__ = [
    "CLAIM_COLUMNS",
    "DATASET_NAMES",
    "METHODS_RERUN",
    "PUBLISHED_ONLY",
    "Paper",
    "RELATIONS",
    "beside_table",
    "category_dots",
    "category_table",
    "disagreement_report",
    "disagreements",
    "frame_rate_table",
    "mean_table",
    "published_only_table",
    "ranking_report",
    "read_paper",
    "read_table",
    "rerun_report",
    "statements",
]

"""What the chapters ask of finished stages: small questions, answered in arrays and tables.

A module a chapter. Nothing here is read by another part of the library, and nothing is written
but scores that chapter 05 would keep: a reader who skips the book can skip this package.
"""

from g2sf_lib.chapters.analyses import (
    Study,
    checked_analyses,
    effect_table,
    effect_texts,
    run_studies,
    scale_curve_rows,
    scope_report,
    study_effects,
    study_panels,
    study_report,
    study_tables,
    value_table,
)
from g2sf_lib.chapters.calibration import (
    alarm_points,
    alarm_report,
    alarm_rows,
    alarm_table,
    factor_table,
)
from g2sf_lib.chapters.epochs import (
    epoch_means,
    epoch_report,
    longer,
    run_longer,
    stage_effects,
    stage_rows,
    stage_table,
)
from g2sf_lib.chapters.leak import (
    leak_report,
    leak_rows,
    leak_table,
)
from g2sf_lib.chapters.metric import (
    JudgedCells,
    cell_quantities,
    judged_cells,
    separation_report,
    stored_detector,
    training_report,
    untouched_network,
)
from g2sf_lib.chapters.scores import (
    case_report,
    metric_maps,
    on_points,
    pick_cases,
)

__all__ = [
    "JudgedCells",
    "Study",
    "alarm_points",
    "alarm_report",
    "alarm_rows",
    "alarm_table",
    "case_report",
    "cell_quantities",
    "checked_analyses",
    "effect_table",
    "effect_texts",
    "epoch_means",
    "epoch_report",
    "factor_table",
    "judged_cells",
    "leak_report",
    "leak_rows",
    "leak_table",
    "longer",
    "metric_maps",
    "on_points",
    "pick_cases",
    "run_longer",
    "run_studies",
    "scale_curve_rows",
    "scope_report",
    "separation_report",
    "stage_effects",
    "stage_rows",
    "stage_table",
    "stored_detector",
    "study_effects",
    "study_panels",
    "study_report",
    "study_tables",
    "training_report",
    "untouched_network",
    "value_table",
]

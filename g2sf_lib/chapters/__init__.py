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
from g2sf_lib.chapters.leak import (
    leak_report,
    leak_rows,
    leak_table,
)

__all__ = [
    "Study",
    "alarm_points",
    "alarm_report",
    "alarm_rows",
    "alarm_table",
    "checked_analyses",
    "effect_table",
    "effect_texts",
    "factor_table",
    "leak_report",
    "leak_rows",
    "leak_table",
    "run_studies",
    "scale_curve_rows",
    "scope_report",
    "study_effects",
    "study_panels",
    "study_report",
    "study_tables",
    "value_table",
]

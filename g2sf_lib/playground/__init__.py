"""Chapter 12: a toy with two numbers a modality, in which the learned metric can be drawn.

Everything that the book trains on features of hundreds of numbers is here trained on points of a
plane, one plane a modality, by the same code: banks, cells, LSPN, losses, aggregation. A normal
cell has a place on a curve, the same in both planes; an anomaly stands off the curve.

A module a step: `toy` (planes and settings), `balls` (the metric, drawn and judged), `boundaries`
(aggregations), `trained`, `losses` (all subsets). Nothing here is read by another part of the
library, and nothing is written.
"""

from g2sf_lib.playground.balls import (
    ell_of,
    pair_scale_factors,
    plain_ell,
    shape_of_balls,
    toy_aurocs,
    unit_balls,
)
from g2sf_lib.playground.boundaries import (
    Profile,
    ScoreMap,
    boundary_profile,
    curve_jumps,
    jump_report,
    jump_table,
    score_map,
)
from g2sf_lib.playground.losses import (
    compare_losses,
    kind_table,
    kind_verdict,
    loss_captions,
    loss_effects,
    loss_table,
    loss_verdict,
    subset_name,
)
from g2sf_lib.playground.toy import (
    AGGREGATIONS,
    KINDS,
    SUBSETS,
    SWITCHES,
    Toy,
    ToySettings,
    across,
    along,
    curve,
    make_toy,
    nearest_place,
    other,
    toy_settings,
)
from g2sf_lib.playground.trained import (
    ToyState,
    ToyTraining,
    Trainings,
    constant_scale_report,
    switched,
    train_toy,
    training_report,
)

__all__ = [
    "AGGREGATIONS",
    "KINDS",
    "Profile",
    "SUBSETS",
    "SWITCHES",
    "ScoreMap",
    "Toy",
    "ToySettings",
    "ToyState",
    "ToyTraining",
    "Trainings",
    "across",
    "along",
    "boundary_profile",
    "compare_losses",
    "constant_scale_report",
    "curve",
    "curve_jumps",
    "ell_of",
    "jump_report",
    "jump_table",
    "kind_table",
    "kind_verdict",
    "loss_captions",
    "loss_effects",
    "loss_table",
    "loss_verdict",
    "make_toy",
    "nearest_place",
    "other",
    "pair_scale_factors",
    "plain_ell",
    "score_map",
    "shape_of_balls",
    "subset_name",
    "switched",
    "toy_aurocs",
    "toy_settings",
    "train_toy",
    "training_report",
    "unit_balls",
]

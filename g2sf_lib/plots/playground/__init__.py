"""The toy of two planes: balls that a slider trains, losses with switches, scores with buttons.

Figures of plotly keep their controls in the built page, where no kernel runs: frames and sliders
are played by the page itself. A "toy" below has `points` (mod -> (N, 2)), `is_anomalous` (N,)
bool and `prototypes` (mod -> (B, 2)); "balls" are mod -> (B, A, 2), closed lines around the
prototypes. Coordinates are rounded to less than a pixel.
"""

from g2sf_lib.plots.playground.boundaries import aggregation_maps
from g2sf_lib.plots.playground.epochs import MAX_FRAMES, ball_slider
from g2sf_lib.plots.playground.planes import MAX_BALLS
from g2sf_lib.plots.playground.still import playground_controls, subset_dots, toy_panels
from g2sf_lib.plots.playground.switches import loss_switches

__all__ = [
    "MAX_BALLS",
    "MAX_FRAMES",
    "aggregation_maps",
    "ball_slider",
    "loss_switches",
    "playground_controls",
    "subset_dots",
    "toy_panels",
]

"""Every figure of the book: arrays or tables in, a Figure out.

The only owner of matplotlib, seaborn and plotly. Nothing here touches pyplot, so no figure
outlives its notebook cell; `show` puts one on the page, with its alternative text. Colours:
cividis for quantities, orange to purple for differences around zero, seaborn's "colorblind"
(Okabe and Ito) for classes, always together with a marker, a line style, a hatch or a label, so
that a figure survives a grey print.

"Scans" below are objects with `rgb` (H, W, 3) uint8, `xyz` (H, W, 3) in metres, zero where
there is no point, and `mask` (H, W) bool: `g2sf_lib.datasets.Sample` is one.

One module a subject: `scans` and `clouds`, `features` (scores of cells), `training`, `maps`
(of scores and other quantities on scans), `results` (a metric of every method), `ablations`
(rows of one table against each other, metrics over a number), `distributions` (rates of alarms),
`toy` (a toy of two planes, with controls); `style` is what they share, `page` how a figure
reaches the reader.
"""

from g2sf_lib.plots.ablations import curve_with_bands, effect_dots
from g2sf_lib.plots.clouds import MAX_CLOUD_POINTS, cloud
from g2sf_lib.plots.distributions import alarm_rates
from g2sf_lib.plots.features import score_histograms
from g2sf_lib.plots.maps import (
    cell_classes,
    method_panels,
    quantity_maps,
    score_maps,
)
from g2sf_lib.plots.page import bundle, show
from g2sf_lib.plots.results import (
    defect_dots,
    method_dots,
    pro_curves,
)
from g2sf_lib.plots.scans import defect_gallery, height_mm
from g2sf_lib.plots.style import COLOUR_MAP, LOSS_NAMES, METRIC_NAMES, MM, MODALITY_NAMES
from g2sf_lib.plots.training import loss_curves, scale_curve, sigma_curve

__all__ = [
    "COLOUR_MAP",
    "LOSS_NAMES",
    "MAX_CLOUD_POINTS",
    "METRIC_NAMES",
    "MM",
    "MODALITY_NAMES",
    "alarm_rates",
    "bundle",
    "cell_classes",
    "cloud",
    "curve_with_bands",
    "defect_dots",
    "defect_gallery",
    "effect_dots",
    "height_mm",
    "loss_curves",
    "method_dots",
    "method_panels",
    "pro_curves",
    "quantity_maps",
    "scale_curve",
    "score_histograms",
    "score_maps",
    "show",
    "sigma_curve",
]

"""How a figure reaches the reader: as an image, or drawn by the page, with words for it."""

from __future__ import annotations

import base64
import html
import io
import json
from typing import Any

import plotly.graph_objects as go
from IPython.display import display
from ipywidgets import Widget
from matplotlib.figure import Figure

# Plotly offers, by default, a logo that links to its maker and a button that uploads the data.
_PLOTLY_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
}
_DPI = 144


def show(fig: Figure | go.Figure | Widget, alt: str) -> None:
    """Put a figure on the page, in JupyterLab and in the built book alike.

    A matplotlib figure becomes an image that carries its alternative text with it. A plotly
    figure becomes a bundle: its JSON, which JupyterLab draws, and for the book a div and the
    few lines that draw into it with a `Plotly` that the page has loaded once, from its own
    files. Neither asks another host for anything. Controls need the kernel: they are there in
    JupyterLab only, and the book is built without them.

    Args:
        fig: what a function of this module returned.
        alt: what a reader who cannot see the figure should know.

    Raises:
        ValueError: if `alt` is empty.
    """
    display(bundle(fig, alt), raw=True)


def bundle(fig: Figure | go.Figure | Widget, alt: str) -> dict[str, Any]:
    """Return the MIME bundle that `show` displays: media type -> content."""
    if not alt.strip():
        raise ValueError("alt is empty; expected a sentence for readers who cannot see the figure")
    text = html.escape(alt, quote=True)
    if isinstance(fig, Figure):
        png = io.BytesIO()
        fig.savefig(png, format="png", dpi=_DPI)
        data = base64.b64encode(png.getvalue()).decode()
        width = round(fig.get_figwidth() * 96)
        image = (
            f'<img src="data:image/png;base64,{data}" alt="{text}" width="{width}" '
            'style="max-width:100%;height:auto;background:white">'
        )
        return {"text/html": image, "text/plain": alt}
    if isinstance(fig, Widget):
        return fig._repr_mimebundle_() | {"text/plain": alt}
    plain = json.loads(fig.to_json()) | {"config": _PLOTLY_CONFIG}
    # All in one object, for only so are the frames of a slider handed over. "</" would end the
    # script element early.
    keys = [key for key in ("data", "layout", "config", "frames") if key in plain]
    whole = json.dumps({key: plain[key] for key in keys}, separators=(",", ":"))
    whole = whole.replace("</", "<\\/")
    height = plain["layout"].get("height", 450)
    has_controls = any(plain["layout"].get(name) for name in ("updatemenus", "sliders"))
    role = "group" if has_controls else "img"  # what is in an image is hidden from screen readers
    division = (
        f'<div class="g2sf-figure" role="{role}" aria-label="{text}" '
        f'style="width:100%;height:{height}px"></div>\n'
        "<script>(function () {\n"
        "  const place = document.currentScript.previousElementSibling;\n"
        f"  const draw = () => Plotly.newPlot(place, {whole});\n"
        '  if (window.Plotly) { draw(); } else { window.addEventListener("load", draw); }\n'
        "})();</script>"
    )
    return {"application/vnd.plotly.v1+json": plain, "text/html": division, "text/plain": alt}

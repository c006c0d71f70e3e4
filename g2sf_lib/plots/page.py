"""How a figure reaches the reader: as an image, or drawn by the page, with words for it."""

from __future__ import annotations

import base64
import html
import io
import json
from typing import Any

import plotly.graph_objects as go
from IPython.display import display
from matplotlib.figure import Figure

# Without the logo that links to its maker, and the button that uploads the data.
_PLOTLY_CONFIG = {"responsive": True, "displaylogo": False}
_PLOTLY_CONFIG |= {"showSendToCloud": False, "plotlyServerURL": ""}


def show(fig: Figure | go.Figure, alt: str) -> None:
    """Put a figure on the page, with `alt` for a reader who cannot see it.

    A matplotlib figure becomes an image; a plotly figure its JSON, which JupyterLab draws, and for
    the book a div with the lines that draw into it by the `Plotly` that the page has loaded.
    """
    display(bundle(fig, alt), raw=True)


def bundle(fig: Figure | go.Figure, alt: str) -> dict[str, Any]:
    """Return the MIME bundle that `show` displays: media type -> content."""
    text = html.escape(alt, quote=True)
    if isinstance(fig, Figure):
        png = io.BytesIO()
        fig.savefig(png, format="png", dpi=144)
        image = (
            f'<img src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}" '
            f'alt="{text}" width="{round(fig.get_figwidth() * 96)}" '
            'style="max-width:100%;height:auto;background:white">'
        )
        return {"text/html": image, "text/plain": alt}
    plain = json.loads(fig.to_json()) | {"config": _PLOTLY_CONFIG}
    # All in one object, for only so are the frames of a slider handed over. "</" would end the
    # script element early.
    whole = {key: plain[key] for key in ("data", "layout", "config", "frames") if key in plain}
    whole = json.dumps(whole, separators=(",", ":")).replace("</", "<\\/")
    has_controls = any(plain["layout"].get(name) for name in ("updatemenus", "sliders"))
    role = "group" if has_controls else "img"  # what is in an image is hidden from screen readers
    division = (
        f'<div class="g2sf-figure" role="{role}" aria-label="{text}" '
        f'style="width:100%;height:{plain["layout"].get("height", 450)}px"></div>\n'
        "<script>(function () {\n"
        "  const place = document.currentScript.previousElementSibling;\n"
        f"  const draw = () => Plotly.newPlot(place, {whole});\n"
        '  if (window.Plotly) { draw(); } else { window.addEventListener("load", draw); }\n'
        "})();</script>"
    )
    return {"application/vnd.plotly.v1+json": plain, "text/html": division, "text/plain": alt}

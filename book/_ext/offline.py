"""Sphinx extension: what jupyter-book would ask of other hosts comes from installed packages.

MathJax is brought by sphinx-mathjax-offline; here are plotly, loaded once, from its own package,
by the pages that draw with it, and the removal of thebe, which cannot work without network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly
from sphinx.application import Sphinx
from sphinx.util.fileutil import copy_asset_file

BUNDLE = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def load_plotly(app: Sphinx, pagename: str, template: str, context: dict[str, Any], tree: Any):
    """Have a page load plotly where one of its figures calls it."""
    if "Plotly.newPlot" in context.get("body", ""):
        app.add_js_file(BUNDLE.name)


def switch_off_thebe(app: Sphinx, config: Any) -> None:
    """Take away what jupyter-book always loads to run cells on a server of somebody else's.

    Its script names another host and, declared twice in a page, is an error in the console.
    """
    for name, listeners in app.events.listeners.items():
        app.events.listeners[name] = [
            entry for entry in listeners if entry.handler.__module__ != "sphinx_thebe"
        ]
    app.registry.css_files[:] = [
        file for file in app.registry.css_files if file[0] != "sphinx-thebe.css"
    ]


def copy_plotly(app: Sphinx, exception: Exception | None) -> None:
    """Put plotly's bundle beside the other static files."""
    if exception is None and app.builder.format == "html":
        copy_asset_file(str(BUNDLE), str(Path(app.outdir, "_static")))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the three; called by Sphinx."""
    app.connect("config-inited", switch_off_thebe, priority=0)
    app.connect("html-page-context", load_plotly)
    app.connect("build-finished", copy_plotly)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

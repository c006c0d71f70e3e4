"""Assemble the book's pages from prose and executed notebooks, and build them as HTML.

Usage, from the repository root::

    python workflow/build_book.py --executed book/executed/demo/procedural --showcase foam
        --work _build/demo-procedural --html _build/html

Every build starts from nothing: Sphinx repeats a page's warnings only when it reads the page, so
a build on top of an old one could pass with warnings that a fresh clone would fail on.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DRAWN = "text/html"


def page_notebook(path: Path) -> dict[str, Any]:
    """Return an executed notebook as the book shows it.

    A figure's JSON, which only JupyterLab needs, goes (it would double the page), and so does
    the state of progress bars, whose widgets would be loaded from another host.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        kept = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "application/vnd.jupyter.widget-view+json" in data:
                continue
            if DRAWN in data:
                output["data"] = {k: data[k] for k in (DRAWN, "text/plain") if k in data}
            kept.append(output)
        if "outputs" in cell:
            cell["outputs"] = kept
    return notebook


def read_benchmark(path: Path) -> tuple[float, float]:
    """Return wall time in seconds and peak memory in MB that Snakemake measured for a job."""
    with path.with_suffix(".tsv").open(encoding="utf-8") as file:
        row = next(csv.DictReader(file, delimiter="\t"))
    peak = row["max_rss"]
    return float(row["s"]), float("nan") if peak in ("NA", "-") else float(peak)


def duration(seconds: float) -> str:
    """Return minutes and seconds as text."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def status_page(executed: Path, notebooks: list[Path]) -> str:
    """Return the page that lists every executed notebook with its run time and peak memory."""
    rows, spent = [], [read_benchmark(path) for path in notebooks]
    for path, (wall_s, peak_mb) in zip(notebooks, spent, strict=True):
        relative = path.relative_to(executed)
        category = relative.parent.as_posix() if len(relative.parts) > 1 else "all"
        notebook = json.loads(path.read_text(encoding="utf-8"))
        ended = notebook["metadata"]["papermill"]["end_time"][:16].replace("T", " ")
        link = f"{{download}}`{path.stem} <executed/{relative.as_posix()}>`"
        rows.append(f"| {link} | {category} | {ended} | {duration(wall_s)} | {peak_mb:.0f} |")
    total = duration(sum(wall_s for wall_s, _ in spent))
    return "\n".join(
        [
            "# Execution status",
            "",
            "Every number and figure of this book comes from one of these notebooks, run by",
            "papermill in the order that the workflow chose. The name is a link to the executed",
            f"notebook. Together the {len(rows)} runs took {total} of wall time, several",
            f"side by side; the largest held {max(peak for _, peak in spent):.0f} MB of memory.",
            "",
            "| Notebook | Category | Finished (UTC) | Run time | Peak memory in MB |",
            "|:--|:--|:--|--:|--:|",
            *rows,
            "",
        ]
    )


def costs(notebooks: list[Path]) -> dict[str, str]:
    """Return chapter -> what its runs together took, for the marks ``{{ cost CHAPTER }}``."""
    found: dict[str, list[tuple[float, float]]] = {}
    for path in notebooks:
        found.setdefault(re.sub(r"_seed\d+$", "", path.stem), []).append(read_benchmark(path))
    texts = {}
    for chapter, runs in found.items():
        wall_s, peak_mb = sum(run[0] for run in runs), max(run[1] for run in runs)
        several = f" in {len(runs)} runs" if len(runs) > 1 else ""
        texts[chapter] = f"{duration(wall_s)}{several}, {peak_mb:.0f} MB"
    return texts


def hero(pages: Path) -> bytes | None:
    """Return the image that a cell tagged `hero` of some page shows; None: there is none."""
    for page in sorted(pages.glob("*.ipynb")):
        for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
            if "hero" in cell["metadata"].get("tags", []):
                shown = "".join("".join(o.get("data", {}).get(DRAWN, "")) for o in cell["outputs"])
                if found := re.search(r"data:image/png;base64,([^\"]+)", shown):
                    return base64.b64decode(found[1])
    return None


def headline(summary: Path | None) -> str:
    """Return, in Markdown, what the run's comparison of all methods found."""
    if summary is None or not summary.is_file():
        return "No comparison belongs to this run."
    sys.path.insert(0, str(ROOT))
    from g2sf_lib.results import readme_block

    return readme_block(json.loads(summary.read_text(encoding="utf-8")))


def left_out_page(name: str, reason: str) -> dict[str, Any]:
    """Return the notebook that stands for one that was not run: its title, and why.

    It is a notebook and no Markdown page, since links to it end in .ipynb.
    """
    written = json.loads((ROOT / "notebooks" / name).read_text(encoding="utf-8"))
    title = "".join(written["cells"][0]["source"]).splitlines()[0]
    text = f"{title}\n\n```{{admonition}} Not part of this run\n:class: note\n{reason}\n```\n"
    cell = {"cell_type": "markdown", "id": "left-out", "metadata": {}, "source": text}
    return {**written, "cells": [cell]}


def is_of_root(path: Path, data_root: str | None) -> bool:
    """Say whether an executed notebook read its scans in this folder, or has none that it names."""
    papermill = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("papermill", {})
    return papermill.get("parameters", {}).get("data_root", data_root) == data_root


def assemble(
    executed: Path,
    showcase: str,
    source: Path,
    left_out: dict[str, str],
    place: tuple[list[str] | None, str | None] = (None, None),
    results: Path | None = None,
) -> None:
    """Write the folder that Sphinx reads.

    Args:
        executed: folder of the executed notebooks; those of a category in its sub-folder.
        showcase: the category whose notebooks are pages, but for those of all categories, which
            lie in `executed` itself and come first. Of its trainings seed 0 is shown.
        source: the folder to write; emptied first.
        left_out: notebook -> why it was not run. One that was run all the same is shown.
        place: sub-folders of `executed` and data_root of this run; an earlier one may have had
            others, whose notebooks are left out.
        results: the summary that the first page shows.
    """
    categories, data_root = place
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for path in sorted((ROOT / "book").glob("*.*")):
        if path.is_file():
            shutil.copy2(path, source)
    shutil.copytree(ROOT / "book" / "_static", source / "_static")
    notebooks = sorted(
        path
        for path in executed.rglob("*.ipynb")
        if not path.name.endswith(".partial.ipynb")
        and (path.parent == executed or categories is None or path.parent.name in categories)
        and is_of_root(path, data_root)
    )
    for path in notebooks:
        relative = path.relative_to(executed)
        copy = source / "executed" / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
        name = path.name.replace("_seed0.ipynb", ".ipynb")
        is_of_showcase = relative.parent == Path(showcase) and not (executed / name).exists()
        if (path.parent == executed or is_of_showcase) and "_seed" not in name:
            (source / name).write_text(json.dumps(page_notebook(path)), encoding="utf-8")
    for name, reason in left_out.items():
        page = source / f"{name}.ipynb"
        if not page.exists():
            page.write_text(json.dumps(left_out_page(page.name, reason)), encoding="utf-8")
    if image := hero(source):
        (source / "_static" / "hero.png").write_bytes(image)
    texts = {f"cost {name}": text for name, text in costs(notebooks).items()}
    texts["headline"] = headline(results)
    for page in source.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        mark = r"\{\{ *((?:cost )?\w+) *\}\}"
        filled = re.sub(mark, lambda m: texts.get(m[1], "not measured in this run"), text)
        page.write_text(filled, encoding="utf-8")
    (source / "status.md").write_text(status_page(executed, notebooks), encoding="utf-8")


def build(source: Path, work: Path, html: Path) -> None:
    """Build the pages and put them in the place of the old ones, if there were no warnings.

    Raises:
        SystemExit: a warning or an error; what it is has been printed.
    """
    shutil.rmtree(work / "_build", ignore_errors=True)
    command = [
        str(Path(sys.executable).with_name("jupyter-book")),
        *("build", str(source), "--all", "--quiet"),
        *("-W", "-n", "--keep-going", "--config", str(ROOT / "_config.yml")),
        *("--toc", str(source / "_toc.yml"), "--path-output", str(work)),
    ]
    if subprocess.run(command).returncode != 0:
        raise SystemExit(f"The book was not built: see the warnings above (pages in {source})")
    html.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(html, ignore_errors=True)
    (work / "_build" / "html").replace(html)


def main() -> None:
    """Run from the Snakefile."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--executed", type=Path, required=True)
    parser.add_argument("--showcase", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for source and build")
    parser.add_argument("--html", type=Path, required=True)
    parser.add_argument("--left-out", type=json.loads, default={}, help="JSON: notebook -> reason")
    parser.add_argument(
        "--place", type=json.loads, default=(None, None), help="JSON: [folders, data_root]"
    )
    parser.add_argument("--results", type=Path, help="summary that the first page shows")
    arguments = parser.parse_args()
    source = (arguments.work / "source").absolute()
    place, results = tuple(arguments.place), arguments.results
    assemble(arguments.executed, arguments.showcase, source, arguments.left_out, place, results)
    build(source, arguments.work.absolute(), arguments.html)


if __name__ == "__main__":
    main()

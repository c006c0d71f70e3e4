"""Read a real data set through: what is there, and what would stop a run.

``python -m g2sf_lib.datasets.check --dataset D --data-root R``, run by ``make check-data``. The
data set is only read. What preprocessing finds, such as a scan without a background plane, is
not looked for here: it takes many times as long, and `prepare` names it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from g2sf_lib.config import CATEGORIES, category_name, normal_path
from g2sf_lib.datasets import (
    DATASETS,
    SPLITS,
    ScanError,
    ScanFiles,
    category_names,
    entries,
    find_split,
    in_processes,
    reader,
)


class Report(NamedTuple):
    """What `check` found."""

    # A row for each category and split: good and defective scans that are complete, readable or
    # not, all of them, messages, and what is published.
    counts: pd.DataFrame
    problems: list[str]  # each names the file, what was found, and what was expected
    notes: list[str]  # counts that are not the published ones, and what was not looked at


def check(
    dataset: str,
    root: Path | str,
    categories: Sequence[str] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Report:
    """Return the counts of a data set, and every reason for which a run on it would fail.

    Every scan is read whole; a bad one does not stop it. Without `categories` all that are there.
    """
    names, problems = _categories(dataset, Path(root), categories)
    found, messages = {}, {}
    for place in itertools.product(names, SPLITS):
        try:
            found[place], messages[place] = find_split(dataset, root, *place)
        except (ScanError, OSError) as error:
            found[place], messages[place] = [], [str(error)]
    jobs = [(place, files) for place, scans in found.items() for files in scans]
    read = in_processes(partial(_problem_of, dataset), [files for _, files in jobs], workers)
    bar = tqdm(read, "check", len(jobs), unit="scan", disable=not progress)
    for (place, _), message in zip(jobs, bar, strict=True):
        messages[place] += [message] if message else []
    rows, notes, published = [], [], DATASETS[dataset].published
    for (category, split), scans in found.items():
        lines = sorted({" ".join(message.split()) for message in messages[category, split]})
        problems += lines
        good, num = sum(files.label == "good" for files in scans), len(scans)
        known = published.get(category, "---")[SPLITS.index(split)]
        rows.append((category, split, good, num - good, num, len(lines), known))
        if known not in ("-", num):
            notes.append(f"{category}/{split}: {num} scans; published {known}")
    if rows:
        if unread := [path.name for path in entries(Path(root)) if path.name not in names]:
            notes.append(f"not read, beside the categories: {', '.join(unread)}")
        if absent := [name for name in published if name not in names]:
            notes.append(f"not looked at: {', '.join(absent)}")
    columns = ["category", "split", "good", "defective", "all", "problems", "published"]
    # A bad camera is a problem of every scan: told once.
    return Report(pd.DataFrame(rows, columns=columns), list(dict.fromkeys(problems)), notes)


def _categories(
    dataset: str, root: Path, asked: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return which categories to look at, and what is wrong with their names."""
    if not root.is_dir():
        return [], [f"{root}: no such folder; expected the folder that holds the categories"]
    try:
        there = [name for name in category_names(dataset, root) if (root / name).is_dir()]
    except (ScanError, OSError) as error:
        return [], [str(error)]
    if asked is None and not there:
        held = ", ".join(sorted(path.name for path in root.iterdir())[:12]) or "nothing"
        expected = ", ".join(CATEGORIES[dataset])
        return [], [f"{root}: no category found, it holds {held}; expected {expected}"]
    asked, known = list(dict.fromkeys(asked or there)), ", ".join(there) or "none"
    lost = [f"{root / n}: no category of that name; found {known}" for n in asked if n not in there]
    return [name for name in asked if name in there], lost


def _problem_of(dataset: str, files: ScanFiles) -> str | None:
    """Read one scan; return what is wrong with it."""
    try:
        reader(dataset).read_scan(files)
    except ScanError as error:
        return str(error)
    except Exception as error:  # whatever it is, the other scans are to be looked at
        paths = " or ".join(map(str, files.paths))
        return f"{paths}: cannot be read ({error!r}); expected a scan"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a data set, print what was found; return 1 if a run would fail, else 0."""
    parser = argparse.ArgumentParser("python -m g2sf_lib.datasets.check", description=__doc__)
    real = [name for name in DATASETS if name != "procedural"]
    parser.add_argument("--dataset", required=True, choices=real)
    parser.add_argument("--data-root", required=True, help="the folder that holds the categories")
    parser.add_argument("--category", action="append", help="only this one; may be repeated")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    if not options.data_root:
        parser.error("--data-root is empty; expected the folder that holds the categories")
    if options.workers < 1:
        parser.error(f"--workers is {options.workers}; expected at least 1")
    root, names = normal_path(options.data_root), options.category
    names = names and [category_name(name) for name in names]
    try:
        report = check(options.dataset, root, names, options.workers, progress=True)
    except RuntimeError as error:
        parser.exit(1, f"{error}\n")
    num = len(report.problems)
    lines = [report.counts.to_string(index=False)] if len(report.counts) else []
    lines += [f"note: {line}" for line in report.notes] + report.problems
    lines.append(
        f"{num} problem{'s' * (num != 1)}: a run would fail" if num else "no problem found"
    )
    print("\n".join(lines))
    return min(num, 1)


if __name__ == "__main__":
    sys.exit(main())

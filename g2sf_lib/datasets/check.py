"""Read a real data set through: what is there, and what would stop a run (`make check-data`).

What preprocessing finds, such as a scan without a background plane, `prepare` names.
"""

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

from g2sf_lib.config import CATEGORIES, normal_path
from g2sf_lib.datasets import (
    DATASETS,
    SPLITS,
    ScanError,
    ScanFiles,
    category_names,
    find_split,
    in_processes,
    reader,
)


class Report(NamedTuple):
    """What `check` found: scans and problems counted by category and split, and every problem."""

    counts: pd.DataFrame
    problems: list[str]  # each names the file, what was found, and what was expected


def check(dataset: str, root: Path | str, workers: int = 1) -> Report:
    """Return the counts of a data set, and every reason for which a run on it would fail."""
    names, problems = _categories(dataset, Path(root))
    found, messages = {}, {}
    for place in itertools.product(names, SPLITS):
        try:
            found[place], messages[place] = find_split(dataset, root, *place)
        except (ScanError, OSError) as error:
            found[place], messages[place] = [], [str(error)]
    jobs = [(place, files) for place, scans in found.items() for files in scans]
    read = in_processes(partial(_problem_of, dataset), [files for _, files in jobs], workers)
    bar = tqdm(read, "check", len(jobs), unit="scan")
    for (place, _), message in zip(jobs, bar, strict=True):
        messages[place] += [message] if message else []
    rows = []
    for place, scans in found.items():
        lines = sorted({" ".join(message.split()) for message in messages[place]})
        problems += lines
        good, num = sum(files.label == "good" for files in scans), len(scans)
        rows.append((*place, good, num - good, num, len(lines)))
    columns = ["category", "split", "good", "defective", "all", "problems"]
    # A bad camera is a problem of every scan: told once.
    return Report(pd.DataFrame(rows, columns=columns), list(dict.fromkeys(problems)))


def _categories(dataset: str, root: Path) -> tuple[list[str], list[str]]:
    """Return which categories are there, and what is wrong with their names."""
    if not root.is_dir():
        return [], [f"{root}: no such folder; expected the folder that holds the categories"]
    try:
        there = [name for name in category_names(dataset, root) if (root / name).is_dir()]
    except (ScanError, OSError) as error:
        return [], [str(error)]
    if there:
        return there, []
    held = ", ".join(sorted(path.name for path in root.iterdir())[:12]) or "nothing"
    expected = ", ".join(CATEGORIES[dataset])
    return [], [f"{root}: no category found, it holds {held}; expected {expected}"]


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
    options = parser.parse_args(arguments)
    if not options.data_root:
        parser.error("--data-root is empty; expected the folder that holds the categories")
    try:
        report = check(options.dataset, normal_path(options.data_root), os.cpu_count() or 1)
    except RuntimeError as error:
        parser.exit(1, f"{error}\n")
    num = len(report.problems)
    if len(report.counts):
        print(report.counts.to_string(index=False))
    print(*report.problems, sep="\n", end="\n" * bool(num))
    print(f"{num} problem{'s' * (num != 1)}: a run would fail" if num else "no problem found")
    return min(num, 1)


if __name__ == "__main__":
    sys.exit(main())

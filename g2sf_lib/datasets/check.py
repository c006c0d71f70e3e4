"""Read a real data set through: what is there, and what would stop a run.

``python -m g2sf_lib.datasets.check --dataset D --data-root R``, run by ``make check-data``. The
data set is only read. What preprocessing finds, such as a scan without a background plane, is
not looked for here: it takes many times as long, and `prepare` names it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from g2sf_lib.config import CATEGORIES, category_name, normal_path
from g2sf_lib.datasets import (
    DATASETS,
    SPLITS,
    ScanError,
    ScanFiles,
    category_names,
    find_split,
    in_processes,
    is_left_by_system,
    reader,
)


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        dataset: as in the config.
        counts: a row for each category and split that was looked at: good and defective scans
            that are complete, readable or not, all of them, messages, and what is published.
        problems: one line each, naming the file, what was found, and what was expected.
        unread: names of the folders beside the categories that were looked at.
    """

    dataset: str
    counts: pd.DataFrame
    problems: list[str]
    unread: list[str]

    def notes(self) -> list[str]:
        """Return one line for every count that is not the published one, and for what is absent."""
        rows = [row for row in self.counts.itertuples() if row.published not in ("-", row.all)]
        lines = [f"{r.category}/{r.split}: {r.all} scans; published {r.published}" for r in rows]
        if self.unread:
            lines.append(f"not read, beside the categories: {', '.join(self.unread)}")
        seen = set(self.counts["category"])
        absent = [name for name in CATEGORIES.get(self.dataset, ()) if name not in seen]
        if absent and seen:
            lines.append(f"not looked at: {', '.join(absent)}")
        return lines

    def table(self) -> str:
        """Return the counts as text; where there are several categories, with their sums."""
        rows, names = [self.counts], self.counts["category"].unique()
        for split in SPLITS if len(names) > 1 else ():
            of_split = self.counts[self.counts["split"] == split]
            total = of_split.drop(columns=["category", "split", "published"]).sum()
            known = DATASETS[self.dataset].published
            published = of_split["published"].sum() if len(names) == len(known) else "-"
            first = {"category": f"all {len(names)}", "split": split}
            rows.append(pd.DataFrame([first | total.to_dict() | {"published": published}]))
        return pd.concat(rows).to_string(index=False)


def check(
    dataset: str,
    root: Path | str,
    categories: Sequence[str] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Report:
    """Return the counts of a data set, and every reason for which a run on it would fail.

    Every scan is read whole, by the reader that a run uses; a bad one does not stop it.

    Args:
        dataset: one of `DATASETS`.
        root: the folder that holds the categories.
        categories: which; None: all that are there.
        workers: processes that read.
        progress: show a bar on standard error.

    Raises:
        RuntimeError: where a process that reads has died.
    """
    names, problems = _categories(dataset, Path(root), categories)
    found, messages = {}, defaultdict(set)  # a bad camera is a problem of every scan: told once
    for place in [(category, split) for category in names for split in SPLITS]:
        try:
            found[place], incomplete = find_split(dataset, root, *place)
            messages[place].update(incomplete)
        except (ScanError, OSError) as error:
            found[place] = []
            messages[place].add(str(error))
    places = [place for place, scans in found.items() for _ in scans]
    jobs = [files for scans in found.values() for files in scans]
    read = in_processes(partial(_problem_of, dataset), jobs, workers)
    bar = tqdm(read, "check", len(jobs), unit="scan", disable=not progress)
    for place, message in zip(places, bar, strict=True):
        messages[place].update([message] if message else [])
    rows, published = [], DATASETS[dataset].published
    for (category, split), scans in found.items():
        lines = sorted({" ".join(message.split()) for message in messages[category, split]})
        problems += lines
        good = sum(files.label == "good" for files in scans)
        known = dict(zip(SPLITS, published.get(category, "---"), strict=True))[split]
        rows.append((category, split, good, len(scans) - good, len(scans), len(lines), known))
    columns = ["category", "split", "good", "defective", "all", "problems", "published"]
    beside = sorted(Path(root).iterdir()) if rows else ()
    unread = [p.name for p in beside if not is_left_by_system(p) and p.name not in names]
    counts = pd.DataFrame(rows, columns=columns)
    return Report(dataset, counts, list(dict.fromkeys(problems)), unread)


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
    if asked is None:
        if there:
            return there, []
        held = ", ".join(sorted(path.name for path in root.iterdir())[:12]) or "nothing"
        expected = ", ".join(CATEGORIES[dataset])
        return [], [f"{root}: no category found, it holds {held}; expected {expected}"]
    asked, known = list(dict.fromkeys(asked)), ", ".join(there) or "none"
    lost = [f"{root / n}: no category of that name; found {known}" for n in asked if n not in there]
    return [name for name in asked if name in there], lost


def _problem_of(dataset: str, files: ScanFiles) -> str | None:
    """Read one scan; return what is wrong with it."""
    try:
        reader(dataset).read_scan(files)
    except ScanError as error:
        return str(error)
    except Exception as error:  # whatever it is, the other scans are to be looked at
        paths = " or ".join(str(path) for path in files.paths)
        return f"{paths}: cannot be read ({error!r}); expected a scan"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a data set, print what was found; return 1 if a run would fail, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m g2sf_lib.datasets.check",
        description="Read a data set through: counts, and every file that would stop a run.",
    )
    real = [name for name in DATASETS if name != "procedural"]
    parser.add_argument("--dataset", required=True, choices=real)
    parser.add_argument("--data-root", required=True, help="the folder that holds the categories")
    parser.add_argument("--category", action="append", help="only this one; may be repeated")
    cores = os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, help="processes (all cores)")
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
    if len(report.counts):
        print(report.table())
    for line in report.notes():
        print(f"note: {line}")
    for line in report.problems:
        print(line)
    num = len(report.problems)
    print(f"{num} problem{'s' * (num != 1)}: a run would fail" if num else "no problem found")
    return 1 if num else 0


if __name__ == "__main__":
    sys.exit(main())

"""Read a real data set through: what is there, and what would stop a run.

``python -m g2sf_lib.datasets.check --dataset D --data-root R``, run by ``make check-data``. The
data set is only read. What preprocessing finds, such as a scan without a background plane, is
not looked for here: it takes many times as long, and `prepare` names it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tqdm.auto import tqdm

from g2sf_lib.config import CATEGORIES, category_name, normal_path
from g2sf_lib.datasets import (
    ScanError,
    category_names,
    find_split,
    is_left_by_system,
    reader,
    start_worker,
)
from g2sf_lib.datasets.preprocess import SPLITS

DATASETS = ("mvtec3d", "eyecandies", "folder")
# MVTec 3D-AD, from memory of its paper: train, validation, test. Sums agree: 2656, 294, 1197.
_MVTEC = {
    "bagel": (244, 22, 110),
    "cable_gland": (223, 23, 108),
    "carrot": (286, 29, 159),
    "cookie": (210, 22, 131),
    "dowel": (288, 34, 130),
    "foam": (236, 27, 100),
    "peach": (361, 42, 132),
    "potato": (300, 33, 114),
    "rope": (298, 33, 101),
    "tire": (210, 29, 112),
}
PUBLISHED_ALL = {
    "mvtec3d": {name: dict(zip(SPLITS, num, strict=True)) for name, num in _MVTEC.items()}
}
PUBLISHED_CATEGORY = {"eyecandies": {"train": (1000, 0), "validation": (100, 0), "test": (25, 25)}}
_COLUMNS = ("category", "split", "good", "defective", "all", "problems", "published")


@dataclass(frozen=True)
class Count:
    """What one split of one category holds.

    Attributes:
        category, split: which.
        good, defective: complete scans of that label, readable or not.
        problems: messages about this split.
    """

    category: str
    split: str
    good: int
    defective: int
    problems: int

    @property
    def all(self) -> int:
        """Number of complete scans."""
        return self.good + self.defective


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        dataset: as in the config.
        counts: a `Count` for each category and split that was looked at.
        problems: one line each, naming the file, what was found, and what was expected.
        unread: names of the folders beside the categories that were looked at.
    """

    dataset: str
    counts: tuple[Count, ...]
    problems: tuple[str, ...]
    unread: tuple[str, ...] = ()

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories that were looked at, in order."""
        return tuple(dict.fromkeys(count.category for count in self.counts))


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
        dataset: "mvtec3d", "eyecandies" or "folder".
        root: the folder that holds the categories.
        categories: which; None: all that are there.
        workers: processes that read.
        progress: show a bar on standard error.

    Returns:
        A `Report`; its `problems` are empty where a run would not fail.

    Raises:
        RuntimeError: where a process that reads has died.
    """
    names, problems = _categories(dataset, Path(root), categories)
    counts = []
    with (
        _mapping(workers) as apply,
        tqdm(total=0, desc="check", unit="scan", disable=not progress) as bar,
    ):
        for category in names:
            for split in SPLITS:
                bar.set_postfix_str(f"{category}/{split}")
                good, defective, found = 0, 0, []
                try:
                    scans, found = find_split(dataset, root, category, split)
                except (ScanError, OSError) as error:
                    found = [str(error)]
                else:
                    good = sum(files.label == "good" for files in scans)
                    defective = len(scans) - good
                    bar.total += len(scans)
                    for message in apply(partial(_problem_of, dataset), scans):
                        found += [message] if message else []
                        bar.update()
                # A bad camera is a problem of every scan: one line is enough.
                found = sorted({" ".join(message.split()) for message in found})
                counts.append(Count(category, split, good, defective, len(found)))
                problems += found
    beside = sorted(Path(root).iterdir()) if counts else ()
    unread = [p.name for p in beside if not is_left_by_system(p) and p.name not in names]
    return Report(dataset, tuple(counts), tuple(dict.fromkeys(problems)), tuple(unread))


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
    lost = [name for name in dict.fromkeys(asked) if name not in there]
    known = ", ".join(there) or "none"
    messages = [f"{root / name}: no category of that name; found {known}" for name in lost]
    return [name for name in dict.fromkeys(asked) if name in there], messages


def _problem_of(dataset: str, files: object) -> str | None:
    """Read one scan; return what is wrong with it."""
    try:
        reader(dataset).read_scan(files)
    except ScanError as error:
        return str(error)
    except Exception as error:  # whatever it is, the other scans are to be looked at
        paths = " or ".join(str(path) for path in files.paths)
        return f"{paths}: cannot be read ({error!r}); expected a scan"
    return None


@contextmanager
def _mapping(workers: int) -> Iterator[Callable]:
    """Yield `map`, or its like over processes."""
    if workers == 1:
        yield map
        return
    # Spawned, not forked, as in `prepare`.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=start_worker
    ) as pool:
        try:
            yield partial(pool.map, chunksize=4)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process died while reading scans (out of memory?); run it with fewer --workers"
            ) from error


def differences(report: Report) -> list[str]:
    """Return one line for every count that is not the published one."""
    lines = []
    published = PUBLISHED_CATEGORY.get(report.dataset, {})
    for count in report.counts:
        good, defective = published.get(count.split, (count.good, count.defective))
        if (good, defective) != (count.good, count.defective):
            lines.append(
                f"{count.category}/{count.split}: {count.good} good and {count.defective}"
                f" defective; published {good} and {defective}"
            )
    if report.unread:
        lines.append(f"not read, beside the categories: {', '.join(report.unread)}")
    for count in report.counts:
        num = PUBLISHED_ALL.get(report.dataset, {}).get(count.category, {}).get(count.split)
        if num is not None and count.all != num:
            lines.append(f"{count.category}/{count.split}: {count.all} scans; published {num}")
    known = CATEGORIES.get(report.dataset, ())
    absent = [name for name in known if name not in report.categories]
    if absent and report.categories:
        lines.append(f"not looked at: {', '.join(absent)}")
    return lines


def table(report: Report) -> str:
    """Return the counts as text, a line for each category and split, and their sums."""
    rows = [_COLUMNS]
    published = PUBLISHED_CATEGORY.get(report.dataset, {})
    for count in report.counts:
        of_all = PUBLISHED_ALL.get(report.dataset, {}).get(count.category, {})
        num = sum(published.get(count.split, ())) or of_all.get(count.split, "-")
        cells = (count.good, count.defective, count.all, count.problems, num)
        rows.append((count.category, count.split, *map(str, cells)))
    totals = {split: len(CATEGORIES["eyecandies"]) * sum(n) for split, n in published.items()}
    of_all = PUBLISHED_ALL.get(report.dataset, {}).values()
    totals |= {split: sum(num[split] for num in of_all) for split in SPLITS if of_all}
    for split in SPLITS if len(report.categories) > 1 else ():
        some = [count for count in report.counts if count.split == split]
        names = ("good", "defective", "all", "problems")
        sums = [sum(getattr(count, name) for count in some) for name in names]
        is_whole = len(report.categories) == len(CATEGORIES.get(report.dataset, ()))
        num = totals[split] if is_whole else "-"
        rows.append((f"all {len(report.categories)}", split, *map(str, sums), str(num)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a data set, print what was found; return 1 if a run would fail, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m g2sf_lib.datasets.check",
        description="Read a data set through: counts, and every file that would stop a run.",
    )
    parser.add_argument("--dataset", required=True, choices=DATASETS)
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
    if report.counts:
        print(table(report))
    for line in differences(report):
        print(f"note: {line}")
    for line in report.problems:
        print(line)
    num = len(report.problems)
    print(f"{num} problem{'s' * (num != 1)}: a run would fail" if num else "no problem found")
    return 1 if num else 0


if __name__ == "__main__":
    sys.exit(main())

"""Run the workflow on this machine and say where the book is, how long it took, what came out.

`make book` and `make test` call it. On a cluster call snakemake itself (see workflow/Snakefile).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent


def hold_lock(path: Path) -> int:
    """Return the descriptor of a file locked against a second run.

    Snakemake's own lock outlives a killed run and then needs `--unlock`; the system drops this
    one with the last process that holds it, so Snakemake's can be switched off.

    Raises:
        SystemExit: another run holds it.
    """
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"Another run is at work in {ROOT}; wait for it or stop it.") from None
    return descriptor


def check(given: dict, is_dry: bool, chapter: str | None = None) -> tuple[Any, str | None]:
    """Return the `plan.Plan` of a call, and where a single chapter's executed notebook goes.

    Raises:
        SystemExit: in one line, where the call is wrong, or the features' weights are missing,
            which would else stop the run only when all scans have been prepared.
    """
    sys.path.insert(0, str(ROOT))
    from plan import chapter_target, make_plan

    from g2sf_lib.config import ConfigError

    try:
        plan = make_plan(given)
        target = chapter and chapter_target(plan, chapter)
    except ConfigError as error:
        raise SystemExit(f"g2sf-book: {error}") from None
    features = plan.base.features
    if features.pcd_features == "pointmae" and not is_dry:
        from g2sf_lib.features.pointmae import DEFAULT_FILE, WHERE

        path = Path(features.pcd_weights or DEFAULT_FILE)
        if not path.is_file():
            raise SystemExit(f"g2sf-book: Point-MAE needs its weights; no file at {path}. {WHERE}")
    return plan, target


def snakemake_command(given: Path, jobs: int, more: list[str]) -> list[str]:
    """Return the command line of Snakemake.

    Jobs that together would not fit into this machine's memory then run one after the other, and
    so do those that use the GPU: all take the first.

    Args:
        given: a JSON file, whose texts arrive as they are; `--config` would read them as YAML.
        jobs: cores to use.
        more: further arguments; where one is given twice, Snakemake takes the last.
    """
    limits = [f"mem_mb={psutil.virtual_memory().total // 2**20}"]
    limits += ["gpu=1"] if shutil.which("nvidia-smi") else []
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"),
        *("--cores", str(jobs), "--nolock", "--rerun-incomplete", "--keep-going"),
        *("--quiet", "host", "rules", "--resources", *limits),
        *("--scheduler", "greedy"),  # after those that take many values: `more` may be a target
        *more,
        *("--configfile", str(given)),
    ]


def main() -> None:
    """Run from the Makefile."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="Other arguments go to Snakemake, e.g. -n."
    )
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--dataset", default="procedural")
    parser.add_argument("--data-root")
    parser.add_argument(
        "--categories", help="some of the data set's, e.g. 'bagel foam' or \"['part a', '001']\""
    )
    parser.add_argument("--device", help="auto, cpu or cuda")
    parser.add_argument("--settings", help="settings that differ, e.g. '{alpha: 2.0}'")
    parser.add_argument("--jobs", type=int, default=2, help="cores to use")
    parser.add_argument(
        "--html", help="folder of the built book (_build/html; of real data, _build/RUN/html)"
    )
    parser.add_argument("--chapter", help="only this notebook and what it needs, without the book")
    arguments, more = parser.parse_known_args()
    os.chdir(ROOT)
    names = ("profile", "dataset", "data_root", "categories", "device", "settings", "html")
    given = {name: getattr(arguments, name) for name in names}
    is_dry = any(option in more for option in ("-n", "--dry-run", "--dryrun"))
    plan, target = check(given, is_dry, arguments.chapter or None)
    more += [target] if target else []
    lock = hold_lock(Path(".snakemake", "g2sf-run.lock"))
    config_file = Path(".snakemake", "g2sf-run.json")
    config_file.write_text(json.dumps({k: v for k, v in given.items() if v}), encoding="utf-8")
    started = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    workflow = subprocess.Popen(
        snakemake_command(config_file, arguments.jobs, more), env=environment, pass_fds=[lock]
    )
    while True:
        try:
            code = workflow.wait()
            break
        except KeyboardInterrupt:
            continue  # Snakemake got it too: it stops its jobs, then leaves
    if code != 0:
        raise SystemExit(code if code > 0 else 128 - code)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    if is_dry:
        return
    if target:
        print(f"\nChapter: {ROOT / target}\nTime: {minutes} min {seconds} s", flush=True)
        return
    headline = [sys.executable, "-m", "g2sf_lib.results", "headline"]
    headline += ["--profile", plan.base.profile, "--dataset", plan.base.dataset]
    headline += [f"--data-root={plan.base.data_root or ''}"]
    print(f"\nBook: {ROOT / plan.html / 'index.html'}", flush=True)
    print(f"Time: {minutes} min {seconds} s\n", flush=True)
    raise SystemExit(subprocess.run(headline, env=environment).returncode)


if __name__ == "__main__":
    main()

"""Run the workflow on this machine and say where the book is, how long it took, what came out.

`make book` and `make test` call it. On a cluster call snakemake itself (see workflow/Snakefile).
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

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


def snakemake_command(arguments: argparse.Namespace, more: list[str]) -> list[str]:
    """Return the command line of Snakemake."""
    config = {
        "profile": arguments.profile,
        "dataset": arguments.dataset,
        "data_root": arguments.data_root,
        "settings": arguments.settings,
        "html": arguments.html,
    }
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"),
        *("--cores", str(arguments.jobs), "--nolock", "--rerun-incomplete", "--keep-going"),
        *("--scheduler", "greedy", "--quiet", "host", "rules"),
        *more,
        *("--config", *(f"{name}={value}" for name, value in config.items() if value)),
    ]


def main() -> None:
    """Run from the Makefile."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="Other arguments go to Snakemake, e.g. -n."
    )
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--dataset", default="procedural")
    parser.add_argument("--data-root")
    parser.add_argument("--settings", help="settings that differ, e.g. '{alpha: 2.0}'")
    parser.add_argument("--jobs", type=int, default=2, help="cores to use")
    parser.add_argument("--html", default="_build/html", help="folder of the built book")
    arguments, more = parser.parse_known_args()
    os.chdir(ROOT)
    lock = hold_lock(Path(".snakemake", "g2sf-run.lock"))
    started = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    workflow = subprocess.Popen(
        snakemake_command(arguments, more), env=environment, pass_fds=[lock]
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
    if any(option in more for option in ("-n", "--dry-run", "--dryrun")):
        return
    headline = [sys.executable, "-m", "g2sf_lib.results", "headline"]
    headline += ["--profile", arguments.profile, "--dataset", arguments.dataset]
    headline += ["--data-root", arguments.data_root] if arguments.data_root else []
    print(f"\nBook: {ROOT / arguments.html / 'index.html'}", flush=True)
    print(f"Time: {minutes} min {seconds} s\n", flush=True)
    raise SystemExit(subprocess.run(headline).returncode)


if __name__ == "__main__":
    main()

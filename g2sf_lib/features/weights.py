"""Fetch the Point-MAE checkpoint, prove that it fits, and record what was fetched.

Run by `make weights`. Its publishers give no SHA-256, so the first fetch records the one it saw,
and whatever comes later is held against it: a result always belongs to one file of weights.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from json import JSONDecodeError, loads
from pathlib import Path

import pooch
from requests.exceptions import ConnectionError, RequestException, Timeout

from g2sf_lib.features.checkpoints import WeightsError
from g2sf_lib.features.pointmae import DEFAULT_FILE, URL, PointMAE
from g2sf_lib.store import write_json


def fetch_pointmae(
    folder: Path = DEFAULT_FILE.parent, url: str = URL, show_progress: bool = False
) -> dict:
    """Put Point-MAE's checkpoint and its record into a folder, unless they are there.

    The file is downloaded beside its place, loaded once into the network, recorded (``.json``), and
    only then moved to its place: what lies there is complete and fits. The record has ``url``
    (None: put there by hand), ``sha256``, ``bytes`` and ``fetched`` (UTC).

    Raises:
        WeightsError: nothing can be fetched, a file has another SHA-256 than the record, or it
            is no checkpoint of Point-MAE's encoder; the message says what to do.
    """
    path = Path(folder) / DEFAULT_FILE.name
    record_path = path.with_suffix(".json")
    record = _read_record(record_path)
    if path.exists():
        return _recorded(path, None, record, record_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for killed in path.parent.glob(".partial-*"):
        shutil.rmtree(killed, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as private:
        fetched = _download(url, private, path, show_progress)
        record = _recorded(fetched, url, record, record_path)
        os.replace(fetched, path)
    return record


def _read_record(path: Path) -> dict | None:
    """Return the record of an earlier fetch, or None where there was none."""
    if not path.exists():
        return None
    with suppress(JSONDecodeError, KeyError, TypeError):
        record = loads(path.read_text())
        if re.fullmatch(r"[0-9a-f]{64}", record["sha256"]):
            return record
    raise WeightsError(f"{path}: has no SHA-256; expected the record of a fetch; delete it")


def _download(url: str, folder: str, place: Path, show_progress: bool) -> Path:
    """Return the downloaded file in a folder, from which it goes to its place."""
    pooch.get_logger().setLevel("ERROR")  # it would ask for a hash to be written into the code
    downloader = pooch.HTTPDownloader(progressbar=show_progress, timeout=30)
    try:
        return Path(pooch.retrieve(url, None, place.name, folder, downloader=downloader))
    except (RequestException, OSError) as error:
        is_offline = isinstance(error, ConnectionError | Timeout)
        reason = "no connection" if is_offline else str(error) or type(error).__name__
        by_hand = f"fetch it elsewhere, put it at {place}, and call this again"
        raise WeightsError(f"{url} cannot be fetched ({reason}); {by_hand}") from error


def _recorded(path: Path, url: str | None, record: dict | None, record_path: Path) -> dict:
    """Return the record that a file agrees with; a new one is written once the file has loaded."""
    sha256 = pooch.file_hash(str(path))
    if record is not None and record["sha256"] != sha256:
        raise WeightsError(
            f"{url or path}: SHA-256 is {sha256}, but {record_path} recorded {record['sha256']}; "
            "delete the record to accept this file, or a file on the disk to fetch it again"
        )
    if record is None:
        PointMAE(num_groups=1, group_size=1).load_checkpoint(path)  # group sizes have no weights
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"url": url, "sha256": sha256, "bytes": path.stat().st_size, "fetched": now}
        write_json(record_path, record)
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch the Point-MAE checkpoint that profile `paper` reads."""
    name = "python -m g2sf_lib.features.weights"
    parser = argparse.ArgumentParser(prog=name, description=main.__doc__)
    parser.add_argument("--to", type=Path, default=DEFAULT_FILE.parent, help="folder")
    parser.add_argument("--url", default=URL, help="a mirror of the published file")
    given = parser.parse_args(arguments)
    path = given.to / DEFAULT_FILE.name
    try:
        record = fetch_pointmae(given.to, given.url, show_progress=True)
    except WeightsError as error:
        raise SystemExit(f"g2sf-book: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"g2sf-book: interrupted; {path} is as it was") from None
    print(f"{path}: {record['bytes'] / 1e6:.1f} MB, SHA-256 {record['sha256']}")
    if given.to != DEFAULT_FILE.parent:
        print(f"It is not where it is looked for: set pcd_weights to {path}")


if __name__ == "__main__":
    main()

"""Fetch the Point-MAE checkpoint, prove that it fits, and record what was fetched.

Run by `make weights`. Its publishers give no SHA-256, so the first fetch records the one it saw,
and whatever comes later is held against it: a result always belongs to one file of weights.
"""

from __future__ import annotations

import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pooch
from requests.exceptions import RequestException

from g2sf_lib.features.checkpoints import WeightsError
from g2sf_lib.features.pointmae import DEFAULT_FILE, URL, PointMAE
from g2sf_lib.store import write_json


def fetch_pointmae(
    folder: Path = DEFAULT_FILE.parent, url: str = URL, show_progress: bool = False
) -> dict:
    """Put Point-MAE's checkpoint and its record (``.json``) into a folder; return the record.

    What lies there is complete and fits the network, or a WeightsError says what to do. A file
    put there by hand is recorded with url None.
    """
    path = folder / DEFAULT_FILE.name
    if path.exists():
        return _recorded(path, None, path.with_suffix(".json"))
    folder.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel("ERROR")  # it would ask for a hash to be written into the code
    downloader = pooch.HTTPDownloader(progressbar=show_progress, timeout=30)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as private:
        try:
            fetched = Path(pooch.retrieve(url, None, path.name, private, downloader=downloader))
        except (RequestException, OSError) as error:
            by_hand = f"fetch it elsewhere, put it at {path}, and call this again"
            raise WeightsError(f"{url} cannot be fetched ({error}); {by_hand}") from error
        record = _recorded(fetched, url, path.with_suffix(".json"))
        os.replace(fetched, path)
    return record


def _recorded(path: Path, url: str | None, record_path: Path) -> dict:
    """Return the record that a file agrees with; a new one is written once the file has loaded."""
    sha256 = pooch.file_hash(str(path))
    if record_path.exists():
        record = json.loads(record_path.read_text())
        if record["sha256"] != sha256:
            raise WeightsError(
                f"{url or path}: SHA-256 is {sha256}, but {record_path} recorded"
                f" {record['sha256']}; delete the record to accept this file, or a file on the"
                " disk to fetch it again"
            )
        return record
    PointMAE(num_groups=1, group_size=1).load_checkpoint(path)  # group sizes have no weights
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"url": url, "sha256": sha256, "bytes": path.stat().st_size, "fetched": now}
    write_json(record_path, record)
    return record


def main() -> None:
    """Fetch the Point-MAE checkpoint that profile `paper` reads."""
    try:
        record = fetch_pointmae(show_progress=True)
    except (WeightsError, KeyboardInterrupt) as error:
        raise SystemExit(f"g2sf-book: {str(error) or 'interrupted'}") from None
    print(f"{DEFAULT_FILE}: {record['bytes'] / 1e6:.1f} MB, SHA-256 {record['sha256']}")


if __name__ == "__main__":
    main()

"""TIFF files of points, with the tags and the SubIFD of those of MVTec 3D-AD (HALCON 21.11)."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

SHORT, LONG, TEXT, RATIONAL, IFD = 3, 4, 2, 5, 13
CODES = {SHORT: "H", LONG: "I", RATIONAL: "II", IFD: "I"}


def _group4(domain):
    """Return the bytes of a 1-bit picture as CCITT T.6, the compression of HALCON's domains."""
    with io.BytesIO() as buffer:
        Image.fromarray(domain).save(buffer, "TIFF", compression="group4")
        buffer.seek(0)
        with Image.open(buffer) as image:
            assert len(image.tag_v2[273]) == 1
            start, size = image.tag_v2[273][0], image.tag_v2[279][0]
        return buffer.getvalue()[start : start + size]


def _directory(tags, at):
    """Return the bytes of a TIFF directory that starts at a place: entries, then long values."""
    entries, beyond = b"", b""
    place = at + 2 + 12 * len(tags) + 4
    for code, (kind, value) in sorted(tags.items()):
        if kind == TEXT:
            data, count = value.encode() + b"\0", len(value) + 1
        else:
            values = np.atleast_1d(value).tolist()
            count = len(values) // len(CODES[kind])
            data = struct.pack(f"<{count * CODES[kind]}", *values)
        if len(data) <= 4:
            entries += struct.pack("<HHI", code, kind, count) + data.ljust(4, b"\0")
        else:
            entries += struct.pack("<HHII", code, kind, count, place + len(beyond))
            beyond += data + b"\0" * (len(data) % 2)
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + beyond


def write_points(path: Path, xyz: np.ndarray, domain: np.ndarray | None = None) -> None:
    """Write (H, W, 3) float32 points: rows as strips, then the domain, its SubIFD, and the page.

    Tags, values and size are those of the 354 real files of cable_gland. `domain` is (H, W) bool;
    None: where there is a point, as in the real files.
    """
    height, width = xyz.shape[:2]
    domain = (xyz != 0).any(axis=-1) if domain is None else domain
    rows = [row.tobytes() for row in xyz.astype("<f4")]
    starts = 8 + np.arange(height) * len(rows[0])
    coded = _group4(domain)
    coded_at = 8 + sum(map(len, rows))
    padded = coded + b"\0" * (len(coded) % 2)
    below_at = coded_at + len(padded)
    below_tags = {
        256: (SHORT, domain.shape[1]), 257: (SHORT, domain.shape[0]), 258: (SHORT, 1),
        259: (SHORT, 4), 262: (SHORT, 4),  # CCITT T.6, a mask
        273: (LONG, coded_at), 277: (SHORT, 1), 279: (LONG, len(coded)), 284: (SHORT, 1),
    }  # fmt: skip
    below = _directory(below_tags, below_at)
    page_at = below_at + len(below)
    page_tags = {
        256: (SHORT, width), 257: (SHORT, height), 258: (SHORT, [32, 32, 32]),
        259: (SHORT, 1), 262: (SHORT, 2),  # not compressed, RGB
        271: (TEXT, "MVTec Software GmbH"), 273: (LONG, starts), 274: (SHORT, 1), 277: (SHORT, 3),
        278: (SHORT, 1), 279: (SHORT, [len(rows[0])] * height), 282: (RATIONAL, [300, 1]),
        283: (RATIONAL, [300, 1]), 284: (SHORT, 1), 296: (SHORT, 2), 305: (TEXT, "HALCON 21.11"),
        306: (TEXT, "2021:08:27 10:52:25"), 330: (IFD, below_at),
        339: (SHORT, [3, 3, 3]),  # floating point
    }  # fmt: skip
    page = _directory(page_tags, page_at)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack("<2sHI", b"II", 42, page_at)
    path.write_bytes(b"".join([header, *rows, padded, below, page]))

"""Scans, however they are stored, as one `Sample`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class ScanError(ValueError):
    """A scan that cannot be used; the message names the file, what was found and expected."""


@dataclass(frozen=True)
class Sample:
    """One scan: an image and an organised point cloud, pixel for pixel.

    Attributes:
        rgb: (H, W, 3) uint8; zero on removed background.
        xyz: (H, W, 3) float32, metres; (0, 0, 0) where there is no point.
        mask: (H, W) bool, True on anomalous pixels.
        label: "good", or the kind of defect (the name of its folder).
        name: what the scan is called in messages and tables, e.g. "test/dent/003".
        raw_xyz: (H, W, 3) float32, the points before background removal, or None where
            they were not kept. Synthesis takes x and y of pasted points from here.
    """

    rgb: np.ndarray
    xyz: np.ndarray
    mask: np.ndarray
    label: str
    name: str
    raw_xyz: np.ndarray | None = None

    @property
    def is_anomalous(self) -> bool:
        """Whether any pixel of the scan is anomalous by its label."""
        return self.label != "good"

    @property
    def foreground(self) -> np.ndarray:
        """(H, W) bool: pixels that have a point."""
        return np.any(self.xyz != 0, axis=-1)

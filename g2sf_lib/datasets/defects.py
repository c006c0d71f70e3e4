"""Defects of the procedural parts: how large, how strong, where, and what they change.

Dents and cuts change shape alone, stains and colours albedo alone, holes and lumps both.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from g2sf_lib.datasets.parts import MAKERS, smoothstep

CATEGORIES = tuple(MAKERS)
DEFECTS = ("dent", "cut", "stain", "colour", "combined")

# How strong and how large defects are: uniform between low and high, both times a factor for each
# category, since what is plain on one part is lost on another. This table decides how difficult
# the data set is; it is tuned on the development seeds only.
RANGES: dict[str, tuple[float, ...]] = {
    #                       low, high, cookie, dowel, foam, gland, rope
    "dent_depth_mm":   ( 1.0,  2.6, 0.42, 0.32, 0.43,  0.4,  0.7),  # half stand out: bulges
    "dent_width_mm":   ( 8.0, 15.0,  1.0,  1.0,  1.0,  1.0,  1.0),
    "cut_depth_mm":    ( 0.8,  2.2, 0.42, 0.22,  0.7,  0.3,  1.0),
    "cut_width_mm":    ( 1.6,  3.0,  1.0,  0.8,  1.0,  0.8,  1.0),
    "cut_length_mm":   (10.0, 25.0,  1.0,  0.5,  1.0,  0.5,  1.0),
    "stain_darkening": ( 0.4, 0.85, 0.45, 0.17, 1.15, 0.28,  0.5),  # share of the albedo lost
    "stain_width_mm":  ( 6.0, 12.0,  1.0,  1.0,  1.4,  1.0,  1.0),
    "colour_shift":    (0.25,  0.6,  0.4,  0.4,  1.6, 0.32,  0.5),  # weight of a foreign hue
    "colour_width_mm": ( 8.0, 16.0,  1.0,  1.0,  1.4,  1.0,  1.0),
    "hole_depth_mm":   ( 1.0,  2.4,  0.5, 0.25,  0.5,  0.4,  1.0),
    "hole_width_mm":   ( 3.0,  6.0,  1.0,  1.0,  1.0,  1.0,  1.0),
    "hole_darkening":  ( 0.2,  0.5, 0.45,  0.1,  1.0, 0.15,  0.5),
    "lump_height_mm":  ( 0.6,  1.6,  0.5,  0.3,  0.5, 0.45,  1.0),
    "lump_width_mm":   ( 5.0,  9.0,  1.0,  1.0,  1.0,  1.0,  1.0),
    "lump_cover":      ( 0.3,  0.7, 0.45,  0.1,  1.0, 0.15,  0.5),  # weight of its own colour
}  # fmt: skip


@dataclass(frozen=True)
class Defect:
    """A local change of a part, in a frame on its surface: a, b along it, n outward."""

    kind: str  # "dent", "cut", "stain", "colour", "hole" or "lump"
    centre: np.ndarray  # (3,) metres
    frame: np.ndarray  # (3, 3), rows a, b, n
    half: np.ndarray  # (2,) half width along a and b, metres
    depth: float  # displacement along n in the middle, metres; 0 for changes of colour only
    wobble: np.ndarray  # (4, 2) amplitude and phase of the outline's harmonics 2 to 5
    strength: float  # weight of the change of albedo; 0 for changes of shape only
    tint: np.ndarray  # (3,) factor on brightness that gives the foreign colour

    def window(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Return 1 on the side of the part that carries the defect, 0 on the far side."""
        above = (points - self.centre) @ self.frame[2]
        return smoothstep(0.05, 0.4, normals @ self.frame[2]) * (np.abs(above) < 0.012)

    def profile(self, points: np.ndarray) -> np.ndarray:
        """Return the shape of the defect at (..., 3) points: 1 in the middle, 0 outside."""
        a, b = np.moveaxis((points - self.centre) @ self.frame[:2].T, -1, 0)
        if self.kind == "cut":
            bend = b - self.wobble[0, 0] * 0.6 * a**2 / self.half[0]
            groove = np.clip(1 - np.abs(bend) / self.half[1], 0, 1)
            return groove * smoothstep(1.0, 0.7, np.abs(a) / self.half[0])
        theta = np.arctan2(b, a)
        outline = 1 + sum(
            amp * np.cos((k + 2) * theta + phase) for k, (amp, phase) in enumerate(self.wobble)
        )
        rho = np.hypot(a / self.half[0], b / self.half[1]) / outline
        if self.kind == "dent":
            return np.clip(1 - rho**2, 0, 1) ** 2
        if self.kind == "lump":
            return np.sqrt(np.clip(1 - rho**2, 0, 1))
        return smoothstep(1.0, 0.6 if self.kind == "hole" else 0.65, rho)

    def displacement(self, points: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Return how far (..., 3) points of the sound part move along n, metres."""
        return self.depth * self.profile(points) * window

    def paint(self, albedo: np.ndarray, points: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Return (n, 3) albedo with the defect, from that of the sound part at its points."""
        if self.strength == 0:
            return albedo
        profile = self.profile(points)
        if self.kind == "lump":  # its colour ends with the lump, not gradually like a stain
            profile = smoothstep(0.0, 0.3, profile)
        weight = (self.strength * profile * window)[:, None]
        brightness = albedo @ np.array([0.3, 0.59, 0.11])
        return albedo * (1 - weight) + weight * brightness[:, None] * self.tint


def draw_defect(
    rng: np.random.Generator,
    category: str,
    label: str,
    surface: dict[str, np.ndarray],
    pitch: float,
) -> Defect:
    """Return a random defect of one of `DEFECTS`, on a visible place away from the outline.

    `surface` is that of the sound part, seen by the camera: ``point`` (H, W, 3), metres, z above
    the floor; ``normal`` (H, W, 3); ``is_part`` (H, W) bool; ``facing`` (H, W), the cosine between
    ray and normal. `pitch` is the width of a pixel on the floor, metres.
    """

    def draw(name: str) -> float:
        low, high, factor = *RANGES[name][:2], RANGES[name][2 + CATEGORIES.index(category)]
        value = rng.uniform(low * factor, high * factor)
        return float(value / 1000 if name.endswith("_mm") else value)

    point, is_part = surface["point"], surface["is_part"]
    # Background removal takes the lowest 5 mm: no defect may lie down there.
    high = is_part & (point[..., 2] > 0.006)
    inside = ndimage.distance_transform_edt(high) * pitch
    fits = (inside > min(0.007, 0.55 * inside.max())) & (surface["facing"] > 0.55)
    centre = rng.choice(point[fits])
    near = is_part & (np.linalg.norm(point - centre, axis=-1) < 0.004)
    outward = surface["normal"][near].sum(0)
    outward /= np.linalg.norm(outward)
    along = np.cross(outward, rng.standard_normal(3))
    along /= np.linalg.norm(along)
    frame = np.stack([along, np.cross(outward, along), outward]).astype(np.float32)

    kind = label if label != "combined" else str(rng.choice(["hole", "lump"]))
    hue = rng.uniform(0, 1)
    tint = 0.2 + 0.8 * (0.5 + 0.5 * np.cos(2 * np.pi * (hue - np.arange(3) / 3)))
    tint /= tint @ np.array([0.3, 0.59, 0.11])
    aspect = np.exp(rng.uniform(-0.25, 0.25) * np.array([1, -1]))
    depth, strength = 0.0, 0.0
    if kind == "cut":
        half = np.array([draw("cut_length_mm"), draw("cut_width_mm")]) / 2
        depth = -draw("cut_depth_mm")
    else:
        half = draw(f"{kind}_width_mm") / 2 * aspect
    if kind == "dent":
        depth = draw("dent_depth_mm") * rng.choice([-1, 1])
    elif kind == "stain":
        strength, tint = draw("stain_darkening"), 0 * tint
    elif kind == "colour":
        strength = draw("colour_shift")
    elif kind == "hole":
        strength, depth, tint = draw("hole_darkening"), -draw("hole_depth_mm"), 0 * tint
    elif kind == "lump":
        strength, depth = draw("lump_cover"), draw("lump_height_mm")
    wobble = np.stack([rng.normal(0, 0.12, 4) / np.arange(1, 5), rng.uniform(0, 6.3, 4)], 1)
    return Defect(kind, centre, frame, half, depth, wobble, strength, tint)

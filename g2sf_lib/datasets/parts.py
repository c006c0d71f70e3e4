"""Shapes and natural textures of the procedural parts.

A part is one or more curved sheets, each a regular grid of points that a defect displaces.
Colour is a function of surface coordinates, evaluated where a ray hits: it stays sharp however
coarse the grid is. In metres; z points up from the floor, x along a part's long axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from g2sf_lib.config import CATEGORIES

TEXEL_M = 0.0004  # pitch of noise textures: slightly finer than a pixel at 0.45 m
TEXELS = 256  # a tile is 0.10 m wide: no part shows a texture twice
_YARN = np.radians(25)  # between the axis of a strand and its yarns
_YARN_TURN = np.array([[np.cos(_YARN), -np.sin(_YARN)], [np.sin(_YARN), np.cos(_YARN)]], np.float32)


@dataclass(frozen=True)
class Part:
    """A part of P sheets of U x V points, in its own frame or, after `placed`, on the floor."""

    points: np.ndarray  # (P, U, V, 3) float32, metres
    surface: np.ndarray  # (P, U, V, 2) float32, metres along the surface: go with the material
    # Takes (n, 2) of these and (n,) sheet numbers, returns (n, 3) linear reflectance in [0, 1].
    albedo: Callable[[np.ndarray, np.ndarray], np.ndarray]
    gloss: float = 0.0  # strength of the specular highlight; 0 is matt

    def placed(self, angle: float, shift: np.ndarray) -> Part:
        """Return the part turned about z by `angle` (radians) and moved by (x, y) metres."""
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float32)
        moved = self.points @ turn.T + np.array([*shift, 0], np.float32)
        return replace(self, points=moved.astype(np.float32))


def grid_normals(points: np.ndarray) -> np.ndarray:
    """Return outward unit normals of sheets, (P, U, V, 3), by differences along the grid."""
    normal = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=2))
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)


def grid_triangles(shape: tuple[int, int, int]) -> np.ndarray:
    """Return (2 P (U-1) (V-1), 3) uint32 vertex indices of sheets of `shape` (P, U, V)."""
    index = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    a, b = index[:, :-1, :-1], index[:, 1:, :-1]
    c, d = index[:, 1:, 1:], index[:, :-1, 1:]
    corners = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], -2)
    return corners.reshape(-1, 3)


def noise_tile(rng: np.random.Generator, *scale_m: float) -> np.ndarray:
    """Return (TEXELS, TEXELS) periodic noise of mean 0, deviation 1 and Gaussian correlation."""
    sigma = [s / TEXEL_M for s in (scale_m if len(scale_m) == 2 else scale_m * 2)]
    white = rng.standard_normal((TEXELS, TEXELS), dtype=np.float32)
    spectrum = ndimage.fourier_gaussian(np.fft.rfft2(white), sigma, n=TEXELS)
    spectrum[0, 0] = 0
    tile = np.fft.irfft2(spectrum, s=white.shape).astype(np.float32)
    return tile / tile.std()


def sample_tile(tile: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Return a tile's value at (..., 2) coordinates in metres, bilinear and periodic."""
    where = coordinates / TEXEL_M
    low = np.floor(where)
    u, v = np.moveaxis(where - low, -1, 0)
    i, j = np.moveaxis(low.astype(np.int64), -1, 0) % TEXELS
    k, m = (i + 1) % TEXELS, (j + 1) % TEXELS
    near = tile[i, j] * (1 - v) + tile[i, m] * v
    far = tile[k, j] * (1 - v) + tile[k, m] * v
    return near * (1 - u) + far * u


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """Return 0 below `low`, 1 above `high` and a smooth cubic in between; `low` may be larger."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _tinted(rng: np.random.Generator, colour: tuple[float, float, float], spread: float):
    """Return a (3,) float32 colour, varied from part to part: brightness and each channel."""
    factor = np.exp(rng.normal(0, spread) + rng.normal(0, spread / 3, 3))
    return (np.array(colour) * factor).astype(np.float32)


def _grid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (U, V, 2): every pair of one of U values with one of V."""
    return np.stack(np.meshgrid(x, y, indexing="ij"), -1)


def _rectangle(half_x: float, half_y: float, pitch: float) -> np.ndarray:
    """Return (1, U, V, 2) x and y of a grid over a rectangle, metres."""
    x, y = (np.arange(-h, h + pitch / 2, pitch, dtype=np.float32) for h in (half_x, half_y))
    return _grid(x, y)[None]


def _raised(xy: np.ndarray, height: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return (1, U, V, 3) float32 points at a height; what is not inside lies below the floor."""
    z = np.where(inside, height, -0.002)[..., None]
    return np.concatenate([xy, z], -1).astype(np.float32)


def _around(count: int) -> np.ndarray:
    """Return `count` angles in [-pi, pi], 0 on top, denser there than underneath."""
    s = np.linspace(-1, 1, count)
    return (np.pi * (0.62 * s + 0.38 * s**3)).astype(np.float32)


def _tube(centre: np.ndarray, radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return (U, V, 3) points of a tube with centre line (U, 3) and radius (U, V), metres."""
    along = np.gradient(centre, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    up = np.array([0, 0, 1.0]) - along[:, 2:] * along
    up /= np.linalg.norm(up, axis=1, keepdims=True)
    side = np.cross(up, along)
    ring = np.cos(angle)[:, None] * up[:, None] + np.sin(angle)[:, None] * side[:, None]
    return (centre[:, None] + radius[..., None] * ring).astype(np.float32)


def make_cookie(rng: np.random.Generator) -> Part:
    """Return a cookie: a domed, bumpy disc with slightly darker, slightly raised chips."""
    xy = _rectangle(0.050, 0.050, 0.00043)
    radius, thickness = rng.uniform(0.0425, 0.0460), rng.uniform(0.0125, 0.0155)
    theta = np.arctan2(xy[..., 1], xy[..., 0])
    wobble = 1 + sum(
        rng.normal(0, 0.02) / k * np.cos(k * theta + rng.uniform(0, 6.3)) for k in range(2, 7)
    )
    rho = np.hypot(xy[..., 0], xy[..., 1]) / (radius * wobble)
    rim = np.sqrt(np.clip(1 - rho**7, 0, 1))
    bumps = 0.00022 * sample_tile(noise_tile(rng, 0.004), xy)
    bumps += 0.00007 * sample_tile(noise_tile(rng, 0.0011), xy)
    # Chips are kept apart by dart throwing; overlapping ones would look like a big stain.
    chips: list[np.ndarray] = []
    for dart in rng.uniform(-1, 1, (80, 2)) * radius * 0.85:
        if np.hypot(*dart) < 0.84 * radius and all(np.hypot(*(dart - c)) > 0.009 for c in chips):
            chips.append(dart)
    chips = chips[: rng.integers(13, 19)]
    chip_size = rng.uniform(0.0017, 0.0029, (len(chips), 2))
    chip_turn = rng.uniform(0, np.pi, len(chips))

    def chip(where: np.ndarray) -> np.ndarray:
        inside = np.zeros(where.shape[:-1], np.float32)
        for centre, size, turn in zip(chips, chip_size, chip_turn, strict=True):
            a, b = where[..., 0] - centre[0], where[..., 1] - centre[1]
            ca, sa = np.cos(turn), np.sin(turn)
            q = ((a * ca + b * sa) / size[0]) ** 2 + ((b * ca - a * sa) / size[1]) ** 2
            inside = np.maximum(inside, smoothstep(1.25, 0.6, q))
        return inside

    height = thickness * (0.7 * rim + 0.3 * np.clip(1 - rho**2, 0, 1)) + bumps * rim
    height += 0.00022 * chip(xy)
    dough = _tinted(rng, (0.48, 0.31, 0.16), 0.06)
    crust, crumb = noise_tile(rng, 0.006), noise_tile(rng, 0.0008)
    chip_tone = rng.uniform(0.68, 0.76)

    def albedo(surface: np.ndarray, sheet: np.ndarray) -> np.ndarray:
        tone = 1 + 0.06 * sample_tile(crust, surface) + 0.05 * sample_tile(crumb, surface)
        edge = np.hypot(surface[:, 0], surface[:, 1]) / radius
        tone *= 1 - 0.15 * smoothstep(0.7, 1.0, edge)  # baked darker towards the rim
        chocolate = np.array([1, 0.93, 0.88]) * chip_tone
        inside = chip(surface)[:, None]
        return dough * tone[:, None] * (1 - inside + inside * chocolate)

    return Part(_raised(xy, height, rho < 1), xy, albedo)


def make_foam(rng: np.random.Generator) -> Part:
    """Return a block of bonded foam: coloured flakes, small pores, rounded edges."""
    half, thickness = rng.uniform((0.041, 0.027), (0.0455, 0.033)), rng.uniform(0.018, 0.023)
    xy = _rectangle(0.049, 0.037, 0.00042)
    inset = half - np.abs(xy) - 0.0004 * sample_tile(noise_tile(rng, 0.006), xy)[..., None]
    corner = 0.005  # edge radius, metres
    over = np.clip(1 - inset / corner, 0, None)
    round_off = np.hypot(over[..., 0], over[..., 1])
    top = thickness - corner + corner * np.sqrt(np.clip(1 - round_off**2, 0, 1))
    pores = noise_tile(rng, 0.0008)
    relief = 0.0003 * sample_tile(noise_tile(rng, 0.007), xy)
    relief -= 0.00022 * np.clip(sample_tile(pores, xy) - 0.8, 0, 2)
    flakes = cKDTree(rng.uniform((-0.052, -0.04), (0.052, 0.04), (520, 2)))
    base = _tinted(rng, (0.34, 0.38, 0.44), 0.06)
    hues = np.array([[1, 1, 1], [1.35, 0.95, 0.75], [0.75, 0.95, 1.25], [0.9, 1.15, 0.8]])
    kind = rng.choice(4, 520, p=(0.45, 0.2, 0.2, 0.15))
    colours = base * hues[kind] * np.exp(rng.normal(0, 0.22, (520, 1)))
    warp = [noise_tile(rng, 0.0012) for _ in range(2)]

    def albedo(surface: np.ndarray, sheet: np.ndarray) -> np.ndarray:
        bent = surface + 0.0007 * np.stack([sample_tile(w, surface) for w in warp], -1)
        dark = 1 - 0.22 * np.clip(sample_tile(pores, surface) - 0.8, 0, 2)
        return np.clip(colours[flakes.query(bent)[1]] * dark[:, None], 0.02, 0.9)

    return Part(_raised(xy, top + relief, round_off < 1), xy, albedo)


def make_dowel(rng: np.random.Generator) -> Part:
    """Return a wooden dowel: a bevelled cylinder with grain along its axis."""
    length, radius = rng.uniform(0.084, 0.092), rng.uniform(0.0105, 0.0125)
    bevel = rng.uniform(0.0012, 0.002)
    inner = np.linspace(bevel, length - bevel, 215)
    t = np.concatenate([[0, 1e-5], inner, [length - 1e-5, length]]).astype(np.float32)
    angle = _around(131)
    surface = _grid(t - length / 2, angle * radius)
    pore_tile = noise_tile(rng, 0.008, 0.0005)
    r = radius + 0.00005 * sample_tile(pore_tile, surface)
    r += 0.00008 * sample_tile(noise_tile(rng, 0.02, 0.004), surface)
    r[[0, -1]] = 1e-5
    r[[1, -2]] = radius - bevel
    centre = np.stack([t - length / 2, np.zeros_like(t), np.full_like(t, radius)], -1)
    points = _tube(centre, r, angle)[None]

    wood = _tinted(rng, (0.6, 0.43, 0.25), 0.07)
    bands, slow = noise_tile(rng, 0.02, 0.0011), noise_tile(rng, 0.02, 0.003)
    rings = rng.uniform(900, 1300)  # growth rings, radians a metre around the dowel
    roll = rng.uniform(0, TEXELS * TEXEL_M)

    def albedo(surface: np.ndarray, sheet: np.ndarray) -> np.ndarray:
        where = surface + np.array([0, roll], np.float32)
        phase = rings * where[:, 1] + 2.5 * sample_tile(slow, where)
        tone = 1 + 0.05 * np.sin(phase) + 0.05 * sample_tile(bands, where)
        tone -= 0.045 * np.clip(sample_tile(pore_tile, surface) - 0.7, 0, 2)
        warm = np.clip(tone - 1, -0.3, 0.3)[:, None] * np.array([0.0, 0.15, 0.4])
        return np.clip(wood * (tone[:, None] + warm), 0.02, 0.9)

    return Part(points, surface[None].astype(np.float32), albedo)


def make_gland(rng: np.random.Generator) -> Part:
    """Return a glossy cable gland: thread, hexagon, seal ring, ribbed body, tapered cap."""
    length = rng.uniform(0.086, 0.092)
    t = np.concatenate([[0], np.linspace(1e-5, length - 1e-5, 262), [length]]).astype(np.float32)
    angle = _around(145)
    x, psi = np.meshgrid(t, angle, indexing="ij")
    thread_end = rng.uniform(0.31, 0.36) * length
    hex_end = thread_end + rng.uniform(0.011, 0.014)
    ring_end = hex_end + 0.0035
    cap_start = length - rng.uniform(0.012, 0.016)
    r_thread, r_body = rng.uniform(0.0100, 0.0108), rng.uniform(0.0118, 0.0128)
    apothem = rng.uniform(0.0142, 0.0152)

    def between(low: float, high: float, soft: float = 0.0004) -> np.ndarray:
        return smoothstep(low - soft, low + soft, x) * smoothstep(high + soft, high - soft, x)

    turns = x / 0.0030 + psi / (2 * np.pi) + rng.uniform(0, 1)
    thread = r_thread + 0.00045 * np.sin(2 * np.pi * turns)
    # A flat lies below and another on top: the gland rests on its hexagon.
    face = (psi + np.pi / 6) % (np.pi / 3) - np.pi / 6
    hexagon = np.minimum(apothem / np.cos(face), 1.10 * apothem)
    ribs = r_body + 0.00025 * np.cos(20 * psi + rng.uniform(0, 6.3))
    taper = np.clip((x - cap_start) / (length - cap_start), 0, 1)
    cap = r_body * np.sqrt(np.clip(1 - 0.55 * taper**2, 0, 1))
    r = thread * between(-1, thread_end) + hexagon * between(thread_end, hex_end)
    r += (r_body - 0.0012) * between(hex_end, ring_end)
    r += ribs * between(ring_end, cap_start) + cap * between(cap_start, 2)
    r *= 1 - 0.06 * smoothstep(0.0015, 0, x)
    r[[0, -1]] = 1e-5
    centre = np.stack([t - length / 2, np.zeros_like(t), np.full_like(t, apothem)], -1)
    points = _tube(centre, r.astype(np.float32), angle)[None]
    surface = np.stack([x, psi * r_body], -1)[None].astype(np.float32)

    plastic = _tinted(rng, (0.36, 0.39, 0.43), 0.05)
    rubber = _tinted(rng, (0.50, 0.16, 0.10), 0.05)
    cloud = noise_tile(rng, 0.007)

    def albedo(surface: np.ndarray, sheet: np.ndarray) -> np.ndarray:
        x = surface[:, 0]
        seal = smoothstep(hex_end, hex_end + 0.0003, x) * smoothstep(ring_end, ring_end - 0.0003, x)
        colour = plastic * (1 - seal[:, None]) + rubber * seal[:, None]
        return colour * (1 + 0.02 * sample_tile(cloud, surface))[:, None]

    return Part(points, surface, albedo, gloss=0.35)


def make_rope(rng: np.random.Generator) -> Part:
    """Return a laid rope: three twisted strands, one of another tone, slightly bent."""
    length, strand = rng.uniform(0.088, 0.094), rng.uniform(0.0050, 0.0056)
    pitch, phase = rng.uniform(0.046, 0.054), rng.uniform(0, 2 * np.pi)
    lay = strand * 1.08  # radius of the strands' helix: they just touch
    t = np.linspace(0, length, 200).astype(np.float32)
    angle = _around(81)
    bend = rng.normal(0, 0.0012) * np.sin(np.pi * t / length)
    bend += rng.normal(0, 0.0006) * np.sin(2 * np.pi * t / length)
    to_end = np.minimum(t, length - t) / 0.003
    closed = np.sqrt(np.clip(1 - np.clip(1 - to_end, 0, 1) ** 2, 1e-4, 1))  # melted ends
    surface = _grid(t, angle * strand).astype(np.float32)
    yarn, fuzz, sheets = noise_tile(rng, 0.006, 0.0006), noise_tile(rng, 0.0007), []
    for k in range(3):
        turn = 2 * np.pi * (t / pitch + k / 3) + phase
        centre = np.stack([t - length / 2, bend + lay * np.cos(turn), lay * np.sin(turn)], -1)
        centre[:, 2] += lay + strand
        shifted = surface @ _YARN_TURN + np.array([0, 0.03 * k], np.float32)
        relief = 0.00010 * sample_tile(yarn, shifted) + 0.00005 * sample_tile(fuzz, shifted)
        sheets.append(_tube(centre, (strand + relief) * closed[:, None], angle))
    light, dark = _tinted(rng, (0.58, 0.52, 0.40), 0.04), _tinted(rng, (0.2, 0.3, 0.42), 0.05)
    tones = np.stack([light, light, dark])
    tones[1] *= rng.uniform(0.94, 1.0)

    def albedo(surface: np.ndarray, sheet: np.ndarray) -> np.ndarray:
        shifted = surface @ _YARN_TURN + np.stack([0 * sheet, 0.03 * sheet], -1)
        tone = 1 + 0.07 * sample_tile(yarn, shifted) + 0.04 * sample_tile(fuzz, shifted)
        return np.clip(tones[sheet.astype(np.int64)] * tone[:, None], 0.02, 0.9)

    return Part(np.stack(sheets), np.repeat(surface[None], 3, 0), albedo)


_MAKERS = (make_cookie, make_dowel, make_foam, make_gland, make_rope)
MAKERS = dict(zip(CATEGORIES["procedural"], _MAKERS, strict=True))

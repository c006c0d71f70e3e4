"""The embedded data set: five kinds of parts, rendered with defects, seen by a 3-D sensor.

Rays of a pinhole camera are cast into a mesh (Open3D's `RaycastingScene`, on Embree);
shading, defects and sensor are our own. `generate` writes the scans in the layout and
units of MVTec 3D-AD, so that one reader and one preprocessing serve both. A scan depends
on nothing but its seed sequence, which is made of its place in the data set.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage
from tqdm.auto import tqdm

from g2sf_lib import config as library
from g2sf_lib.config import DataConfig
from g2sf_lib.datasets import SPLITS, Sample, ScanError, in_processes
from g2sf_lib.datasets.defects import CATEGORY_SCALE, DEFECTS, RANGES, Defect, draw_defect
from g2sf_lib.datasets.parts import MAKERS, Part, grid_normals, grid_triangles, smoothstep

CATEGORIES = library.CATEGORIES["procedural"]
MASK_DISTANCE_M = 0.00025  # a surface that moved by more is anomalous
MASK_ALBEDO = 0.03  # so is a reflectance that changed by more in any channel
MIN_MASK_AREA_MM2 = 5.0  # a defect that shows less is drawn again elsewhere

CAMERA_HEIGHT_M = 0.45
FIELD_OF_VIEW_M = 0.118  # on the floor; 0.46 mm a pixel at 256 px
WHITE_NOISE_M = 0.00012  # of depth, pixel by pixel
SMOOTH_NOISE_M = 0.00009  # of depth, correlated over SMOOTH_LENGTH_M; 0.15 mm in all
SMOOTH_LENGTH_M = 0.0025
RENDERER_VERSION = 1  # raise when a change of code changes scans: old folders are refused

SEED_SETS = ("report", "development")
LABELS = ("good", *DEFECTS)


@dataclass(frozen=True)
class Rendering:
    """What the camera would see without noise; (H, W) arrays.

    Attributes:
        depth: distance along the optical axis, metres.
        xyz: (H, W, 3) points in the camera's frame, metres: x right, y down, z forward.
        rgb: (H, W, 3) linear light, 1 is white.
        albedo: (H, W, 3) reflectance.
        facing: cosine between the ray and the surface normal.
        is_part: False on the floor.
        mask: where a defect changed surface or albedo beyond the thresholds.
    """

    depth: np.ndarray
    xyz: np.ndarray
    rgb: np.ndarray
    albedo: np.ndarray
    facing: np.ndarray
    is_part: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class _Hits:
    """Where the camera's rays meet part or floor; flat arrays, one entry a pixel."""

    depth: np.ndarray
    point: np.ndarray  # (n, 3) world
    normal: np.ndarray  # (n, 3) world
    is_part: np.ndarray
    rest: np.ndarray  # (k, 3) for part pixels: the point on the sound part
    surface: np.ndarray  # (k, 2)
    sheet: np.ndarray  # (k,)
    window: np.ndarray  # (k,)
    scene: object  # RaycastingScene, for shadows


def _child(seed: int | np.random.SeedSequence, index: int) -> np.random.Generator:
    """Return generator number `index` of a seed; unlike `spawn`, without changing the seed."""
    if not isinstance(seed, np.random.SeedSequence):
        seed = np.random.SeedSequence(seed)
    key = (*seed.spawn_key, index)
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=key))


def _directions(size: int) -> np.ndarray:
    """Return (size * size, 3) ray directions in the camera's frame, with z = 1."""
    step = FIELD_OF_VIEW_M / CAMERA_HEIGHT_M / size
    across = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * step
    x, y = np.meshgrid(across, across)
    return np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3).astype(np.float32)


def _camera(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return rotation (3, 3) camera to world, and position (3,), of a nearly upright view."""
    rx, ry = rng.normal(0, np.radians(0.4), 2)
    about_x = np.array([[1, 0, 0], [0, np.cos(rx), -np.sin(rx)], [0, np.sin(rx), np.cos(rx)]])
    about_y = np.array([[np.cos(ry), 0, np.sin(ry)], [0, 1, 0], [-np.sin(ry), 0, np.cos(ry)]])
    turn = about_x @ about_y @ np.diag([1.0, -1.0, -1.0])
    # Moved so that the optical axis still meets the floor at the origin.
    position = CAMERA_HEIGHT_M * turn[:, 2] / turn[2, 2]
    return turn.astype(np.float32), position.astype(np.float32)


def _facing(rays: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return (n,) cosines between rays and surface normals: 1 is seen from straight above."""
    return -(rays * normal).sum(1) / np.linalg.norm(rays, axis=1)


def _cast(part: Part, defect: Defect | None, position: np.ndarray, rays: np.ndarray) -> _Hits:
    """Return where rays from `position` along (n, 3) `rays` (world) meet part or floor."""
    # Imported here because Open3D takes seconds, and most users of this module only read names.
    import open3d as o3d

    normals = grid_normals(part.points)
    if defect is None:
        window = np.zeros(part.points.shape[:3], np.float32)
        points = part.points
    else:
        window = defect.window(part.points, normals).astype(np.float32)
        moved = defect.displacement(part.points, window)[..., None] * defect.frame[2]
        points = (part.points + moved).astype(np.float32)
        if defect.depth:
            normals = grid_normals(points)
    triangles = grid_triangles(points.shape[:3])
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(
        o3d.core.Tensor.from_numpy(np.ascontiguousarray(points.reshape(-1, 3))),
        o3d.core.Tensor.from_numpy(triangles),
    )
    packed = np.concatenate([np.broadcast_to(position, rays.shape), rays], 1)
    answer = scene.cast_rays(o3d.core.Tensor.from_numpy(packed), nthreads=1)
    depth = answer["t_hit"].numpy()
    floor = -position[2] / rays[:, 2]
    is_part = depth < floor
    depth = np.where(is_part, depth, floor).astype(np.float32)

    corner = triangles[answer["primitive_ids"].numpy()[is_part]]
    u, v = answer["primitive_uvs"].numpy()[is_part].T
    weight = np.stack([1 - u - v, u, v], 1)
    attributes = np.concatenate([part.points, normals, part.surface, window[..., None]], -1)
    attributes = attributes.reshape(-1, 9).astype(np.float32)
    here = np.einsum("nk,nkd->nd", weight, attributes[corner])
    normal = np.tile(np.array([0, 0, 1], np.float32), (len(rays), 1))
    normal[is_part] = here[:, 3:6] / np.linalg.norm(here[:, 3:6], axis=1, keepdims=True)
    return _Hits(
        depth=depth,
        point=position + depth[:, None] * rays,
        normal=normal,
        is_part=is_part,
        rest=here[:, :3],
        surface=here[:, 6:8],
        sheet=corner[:, 0] // np.prod(points.shape[1:3]),
        window=here[:, 8],
        scene=scene,
    )


def _light(
    rng: np.random.Generator, hits: _Hits, rays: np.ndarray, albedo: np.ndarray, gloss: float
) -> np.ndarray:
    """Return (n, 3) linear light: sky, a key light that casts shadows, a fill light."""
    import open3d as o3d

    def towards(azimuth: float, elevation: float) -> np.ndarray:
        flat = np.cos(elevation)
        return np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])

    key = towards(rng.normal(np.radians(130), 0.3), rng.uniform(np.radians(48), np.radians(62)))
    fill = towards(rng.normal(np.radians(-40), 0.3), np.radians(40))
    exposure = np.exp(rng.normal(0, 0.06)) * np.exp(rng.normal(0, 0.02, 3))
    # A lamp is not a point: jittered shadow rays, then a small blur, give a soft edge.
    to_lamp = key + rng.normal(0, 0.02, rays.shape)
    start = hits.point + 0.0003 * hits.normal
    packed = np.concatenate([start, to_lamp], 1).astype(np.float32)
    blocked = hits.scene.test_occlusions(o3d.core.Tensor.from_numpy(packed), nthreads=1).numpy()
    size = round(len(rays) ** 0.5)
    lit = 1 - ndimage.gaussian_filter(blocked.reshape(size, size).astype(np.float32), 1.3).ravel()

    normal = hits.normal
    diffuse = 0.34 * (0.65 + 0.35 * normal[:, 2]) + 0.78 * lit * np.clip(normal @ key, 0, None)
    diffuse += 0.16 * np.clip(normal @ fill, 0, None)
    colour = albedo * diffuse[:, None]
    if gloss:
        view = -rays / np.linalg.norm(rays, axis=1, keepdims=True)
        for lamp, weight in ((key, lit), (fill, np.float32(0.3))):
            half = view + lamp
            half /= np.linalg.norm(half, axis=1, keepdims=True)
            shine = np.clip((normal * half).sum(1), 0, None) ** 40
            colour += (gloss * weight * shine * hits.is_part)[:, None]
    return colour * exposure


def _need_category(category: str) -> None:
    if category not in CATEGORIES:
        raise ValueError(f"category is {category!r}; expected one of {', '.join(CATEGORIES)}")


def render_truth(
    category: str,
    seed: int | np.random.SeedSequence,
    size: int = 256,
    defect: str | None = None,
) -> Rendering:
    """Return what an ideal sensor would see: no noise, nothing missing.

    The part, its pose and the light depend on the seed alone: the same seed with another
    `defect` shows the same part, sound (None) or damaged (one of `DEFECTS`).
    """
    _need_category(category)
    if defect is not None and defect not in DEFECTS:
        raise ValueError(f"defect is {defect!r}; expected one of {', '.join(DEFECTS)} or None")
    part = MAKERS[category](_child(seed, 0))
    scene_rng = _child(seed, 1)
    free = category == "cookie"
    angle = scene_rng.uniform(-np.pi, np.pi) if free else scene_rng.uniform(-1, 1) * np.radians(10)
    part = part.placed(angle, scene_rng.uniform(-0.002, 0.002, 2))
    turn, position = _camera(scene_rng)
    directions = _directions(size)
    rays = directions @ turn.T

    hits = _cast(part, None, position, rays)
    floor = np.array([0.17, 0.18, 0.19], np.float32) * np.exp(scene_rng.normal(0, 0.05))
    albedo = np.tile(floor, (len(rays), 1))
    mask = np.zeros(len(rays), bool)
    if defect is None:
        albedo[hits.is_part] = part.albedo(hits.surface, hits.sheet)
    else:
        rng, sound, pixel_m = _child(seed, 2), hits, FIELD_OF_VIEW_M / size
        flat = {"point": hits.point, "normal": hits.normal, "is_part": hits.is_part}
        flat["facing"] = _facing(rays, hits.normal)
        surface = {key: one.reshape(size, size, *one.shape[1:]) for key, one in flat.items()}
        for _ in range(20):
            change = draw_defect(rng, category, defect, surface, pixel_m)
            hits = _cast(part, change, position, rays)
            plain = part.albedo(hits.surface, hits.sheet)
            painted = change.paint(plain, hits.rest, hits.window)
            mask = _changed(change, sound, hits)
            mask[hits.is_part] |= np.abs(painted - plain).max(1) > MASK_ALBEDO
            if mask.sum() * (1000 * pixel_m) ** 2 >= MIN_MASK_AREA_MM2:
                break
        else:
            raise ScanError(f"no visible {defect} in 20 draws on {category}, seed {seed}")
        albedo[hits.is_part] = painted
    light = _light(scene_rng, hits, rays, albedo, part.gloss)
    image = (size, size)
    return Rendering(
        depth=hits.depth.reshape(image),
        xyz=(hits.depth[:, None] * directions).reshape(*image, 3),
        rgb=light.reshape(*image, 3).astype(np.float32),
        albedo=albedo.reshape(*image, 3).astype(np.float32),
        facing=_facing(rays, hits.normal).reshape(image),
        is_part=hits.is_part.reshape(image),
        mask=mask.reshape(image),
    )


def _changed(defect: Defect, sound: _Hits, damaged: _Hits) -> np.ndarray:
    """Return (n,) bool: rays that meet a surface which moved by more than the threshold.

    Both the surface and its depth must have moved: at the outline depth jumps by
    centimetres where a surface moves by micrometres.
    """
    moved = np.zeros(len(sound.depth), np.float32)
    for hits in (sound, damaged):
        window = (
            damaged.window
            if hits is damaged
            else defect.window(sound.rest, sound.normal[sound.is_part])
        )
        here = np.abs(defect.displacement(hits.rest, window))
        moved[hits.is_part] = np.maximum(moved[hits.is_part], here)
    return (moved > MASK_DISTANCE_M) & (np.abs(sound.depth - damaged.depth) > MASK_DISTANCE_M)


def _to_srgb(linear: np.ndarray) -> np.ndarray:
    """Return 8-bit sRGB of linear light in [0, 1]; what lies outside is clipped."""
    linear = np.clip(linear, 0, 1)
    curved = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * curved).astype(np.uint8)


def sense(truth: Rendering, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return what a real sensor makes of a scene.

    Depth gets white and smooth noise; points are missing where the surface is steep
    (surely below a cosine of 0.12, never above 0.4), in small blobs and singly; the image
    is blurred by the lens and gets read and shot noise.

    Returns:
        (H, W, 3) uint8 colours, and (H, W, 3) float32 points, (0, 0, 0) where missing.
    """
    shape, pixel_m = truth.depth.shape, FIELD_OF_VIEW_M / truth.depth.shape[0]
    smooth = ndimage.gaussian_filter(
        rng.standard_normal(shape, dtype=np.float32), SMOOTH_LENGTH_M / pixel_m, mode="wrap"
    )
    noise = WHITE_NOISE_M * rng.standard_normal(shape, dtype=np.float32)
    noise += SMOOTH_NOISE_M * smooth / smooth.std()
    blobs = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 1.2)
    missing = rng.random(shape) < smoothstep(0.4, 0.12, truth.facing)
    missing |= blobs > 3.3 * blobs.std()
    missing |= rng.random(shape) < 0.002
    stretch = np.where(missing, 0, 1 + noise / truth.depth)
    xyz = (truth.xyz * stretch[..., None]).astype(np.float32)

    seen = ndimage.gaussian_filter(truth.rgb, (0.55, 0.55, 0))
    read, shot = rng.standard_normal((2, *seen.shape), dtype=np.float32)
    return _to_srgb(seen + 0.004 * read + 0.010 * np.sqrt(np.clip(seen, 0, 1)) * shot), xyz


def render_scan(
    category: str,
    seed: int | np.random.SeedSequence,
    size: int = 256,
    defect: str | None = None,
    sensor: bool = True,
) -> Sample:
    """Return one raw scan, floor included; the same seed gives the same bytes.

    Without `sensor` there is no noise, no lens blur and no missing point.
    """
    truth = render_truth(category, seed, size, defect)
    if sensor:
        rgb, xyz = sense(truth, _child(seed, 3))
    else:
        rgb, xyz = _to_srgb(truth.rgb), truth.xyz
    label = defect or "good"
    return Sample(rgb=rgb, xyz=xyz, mask=truth.mask, label=label, name=f"{category}/{label}")


def scan_seed(
    seed_set: str, category: str, split: str, label: str, index: int
) -> np.random.SeedSequence:
    """Return the seed of one scan: its place in the data set, and nothing else."""
    known = (SEED_SETS, CATEGORIES, SPLITS, LABELS)
    words = (seed_set, category, split, label)
    place = [names.index(word) for names, word in zip(known, words, strict=True)]
    return np.random.SeedSequence((*place, index))


def scan_list(config: DataConfig, category: str) -> list[tuple[str, str, str, int]]:
    """Return (category, split, label, index) of every scan of a category."""
    each, more = divmod(config.num_defective, len(DEFECTS))
    counts = {
        ("train", "good"): config.num_train,
        ("validation", "good"): config.num_validation,
        ("test", "good"): config.num_good,
    }
    counts |= {("test", name): each + (i < more) for i, name in enumerate(DEFECTS)}
    return [(category, *place, i) for place, count in counts.items() for i in range(count)]


def _paths(root: Path, scan: tuple[str, str, str, int]) -> dict[str, Path]:
    """Return the files of a scan, the one that is written last at the end."""
    category, split, label, index = scan
    folder = root / category / split / label
    paths = {"rgb": folder / "rgb" / f"{index:03d}.png"}
    if split == "test":
        paths["gt"] = folder / "gt" / f"{index:03d}.png"
    return paths | {"xyz": folder / "xyz" / f"{index:03d}.tiff"}


def _write(path: Path, save: Callable[[Path], None]) -> None:
    """Call `save` on a temporary name beside `path`, then rename: all of a file, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    save(temporary)
    os.replace(temporary, path)


def _write_scan(job: tuple[Path, DataConfig, tuple[str, str, str, int]]) -> None:
    """Render one scan and write its files."""
    root, config, scan = job
    label = scan[2]
    seed = scan_seed(config.seed_set, *scan)
    sample = render_scan(scan[0], seed, config.scan_size, None if label == "good" else label)
    image = {"rgb": sample.rgb, "gt": 255 * sample.mask.astype(np.uint8)}
    # Byte planes of floats (predictor 3) compress to two thirds of plain zlib.
    packed = {"compression": "zlib", "predictor": 3, "compressionargs": {"level": 6}}
    for kind, path in _paths(root, scan).items():
        if kind == "xyz":
            _write(path, lambda p: tifffile.imwrite(p, sample.xyz, photometric="rgb", **packed))
        else:
            _write(path, lambda p, k=kind: Image.fromarray(image[k]).save(p, format="PNG"))


def _check_manifest(root: Path, config: DataConfig) -> None:
    """Write what the folder is made with, or refuse one that is made with something else."""
    tables = json.dumps([RANGES, CATEGORY_SCALE], sort_keys=True).encode()
    wanted = {
        "data": config.model_dump(),
        "renderer": RENDERER_VERSION,
        "defects": hashlib.sha256(tables).hexdigest()[:12],
    }
    text = json.dumps(wanted, indent=2, sort_keys=True) + "\n"
    path = root / "manifest.json"
    if path.exists():
        if (found := path.read_text()) != text:
            told, expected = (" ".join(one.split()) for one in (found, text))
            raise ScanError(
                f"{path} says {told}; expected {expected}: delete the folder or choose another"
            )
        return
    if root.exists() and any(root.iterdir()):
        raise ScanError(f"{root} is not empty and has no manifest.json; expected a new folder")
    _write(path, lambda p: p.write_text(text))


def generate(
    root: Path,
    config: DataConfig,
    categories: tuple[str, ...] = CATEGORIES,
    workers: int = 2,
    progress: bool = True,
) -> None:
    """Write the scans of some categories below `root`, in the layout of MVTec 3D-AD.

    Scans that are there are left as they are, so an interrupted call is simply repeated.
    Only test scans have a ground truth; it is all zero for good ones.

    Raises:
        ValueError: for a category that does not exist.
        ScanError: for a folder that was made with other settings.
    """
    root = Path(root)
    for category in categories:
        _need_category(category)
    _check_manifest(root, config)
    for stale in root.rglob(".*.part"):  # left by a killed run
        stale.unlink(missing_ok=True)
    scans = [scan for category in categories for scan in scan_list(config, category)]
    missing = [s for s in scans if not all(p.exists() for p in _paths(root, s).values())]
    made = in_processes(_write_scan, [(root, config, scan) for scan in missing], workers)
    num = len(scans)
    for _ in tqdm(made, "scans", num, initial=num - len(missing), disable=not progress):
        pass

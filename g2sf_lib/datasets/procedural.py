"""The embedded data set: five kinds of parts, rendered with defects, seen by a 3-D sensor.

Rays of a pinhole camera are cast into a mesh (Open3D); `generate` writes the layout and units of
MVTec 3D-AD. A scan depends on nothing but its seed: its place in the data set.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage
from tqdm.auto import tqdm

from g2sf_lib.config import DataConfig
from g2sf_lib.datasets import SPLITS, Sample, ScanError, in_processes
from g2sf_lib.datasets.defects import CATEGORIES, DEFECTS, RANGES, Defect, draw_defect
from g2sf_lib.datasets.parts import MAKERS, Part, grid_normals, grid_triangles, smoothstep

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
Seed = int | np.random.SeedSequence


@dataclass(frozen=True)
class Rendering:
    """What the camera would see without noise; arrays are (H, W), or (H, W, 3) where it says so."""

    depth: np.ndarray  # distance along the optical axis, metres
    xyz: np.ndarray  # (H, W, 3) in the camera's frame, metres: x right, y down, z forward
    rgb: np.ndarray  # (H, W, 3) linear light, 1 is white
    albedo: np.ndarray  # (H, W, 3) reflectance
    facing: np.ndarray  # cosine between the ray and the surface normal
    is_part: np.ndarray  # False on the floor
    mask: np.ndarray  # where a defect changed surface or albedo beyond the thresholds


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


def _child(seed: Seed, index: int) -> np.random.Generator:
    """Return generator number `index` of a seed; unlike `spawn`, without changing the seed."""
    if not isinstance(seed, np.random.SeedSequence):
        seed = np.random.SeedSequence(seed)
    key = (*seed.spawn_key, index)
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=key))


def _camera(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return position (3,) of a nearly upright view, (n, 3) rays in its frame (z = 1), in world."""
    rx, ry = rng.normal(0, np.radians(0.4), 2)
    about_x = np.array([[1, 0, 0], [0, np.cos(rx), -np.sin(rx)], [0, np.sin(rx), np.cos(rx)]])
    about_y = np.array([[np.cos(ry), 0, np.sin(ry)], [0, 1, 0], [-np.sin(ry), 0, np.cos(ry)]])
    turn = about_x @ about_y @ np.diag([1.0, -1.0, -1.0])
    # Moved so that the optical axis still meets the floor at the origin.
    position = CAMERA_HEIGHT_M * turn[:, 2] / turn[2, 2]
    across = np.arange(size, dtype=np.float32) - (size - 1) / 2
    x, y = np.meshgrid(*[across * (FIELD_OF_VIEW_M / CAMERA_HEIGHT_M / size)] * 2)
    rays = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3).astype(np.float32)
    return position.astype(np.float32), rays, rays @ turn.astype(np.float32).T


def _facing(rays: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return (n,) cosines between rays and surface normals: 1 is seen from straight above."""
    return -(rays * normal).sum(1) / np.linalg.norm(rays, axis=1)


def _cast(part: Part, defect: Defect | None, position: np.ndarray, rays: np.ndarray) -> _Hits:
    """Return where rays from `position` along (n, 3) `rays` (world) meet part or floor."""
    import open3d as o3d  # slow to import, and most users of this module only read names

    points, normals = part.points, grid_normals(part.points)
    window = np.zeros(points.shape[:3], np.float32)
    if defect:
        window = defect.window(points, normals).astype(np.float32)
        moved = defect.displacement(points, window)[..., None] * defect.frame[2]
        points = (points + moved).astype(np.float32)
        normals = grid_normals(points) if defect.depth else normals
    triangles = grid_triangles(points.shape[:3])
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    corners = np.ascontiguousarray(points.reshape(-1, 3))
    scene.add_triangles(*map(o3d.core.Tensor.from_numpy, (corners, triangles)))
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
    rest, turned, surface, window = here[:, :3], here[:, 3:6], here[:, 6:8], here[:, 8]
    normal = np.tile(np.array([0, 0, 1], np.float32), (len(rays), 1))
    normal[is_part] = turned / np.linalg.norm(turned, axis=1, keepdims=True)
    point, sheet = position + depth[:, None] * rays, corner[:, 0] // np.prod(points.shape[1:3])
    return _Hits(depth, point, normal, is_part, rest, surface, sheet, window, scene)


def _light(
    rng: np.random.Generator, hits: _Hits, rays: np.ndarray, albedo: np.ndarray, gloss: float
) -> np.ndarray:
    """Return (n, 3) linear light: sky, a key light that casts shadows, a fill light."""
    import open3d as o3d

    def towards(turn: float, rise: float) -> np.ndarray:
        flat = np.cos(rise)
        return np.array([flat * np.cos(turn), flat * np.sin(turn), np.sin(rise)])

    key = towards(rng.normal(np.radians(130), 0.3), rng.uniform(np.radians(48), np.radians(62)))
    fill = towards(rng.normal(np.radians(-40), 0.3), np.radians(40))
    exposure = np.exp(rng.normal(0, 0.06)) * np.exp(rng.normal(0, 0.02, 3))
    # A lamp is not a point: jittered shadow rays, then a small blur, give a soft edge.
    to_lamp = key + rng.normal(0, 0.02, rays.shape)
    packed = np.concatenate([hits.point + 0.0003 * hits.normal, to_lamp], 1).astype(np.float32)
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


def render_truth(
    category: str, seed: Seed, size: int = 256, defect: str | None = None
) -> Rendering:
    """Return what an ideal sensor would see; part, pose and light depend on the seed alone."""
    part = MAKERS[category](_child(seed, 0))
    scene_rng = _child(seed, 1)
    free = category == "cookie"
    angle = scene_rng.uniform(-np.pi, np.pi) if free else scene_rng.uniform(-1, 1) * np.radians(10)
    part = part.placed(angle, scene_rng.uniform(-0.002, 0.002, 2))
    position, directions, rays = _camera(scene_rng, size)

    def image(flat: np.ndarray) -> np.ndarray:
        return flat.reshape(size, size, *flat.shape[1:])

    sound = hits = _cast(part, None, position, rays)
    floor = np.array([0.17, 0.18, 0.19], np.float32) * np.exp(scene_rng.normal(0, 0.05))
    albedo = np.tile(floor, (len(rays), 1))
    mask = np.zeros(len(rays), bool)
    painted = part.albedo(sound.surface, sound.sheet)
    if defect is not None:
        rng, pixel_m = _child(seed, 2), FIELD_OF_VIEW_M / size
        surface = {key: image(getattr(sound, key)) for key in ("point", "normal", "is_part")}
        surface["facing"] = image(_facing(rays, sound.normal))
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
    light = _light(scene_rng, hits, rays, albedo, part.gloss).astype(np.float32)
    flat = (hits.depth, hits.depth[:, None] * directions, light, albedo.astype(np.float32))
    return Rendering(*map(image, (*flat, _facing(rays, hits.normal), hits.is_part, mask)))


def _changed(defect: Defect, sound: _Hits, damaged: _Hits) -> np.ndarray:
    """Return (n,) bool: rays whose surface moved, and so did its depth (it jumps at outlines)."""
    moved = np.zeros(len(sound.depth), np.float32)
    before = defect.window(sound.rest, sound.normal[sound.is_part])
    for hits, window in ((sound, before), (damaged, damaged.window)):
        here = np.abs(defect.displacement(hits.rest, window))
        moved[hits.is_part] = np.maximum(moved[hits.is_part], here)
    return (moved > MASK_DISTANCE_M) & (np.abs(sound.depth - damaged.depth) > MASK_DISTANCE_M)


def _to_srgb(linear: np.ndarray) -> np.ndarray:
    """Return 8-bit sRGB of linear light in [0, 1]; what lies outside is clipped."""
    linear = np.clip(linear, 0, 1)
    curved = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * curved).astype(np.uint8)


def sense(truth: Rendering, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return (H, W, 3) uint8 colours and float32 points, as a real sensor sees a scene.

    Depth gets white and smooth noise; points are missing where the surface is steep, in small
    blobs and singly; the image is blurred by the lens and gets read and shot noise.
    """
    shape, pixel_m = truth.depth.shape, FIELD_OF_VIEW_M / truth.depth.shape[0]
    smooth = rng.standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(smooth, SMOOTH_LENGTH_M / pixel_m, mode="wrap")
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
    category: str, seed: Seed, size: int = 256, defect: str | None = None, sensor: bool = True
) -> Sample:
    """Return one raw scan, floor included; without `sensor` as `render_truth` has it."""
    truth = render_truth(category, seed, size, defect)
    rgb, xyz = sense(truth, _child(seed, 3)) if sensor else (_to_srgb(truth.rgb), truth.xyz)
    label = defect or "good"
    return Sample(rgb, xyz, truth.mask, label, f"{category}/{label}")


def scan_seed(seed_set: str, category: str, split: str, label: str, index: int) -> Seed:
    """Return the seed of one scan: its place in the data set, and nothing else."""
    place = (SEED_SETS.index(seed_set), CATEGORIES.index(category), SPLITS.index(split))
    return np.random.SeedSequence((*place, LABELS.index(label), index))


def scan_list(config: DataConfig, category: str) -> list[tuple[str, str, str, int]]:
    """Return (category, split, label, index) of every scan of a category."""
    each, more = divmod(config.num_defective, len(DEFECTS))
    sound = zip(SPLITS, (config.num_train, config.num_validation, config.num_good), strict=True)
    counts = {(split, "good"): count for split, count in sound}
    counts |= {("test", name): each + (i < more) for i, name in enumerate(DEFECTS)}
    return [(category, *place, i) for place, count in counts.items() for i in range(count)]


def _paths(root: Path, scan: tuple[str, str, str, int]) -> dict[str, Path]:
    """Return the files of a scan, the one that is written last at the end."""
    category, split, label, index = scan
    ends = {"rgb": "png"} | ({"gt": "png"} if split == "test" else {}) | {"xyz": "tiff"}
    folder = root / category / split / label
    return {kind: folder / kind / f"{index:03d}.{end}" for kind, end in ends.items()}


def _write(path: Path, save: Callable[[Path], object]) -> None:
    """Call `save` on a temporary name beside `path`, then rename: all of a file, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    save(temporary)
    os.replace(temporary, path)


def _write_scan(job: tuple[Path, DataConfig, tuple[str, str, str, int]]) -> None:
    """Render one scan and write its files."""
    root, config, scan = job
    defect = None if scan[2] == "good" else scan[2]
    sample = render_scan(scan[0], scan_seed(config.seed_set, *scan), config.scan_size, defect)
    # Byte planes of floats (predictor 3) compress to two thirds of plain zlib.
    packed = {"compression": "zlib", "predictor": 3, "compressionargs": {"level": 6}}
    save = {
        "rgb": partial(Image.fromarray(sample.rgb).save, format="PNG"),
        "gt": partial(Image.fromarray(255 * sample.mask.astype(np.uint8)).save, format="PNG"),
        "xyz": partial(tifffile.imwrite, data=sample.xyz, photometric="rgb", **packed),
    }
    for kind, path in _paths(root, scan).items():
        _write(path, save[kind])


def _check_manifest(root: Path, config: DataConfig) -> None:
    """Write what the folder is made with, or refuse one that is made with something else."""
    tables = hashlib.sha256(json.dumps(RANGES, sort_keys=True).encode()).hexdigest()[:12]
    wanted = {"data": config.model_dump(), "renderer": RENDERER_VERSION, "defects": tables}
    text = json.dumps(wanted, indent=2, sort_keys=True) + "\n"
    path = root / "manifest.json"
    if not path.exists():
        if root.exists() and any(root.iterdir()):
            raise ScanError(f"{root} is not empty and has no manifest.json; expected a new folder")
        _write(path, lambda p: p.write_text(text))
    elif (found := path.read_text()) != text:
        told, expected = (" ".join(one.split()) for one in (found, text))
        raise ScanError(f"{path} says {told}; expected {expected}")


def generate(
    root: Path, config: DataConfig, categories: Sequence[str] = CATEGORIES, workers: int = 2
) -> None:
    """Write the scans of some categories that are not yet below `root`, as MVTec 3D-AD has them."""
    root = Path(root)
    _check_manifest(root, config)
    for stale in root.rglob(".*.part"):  # left by a killed run
        stale.unlink(missing_ok=True)
    scans = [scan for category in categories for scan in scan_list(config, category)]
    missing = [s for s in scans if not all(p.exists() for p in _paths(root, s).values())]
    made = in_processes(_write_scan, [(root, config, scan) for scan in missing], workers)
    for _ in tqdm(made, "scans", len(scans), initial=len(scans) - len(missing)):
        pass

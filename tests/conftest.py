"""Small worlds that several tests share: labelled cells, made-up patches, prepared scans."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import pytest
import torch
import yaml
from halcon import write_points
from PIL import Image

from g2sf_lib.cells import Cells
from g2sf_lib.config import make_config
from g2sf_lib.datasets import Sample
from g2sf_lib.datasets.preprocess import save_prepared
from g2sf_lib.experiments import patch_file
from g2sf_lib.features import Patches, save_patches
from g2sf_lib.memory import MemoryBank
from g2sf_lib.stages import scans_dir

DIMS = {"pcd": 6, "rgb": 8}
GRID = 8


def _moved(generator, num, dim, is_anomalous):
    """Normal cells leave their prototype along the first half of the axes, anomalous ones along
    the second half and a little farther: distance alone tells them apart badly, direction well.
    """
    step, half = torch.zeros(num, dim), dim // 2
    step[:, :half] = 0.3 * torch.randn(num, half, generator=generator)
    other = 0.4 * torch.randn(num, dim - half, generator=generator)
    step[is_anomalous, half:] = other[is_anomalous]
    step[is_anomalous, :half] *= 0.3
    return step


@pytest.fixture
def one_thread():
    """Keep torch and faiss on one thread: for small tensors more of them only wait in turns."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


@pytest.fixture
def toy():
    """Return a function (seed, images) -> labelled `Cells` and their banks, k = 2."""

    def make(seed=0, images=12, cells=30):
        generator = torch.Generator().manual_seed(seed)
        bank = {m: MemoryBank(2 * torch.randn(40, d, generator=generator), torch.arange(40))
                for m, d in DIMS.items()}  # fmt: skip
        num = images * cells
        is_anomalous = torch.arange(num) % cells < 8
        row = torch.randint(40, (num,), generator=generator)
        moved = {m: _moved(generator, num, d, is_anomalous) for m, d in DIMS.items()}
        feat = {m: bank[m].prototypes[row] + moved[m] for m in DIMS}
        index, s = zip(*(bank[m].query(feat[m], 5) for m in DIMS), strict=True)
        index = dict(zip(DIMS, index, strict=True))
        image = torch.arange(num) // cells
        return Cells(feat, index, torch.stack(s, dim=-1), is_anomalous, image), bank

    return make


@pytest.fixture
def small_config(tmp_path):
    """Return a config of seconds: 8 x 8 cells, 32 px maps, five epochs."""
    return make_config(
        "smoke", runs_root=str(tmp_path / "runs"), category="foam", device="cpu", grid_size=GRID,
        num_synthetic=6, num_synthetic_validation=3, k=2, hidden=24, embed=12, epochs=5,
        batch_size=64, criterion="losses", bank_fraction=0.3, map_size=32, blur_sigma_px=1.0,
    )  # fmt: skip


@pytest.fixture
def make_patches():
    """Return a function (seed, anomalous cells) -> patches and labels of one made-up scan.

    The object is a disc on an 8 x 8 grid; its cells are copies of twelve kinds of surface, with
    noise. The scans of one category share their kinds.
    """
    kinds = torch.Generator().manual_seed(99)
    centres = {mod: 2 * torch.randn(12, dim, generator=kinds) for mod, dim in DIMS.items()}
    axis = torch.arange(GRID) - (GRID - 1) / 2
    foreground = (axis[:, None].square() + axis.square() < 14).reshape(-1)

    def make(seed, anomalous=()):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.zeros(GRID * GRID, dtype=torch.bool)
        labels[list(anomalous)] = True
        kind = torch.randint(12, labels.shape, generator=generator)
        feat = {}
        for mod, dim in DIMS.items():
            value = centres[mod][kind] + _moved(generator, len(labels), dim, labels)
            feat[mod] = torch.where(foreground[:, None], value, 0.0)
        return Patches(feat, (GRID, GRID), foreground), labels & foreground

    return make


@pytest.fixture
def synthetic(make_patches):
    """Return patches and labels of six scans with pasted cells."""
    pasted = [(18, 19, 26), (27, 28, 35, 36), (42, 43), (20, 21, 29), (34, 35, 26), (44, 45, 36)]
    made = [make_patches(100 + n, cells) for n, cells in enumerate(pasted)]
    return [patches for patches, _ in made], [lab[:, None].expand(-1, 2) for _, lab in made]


@pytest.fixture
def make_sample():
    """Return a function (seed, label) -> a scan of a bumpy textured dome, 96 px, 0.1 m across."""

    def make(seed, label="good"):
        rng = np.random.default_rng(seed)
        axis = (np.arange(96) - 48) * (0.1 / 96)
        x, y = np.meshgrid(axis, axis)
        inside = np.hypot(x, y) < 0.04
        dome = 0.012 * (1 - (np.hypot(x, y) / 0.04) ** 2)
        waves = 0.0008 * np.sin(x * 600 + rng.uniform(0, 6)) * np.sin(y * 500 + rng.uniform(0, 6))
        z = 0.45 - dome - waves + 0.0001 * rng.standard_normal(x.shape)
        raw = np.stack([x, y, np.where(inside, z, 0.45)], axis=-1).astype(np.float32)
        shade = 120 + 60 * np.sin(x * 800 + y * 300) + 10 * rng.standard_normal(x.shape)
        rgb = np.stack([shade, 0.8 * shade, 0.5 * shade], axis=-1).clip(1, 255).astype(np.uint8)
        mask = np.zeros(inside.shape, dtype=bool)
        if label != "good":
            mask[40:52, 44:56] = True
            raw[mask, 2] += 0.004
            rgb[mask] = (10, 200, 240)
        xyz = np.where(inside[..., None], raw, np.float32(0))
        rgb = np.where(inside[..., None], rgb, np.uint8(0))
        return Sample(rgb, xyz, mask, label, f"train/{label}/{seed:03d}", raw_xyz=raw)

    return make


@pytest.fixture
def write_prepared():
    """Return a function that writes a scan where `list_prepared` finds it."""

    def write(config, split, sample, number):
        name = f"{split}/{sample.label}/{number:03d}"
        path = scans_dir(config) / config.category / f"{name}.safetensors"
        save_prepared(dataclasses.replace(sample, name=name), path)
        return path

    return write


@pytest.fixture
def made_run(make_patches, make_sample, write_prepared, synthetic):
    """Return a function that lays out a run of made-up features, ready for the bank stage.

    Six good training scans, three validation scans, four good and four defective test scans.
    """

    def store(config, split, name, patches, labels):
        path = patch_file(config, split, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_patches(path, patches, labels)

    def make(config, category="foam", test_seed=500):
        config = config.replace(category=category)
        good = make_sample(0)
        for split, first, num in (("train", 0, 6), ("validation", 50, 3), ("test", test_seed, 4)):
            for number in range(num):
                write_prepared(config, split, good, number)
                store(config, split, f"good/{number:03d}", *make_patches(first + number))
        for label in ("dent", "stain"):
            for number in range(2):
                write_prepared(config, "test", make_sample(1, label), number)
                made = make_patches(test_seed + 50 + number, (27, 28, 35, 36))
                store(config, "test", f"{label}/{number:03d}", *made)
        for number, made in enumerate(zip(*synthetic, strict=True)):
            store(config, "synthetic", f"{number:04d}", *made)
            if number < config.synthesis.num_synthetic_validation:
                store(config, "synthetic_validation", f"{number:04d}", *made)
        return config

    return make


def _smooth_noise(rng, height, width):
    """Return (height, width) noise of several scales, about -1 to 1."""
    v, u = np.mgrid[: 1 : height * 1j, : 1 : width * 1j]
    total = np.zeros((height, width))
    for scale in (4, 9, 17, 33):
        a, b = rng.uniform(-1, 1, 2) * scale * 2
        total += np.sin(a * u * 3 + scale * 2 * v + rng.uniform(0, 6)) * np.sin(b * v * 3 + 1)
    return total / 3


def _texture(rng, inside, mask, tint):
    """Return (H, W, 3) uint8: a patterned object on a dull background, a stain under the mask."""
    pattern = _smooth_noise(rng, *inside.shape) * 45 + rng.normal(0, 4, inside.shape)
    rgb = np.where(inside[..., None], np.array(tint) + pattern[..., None], 60 + pattern[..., None])
    rgb[mask] = rgb[mask] * 0.5 + np.array([10, 90, 120])
    return rgb.clip(1, 255).astype(np.uint8)


def _save_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, compress_level=1)


MVTEC_KINDS = {"contamination": 255, "cut": 254, "hole": 253}


def _write_mvtec_scan(folder, index, side, rng, kind=None, gt=True):
    """A bumpy mound, 10 to 22 mm high and a third of the picture, on a plane 0.5 m away."""
    height, width = side
    rows, columns = np.mgrid[:height, :width]
    pitch = 0.15 / max(side)  # metres a pixel at the plane
    u = (columns - width / 2 + rng.uniform(-3, 3)) / width
    v = (rows - height / 2 + rng.uniform(-3, 3)) / height
    radius = np.hypot(u, v) / 0.33
    inside = radius < 1
    turn, off = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.15)  # where the defect is
    mask = (np.hypot(u - off * np.cos(turn), v - off * np.sin(turn)) < 0.07) & (kind is not None)
    rise = 0.010 + 0.010 * (1 - radius**2) + 0.002 * _smooth_noise(rng, height, width)
    rise += mask * {None: 0, "contamination": 0.003, "cut": -0.002, "hole": -0.004}[kind]
    z = 0.5 + 0.02 * u - 0.03 * v - np.where(inside, rise, 0) + rng.normal(0, 1e-4, side)
    ray = np.stack([(columns - width / 2) * pitch, (rows - height / 2) * pitch], -1) / 0.5
    xyz = np.concatenate([ray * z[..., None], z[..., None]], axis=-1).astype(np.float32)
    xyz[rng.random(side) < 0.02] = 0
    _save_png(folder / "rgb" / f"{index:03d}.png", _texture(rng, inside, mask, (170, 130, 80)))
    write_points(folder / "xyz" / f"{index:03d}.tiff", xyz)
    if gt:
        value = np.where(mask, MVTEC_KINDS.get(kind, 0), 0)
        _save_png(folder / "gt" / f"{index:03d}.png", value.astype(np.uint8))


@pytest.fixture
def mvtec_tree():
    """Return a function that writes a small data set as MVTec 3D-AD stores it, and its root.

    `side` is (height, width) in px, `num` of train, validation, good test and bad test. Bad scans
    take the three kinds of defect in turn; every second good test scan has no ground truth.
    """

    def write(root, categories=("bagel",), side=(160, 160), num=(3, 2, 2, 3)):
        for number, category in enumerate(categories):
            rng = np.random.default_rng([0, number])
            home = Path(root) / category
            for split, count in zip(("train", "validation", "test"), num[:3], strict=True):
                for index in range(count):
                    gt = split == "test" and index % 2 == 0
                    _write_mvtec_scan(home / split / "good", index, side, rng, gt=gt)
            for index in range(num[3]):
                kind = tuple(MVTEC_KINDS)[index % 3]
                _write_mvtec_scan(home / "test" / kind, index // 3, side, rng, kind)
            pixel = 0.01 * 0.15 / max(side) / 0.5  # on the sensor, at a focal length of 10 mm
            camera = {
                "camera_type": "area_scan_division", "focus": 0.01, "kappa": 0.0,
                "sx": pixel, "sy": pixel, "cx": side[1] / 2, "cy": side[0] / 2,
                "image_width": side[1], "image_height": side[0],
            }  # fmt: skip
            (home / "calibration").mkdir(parents=True)
            (home / "calibration/camera_parameters.json").write_text(json.dumps(camera))
        return Path(root)

    return write


class Candy(NamedTuple):
    """A rendered scan of a sweet on a conveyor."""

    rgb: np.ndarray  # (H, W, 3) uint8
    mask: np.ndarray  # (H, W) bool
    depth: np.ndarray  # (H, W) float64 along the optical axis
    pose: np.ndarray  # (4, 4) from world to camera
    world: np.ndarray  # (H, W, 3) float64: x right, y down, z away
    height: np.ndarray  # (H, W) float64 above the conveyor


def _render_candy(seed, side=160, kinds=()):
    """Cast the rays of a turned camera on a height field over a sloping conveyor.

    A ray's height above the conveyor is that of the field where they meet: a fixed point.
    """
    rng = np.random.default_rng(seed)
    span, slope, view = 1.6, np.radians(20), np.radians(25)  # units; of conveyor and of camera
    away = np.array([0, -np.sin(slope), np.cos(slope)])
    up = np.array([0, -np.cos(slope), -np.sin(slope)])
    middle = np.array([0.1, 0.4, 3.0])
    forward = np.sin(view) * away - np.cos(view) * up
    eye = middle - span * 711.11 / side * forward
    x, roll = np.array([1.0, 0, 0]), rng.uniform(-0.05, 0.05)
    right = np.cos(roll) * x - np.sin(roll) * np.cross(forward, x)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ eye

    v, u = np.mgrid[:side, :side] - side / 2
    ray = np.stack([u / 711.11, v / 711.11, np.ones((side, side))], -1) @ pose[:3, :3]
    phase, turn = rng.uniform(0, 6, 2), rng.uniform(0, 2 * np.pi)
    sign = ("bumps" in kinds) - ("dents" in kinds) * 1.0

    def field(a, b):
        a, b = a / span, b / span * np.cos(view)
        round_ = np.clip(1 - (a**2 + b**2) / 0.345**2, 0, None)
        blob = np.exp(-((a - 0.1 * np.cos(turn)) ** 2 + (b - 0.1 * np.sin(turn)) ** 2) / 0.03**2)
        waves = np.sin(a * 40 + phase[0]) * np.sin(b * 35 + phase[1])
        return round_ * (0.3 + 0.02 * waves + 0.04 * sign * blob), blob

    height, change = np.zeros((side, side)), 1.0
    while change > 1e-7:  # a hundredth of what a step of the 16-bit depth is
        depth = (height - (eye - middle) @ up) / (ray @ up)
        world = eye + ray * depth[..., None]
        before = height
        height, blob = field((world - middle)[..., 0], (world - middle) @ away)
        change = np.abs(height - before).max()
    mask = (blob >= min(0.3, blob.max())) & (len(kinds) > 0)
    rgb = _texture(rng, height > 0, mask & ("colors" in kinds or "normals" in kinds), (200, 90, 90))
    return Candy(rgb, mask, depth, pose, world, height)


def _write_candy(folder, name, candy, kinds=(), mask=True, metadata=False):
    for light in range(6):  # number 4 is the one that is read
        share = 1 if light == 4 else 0.3 + 0.05 * light
        _save_png(folder / f"{name}_image_{light}.png", (candy.rgb * share).astype(np.uint8))
    low, high = float(candy.depth.min() - 0.01), float(candy.depth.max() + 0.01)
    value = np.round((candy.depth - low) / (high - low) * 65535).astype(np.uint16)
    _save_png(folder / f"{name}_depth.png", value)
    info = {"normalization": {"min": low, "max": high}}
    (folder / f"{name}_info_depth.yaml").write_text(yaml.safe_dump(info))
    np.savetxt(folder / f"{name}_pose.txt", candy.pose)
    if mask:
        _save_png(folder / f"{name}_mask.png", candy.mask.astype(np.uint8) * 255)
    _save_png(folder / f"{name}_normals.png", candy.rgb)
    if metadata:
        told = {"anomalous": int(bool(kinds))}
        for kind in ("bumps", "colors", "dents", "normals"):
            told[f"anomalous_{kind}"] = int(kind in kinds)
            of_kind = candy.mask & (kind in kinds)
            _save_png(folder / f"{name}_{kind}_mask.png", of_kind.astype(np.uint8) * 255)
        (folder / f"{name}_metadata.yaml").write_text(yaml.safe_dump(told))


@pytest.fixture
def render_candy():
    """Return the function (seed, side, kinds of defect) -> `Candy`."""
    return _render_candy


@pytest.fixture
def write_candy():
    """Return the function (folder, name, `Candy`, kinds, mask, metadata) that writes a scan."""
    return _write_candy


CANDY_KINDS = (("bumps",), ("dents",), ("colors",), ("normals",), ("colors", "dents"), ())


@pytest.fixture
def eyecandies_tree():
    """Return a function that writes a small data set as Eyecandies stores it, and its root.

    `side` is in px, `num` of train, validation, good test and bad test. Bad scans come after the
    good ones and take `CANDY_KINDS` in turn; the empty one has a defect but no metadata. Names
    have three digits, in test_public two.
    """

    def write(root, side=160, num=(3, 2, 2, 3)):
        for split, count in zip(("train", "val", "test_public"), num[:3], strict=True):
            folder, is_test = Path(root) / "CandyCane" / split / "data", split == "test_public"
            for index in range(count):
                candy = _render_candy([0, 0, len(split), index], side)
                name = f"{index:0{2 if is_test else 3}d}"
                _write_candy(folder, name, candy, (), is_test or index % 2 == 0, index % 2 == 1)
        for index in range(num[3]):
            kinds = CANDY_KINDS[index % len(CANDY_KINDS)]
            candy = _render_candy([0, 0, 0, index], side, kinds or ("bumps", "colors"))
            _write_candy(folder, f"{num[2] + index:02d}", candy, kinds, metadata=bool(kinds))
        return Path(root)

    return write


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))

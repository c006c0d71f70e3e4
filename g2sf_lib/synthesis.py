"""Section 3.7: pseudo-anomalies, cut from normal scans and pasted under Perlin masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter, ImageOps
from scipy import ndimage
from scipy.spatial import cKDTree

from g2sf_lib.config import SynthesisConfig
from g2sf_lib.datasets import DATASETS, Sample, ScanError
from g2sf_lib.datasets.preprocess import load_prepared

NOISE_SIZE = 512
# Label of a synthetic scan -> which of (points, image) its pastes changed.
CHANGED = {
    "synthetic": (True, True),
    "synthetic_pcd": (True, False),
    "synthetic_rgb": (False, True),
}
_MAX_TRIES = 50


def _corner_weights(size: int, num_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two (size, num_cells + 1), a column a lattice line: fade weight, and times offset."""
    rows = np.arange(size)
    position = (rows + 0.5) * num_cells / size
    cell = np.floor(position).astype(int)
    t = position - cell
    fade = t**3 * (t * (6 * t - 15) + 10)
    weight = np.zeros((size, num_cells + 1))
    weight[rows, cell], weight[rows, cell + 1] = 1 - fade, fade
    offset = np.zeros_like(weight)
    offset[rows, cell], offset[rows, cell + 1] = t, t - 1
    return weight, weight * offset


def perlin_noise(shape: tuple[int, int], grid: tuple[int, int], generator: Generator) -> np.ndarray:
    """Return (H, W) gradient noise after Perlin, scaled to [-1, 1] and zero on the lattice points.

    noise(y, x) = sqrt(2) * sum over the four lattice points around (y, x) of fade_y * fade_x *
    <gradient, offset>: a product of two narrow matrices. `grid` is lattice cells along H and W.

    Source: Perlin (2002), "Improving noise": fade 6 t^5 - 15 t^4 + 10 t^3.
    """
    angle = generator.uniform(0, 2 * np.pi, (grid[0] + 1, grid[1] + 1))
    weight_y, slope_y = _corner_weights(shape[0], grid[0])
    weight_x, slope_x = _corner_weights(shape[1], grid[1])
    left = np.hstack([slope_y @ np.sin(angle), weight_y @ np.cos(angle)])
    right = np.hstack([weight_x, slope_x])
    return np.sqrt(2) * left @ right.T


def _noise_components(config: SynthesisConfig, generator: Generator) -> list[np.ndarray]:
    """Return the pixels (2, n) of each component of one thresholded noise map, of allowed size."""
    grid = tuple(2 ** generator.integers(0, 5, size=2))
    noise = perlin_noise((NOISE_SIZE, NOISE_SIZE), grid, generator)
    picture = Image.fromarray(noise.astype(np.float32))
    turned = picture.rotate(generator.uniform(-90, 90), Image.Resampling.BILINEAR)
    labels, _ = ndimage.label(np.asarray(turned) > config.noise_threshold, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    allowed = (sizes >= config.min_component_px) & (sizes <= config.max_component_px)
    boxes = enumerate(ndimage.find_objects(labels), start=1)
    return [_pixels(labels[box] == number, box) for number, box in boxes if allowed[number]]


def _pixels(mask: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    """Return rows and columns (2, n) of what is True, where the mask is that of a box."""
    return np.array(np.nonzero(mask)) + np.array([[side.start] for side in box])


def _share_on(region: np.ndarray, pixels: np.ndarray) -> float:
    """Return the fraction of (2, n) pixels that lie on a bool region; outside the image is off."""
    inside = ((pixels >= 0) & (pixels < np.array(region.shape)[:, None])).all(0)
    return region[tuple(pixels[:, inside])].sum() / pixels.shape[1]


def _moved_onto(places: np.ndarray, pixels: np.ndarray, generator: Generator) -> np.ndarray:
    """Return (2, n) pixels moved so that their centroid lies on a random one of `places` (P, 2)."""
    place = places[generator.integers(len(places))]
    return pixels + (place - np.rint(pixels.mean(1)).astype(int))[:, None]


def _resize_nearest(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return (H, W) values at the nearest pixel centres."""
    sides = zip(shape, array.shape, strict=True)
    return array[np.ix_(*(((np.arange(new) + 0.5) * old / new).astype(int) for new, old in sides))]


def paste_labels(
    foreground: np.ndarray, config: SynthesisConfig, generator: Generator
) -> np.ndarray:
    """Return (H, W) int32: 1, 2, ... where a component is to be pasted, 0 elsewhere.

    The noise has 512 x 512 pixels and 2^0 to 2^4 lattice cells a side, and is turned within 90
    degrees either way. A component with less than two thirds of its pixels on the object is shifted
    to a random place where it has them, or dropped; none touches another.

    Source: Section 3.7 and facts.md, section 4.
    """
    large = _resize_nearest(foreground, (NOISE_SIZE, NOISE_SIZE))
    places = np.argwhere(large)
    last = NOISE_SIZE - 1
    for _ in range(_MAX_TRIES if len(places) else 0):
        components = _noise_components(config, generator)
        lying = [(_share_on(large, pixels) >= 2 / 3, pixels) for pixels in components]
        labels, near = (np.zeros(large.shape, dtype) for dtype in (np.int32, bool))
        for stays, found in sorted(lying, key=lambda item: not item[0]):
            for _ in range(1 if stays else _MAX_TRIES):
                pixels = found if stays else _moved_onto(places, found, generator)
                is_inside = pixels.min() >= 0 and pixels.max() <= last
                if not is_inside or near[tuple(pixels)].any() or _share_on(large, pixels) < 2 / 3:
                    continue
                labels[tuple(pixels)] = labels.max() + 1
                # A rim of two pixels keeps components apart, at half the size too.
                shifts = 2 * np.indices((3, 3)).reshape(2, 1, 9) - 2
                near[tuple(np.clip(pixels[..., None] + shifts, 0, last))] = True
                break
        if np.count_nonzero(labels) >= config.min_paste_px:
            return _resize_nearest(labels, foreground.shape)
    raise ScanError(
        f"no mask of {config.min_paste_px} px found in {_MAX_TRIES} tries on an object of"
        f" {len(places)} of {NOISE_SIZE**2} px; expected a larger object, or smaller components"
    )


def _silhouette(sample: Sample) -> np.ndarray:
    """Return (H, W) bool: the object, with pixels that have a colour but no point."""
    return sample.foreground | sample.rgb.any(-1)


def _with_alpha(rgb: np.ndarray, inside: np.ndarray) -> Image.Image:
    """Return an RGBA picture, opaque inside."""
    return Image.fromarray(np.dstack([rgb, np.where(inside, 255, 0).astype(np.uint8)]))


def augment_target(sample: Sample, category: str, generator: Generator) -> Sample:
    """Return the scan turned, scaled, shifted and perhaps mirrored on its pixel grid.

    Points, which keep their coordinates, and mask are moved by nearest neighbour, colours
    bilinearly. Categories that always lie the same way round (`Dataset.upright`) move less.

    Source: facts.md, section 4.
    """
    mild = any(category in dataset.upright for dataset in DATASETS.values())
    turn, shift, low, high = (10, 0.05, 0.9, 1.1) if mild else (45, 0.1, 0.8, 1.25)
    height, width = sample.mask.shape
    angle = np.deg2rad(generator.uniform(-turn, turn))
    scale = generator.uniform(low, high)
    moved = generator.uniform(-shift, shift, 2) * (width, height)
    mirror = np.where(generator.random(2) < (0 if mild else 0.5), -1.0, 1.0)
    cos, sin = np.cos(angle), np.sin(angle)
    # From output to input pixels, (x, y), about the middle of the image.
    matrix = np.diag(mirror) @ np.array([[cos, sin], [-sin, cos]]) / scale
    middle = np.array([width, height]) / 2
    constant = middle - matrix @ (middle + moved)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    columns, rows = (
        np.floor(a * x + b * y + c).astype(int) for (a, b), c in zip(matrix, constant, strict=True)
    )
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = np.where(inside, rows, 0), np.where(inside, columns, 0)

    def nearest(array: np.ndarray) -> np.ndarray:
        taken = array[rows, columns]
        taken[~inside] = 0
        return taken

    silhouette = _silhouette(sample)
    # Pillow weights colours by alpha while it interpolates.
    how = (Image.Transform.AFFINE, (*matrix[0], constant[0], *matrix[1], constant[1]))
    picture = _with_alpha(sample.rgb, silhouette)
    turned = picture.transform((width, height), *how, Image.Resampling.BILINEAR)
    rgb = np.asarray(turned)[..., :3] * nearest(silhouette)[..., None]
    raw = None if sample.raw_xyz is None else nearest(sample.raw_xyz)
    return dataclasses.replace(
        sample, rgb=rgb, xyz=nearest(sample.xyz), mask=nearest(sample.mask), raw_xyz=raw
    )


def _blur(rgb: np.ndarray, inside: np.ndarray, generator: Generator) -> np.ndarray:
    blur = ImageFilter.GaussianBlur(generator.uniform(1, 3))
    picture = _with_alpha(rgb, inside).convert("RGBa")  # colours weighted by alpha
    return np.asarray(picture.filter(blur).convert("RGBA"))[..., :3]


def _gamma(rgb: np.ndarray, inside: np.ndarray, generator: Generator) -> np.ndarray:
    exponent = 2 ** generator.uniform(-1, 1)
    return np.round(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)[rgb]


def _brightness(rgb: np.ndarray, inside: np.ndarray, generator: Generator) -> np.ndarray:
    values = np.arange(256) * generator.uniform(0.8, 1.2) + generator.uniform(-30, 30)
    return np.clip(values, 0, 255).astype(np.uint8)[rgb]


def _hue_and_saturation(rgb: np.ndarray, inside: np.ndarray, generator: Generator) -> np.ndarray:
    hsv = np.array(Image.fromarray(rgb).convert("HSV"), dtype=np.int16)
    hue, saturation = generator.integers(-50, 51, size=2)
    hsv[..., 0] = (hsv[..., 0] + hue) % 256
    hsv[..., 1] = np.clip(hsv[..., 1] + saturation, 0, 255)
    channels = [Image.fromarray(channel.astype(np.uint8)) for channel in np.moveaxis(hsv, -1, 0)]
    return np.asarray(Image.merge("HSV", channels).convert("RGB"))


def _autocontrast(rgb: np.ndarray, inside: np.ndarray, generator: Generator) -> np.ndarray:
    cutoff = generator.uniform(2, 10)  # percent of the object's pixels at either end
    object_only = Image.fromarray(np.where(inside, 255, 0).astype(np.uint8))
    return np.asarray(ImageOps.autocontrast(Image.fromarray(rgb), cutoff, mask=object_only))


def _elastic(rgb: np.ndarray, inside: np.ndarray, generator: Generator) -> np.ndarray:
    height, width = inside.shape
    flow = ndimage.gaussian_filter(generator.standard_normal((2, height, width)), (0, 6, 6))
    flow *= generator.uniform(2, 5) / max(flow.std(), 1e-12)  # pixels
    rows = np.clip(np.rint(np.arange(height)[:, None] + flow[0]).astype(int), 0, height - 1)
    columns = np.clip(np.rint(np.arange(width) + flow[1]).astype(int), 0, width - 1)
    return np.where(inside[rows, columns][..., None], rgb[rows, columns], rgb)


def _invert(rgb: np.ndarray, inside: np.ndarray, generator: Generator) -> np.ndarray:
    return 255 - rgb


def _cartoon(rgb: np.ndarray, inside: np.ndarray, generator: Generator) -> np.ndarray:
    bits = int(generator.integers(2, 5))
    away = ndimage.binary_erosion(inside, np.ones((3, 3)))[..., None]  # the outline is no edge
    smooth = Image.fromarray(rgb).filter(ImageFilter.MedianFilter(3))
    flat = ImageOps.posterize(Image.fromarray(np.where(away, smooth, rgb)), bits)
    edges = np.asarray(flat.convert("L").filter(ImageFilter.FIND_EDGES))[..., None] > 60
    return np.where(edges & away, np.asarray(flat) // 4, flat)


_CHANGES = (_blur, _gamma, _brightness, _hue_and_saturation)
_CHANGES += (_autocontrast, _elastic, _invert, _cartoon)


def corrupt_rgb(rgb: np.ndarray, generator: Generator) -> np.ndarray:
    """Return (H, W, 3) uint8 colours after three of eight photometric changes; black stays black.

    Source: facts.md, section 4; the strengths are ours.
    """
    inside, changed = rgb.any(-1), rgb
    for number in generator.choice(len(_CHANGES), size=3, replace=False):
        changed = _CHANGES[number](changed, inside, generator)
    return changed * inside[..., None]


def _cut(source: tuple[np.ndarray, ...], pixels: np.ndarray, generator: Generator) -> np.ndarray:
    """Return (n, C) values under pixels (2, n), of a source's values, region and its places."""
    values, region, places = source
    best, most = pixels, _share_on(region, pixels)
    for _ in range(10):  # at other places, where too little of the object lies at this one
        if most >= 0.95:
            break
        moved = _moved_onto(places, pixels, generator)
        share = _share_on(region, moved)
        if share > most:
            best, most = moved, share
    inside = np.clip(best, 0, np.array(region.shape)[:, None] - 1)
    known = region[tuple(inside)] & (inside == best).all(0)
    if not known.any():  # a thin ring about the only place: take the place itself
        return np.repeat(values[places[:1, 0], places[:1, 1]], pixels.shape[1], axis=0)
    patch = values[tuple(inside)]
    if not known.all():  # holes take the nearest value
        patch[~known] = patch[known][cKDTree(best.T[known]).query(best.T[~known])[1]]
    return patch


def synthesise(
    target: Sample,
    source_rgb: Sample,
    source_pcd: Sample,
    category: str,
    config: SynthesisConfig,
    generator: Generator,
) -> Sample:
    """Return the target with patches of the sources, normal scans, pasted under a Perlin mask.

    Of each component, with u uniform in [`min_blend`, 1], v in [`min_relief`, 1] and an offset t of
    random sign, its size uniform in [`min_offset_m`, `max_offset_m`]:

    - colour: u * changed source + (1 - u) * target; with `colour_from` "both", in half of the
      components the source is the target itself, so that tones change and texture does not;
    - depth: v * (z_source - mean(z_source) + mean(z_target)) + (1 - v) * z_target + t, means over
      the component's pixels on the object, so that the mean displacement there is t; outside the
      object, where only scans with `raw_xyz` have points to move, v = 1.

    With `paste_in` "either", a sample's pastes change both, colour alone or depth alone, each with
    equal chance; where they change one they stay on the object. The label says what they change
    (see `CHANGED`), the mask where. A ScanError where an object is missing or too small.

    Source: Section 3.7 and facts.md, section 4.
    """
    if config.augment == "published":
        target = augment_target(target, category, generator)
    rgb, xyz = target.rgb.copy(), target.xyz.copy()
    raw = target.xyz.copy() if target.raw_xyz is None else target.raw_xyz.copy()
    on_object, has_raw = target.foreground, raw.any(-1)
    parts = "both" if config.paste_in == "both" else generator.choice(("both", "rgb", "pcd"))
    silhouette = _silhouette(target)
    can_show = {"both": silhouette | has_raw, "rgb": silhouette, "pcd": on_object}[parts]
    region_rgb, region_pcd = _silhouette(source_rgb), source_pcd.foreground
    if not (region_rgb.any() and region_pcd.any()):
        names = f"{source_rgb.name} or {source_pcd.name}"
        raise ScanError(f"{names}: no object; expected one to cut from")
    colours = corrupt_rgb(source_rgb.rgb, generator), region_rgb, np.argwhere(region_rgb)
    depths = source_pcd.xyz[..., 2], region_pcd, np.argwhere(region_pcd)
    own = corrupt_rgb(target.rgb, generator) if config.colour_from == "both" else None
    mask = np.zeros(on_object.shape, dtype=bool)
    labels = paste_labels(on_object, config, generator)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:  # lost in resizing
            continue
        pixels = _pixels((labels[box] == number) & can_show[box], box)
        here = tuple(pixels)
        anchors = on_object[here]
        if not anchors.any():  # nothing to stand on: only holes of the cloud
            continue
        is_own = own is not None and generator.random() < 0.5
        colour = own[here] if is_own else _cut(colours, pixels, generator)
        depth = _cut(depths, pixels, generator)
        blend = generator.uniform(config.min_blend, 1)
        size = generator.uniform(config.min_offset_m, config.max_offset_m)
        offset = size * generator.choice((-1, 1))
        relief = generator.uniform(config.min_relief, 1)
        mask[here] = True
        if parts != "pcd":
            rgb[here] = np.rint(blend * colour + (1 - blend) * target.rgb[here]).astype(np.uint8)
        if parts == "rgb":
            continue
        depth, before = depth.astype(np.float64), xyz[here][anchors, 2]
        depth += before.mean(dtype=np.float64) - depth[anchors].mean()
        depth[anchors] = before + relief * (depth[anchors] - before)
        seen = tuple(pixels[:, has_raw[here]])
        raw[(*seen, 2)] = (depth + offset)[has_raw[here]]
        xyz[seen] = raw[seen]
    if not mask.any():
        raise ScanError(f"{target.name}: no paste found a place; expected an object with points")
    label = "synthetic" if parts == "both" else f"synthetic_{parts}"
    return dataclasses.replace(target, rgb=rgb, xyz=xyz, mask=mask, label=label, raw_xyz=raw)


def synthesise_set(
    targets: Sequence[Path | Sample],
    sources_rgb: Sequence[Path | Sample],
    sources_pcd: Sequence[Path | Sample],
    num: int,
    category: str,
    config: SynthesisConfig,
    seed: int,
    is_wanted: Callable[[int], bool] = lambda i: True,
) -> Iterator[Sample]:
    """Yield `num` synthetic anomalies named "synthetic/000", "synthetic/001", ..., one at a time.

    Sample i stands on target i modulo their number and has random numbers of its own, whichever
    others are wanted. A scan is not its own source unless it is the only one. All scans are
    preprocessed and normal; those of `sources_pcd` may be of any category.
    """
    for i in filter(is_wanted, range(num)):
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,)))
        target = targets[i % len(targets)]
        scans, by_path = [target], isinstance(target, Path)
        for sources in (sources_rgb, sources_pcd):
            # Scans in memory are compared by identity, entries by their paths.
            others = [s for s in sources if s is not target and not (by_path and s == target)]
            scans.append((others or sources)[generator.integers(len(others or sources))])
        scans = [load_prepared(scan) if isinstance(scan, Path) else scan for scan in scans]
        sample = synthesise(*scans, category, config, generator)
        yield dataclasses.replace(sample, name=f"synthetic/{i:03d}")

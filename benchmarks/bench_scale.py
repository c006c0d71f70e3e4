"""Time and memory of bank, neighbours and training at the paper's size, with made-up features.

``python benchmarks/bench_scale.py`` writes data/results/scale.json, from which the book's chapter
on real data is made. It takes about half an hour on 2 cores and 6 GB of disk below --work; what
is measured is kept there, so a call that was interrupted goes on where it was.

One category of MVTec 3D-AD has 244 training scans of 56 x 56 cells, every one of which counts as
foreground here, which is the worst case: 765,184 point features of 1152 numbers, and 191,296 RGB
features of 768, each for four cells. 800 synthetic anomalies of 1500 foreground cells make 1.2
million training cells. The features are made up: a curved surface of twelve dimensions in the
space of the real ones, and noise. Every measurement runs in a process of its own, whose peak
memory `resource.getrusage` tells.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from g2sf_lib.cells import Cells
from g2sf_lib.config import MODALITIES, make_config
from g2sf_lib.detector import fit_banks
from g2sf_lib.features import PackedPatches, foreground_features, load_patches, save_patches
from g2sf_lib.memory import MemoryBank, Rows, Standardiser, _project
from g2sf_lib.store import read_tensors, write_json, write_tensors
from g2sf_lib.training import train_metric

GRID, SHARED = 56, 2
DIMS = {"pcd": 1152, "rgb": 768}
NUM_TRAIN, NUM_SYNTHETIC, FOREGROUND = 244, 800, 1500
NUM_OTHER = {"validation": 22, "test": 110, "synthetic_validation": 80}  # of a typical category
NEIGHBOURS, SEARCHED_SHARE = 11, 0.02
COVERED_ROWS = 20_000
PLAIN_STEPS = 30
FRACTIONS = (0.25, 0.5, 1.0)
EXPECTED_LOAD = 1.2  # above this other work shared the machine, and the note says so


def surfaces() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return mod -> the two maps that take twelve coordinates to a feature."""
    draw = torch.Generator().manual_seed(0)
    return {
        mod: (
            torch.randn(12, 256, generator=draw) / 3,
            torch.randn(256, dim, generator=draw) / 16,
        )
        for mod, dim in DIMS.items()
    }


def made_up_scan(number: int, num_foreground: int, maps: dict) -> PackedPatches:
    """Return one scan; neighbouring cells are alike, and each 2 x 2 share their RGB feature."""
    draw = torch.Generator().manual_seed(number)
    foreground = torch.zeros(GRID, GRID, dtype=torch.bool)
    rows = num_foreground // GRID
    foreground.view(-1)[: rows * GRID + num_foreground % GRID] = True
    cells = {}
    for mod, side in (("pcd", GRID), ("rgb", GRID // SHARED)):
        coarse = torch.randn(1, 12, side // 4, side // 4, generator=draw)
        place = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
        place = place.flatten(2)[0].T + 0.3 * torch.randn(side * side, 12, generator=draw)
        first, second = maps[mod]
        feat = torch.tanh(place @ first) @ second
        feat += 0.1 * torch.randn(feat.shape, generator=draw)
        cells[mod] = feat.half()
    inside = torch.nonzero(foreground.view(-1))[:, 0]
    side = GRID // SHARED
    square = inside // GRID // SHARED * side + inside % GRID // SHARED
    used, place = torch.unique(square, return_inverse=True)
    packed = {"pcd": Rows([cells["pcd"][inside]]), "rgb": Rows([cells["rgb"][used]], place.int())}
    return PackedPatches(packed, (GRID, GRID), foreground.view(-1))


def scan_files(work: Path, kind: str, num: int) -> list[Path]:
    """Return the files of the made-up scans of a kind."""
    return [work / kind / f"{number:04d}.safetensors" for number in range(num)]


def write_scans(work: Path, sizes: dict[str, int]) -> None:
    """Write the made-up scans that are not there yet."""
    maps = surfaces()
    for kind, (offset, num_foreground) in {
        "train": (0, GRID * GRID),
        "synthetic": (100_000, FOREGROUND),
    }.items():
        files = scan_files(work, kind, sizes[kind])
        (work / kind).mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(tqdm(files, desc=f"{kind} scans", mininterval=1)):
            if file.exists():
                continue
            mask = torch.zeros(GRID * GRID, dtype=torch.bool)
            mask[200:275] = kind == "synthetic"
            save_patches(file, made_up_scan(offset + number, num_foreground, maps), mask)


def share_of(files: list[Path], fraction: float) -> list[Path]:
    """Return the first part of some files."""
    return files[: max(round(fraction * len(files)), 4)]


def settings(coreset: str):
    """Return profile paper with a coreset; the data set does not matter here."""
    return make_config("paper", coreset=coreset, device="cpu")


def banks_file(work: Path, fraction: float, coreset: str) -> Path:
    """Return where the banks of a size are kept for the other measurements."""
    return work / f"banks-{coreset}-{fraction:g}.safetensors"


def read_banks(work: Path, fraction: float, coreset: str) -> dict[str, MemoryBank]:
    """Return the banks that `measure_bank` kept."""
    stored = read_tensors(banks_file(work, fraction, coreset))
    return {mod: MemoryBank(stored[mod].clone(), stored[f"{mod}.rows"]) for mod in MODALITIES}


def standard_features(work: Path, sizes: dict, fraction: float) -> dict[str, Rows]:
    """Return standardised training features of a share of the scans; keep their scaling."""
    files = share_of(scan_files(work, "train", sizes["train"]), fraction)
    feat = foreground_features([load_patches(file)[0] for file in files])
    standardiser = Standardiser.fit(feat, "rgb")
    write_json(work / f"standardiser-{fraction:g}.json", dataclasses.asdict(standardiser))
    return standardiser(feat)


def kept_standardiser(work: Path, fraction: float) -> Standardiser:
    """Return the scaling that `standard_features` kept."""
    return Standardiser(**json.loads((work / f"standardiser-{fraction:g}.json").read_text()))


def measure_bank(work: Path, sizes: dict, fraction: float, coreset: str) -> dict:
    """Build both banks of a share of the scans."""
    started = time.perf_counter()
    feat = standard_features(work, sizes, fraction)
    banks = fit_banks(feat, settings(coreset).bank, progress=True)
    seconds = time.perf_counter() - started
    kept = {mod: bank.prototypes for mod, bank in banks.items()}
    kept |= {f"{mod}.rows": bank.rows for mod, bank in banks.items()}
    write_tensors(banks_file(work, fraction, coreset), kept)
    chosen = " and ".join(f"{len(banks[mod].prototypes)} of {mod}" for mod in MODALITIES)
    return {"cells": len(feat["pcd"]), "seconds": seconds, "note": f"bank: {chosen}"}


def measure_plain_bank(work: Path, sizes: dict, fraction: float, coreset: str) -> dict:
    """Time some steps of the plain greedy loop, which reads all rows for every prototype."""
    config = settings(coreset).bank
    feat = standard_features(work, sizes, fraction)
    seconds = 0.0
    for rows in feat.values():
        space = _project(rows.stored, config.projection_eps, 0, torch.device("cpu"))
        norm2, nearest = space.square().sum(1), torch.full((len(space),), torch.inf)
        started = time.perf_counter()
        for row in range(PLAIN_STEPS):
            far = torch.addmv(norm2 + norm2[row], space, space[row], alpha=-2.0)
            torch.minimum(nearest, far, out=nearest)
            nearest.argmax()
        per_step = (time.perf_counter() - started) / PLAIN_STEPS
        seconds += per_step * round(config.bank_fraction * len(rows))
    note = f"from {PLAIN_STEPS} steps of the loop in each modality"
    return {"cells": len(feat["pcd"]), "seconds": seconds, "kind": "extrapolated", "note": note}


def measure_coverage(work: Path, sizes: dict, fraction: float, coreset: str) -> dict:
    """Return the largest distance of some training points to their nearest prototype."""
    feat = standard_features(work, sizes, fraction)
    rows = feat["pcd"].stored
    if coreset == "random":
        bank = MemoryBank.fit(rows, settings(coreset).bank.bank_fraction, "random")
    else:
        bank = read_banks(work, fraction, coreset)["pcd"]
    some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[:COVERED_ROWS]
    started = time.perf_counter()
    distance = bank.query(rows[some], 1)[1]
    return {"radius": float(distance.max()), "seconds": time.perf_counter() - started}


def measure_neighbours(work: Path, sizes: dict, fraction: float, coreset: str) -> dict:
    """Search the 11 nearest prototypes of a sample of the training cells."""
    banks = read_banks(work, fraction, coreset)
    standardiser = kept_standardiser(work, fraction)
    files = share_of(scan_files(work, "synthetic", sizes["synthetic"]), fraction)
    sample = share_of(files, SEARCHED_SHARE)
    for bank in banks.values():
        bank.query(bank.prototypes[:1], 1)  # makes the index, which is no part of the time
    started, num = time.perf_counter(), 0
    for file in sample:
        feat = standardiser(load_patches(file)[0].cells)
        for mod in MODALITIES:
            banks[mod].query(feat[mod], NEIGHBOURS)
        num += len(feat["pcd"])
    per_scan = (time.perf_counter() - started) / len(sample)
    return {
        "cells": len(files) * num // len(sample),
        "seconds": per_scan * len(files),
        "kind": "extrapolated",
        "note": f"from {len(sample)} of {len(files)} scans",
    }


def measure_epoch(work: Path, sizes: dict, fraction: float, coreset: str) -> dict:
    """Train LSPN for one epoch. Neighbours are made up: they cost nothing here."""
    banks = read_banks(work, fraction, coreset)
    standardiser = kept_standardiser(work, fraction)
    files = share_of(scan_files(work, "synthetic", sizes["synthetic"]), fraction)
    patches, labels = zip(*(load_patches(file) for file in files), strict=True)
    num = sum(int(p.foreground.sum()) for p in patches)
    draw = torch.Generator().manual_seed(0)
    index = {
        mod: torch.randint(
            len(banks[mod].prototypes), (num, NEIGHBOURS), generator=draw, dtype=torch.int32
        )
        for mod in MODALITIES
    }
    s = torch.rand(num, NEIGHBOURS, len(MODALITIES), generator=draw).sort(dim=1).values + 3
    is_anomalous = torch.cat([lab[p.foreground] for p, lab in zip(patches, labels, strict=True)])
    sizes_of = torch.tensor([int(p.foreground.sum()) for p in patches])
    image = torch.repeat_interleave(torch.arange(len(patches)), sizes_of)
    feat = standardiser(foreground_features(patches))
    cells = Cells(feat, index, s, is_anomalous, image)
    config = make_config("paper", device="cpu", epochs=1)
    started = time.perf_counter()
    train_metric(cells, banks, config.model, config.loss, config.training, seed=0)
    steps = num // 2 // config.training.batch_size
    note = (
        f"about {steps} steps of {config.training.batch_size} cells, held-out images scored twice"
    )
    return {"cells": num, "seconds": time.perf_counter() - started, "note": note}


def measure_scan(work: Path, sizes: dict, fraction: float, coreset: str) -> dict:
    """Time preprocessing, synthesis and both feature networks on one scan of 800 x 800 px."""
    import timm

    from g2sf_lib.datasets import Sample
    from g2sf_lib.datasets.preprocess import preprocess
    from g2sf_lib.features.pointmae import PointMAE, pointmae_patches
    from g2sf_lib.features.rgb import RGBFeatures
    from g2sf_lib.synthesis import synthesise

    config = settings(coreset)
    side = 800
    axis = (np.arange(side, dtype=np.float32) - side / 2) * 0.0002
    x, y = np.meshgrid(axis, axis)
    height = 0.03 * np.sqrt(np.clip(1 - (x**2 + y**2) / 0.05**2, 0, None))
    depth = 0.5 - height + np.random.default_rng(0).normal(0, 1e-4, x.shape)
    xyz = np.stack([x, y, depth], -1).astype(np.float32)
    rgb = np.random.default_rng(1).integers(0, 255, (side, side, 3), dtype=np.uint8)
    scan = Sample(rgb, xyz, np.zeros((side, side), bool), "good", "train/good/000")
    weights = work / "vit.safetensors"
    if not weights.exists():
        model = timm.create_model(config.features.rgb_model, pretrained=False)
        write_tensors(weights, dict(model.state_dict()))
    image_net = RGBFeatures(
        make_config("paper", rgb_weights=str(weights)).features, torch.device("cpu")
    )
    point_net = PointMAE(config.features.num_groups, config.features.group_size)
    prepared = preprocess(scan, config.preprocess)

    def timed(work_of) -> float:
        work_of()
        started = time.perf_counter()
        for _ in range(3):
            work_of()
        return (time.perf_counter() - started) / 3

    draw = np.random.default_rng(0)
    return {
        "preprocess": timed(lambda: preprocess(scan, config.preprocess)),
        "synthesis": timed(
            lambda: synthesise(prepared, prepared, prepared, "bagel", config.synthesis, draw)
        ),
        "rgb": timed(lambda: image_net([prepared.rgb])),
        "pcd": timed(lambda: pointmae_patches(prepared.xyz, config.features, point_net)),
        "note": "random weights, which cost what trained ones do",
    }


MEASURES = {
    "scan": measure_scan,
    "bank": measure_bank,
    "plain_bank": measure_plain_bank,
    "coverage": measure_coverage,
    "neighbours": measure_neighbours,
    "epoch": measure_epoch,
}


def measured(arguments: argparse.Namespace, what: str, fraction: float, coreset: str) -> dict:
    """Return one measurement: the one that is kept, or a new one from a process of its own."""
    kept = arguments.work / f"{what}-{coreset}-{fraction:g}.json"
    if not kept.exists():
        print(f"{what}, {coreset}, {fraction:.0%}", file=sys.stderr)
        command = [sys.executable, __file__, "--work", str(arguments.work), "--measure", what]
        command += ["--fraction", str(fraction), "--coreset", coreset]
        command += ["--scans", str(arguments.scans), "--synthetic", str(arguments.synthetic)]
        subprocess.run(command, check=True)
    return json.loads(kept.read_text())


def measure(arguments: argparse.Namespace, sizes: dict) -> None:
    """Take one measurement in this process and keep it with the peak memory."""
    what, fraction, coreset = arguments.measure, arguments.fraction, arguments.coreset
    found = MEASURES[what](arguments.work, sizes, fraction, coreset)
    load = os.getloadavg()[0] / torch.get_num_threads()
    if load > EXPECTED_LOAD:
        found["note"] = (
            f"{found.get('note', '')}; the machine was shared (load {load:.1f} a thread)"
        )
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {"what": what, "fraction": fraction, "coreset": coreset, "kind": "measured"}
    row |= {"peak_mb": round(peak_mb)} | found
    write_json(arguments.work / f"{what}-{coreset}-{fraction:g}.json", row)


def whole_category(rows: list[dict], per_scan: dict) -> dict:
    """Return hours and disk of one category in profile paper, from the measurements."""
    full = {(r["what"], r["coreset"]): r for r in rows if r["fraction"] == max(FRACTIONS)}
    num_normal = NUM_TRAIN + NUM_OTHER["validation"] + NUM_OTHER["test"]
    num_pasted = NUM_SYNTHETIC + NUM_OTHER["synthetic_validation"]
    per_features = per_scan["rgb"] + per_scan["pcd"]
    epochs = make_config("paper").training.epochs
    hours = {
        "preprocess": num_normal * per_scan["preprocess"] / 3600,
        "features": ((num_normal + num_pasted) * per_features + num_pasted * per_scan["synthesis"])
        / 3600,
        "bank": full["bank", "greedy"]["seconds"] / 3600,
        "neighbours": full["neighbours", "greedy"]["seconds"] / 3600,
        "training of one seed": epochs * full["epoch", "greedy"]["seconds"] / 3600,
    }
    cell = 2 * DIMS["pcd"] + 2 * DIMS["rgb"] / SHARED**2
    bank = sum(0.1 * NUM_TRAIN * GRID * GRID * 4 * dim for dim in DIMS.values())
    concat = 0.1 * NUM_TRAIN * GRID * GRID * 4 * sum(DIMS.values())
    disk = {
        "prepared scans": num_normal * 800 * 800 * (3 + 12 + 1 + 1),
        "features": (num_normal + num_pasted) * FOREGROUND * cell,
        "banks": (bank + concat) * FOREGROUND / GRID**2,
        "neighbours": NUM_SYNTHETIC * FOREGROUND * NEIGHBOURS * 2 * 8,
        "detector of one seed": bank * FOREGROUND / GRID**2,
    }
    return {
        "hours": {name: round(value, 2) for name, value in hours.items()},
        "disk_gb": {name: round(value / 1e9, 2) for name, value in disk.items()},
        "kind": "extrapolated",
    }


def main() -> None:
    """Take what has not been taken yet and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("data/runs/bench_scale"))
    parser.add_argument("--out", type=Path, default=Path("data/results/scale.json"))
    parser.add_argument("--scans", type=int, default=NUM_TRAIN, help="training scans")
    parser.add_argument("--synthetic", type=int, default=NUM_SYNTHETIC, help="synthetic scans")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--fraction", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--coreset", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = {"train": arguments.scans, "synthetic": arguments.synthetic}
    if arguments.measure:
        measure(arguments, sizes)
        return
    write_scans(arguments.work, sizes)
    rows, coverage = [], []
    per_scan = measured(arguments, "scan", 1.0, "greedy")
    for fraction in FRACTIONS:
        for coreset in ("greedy", "approximate"):
            rows.append(measured(arguments, "bank", fraction, coreset))
        plain = measured(arguments, "plain_bank", fraction, "greedy")
        rows.append(plain | {"what": "bank", "coreset": "one-at-a-time greedy"})
        for coreset in ("greedy", "approximate", "random"):
            found = measured(arguments, "coverage", fraction, coreset)
            bank = [r for r in rows if (r["fraction"], r["coreset"]) == (fraction, coreset)]
            seconds = bank[0]["seconds"] if bank else 0.0
            coverage.append(
                {k: found[k] for k in ("fraction", "coreset", "radius")} | {"seconds": seconds}
            )
        for what in ("neighbours", "epoch"):
            rows.append(measured(arguments, what, fraction, "greedy"))
    result = {
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "rows": rows,
        "coverage": coverage,
        "per_scan_s": {name: per_scan[name] for name in ("preprocess", "synthesis", "rgb", "pcd")},
        "paper_category": whole_category(rows, per_scan),
    }
    write_json(arguments.out, result)
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()

"""The stages of a run: what each builds on and reads, and where its result lies.

A result lies in a folder whose name holds a hash of all settings and of all code that it depends
on, so nothing stale is ever read.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g2sf_lib.config import Config, flat_settings
from g2sf_lib.store import code_hash, write_json

PACKAGES = ("torch", "timm", "open3d", "faiss-cpu", "FrEIA", "scikit-learn", "numpy", "scipy")


@dataclass(frozen=True)
class Stage:
    """One step of a run, declared here or, of a method that is trained, with the method."""

    name: str  # of its folders
    needs: tuple[Stage, ...] = ()  # whose output it reads
    sections: tuple[str, ...] = ()  # of the config that it reads itself
    code: tuple[str, ...] = ()  # as in `store.code_hash`, without that of the stages it needs
    is_seeded: bool = False  # whether it reads the seed

    def chain(self) -> tuple[Stage, ...]:
        """Return the stages that this one builds on, the first first, and itself."""
        before = [known for need in self.needs for known in need.chain()]
        return tuple(dict.fromkeys([*before, self]))

    def settings(self, config: Config) -> dict[str, Any]:
        """Return every setting that its output depends on, as plain values."""
        chain = self.chain()
        found: dict[str, Any] = {"dataset": config.dataset, "data_root": config.data_root}
        if self.name != "data":
            found["category"] = config.category
        if any(stage.is_seeded for stage in chain):
            found["seed"] = config.seed
        for section in dict.fromkeys(name for stage in chain for name in stage.sections):
            found[section] = getattr(config, section).model_dump()
        return found

    def hash(self, config: Config) -> str:
        """Return 12 hex digits that change with `settings` and with the code."""
        parts = dict.fromkeys(part for stage in self.chain() for part in stage.code)
        text = json.dumps([self.settings(config), code_hash(list(parts))], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


SCORING_CODE = ("evaluation.py", "benchmark.py", "baselines/scans.py")
DATA = Stage("data", (), ("data", "preprocess"), ("datasets",))
FEATURES = Stage("features", (DATA,), ("features",), ("features",))
# Features of synthetic anomalies, on training and on validation scans.
_OF_PASTES = [f"experiments.py:{n}" for n in ("SYNTHETIC_SEED", "synthetic_scans", "point_sources")]
PASTES = Stage(
    "pastes",
    (FEATURES,),
    ("synthesis",),
    ("synthesis.py", *_OF_PASTES, "cells.py:pasted_patches"),
)
_OF_BANK = ("memory.py", "baselines/banks.py", "detector.py:fit_banks")
BANK = Stage("bank", (FEATURES,), ("bank",), _OF_BANK)
CELLS = Stage("cells", (BANK, PASTES), ("cells",), ("cells.py", "experiments.py:training_cells"))
_OF_LSPN = ("fusion.py", "losses.py", "training.py", "detector.py:G2SF")
LSPN = Stage("lspn", (CELLS,), ("model", "loss", "training"), _OF_LSPN, is_seeded=True)
SCORES = Stage("scores", (LSPN,), ("scoring",), (*SCORING_CODE, "baselines/ours.py"))  # of G2SF
# Parts and variants of G2SF, each taken as a score of its own.
QUANTITIES = Stage("quantities", (LSPN,), ("scoring",), (*SCORING_CODE, "quantities.py"))
STAGES = {s.name: s for s in (DATA, FEATURES, PASTES, BANK, CELLS, LSPN, SCORES, QUANTITIES)}


def raw_dir(config: Config) -> Path:
    """Return the folder whose sub-folders are the data set's categories."""
    if config.data_root is not None:
        return Path(config.data_root)
    code = code_hash([f"datasets/{name}.py" for name in ("procedural", "parts", "defects")])
    text = json.dumps([config.data.model_dump(), code], sort_keys=True)
    return Path("data/raw") / f"procedural-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _slug(text: str, whole: str) -> str:
    """Return a short name for files made of a text, and a hash of what it stands for."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:40]
    digest = hashlib.sha256(os.fsencode(whole)).hexdigest()
    return f"{plain or 'root'}-{digest[:6]}"


def folder_name(name: str) -> str:
    """Return what a category's, or scan's, own name is called on disk: itself if that is safe.

    Braces are wildcards in Snakemake, some signs break links of the book, a name may have 255
    bytes at most with what is put behind it, and blanks at an end get lost.
    """
    is_plain = re.fullmatch(r"[\w.,;'()+=@-]([\w .,;'()+=@-]*[\w.,;'()+=@-])?", name)
    return name if is_plain and len(name.encode()) <= 150 else _slug(name, name)


def run_name(config: Config) -> str:
    """Return what files and folders of a run are called after: the data set.

    Scans of one's own are all of data set "folder", so theirs is named by the root as well.
    """
    if config.dataset != "folder":
        return config.dataset
    return f"folder-{_slug(Path(config.data_root).name, config.data_root)}"


def dataset_dir(config: Config) -> Path:
    """Return the folder of everything computed for this profile and data set."""
    return Path(config.runs_root) / config.profile / run_name(config)


def results_file(config: Config, name: str | None = None) -> Path:
    """Return where a summary is kept, e.g. ``smoke.json`` or ``table4_mvtec3d_paper.json``."""
    data = None if config.dataset == "procedural" else run_name(config)
    return Path("data/results") / ("_".join(filter(None, (name, data, config.profile))) + ".json")


def scans_dir(config: Config) -> Path:
    """Return the folder of preprocessed scans, below it category/split/label."""
    return dataset_dir(config) / f"scans-{DATA.hash(config)}"


def stage_dir(config: Config, stage: Stage | str) -> Path:
    """Return the folder of what one stage computes for this category (and seed)."""
    stage = STAGES[stage] if isinstance(stage, str) else stage
    folder = dataset_dir(config) / folder_name(config.category)
    return folder / f"{stage.name}-{stage.hash(config)}"


def done_file(config: Config, name: str) -> Path:
    """Return the record of a notebook's run, which the workflow waits for."""
    if name == "data":
        return dataset_dir(config) / "scans" / "data.json"
    if name in ("loss_weights", "peer_settings"):
        return dataset_dir(config) / f"{name}.json"
    folder = dataset_dir(config) / folder_name(config.category)
    return folder / f"seed{config.seed}/lspn.json" if name == "lspn" else folder / f"{name}.json"


def package_versions() -> dict[str, str | None]:
    """Return the versions that results depend on; None for what is not installed."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit() -> str | None:
    """Return the commit of the code, marked where it was changed since; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


@contextmanager
def recorded(config: Config, name: str, stage: Stage | None = None) -> Iterator[dict]:
    """Write the record of a stage when it has succeeded."""
    result: dict = {}
    started = time.perf_counter()
    yield result
    record = {
        "stage": name,
        "config_hash": (stage or STAGES[name]).hash(config),
        "config": flat_settings(config),
        "git_commit": git_commit(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "seed": config.seed,
        "device": config.device,
        "wall_s": round(time.perf_counter() - started, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "result": result,
    }
    write_json(done_file(config, name), record)

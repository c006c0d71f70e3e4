"""What a run consists of: settings, categories, seeds, and the category whose pages are shown.

The Snakefile plans with it, and `run.py` asks it first, so that what is wrong with a call is said
in one line before anything starts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from chapters import BY_NOTEBOOK

from g2sf_lib.config import (
    CATEGORIES,
    Config,
    ConfigError,
    from_text,
    leaf_fields,
    make_config,
    normal_path,
)
from g2sf_lib.datasets import ScanError, category_names
from g2sf_lib.stages import folder_name, run_name

SHOWCASE = "foam"  # the book's examples are written for it; procedural and MVTec 3D-AD have it
SEEDS = {"smoke": (0, 1), "demo": (0, 1, 2), "paper": (0, 1, 2)}
SMOKE_CATEGORIES = ("cookie", "gland")  # of the procedural parts
NUM_ANALYSED = {"smoke": 1, "demo": 3, "paper": 3}  # categories of chapter 11, which trains most
MAX_NAMES = 12  # of those found in a wrong folder, in its message


@dataclass(frozen=True)
class Plan:
    """One run of the workflow.

    Attributes:
        base: the configuration of the showcase category.
        settings: single settings that differ from the profile's.
        categories: all that take part.
        seeds: every category is trained once from each.
        showcase: the category whose notebooks are the pages of the book.
        analysed: those that chapter 11 takes, the showcase and the ones that come first.
        html: the folder of the built book.
    """

    base: Config
    settings: dict[str, Any]
    categories: tuple[str, ...]
    seeds: tuple[int, ...]
    showcase: str
    analysed: tuple[str, ...]
    html: str

    @property
    def executed(self) -> str:
        """The folder of the executed notebooks."""
        return f"book/executed/{self.base.profile}/{run_name(self.base)}"


def chapter_target(plan: Plan, notebook: str) -> str:
    """Return the executed notebook that is the page of a chapter.

    Raises:
        ConfigError: there is no such notebook.
    """
    if notebook not in BY_NOTEBOOK:
        raise ConfigError(f"chapter is {notebook!r}; expected one of {', '.join(BY_NOTEBOOK)}")
    per = BY_NOTEBOOK[notebook].per
    folder = "" if per in ("run", "both") else f"{folder_name(plan.showcase)}/"
    return f"{plan.executed}/{folder}{notebook}{'_seed0' if per == 'seed' else ''}.ipynb"


def _text(given: Mapping[str, Any], name: str) -> str | None:
    """Return the text that was given under a name, or that a list holds; None for nothing.

    Raises:
        ConfigError: for a number, or a mapping: `snakemake --config` takes quotes off and reads
            what is left as YAML, so the text itself is lost.
    """
    value = given.get(name)
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is not None and not isinstance(value, str):
        raise ConfigError(
            f"{name} is {value!r}, no text any more; with Snakemake: --config '{name}=[\"...\"]'"
        )
    return value or None


def _read(name: str, text: str, example: str) -> Any:
    """Return the lists and mappings that a text in YAML holds; everything in them stays text."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        raise ConfigError(f"{name} is {text!r}; expected {example}") from None


def make_plan(given: Mapping[str, Any]) -> Plan:
    """Return the plan that a call describes.

    Args:
        given: `profile`, `dataset`, `data_root`, `device`, `html` (folder of the book),
            `categories` (names in a list, or in a text with blanks or commas between them; nothing:
            all that are there) and `settings` (a mapping, or the text of one); each may be missing.

    Raises:
        ConfigError: saying what was found and what was expected.
    """
    profile = _text(given, "profile") or "demo"
    dataset = _text(given, "dataset") or "procedural"
    root = _text(given, "data_root")
    root = root and normal_path(root)
    place = {"dataset": dataset, "data_root": root, "device": _text(given, "device") or "auto"}
    settings, example = given.get("settings") or {}, "a mapping, e.g. '{alpha: 2.0}'"
    if isinstance(settings, str):
        settings = _read("settings", settings, example) or {}
    if not isinstance(settings, Mapping):
        raise ConfigError(f"settings is {settings!r}; expected {example}")
    settings = {str(name): from_text(str(name), value) for name, value in settings.items()}
    for name in settings:
        if leaf_fields().get(name, ("",))[0] is None and name != "category":
            beside = "; give it beside settings" if name in ("profile", *place) else ""
            raise ConfigError(f"{name} is no setting of the profile{beside}")
    showcase = settings.pop("category", None)
    # Profile, data set and settings are checked before any folder is looked at.
    make_config(profile, **place, **settings, category=CATEGORIES.get(dataset, ("any",))[0])

    found = _categories_found(dataset, root)
    if profile == "smoke" and dataset == "procedural":
        found = SMOKE_CATEGORIES
    categories = _chosen(given.get("categories"), found, dataset)
    if categories != found:  # pastes then come from these alone, and so does what is learned
        settings.setdefault("pasted_from", json.dumps(categories, ensure_ascii=False))
    if showcase is None:
        showcase = SHOWCASE if SHOWCASE in categories else categories[-1]
    elif showcase not in categories:
        raise ConfigError(f"category is {showcase!r}; this run has {', '.join(categories)}")
    base = make_config(profile, **place, **settings, category=showcase)
    others = [name for name in categories if name != showcase]
    chosen = {showcase, *others[: NUM_ANALYSED[profile] - 1]}
    analysed = tuple(name for name in categories if name in chosen)
    html = _text(given, "html") or (
        "_build/html" if dataset == "procedural" else f"_build/{profile}-{run_name(base)}/html"
    )
    if re.search("[{}]", html):
        raise ConfigError(f"html is {html!r}; expected no braces, which Snakemake reads")
    html = normal_path(html)
    return Plan(base, settings, categories, SEEDS[profile], showcase, analysed, html)


def _categories_found(dataset: str, root: str | None) -> tuple[str, ...]:
    """Return the categories below the data set's folder, which has to hold one at least."""
    if root is None or dataset == "procedural":
        return CATEGORIES[dataset]
    folder = Path(root)
    if not folder.is_dir():
        raise ConfigError(f"data_root is {root!r}, where there is no folder")
    try:
        names = tuple(category_names(dataset, root))
    except ScanError as error:
        raise ConfigError(str(error)) from error
    present = tuple(name for name in names if (folder / name).is_dir())
    if not present:
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
        shown = ", ".join(inside[:MAX_NAMES]) + ", ..." * (len(inside) > MAX_NAMES)
        raise ConfigError(
            f"data_root is {root!r}, which holds the folders: {shown or 'none'}; expected one or "
            f"more of {', '.join(names)}"
        )
    return present


def _chosen(asked: Any, found: tuple[str, ...], dataset: str) -> tuple[str, ...]:
    """Return the categories asked for, in the data set's order; all of them if none is named."""
    if not asked:
        return found
    if not isinstance(asked, list | tuple):
        text = _text({"categories": asked}, "categories")
        is_list = text.strip().startswith("[")
        asked = text.replace(",", " ").split()
        if is_list:
            asked = _read("categories", text, "a list, e.g. \"['part a', '001']\"")
    asked = [(_text({"category": name}, "category") or "").rstrip("/") for name in asked]
    for name in asked:
        if name not in found:
            raise ConfigError(
                f"category is {name!r}; found in dataset {dataset!r}: {', '.join(found)}"
            )
    return tuple(name for name in found if name in asked)

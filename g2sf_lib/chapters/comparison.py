"""Chapter 05: scans chosen by rules to show, and what training does to cells of defects."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from g2sf_lib.benchmark import SEEDED, Comparison
from g2sf_lib.chapters.metric import cell_quantities, judged_cells, stored_detector
from g2sf_lib.config import MODALITIES, Config
from g2sf_lib.datasets import Sample
from g2sf_lib.detector import counted_cells
from g2sf_lib.evaluation import image_auroc
from g2sf_lib.experiments import load_features, scan_labels, some_scans
from g2sf_lib.results import GROUPS, METHOD_NAMES
from g2sf_lib.stats import share_of_good_below


@dataclass(frozen=True)
class Case:
    """A test scan that is shown, and the rule that chose it.

    Attributes:
        rule: in words, for the label of its row.
        category: of the scan.
        number: of the scan among the category's test scans.
        label: "good" or its kind of defect.
    """

    rule: str
    category: str
    number: int
    label: str

    @property
    def title(self) -> str:
        """Rule, category and label, a line each."""
        return f"{self.rule}\n{self.category}, {self.label}"


def panel_methods(comparison: Comparison) -> dict[str, tuple[str, int]]:
    """Return heading -> (method, seed) of those of Figure 5's methods that took part."""
    shown = {
        "RGB alone": "rgb",
        "points alone": "pcd",
        "CFM": "cfm",
        "M3DM": "m3dm",
        "G²SF": "g2sf",
    }
    first = comparison.seeds[0]
    columns = {
        name: (method, first if method in SEEDED else 0)
        for name, method in shown.items()
        if method in comparison.methods
    }
    return columns or {METHOD_NAMES[ruler(comparison)[0]]: ruler(comparison)}


def ruler(comparison: Comparison) -> tuple[str, int]:
    """Return whose scores choose the scans that are shown: G2SF, or else the first method."""
    method = "g2sf" if "g2sf" in comparison.methods else comparison.methods[0]
    return method, comparison.seeds[0] if method in SEEDED else 0


def _standing(comparison: Comparison, method: str, seed: int) -> list[tuple[str, int, str, float]]:
    """Return (category, number, label, share of the category's good scans below) of all scans."""
    rule, found = comparison.config.scoring.silhouette, []
    for category, scores in comparison.scores.items():
        share = share_of_good_below(scores.image[method, seed, rule], scores.labels)
        each = zip(scores.labels, share, strict=True)
        found += [(category, n, label, float(x)) for n, (label, x) in enumerate(each)]
    return found


def complementary_cases(comparison: Comparison) -> list[Case]:
    """Return two defective scans: RGB is farthest ahead of points on one, points on the other.

    The rule: over all categories, the scan where the shares of good scans below it, by RGB alone
    and by points alone, differ most. The first of several that are equal.
    """
    both = [_standing(comparison, mod, 0) for mod in ("rgb", "pcd")]
    gaps = [(rgb[3] - pcd[3], rgb) for rgb, pcd in zip(*both, strict=True) if rgb[2] != "good"]
    chosen = [
        ("RGB most ahead\nof points", max(gaps, key=lambda gap: gap[0])[1]),
        ("points most\nahead of RGB", min(gaps, key=lambda gap: gap[0])[1]),
    ]
    return [Case(rule, category, n, label) for rule, (category, n, label, _) in chosen]


def gallery_cases(comparison: Comparison, method: str, seed: int) -> list[Case]:
    """Return a scan of each category, and the worst failures of a method.

    The rules: in each category the defective scan with the median image score; over all
    categories the defective scan that the most good scans of its category outscore, and the good
    scan that outscores the most defective ones. Of those that are equal: the lowest and the
    highest score, where 0 is the median and 1 the highest of the category's good scans. What
    nothing outscores in the wrong direction is no failure, and is not called one.

    Args:
        comparison: with the method in it.
        method: whose scores the rules look at,
        seed: and of which training.
    """
    rule, cases, misses, alarms = comparison.config.scoring.silhouette, [], [], []
    for category, scores in comparison.scores.items():
        image = scores.image[method, seed, rule]
        is_bad = np.array([label != "good" for label in scores.labels])
        order = np.flatnonzero(is_bad)[np.argsort(image[is_bad], kind="stable")]
        middle = int(order[len(order) // 2])
        cases.append(Case("median find", category, middle, scores.labels[middle]))
        low, top = np.median(image[~is_bad]), image[~is_bad].max()
        height = (image - low) / max(top - low, 1e-12)
        for n in np.flatnonzero(is_bad):
            misses.append(((image[~is_bad] > image[n]).mean(), -height[n], category, int(n)))
        for n in np.flatnonzero(~is_bad):
            alarms.append(((image[is_bad] < image[n]).mean(), height[n], category, int(n)))
    failures = (("worst miss", "hardest find", misses),
                ("worst\nfalse alarm", "highest\ngood scan", alarms))  # fmt: skip
    for failed, passed, found in failures:
        share, _, category, n = max(found, key=lambda case: case[:2])
        words = failed if share > 0 else passed
        cases.append(Case(words, category, n, comparison.scores[category].labels[n]))
    return cases


def case_maps(
    comparison: Comparison, cases: Sequence[Case], methods: dict[str, tuple[str, int]]
) -> tuple[list[Sample], dict[str, list[np.ndarray]]]:
    """Return the scans of some cases and their score maps in units of normal scans.

    For each method and category, 0 is the median pixel of the validation scans, which are
    normal, and 1 the highest that any of their pixels has. No test scan has a part in the scale.

    Args:
        comparison: of all categories.
        cases: what is shown.
        methods: heading -> (method, seed).
    """
    samples, maps = [], {name: [] for name in methods}
    for case in cases:
        of_case = dataclasses.replace(comparison.config, category=case.category)
        samples += some_scans(of_case, "test", [case.number])
        scores = comparison.scores[case.category]
        for name, key in methods.items():
            low, top = scores.normal[key]
            raw = scores.maps.one(key, case.number)
            maps[name].append(((raw - low) / max(top - low, 1e-12)).clip(0))
    return samples, maps


def standing_report(
    comparison: Comparison, cases: Sequence[Case], methods: dict[str, tuple[str, int]]
) -> pd.DataFrame:
    """Return, for each case and method, the share of the category's good scans that score lower.

    1 is a find without a false alarm, one half is chance; of a good scan, 1 is the worst.
    """
    rows = []
    for case in cases:
        scores, row = comparison.scores[case.category], {}
        for name, (method, seed) in methods.items():
            image = scores.image[method, seed, comparison.config.scoring.silhouette]
            good = np.array([label == "good" for label in scores.labels])
            good[case.number] = False  # a good scan is not compared with itself
            row[name] = f"{(image[good] < image[case.number]).mean():.2f}"
        rows.append({"case": case.title.replace("\n", " ")} | row)
    return pd.DataFrame(rows).set_index("case")


def cell_shifts(config: Config, categories: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """Return how well cells of pastes and of defects are told from normal ones, before and after.

    Normal cells are those of the same scans' unpasted part (pastes) or of the good test scans
    (defects). All cells are counted ones in their nearest neighbourhood. Defects are grouped by
    what they change where that is known, of the embedded data set; else all are one group.

    Args:
        config: of the run.
        categories: all of them.
        seeds: training seeds.

    Returns:
        A row a category, seed, group of defects and quantity ("points alone", "RGB alone",
        "w = 1", "trained"): ``auroc`` over cells; with mean scale factors ``w_pcd``, ``w_rgb`` of
        the group's anomalous cells, divided by those of the normal cells.
    """
    rows = []
    for category in categories:
        of_category = dataclasses.replace(config, category=category)
        kinds = _cell_kinds(of_category)
        for seed in seeds:
            detector = stored_detector(of_category, seed)
            pasted = judged_cells(of_category, detector)
            test = judged_cells(of_category, detector, "test")
            groups = {"pastes": (pasted, pasted.is_anomalous, ~pasted.is_anomalous)}
            for group, members in _groups(config, kinds).items():
                chosen = test.is_anomalous & np.isin(kinds, members)
                if chosen.any():
                    groups[group] = test, chosen, kinds == "good"
            for group, (cells, bad, normal) in groups.items():
                place = {"category": category, "seed": seed, "group": group}
                w = cells.w[bad].mean(0) / cells.w[normal].mean(0)
                place |= {f"w_{mod}": float(w[m]) for m, mod in enumerate(MODALITIES)}
                both = bad | normal
                for name, values in cell_quantities(cells).items():
                    area = image_auroc(values[both], bad[both])
                    rows.append(place | {"quantity": name, "auroc": area})
    return pd.DataFrame(rows)


def _groups(config: Config, kinds: np.ndarray) -> dict[str, Sequence[str]]:
    """Return group -> kinds of defect; kinds of other data sets mean other things."""
    if config.dataset == "procedural":
        return GROUPS
    return {"defects": sorted(set(kinds) - {"good"})}


def _cell_kinds(config: Config) -> np.ndarray:
    """Return (N,) the label of the scan of every counted test cell."""
    patches, _ = load_features(config, "test")
    counts = [int(counted_cells(p, config.scoring.silhouette).sum()) for p in patches]
    return np.repeat(scan_labels(config, "test"), counts)


def shift_rows(shifts: pd.DataFrame) -> pd.DataFrame:
    """Return means over categories and seeds, for `plots.cell_shift`.

    Columns: ``group``, ``quantity``, ``value`` (AUROC over cells), ``error`` (standard error over
    categories).
    """
    each = shifts.groupby(["group", "quantity", "category"], sort=False)["auroc"].mean()
    groups = each.groupby(["group", "quantity"], sort=False)
    table = pd.DataFrame({"value": groups.mean(), "error": groups.sem().fillna(0.0)})
    return table.reset_index()


def shift_report(shifts: pd.DataFrame) -> str:
    """Return, in Markdown, what training does to the cells of each group of defects."""
    wide = shifts.pivot_table(
        index=["group", "category"], columns="quantity", values="auroc", sort=False
    )
    w = shifts.groupby("group", sort=False)[["w_pcd", "w_rgb"]].mean()
    lines = []
    for group in dict.fromkeys(shifts["group"]):
        of_group = wide.loc[group]
        gain = of_group["trained"] - of_group["w = 1"]
        error = f" ± {gain.sem():.3f} over categories" if len(gain) > 1 else ""
        lines.append(
            f"- {group}: AUROC of cells {of_group['w = 1'].mean():.3f} before and "
            f"{of_group['trained'].mean():.3f} after training ({gain.mean():+.3f}{error}); w is "
            f"{w.loc[group, 'w_pcd']:.2f} (points) and {w.loc[group, 'w_rgb']:.2f} (RGB) times "
            "that of normal cells"
        )
    return "\n".join(lines)


def tails(
    comparison: Comparison, methods: Sequence[str] = ("w1", "g2sf", "other_pastes")
) -> pd.DataFrame:
    """Return how far normal pixels reach, and which defects reach farther.

    Args:
        comparison: of all categories.
        methods: those that are looked at, as far as they took part.

    Returns:
        A row a category, method, seed and group of defects: ``stretch``, the highest pixel of
        validation scans divided by their median pixel; ``found``, the share of the group's test
        scans whose highest pixel is above it.
    """
    rows = []
    for category, scores in comparison.scores.items():
        kinds = np.array(scores.labels)
        groups = _groups(comparison.config, kinds)
        for method, seed in scores.maps:
            if method not in methods:
                continue
            low, top = scores.normal[method, seed]
            highest = scores.maps[method, seed].max(axis=(1, 2))
            for group, members in groups.items():
                chosen = np.isin(kinds, members)
                if not chosen.any():
                    continue
                place = {"category": category, "method": method, "seed": seed, "group": group}
                found = float((highest[chosen] > top).mean())
                rows.append(place | {"stretch": top / max(low, 1e-12), "found": found})
    return pd.DataFrame(rows)


def tail_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a method: the stretch of normal scores, and the share of defects beyond it.

    Args:
        rows: of `tails`.

    Returns:
        As text: "highest / median normal pixel", a geometric mean over categories and seeds; and
        for each group "above it: <group>", a mean.
    """
    stretch = rows.groupby("method", sort=False)["stretch"].agg(lambda x: np.exp(np.log(x).mean()))
    found = rows.pivot_table(index="method", columns="group", values="found", sort=False)
    table = found.map("{:.2f}".format).rename(columns="above it: {}".format)
    table.insert(0, "highest / median normal pixel", stretch.map("{:.2f}".format))
    return table.rename(index=METHOD_NAMES).rename_axis(columns=None)


def tail_report(rows: pd.DataFrame) -> str:
    """Return, in a sentence, what training does to the highest scores of normal scans."""
    wide = rows.pivot_table(index="category", columns="method", values="stretch", aggfunc="mean")
    if not {"w1", "g2sf"} <= set(wide):
        return "Needs G²SF and its control, w = 1."
    factor = wide["g2sf"] / wide["w1"]
    share = rows.pivot_table(index="category", columns="method", values="found", aggfunc="mean")
    gain = (share["g2sf"] - share["w1"]).mean()
    return (
        f"Training moves the highest normal pixel to {factor.min():.1f} ({factor.idxmin()}) up to "
        f"{factor.max():.1f} times ({factor.idxmax()}) as many median pixels as with w = 1; the "
        f"share of defects above it changes by {gain:+.2f}, mean over categories and groups."
    )

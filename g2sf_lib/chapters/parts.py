"""Chapter 10: distances, scale factors and the fused score on scans, and their false alarms."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from g2sf_lib.ablations import orderings, paired
from g2sf_lib.benchmark import CellMaps, Comparison, Scores, Split, checked_seeds
from g2sf_lib.chapters.data import some_scans
from g2sf_lib.chapters.distributions import RECALL, counted_pixels, recall_threshold
from g2sf_lib.chapters.wording import p_text, with_error, with_spread
from g2sf_lib.config import Config
from g2sf_lib.datasets import Sample
from g2sf_lib.detector import G2SF, counted_cells
from g2sf_lib.experiments import checked_categories, fitted
from g2sf_lib.fusion import local_metric
from g2sf_lib.gallery import Case, case_maps, gallery_cases
from g2sf_lib.quantities import Neighbourhoods, TestCells, cell_quantity, neighbourhoods
from g2sf_lib.results import defect_groups
from g2sf_lib.stats import LEVEL

PART_NAMES = {  # in the order of Figure 7; then the control, which the paper does not have
    "s_rgb": "$s^R$",
    "s_pcd": "$s^P$",
    "w_rgb": "$w^R$",
    "w_pcd": "$w^P$",
    "fused": "$s_i$ (final)",
    "w1": "$w = 1$ (control)",
}
PLAIN = {"s_rgb": "sᴿ", "s_pcd": "sᴾ", "w_rgb": "wᴿ", "w_pcd": "wᴾ"}  # outputs have no formulas
WORDS = {  # the same without formulas, for tables and axes
    "s_rgb": "distance, RGB",
    "s_pcd": "distance, points",
    "w_rgb": "scale factor, RGB",
    "w_pcd": "scale factor, points",
    "fused": "final score",
    "w1": "control, w = 1",
}
FACTORS = ("w_rgb", "w_pcd")


@dataclass(frozen=True)
class CountedCells:
    """The cells of a category's test scans whose scores count.

    Attributes:
        among: (n,) bool, which of all foreground cells they are.
        scan: (N,) number of the scan of each counted cell.
        is_anomalous: (N,) bool.
        is_normal: (N,) bool, the cells of good scans; other cells of defective scans are neither.
    """

    among: np.ndarray
    scan: np.ndarray
    is_anomalous: np.ndarray
    is_normal: np.ndarray


@dataclass(frozen=True)
class Parts(Comparison):
    """The parts of one score, as if each were a method: the names are those of `PART_NAMES`.

    Attributes:
        truth: category -> `CountedCells`.
        table: empty, since metrics of parts are measured in chapter 06.
    """

    truth: dict[str, CountedCells]

    def cells(self, category: str, part: str, seed: int) -> np.ndarray:
        """Return (N,) what a part says of the counted cells of a category."""
        values = self.scores[category].maps.cells[part, seed]
        return values.numpy()[self.truth[category].among]


def part_scores(
    config: Config,
    categories: Sequence[str] | str | None = None,
    seeds: Sequence[int] | str = (0,),
    progress: bool = True,
) -> Parts:
    """Return what the parts of G2SF say of the test scans; detectors are trained where missing.

    Args:
        config: of the run; its category and seed are not read.
        categories: to look at; None: all that are there.
        seeds: training seeds.
        progress: whether progress bars are shown.
    """
    categories, seeds = checked_categories(config, categories), checked_seeds(seeds)
    scores, truth = {}, {}
    for category in tqdm(categories, desc="parts", disable=not progress):
        of_category = dataclasses.replace(config, category=category)
        test, validation = TestCells(of_category), Split(of_category, "validation")
        cells, normal = {}, {}
        for seed in seeds:
            detector = fitted(dataclasses.replace(of_category, seed=seed), progress)
            found = neighbourhoods(detector, test)
            cells |= {(name, seed): x for name, x in _parts(config, detector, found).items()}
            seen = detector.score_cells(validation.feat)
            found = Neighbourhoods(seen.s.cpu(), seen.w.cpu(), seen.ell.cpu())
            normal |= {(name, seed): x for name, x in _parts(config, detector, found).items()}
        truth[category] = _counted(test)
        scores[category] = _scores(of_category, test, validation, cells, normal, truth[category])
    return Parts(config, categories, tuple(PART_NAMES), seeds, scores, pd.DataFrame(), truth)


def _parts(config: Config, detector: G2SF, found: Neighbourhoods) -> dict[str, Tensor]:
    """Return (n,) each of `PART_NAMES`, from what a detector computes of n cells."""
    sigma, ones = detector.metric.sigma().detach().cpu(), torch.ones_like(found.w)
    plain = Neighbourhoods(found.s, ones, local_metric(ones, found.s, sigma))
    parts = {name: (name, found) for name in PART_NAMES} | {"w1": ("fused", plain)}
    return {name: cell_quantity(*given, config) for name, given in parts.items()}


def _counted(test: Split) -> CountedCells:
    """Return which cells of the test scans count, and what is true of them."""
    rule = test.config.scoring.silhouette
    counts = [counted_cells(p, rule).cpu() for p in test.patches]
    among = torch.cat([c[p.foreground.cpu()] for c, p in zip(counts, test.patches, strict=True)])
    scan = np.repeat(np.arange(len(counts)), [int(c.sum()) for c in counts])
    bad = torch.cat([lab.cpu()[c] for lab, c in zip(test.cell_labels, counts, strict=True)])
    is_good = np.array([label == "good" for label in test.truth[1]])
    return CountedCells(among.numpy(), scan, bad.numpy(), is_good[scan])


def _scores(
    config: Config,
    test: Split,
    validation: Split,
    cells: dict[tuple[str, int], Tensor],
    normal: dict[tuple[str, int], Tensor],
    truth: CountedCells,
) -> Scores:
    """Return the parts as `Scores`, whose maps are made when they are asked for."""
    names, labels, masks = test.truth
    maps = CellMaps(cells, test.patches, config.scoring)
    image = {
        (*key, config.scoring.silhouette): np.maximum.reduceat(
            values.numpy()[truth.among], np.flatnonzero(np.diff(truth.scan, prepend=-1))
        )
        for key, values in cells.items()
    }
    inside = counted_pixels(validation.patches, config.scoring)
    levels = {}
    for key, of_normal in CellMaps(normal, validation.patches, config.scoring).items():
        levels[key] = (float(np.median(of_normal[inside])), float(of_normal.max()))
    return Scores(names, labels, masks, maps, image, levels)


# ---------------------------------------------------------------- false alarms


def _thresholds(
    parts: Parts, category: str, seed: int, recall: float, kinds: Sequence[str] | None = None
) -> dict[str, float]:
    """Return part -> the highest threshold that a share of the anomalous cells reaches.

    Args:
        parts: of the test scans.
        category: whose cells.
        seed: of the training.
        recall: the share.
        kinds: of defect, whose cells are to be found; None: of every kind.

    Raises:
        ValueError: for a share that is none, or where no anomalous or no normal cell counts.
    """
    truth = parts.truth[category]
    labels = np.array(parts.scores[category].labels)[truth.scan]
    wanted = truth.is_anomalous & (kinds is None or np.isin(labels, kinds))
    if not 0 < recall <= 1:
        raise ValueError(f"recall is {recall!r}; expected a share above 0, up to 1")
    if not wanted.any() or not truth.is_normal.any():
        raise ValueError(
            f"{category}: {wanted.sum()} anomalous cells and {truth.is_normal.sum()} cells of "
            "good scans count; expected some of both"
        )
    return {
        name: recall_threshold(np.sort(parts.cells(category, name, seed)[wanted]), recall)
        for name in parts.methods
    }


def _flagged(parts: Parts, category: str, seed: int, *what) -> dict[str, np.ndarray]:
    """Return part -> (N,) bool, which counted cells are at or above its threshold."""
    bounds = _thresholds(parts, category, seed, *what)
    return {name: parts.cells(category, name, seed) >= bound for name, bound in bounds.items()}


def part_alarms(
    parts: Parts, recall: float = RECALL, kinds: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return how many normal cells each part flags where it finds its share of anomalous ones.

    Every part has a threshold of its own: the highest that at least a share `recall` of the
    anomalous cells of the category reaches. Cells are the counted ones, before smoothing.

    Args:
        parts: of the test scans.
        recall: the share that is found.
        kinds: of defect, whose cells are to be found; None: of every kind.

    Returns:
        A row a category, seed and part: ``fpr``, the share of the cells of good scans at or above
        the threshold.

    Raises:
        ValueError: as `_thresholds`.
    """
    rows = []
    for category, seed in itertools.product(parts.categories, parts.seeds):
        is_normal = parts.truth[category].is_normal
        for name, flags in _flagged(parts, category, seed, recall, kinds).items():
            fpr = float(flags[is_normal].mean())
            rows.append({"category": category, "seed": seed, "part": name, "fpr": fpr})
    return pd.DataFrame(rows)


def group_alarms(parts: Parts, recall: float = RECALL) -> pd.DataFrame:
    """Return `part_alarms` for each group of defects, by what they change where that is known.

    Returns:
        Its columns, and ``group``. A category without a group's defects has no row of it.
    """
    rows = []
    for category in parts.categories:
        one = dataclasses.replace(parts, categories=(category,))
        is_bad = parts.truth[category].is_anomalous
        labels = np.array(parts.scores[category].labels)[parts.truth[category].scan]
        for group, kinds in defect_groups(parts.config, labels).items():
            if np.isin(labels[is_bad], kinds).any():
                rows.append(part_alarms(one, recall, kinds).assign(group=group))
    return pd.concat(rows, ignore_index=True)


def alarm_flow(parts: Parts, recall: float = RECALL) -> pd.DataFrame:
    """Return what the final score makes of the false alarms of each scale factor.

    Args:
        parts: of the test scans.
        recall: as in `part_alarms`.

    Returns:
        A row a category, seed and scale factor, ``part``. Shares of all cells of good scans:
        ``gone``, flagged by the factor and not by the final score; ``kept``, by both; ``new``, by
        the final score alone. Distances there, the mean of both modalities in normal units:
        ``s_gone``, ``s_kept``, ``s_new`` (NaN where there is no such cell).
    """
    rows = []
    for category, seed in itertools.product(parts.categories, parts.seeds):
        is_normal = parts.truth[category].is_normal
        s = [parts.cells(category, name, seed)[is_normal] for name in ("s_rgb", "s_pcd")]
        distance = np.mean(s, axis=0)
        flags = _flagged(parts, category, seed, recall)
        final = flags["fused"][is_normal]
        for name in FACTORS:
            flagged = flags[name][is_normal]
            sides = {"gone": flagged & ~final, "kept": flagged & final, "new": final & ~flagged}
            row = {"category": category, "seed": seed, "part": name}
            row |= {side: float(chosen.mean()) for side, chosen in sides.items()}
            for side, chosen in sides.items():
                row[f"s_{side}"] = float(distance[chosen].mean()) if chosen.any() else np.nan
            rows.append(row)
    return pd.DataFrame(rows)


def _spread(values: pd.Series) -> str:
    """Return mean ± standard deviation of a value a seed, in per cent; "–" is no spread."""
    return with_spread(100 * values.mean(), 100 * values.std(ddof=1), ".1f", has_dash=True)


def part_alarm_table(alarms: pd.DataFrame) -> pd.DataFrame:
    """Return a row a part, a column a category and "mean": per cent, ± deviation over seeds.

    Args:
        alarms: of `part_alarms`.
    """
    rows = {}
    for name, of_part in alarms.groupby("part", sort=False):
        by_category = of_part.groupby("category", sort=False)["fpr"]
        row = {category: _spread(values) for category, values in by_category}
        row["mean"] = _spread(of_part.groupby("seed")["fpr"].mean())
        rows[WORDS[name]] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def group_alarm_table(alarms: pd.DataFrame) -> pd.DataFrame:
    """Return a row a part, a column a group: per cent, mean over categories ± deviation over seeds.

    Args:
        alarms: of `group_alarms`.
    """
    by_seed = alarms.groupby(["part", "group", "seed"], sort=False)["fpr"].mean()
    table = by_seed.groupby(["part", "group"], sort=False).agg(_spread).unstack()
    return table[list(dict.fromkeys(alarms["group"]))].rename(index=WORDS).rename_axis(None)


def alarm_dots(alarms: pd.DataFrame) -> pd.DataFrame:
    """Return the share of normal cells that no part flags, for `plots.method_dots`: more is better.

    Columns: ``method``, ``category``, ``normal cells left alone``, ``error`` (standard error over
    seeds, absent for one seed).
    """
    groups = alarms.assign(left=1 - alarms["fpr"]).groupby(["category", "part"], sort=False)["left"]
    table = pd.DataFrame({"normal cells left alone": groups.mean(), "error": groups.sem()})
    table = table.reset_index().rename(columns={"part": "method"})
    return table.replace({"method": WORDS}).dropna(axis="columns")


def part_report(alarms: pd.DataFrame) -> str:
    """Return, in Markdown, what becomes here of the paper's claim, and what the control adds.

    The claim: either scale factor flags more normal cells than the final score does. The same is
    asked of either distance. Four comparisons, corrected by Holm's rule; the control apart.
    """
    pairs = [(name, "fused") for name in (*FACTORS, "s_rgb", "s_pcd")]
    table = orderings(alarms, pairs, "fpr", key="part")
    means = alarms.groupby("part")["fpr"].mean()
    words = {
        "holds": "**holds here**",
        "reversed": "is **reversed here**",
        "open": "**stays open here**",
    }
    lines = []
    for row in table.itertuples():
        is_factor = row.higher in FACTORS
        lines.append(
            f"- {'The claim' if is_factor else 'The same'} for {PLAIN[row.higher]} "
            f"{words[row.verdict]}: it flags {means[row.higher]:.1%} of the normal cells, the "
            f"final score {means['fused']:.1%} ({_gap(row.difference, row.se, row.p)}; more in "
            f"{row.wins} of {row.num} pairs of category and seed)."
        )
    control = paired(alarms, "fused", "w1", "fpr", key="part")
    lines.append(
        f"- With w = 1, distances alone, {means['w1']:.1%} are flagged; the learned factors "
        f"change that by {_gap(control['difference'], control['se'], control['p'])}: "
        + _of_control(control)
    )
    if alarms["category"].nunique() == 1 and alarms["seed"].nunique() > 1:
        lines.append("- One category: p is over training seeds, and says nothing of others.")
    return "\n".join(lines)


def _gap(difference: float, se: float, p: float) -> str:
    """Return a difference of shares in points of per cent, its error, and p."""
    return f"{with_error(100 * difference, 100 * se, '.1f')} points, {p_text(p)}"


def _of_control(control: dict[str, float]) -> str:
    """Return whether the learned factors are worth it beside distances alone."""
    if not control["p"] < LEVEL:
        return "whether they suppress anything that distances do not is open."
    if control["difference"] < 0:
        return "they suppress what distances alone do not."
    return "they add false alarms to those of distances alone."


def flow_report(flow: pd.DataFrame) -> str:
    """Return, in Markdown, how many alarms of the scale factors the final score drops, and why.

    Args:
        flow: of `alarm_flow`. Means are over seeds, then categories.
    """
    lines = []
    for name in FACTORS:
        of_part = flow[flow["part"] == name].groupby("category").mean(numeric_only=True)
        mean = of_part.mean()
        gone, kept, new = (1000 * mean[side] for side in ("gone", "kept", "new"))
        flagged = gone + kept
        dropped = f"{gone / flagged:.0%}" if flagged else "none"
        unrelated = 1 - mean["kept"] - mean["new"]
        net = "fewer" if gone > new else "more" if gone < new else "as many"
        far = {side: mean[f"s_{side}"] for side in ("gone", "kept", "new")}
        known = {side: f"{value:.2f}" if value == value else "–" for side, value in far.items()}
        lines.append(
            f"- {PLAIN[name]}: of 1000 normal cells it flags {flagged:.0f}. The final score "
            f"drops {gone:.0f} of them ({dropped}; a score that flags as many cells and knows "
            f"nothing of w would drop {unrelated:.0%}), keeps {kept:.0f}, and flags {new:.0f} "
            f"others: {net} in all. Mean distance, in units of normal cells: {known['gone']} "
            f"where it drops, {known['kept']} where it keeps, {known['new']} where it adds. "
            + _of_distance(far)
        )
    return "\n".join(lines)


def _of_distance(far: dict[str, float]) -> str:
    """Return whether distances explain what is dropped."""
    if not (far["gone"] == far["gone"] and far["kept"] == far["kept"]):
        return "There is nothing to compare."
    if far["gone"] < far["kept"]:
        return "What it drops lies closer to the bank, as the paper says."
    return "What it drops does not lie closer to the bank: not the paper's reason."


# ---------------------------------------------------------------- scans that are shown


def part_cases(parts: Parts, recall: float = RECALL) -> list[Case]:
    """Return a scan of each category, and those that the paper's claim is about, by rule.

    The rules, for the first seed: in each category the defective scan with the median final
    score; of the good scans of all categories the one that most defective ones score below
    (`gallery_cases`); the one with most cells that a scale factor flags and the final score does
    not; and the one with most cells the other way round. The last two are chosen of good scans
    that are not there yet, and left out where they have no such cell.

    Args:
        parts: of the test scans.
        recall: as in `part_alarms`.
    """
    seed = parts.seeds[0]
    chosen = gallery_cases(parts, "fused", seed)
    cases = [case for case in chosen if case.rule == "median find"] + chosen[-1:]
    gone, new = [], []
    for category in parts.categories:
        labels = parts.scores[category].labels
        flags = _flagged(parts, category, seed, recall)
        factors, final = flags["w_rgb"] | flags["w_pcd"], flags["fused"]
        scan, is_normal = parts.truth[category].scan, parts.truth[category].is_normal
        for number in sorted(set(scan[is_normal])):
            here = scan == number
            gone.append((float((factors & ~final)[here].mean()), category, number, labels[number]))
            new.append((float((final & ~factors)[here].mean()), category, number, labels[number]))
    for rule, found in (("w's alarms\nmost dropped", gone), ("final score's\nown alarms", new)):
        there = {(case.category, case.number) for case in cases}
        found = [one for one in found if one[0] > 0 and one[1:3] not in there]
        if found:
            _, category, number, label = max(found, key=lambda one: one[0])
            cases.append(Case(rule, category, int(number), label))
    return cases


def part_maps(
    parts: Parts, cases: Sequence[Case]
) -> tuple[list[Sample], dict[str, list[np.ndarray]], tuple[str, ...]]:
    """Return the scans of some cases and the columns of Figure 7, for `plots.method_panels`.

    Distances and final score are in units of validation scans, as in `case_maps`. Scale factors
    are w itself, enlarged and smoothed as every map is, but as logarithms: so a cell that does
    not count, and the background, has w = 1, and stretching and shrinking weigh the same.

    Returns:
        Scans; heading -> a map a scan; and the headings of the scale factors.
    """
    seed = parts.seeds[0]
    columns = {PART_NAMES[name]: (name, seed) for name in PART_NAMES if name != "w1"}
    factors = tuple(PART_NAMES[name] for name in FACTORS)
    scaled = {name: key for name, key in columns.items() if name not in factors}
    samples, maps = case_maps(parts, cases, scaled)
    for heading, key in columns.items():
        if heading in factors:
            maps[heading] = [_factor_map(parts, case, key) for case in cases]
    return samples, {heading: maps[heading] for heading in columns}, factors


def _factor_map(parts: Parts, case: Case, key: tuple[str, int]) -> np.ndarray:
    """Return (map_size, map_size), w of a scan; 1 where no cell counts."""
    known = parts.scores[case.category].maps
    scoring = dataclasses.replace(known.scoring, quantise=False)  # logarithms have a sign
    logarithms = CellMaps({key: known.cells[key].log()}, known.patches, scoring)
    return np.exp(logarithms.one(key, case.number))


def alarm_cells(
    parts: Parts, cases: Sequence[Case], recall: float = RECALL
) -> tuple[list[Sample], list[dict[str, np.ndarray]], tuple[int, int]]:
    """Return which cells of some scans are flagged by what, for `plots.cell_classes`.

    Args:
        parts: of the test scans.
        cases: what is shown; all of data with the same grid.
        recall: as in `part_alarms`.

    Returns:
        Scans; name -> (cells,) bool for each; (rows, columns) of the grid.
    """
    samples, classes = [], []
    for case in cases:
        of_case = dataclasses.replace(parts.config, category=case.category)
        samples += some_scans(of_case, "test", [case.number])
        flags = _flagged(parts, case.category, parts.seeds[0], recall)
        factors, final = flags["w_rgb"] | flags["w_pcd"], flags["fused"]
        here = parts.truth[case.category].scan == case.number
        patches = parts.scores[case.category].maps.patches[case.number]
        counted = counted_cells(patches, parts.config.scoring.silhouette).cpu().numpy()
        sides = {
            "a scale factor alone": factors & ~final,
            "both": factors & final,
            "final score alone": final & ~factors,
        }
        found = {}
        for name, side in sides.items():
            found[name] = np.zeros(len(counted), dtype=bool)
            found[name][counted] = side[here]
        classes.append(found)
    return samples, classes, patches.grid


def factor_report(parts: Parts) -> str:
    """Return, in a sentence, whether the two scale factors say different things."""
    found = []
    for category, seed in itertools.product(parts.categories, parts.seeds):
        first, second = (np.log(parts.cells(category, name, seed)) for name in FACTORS)
        if first.std() and second.std():
            found.append(float(np.corrcoef(first, second)[0, 1]))
    if not found:
        return "Scale factors are constants here: LSPN has collapsed."
    ends = dict.fromkeys(f"{end(found):.2f}" for end in (min, max))
    return (
        "Correlation of log wᴿ and log wᴾ over counted cells, each category and seed: "
        f"{' to '.join(ends)}. At 1 both factors are one, and say nothing of which modality."
    )


def parts_scope(parts: Parts) -> str:
    """Return, in a sentence, what the numbers are about."""
    bad = sum(int(truth.is_anomalous.sum()) for truth in parts.truth.values())
    good = sum(int(truth.is_normal.sum()) for truth in parts.truth.values())
    num = len(parts.seeds)
    spread = f"{num} training seeds" if num > 1 else "one training seed, so no spread is known"
    return (
        f"{', '.join(parts.categories)}; {spread}. {bad} anomalous cells and {good} cells of good "
        f"scans count. Maps are of seed {parts.seeds[0]}."
    )

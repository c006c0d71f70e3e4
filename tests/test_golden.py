"""What a small run computes, to six digits: numbers that no change of the code may move."""

import numpy as np
import pytest
import torch

from g2sf_lib.config import make_config
from g2sf_lib.datasets.preprocess import preprocess
from g2sf_lib.datasets.procedural import render_scan
from g2sf_lib.evaluation import aupro, image_auroc, pixel_auroc
from g2sf_lib.features import FeatureExtractor, cell_labels, foreground_features, pack
from g2sf_lib.memory import MemoryBank, Standardiser
from g2sf_lib.synthesis import synthesise_set

pytestmark = pytest.mark.usefixtures("one_thread")


def numbers(array):
    """Return mean, spread, and a mean that knows the places of an array's values."""
    values = np.asarray(array, dtype=np.float64).ravel()
    return [values.mean(), values.std(), (values * np.linspace(0, 1, values.size)).mean()]


def test_from_a_scan_to_scores():
    config = make_config("smoke", category="foam")
    found = {}
    raw = [render_scan("foam", 3, 128), render_scan("foam", 4, 128, "combined")]
    found["raw"] = numbers(raw[1].xyz) + numbers(raw[1].rgb)
    scans = [preprocess(scan, config.preprocess) for scan in raw]
    found["prepared"] = numbers(scans[1].xyz) + numbers(scans[1].rgb)
    settings = config.synthesis.replace(augment="published")
    (pasted,) = synthesise_set(scans[:1], scans[1:], scans[1:], 1, "foam", settings, 5)
    found["pasted"] = numbers(pasted.xyz) + numbers(pasted.rgb)
    extract = FeatureExtractor(config.features, torch.device("cpu"))
    packed = [pack(extract(scan)) for scan in scans]
    labels = cell_labels(scans[1].mask, config.features.grid_size)[packed[1].foreground]
    train, test = (foreground_features([one]) for one in packed)
    standardiser = Standardiser.fit(train, "both")
    for mod in ("pcd", "rgb"):
        bank = MemoryBank.fit(standardiser(train)[mod], 0.1)
        found[mod] = numbers(test[mod][:])
        found[f"{mod} bank"] = numbers(bank.rows)
        scores = bank.query(standardiser(test)[mod], 3)[1].mean(1)
        found[f"{mod} scores"] = [*numbers(scores), image_auroc(scores, labels)]
    maps, masks = (np.zeros((2, 28, 28)) for _ in range(2))
    maps[1].flat[np.flatnonzero(packed[1].foreground)] = scores
    masks[1].flat[np.flatnonzero(packed[1].foreground)] = labels
    found["pixels"] = [pixel_auroc(maps, masks), aupro(maps, masks, (0.3,))[0.3]]
    found["published"] = [aupro(maps, masks, (0.3,), num_thresholds=100)[0.3]]
    assert found == {name: pytest.approx(value, rel=1e-5) for name, value in GOLDEN.items()}


GOLDEN = {
    "raw": [0.1459168, 0.209474, 0.07623164, 138.1245, 32.18623, 68.20944],
    "prepared": [0.05580711, 0.1439444, 0.02846992, 67.35895, 84.97872, 34.01082],
    "pasted": [0.06070144, 0.1494688, 0.02786026, 72.349, 84.78048, 32.70108],
    "pcd": [0.133496, 0.2688888, 0.06633746],
    "pcd bank": [205.5588, 115.4062, 109.8209],
    "pcd scores": [0.6542559, 0.1723114, 0.3218582, 1],
    "rgb": [-0.1295887, 3.624534, -0.0814774],
    "rgb bank": [154.6765, 114.8976, 73.72371],
    "rgb scores": [9.769441, 0.7001602, 4.887708, 0.2100592],
    "pixels": [0.8296107, 0.4320357],
    "published": [0.4437354],
}

"""CONTRIBUTING.md tells the truth: what it adds is scored, compared and kept like the rest."""

import re
from pathlib import Path

import numpy as np
import pytest

from g2sf_lib.baselines import METHODS
from g2sf_lib.benchmark import Split, run_methods, score_file
from g2sf_lib.config import MODALITIES
from g2sf_lib.experiments import load_banks, run_bank

BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(), flags=re.S
)
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]


@pytest.fixture
def page():
    """What the page's Python blocks define; the table of methods is put back afterwards."""
    before, names = dict(METHODS), {"__name__": "g2sf_lib.baselines.simple"}
    for block in BLOCKS:
        exec(block, names)
    yield names
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture
def ready(made_run, small_config):
    config = made_run(small_config, "cookie")
    run_bank(config)
    return config


def test_the_added_baseline_is_scored_like_any_other(page, ready):
    scores, table = run_methods(ready, ["least", "rgb"], (0,), progress=False)
    assert set(table["method"]) == {"least", "rgb"} and table["i_auroc"].between(0, 1).all()
    test, rule = Split(ready, "test"), ready.scoring.silhouette
    least = (test.distances(MODALITIES) / load_banks(ready).calibration.mean).amin(-1)
    expected = test.largest(least[:, None], rule)[:, 0].numpy()
    np.testing.assert_allclose(scores.image["least", 0, rule], expected, rtol=1e-6)
    assert score_file(ready, "least", 0).exists()


def test_the_added_row_is_trained_and_compared(page, ready):
    (row,) = page["wide_against_run"](ready, ["cookie"], [0, 1]).to_dict("records")
    assert (row["higher"], row["lower"]) == ("wide", "run") and row["num"] == 2
    assert row["verdict"] in ("holds", "reversed", "open")


def test_each_block_is_a_screenful():
    assert len(BLOCKS) == 2 and all(len(block.splitlines()) <= 30 for block in BLOCKS)

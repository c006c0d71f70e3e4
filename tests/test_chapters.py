"""What the chapters show is what it says: by hand on small numbers, and on a made-up run."""

import pytest

from g2sf_lib.experiments import run_bank

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]


@pytest.fixture
def run(small_config, made_run):
    """A config whose features are there."""
    return made_run(small_config)


@pytest.fixture
def banked(run):
    return run, run_bank(run)


LABELS = ["good", "good", "good", "good", "dent", "stain", "stain"]


# ---------------------------------------------------------------- benchmark

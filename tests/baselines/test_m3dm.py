"""M3DM's decision layer: against scikit-learn's own score, and what its weights mean."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import SGDOneClassSVM

from g2sf_lib.baselines.m3dm import M3DM
from g2sf_lib.config import make_config

NU, SEED = 0.5, 3
BANKS = ("pcd", "rgb", "concat")


def distances(num, seed=0, scale=(1.0, 5.0, 0.1)):
    """Distances of normal cells to three banks, each of its own size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 3, generator=generator).abs() * torch.tensor(scale)


def scans(cells):
    """Scans of thirty cells each, whose distances are known."""
    return SimpleNamespace(
        distances=lambda names: cells,
        largest=lambda values, rule: values.view(-1, 30, 3).amax(1),
    )


def fitted(cells, seed=SEED):
    return M3DM(make_config("smoke", seed=seed, svm_nu=NU), BANKS).fit(scans(cells))


def scored(decision, cells):
    found = scans(cells)
    of_cells = decision.score_cells(found)
    return of_cells, decision.score_images(found, of_cells, "count")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scores_are_those_of_the_support_vector_machine():
    cells, new = distances(600), distances(60, seed=1)
    scale = cells.mean(0)
    both = [(cells, new), (cells.view(20, 30, 3).amax(1), new.view(2, 30, 3).amax(1))]
    for (rows, other), score in zip(both, scored(fitted(cells), new), strict=True):
        machine = SGDOneClassSVM(nu=NU, random_state=np.random.RandomState(SEED))
        machine.fit((rows / scale).double().numpy())
        expected = machine.score_samples((other / scale).double().numpy())
        assert expected.min() > 0
        np.testing.assert_allclose(score.numpy(), expected, rtol=1e-5)


def test_a_larger_distance_to_any_bank_is_more_anomalous():
    decision, cells = fitted(distances(600)), distances(30, seed=2)
    for bank in range(3):
        farther = cells.clone()
        farther[:, bank] *= 2
        pairs = zip(scored(decision, farther), scored(decision, cells), strict=True)
        assert all((more > less).all() for more, less in pairs)


def test_scores_by_hand_and_never_negative():
    decision = M3DM(make_config("smoke"), BANKS[:2])
    decision.scale = torch.tensor([2.0, 4.0])
    decision.cell_weight, decision.image_weight = torch.tensor([[1.0, 3.0], [1.0, -1.0]])
    rows = torch.tensor([[2.0, 4.0], [4.0, 2.0], [0.0, 8.0]])
    found = scans(rows)
    found.largest = lambda values, rule: values
    assert decision.score_cells(found).tolist() == [4.0, 3.5, 6.0]
    assert decision.score_images(found, None, "count").tolist() == [0.0, 1.5, 0.0]  # -2 is cut


def test_the_unit_of_a_bank_does_not_change_a_score():
    cells, new, unit = distances(600), distances(60, seed=1), torch.tensor([1.0, 64.0, 0.125])
    pairs = zip(scored(fitted(cells * unit), new * unit), scored(fitted(cells), new), strict=True)
    for other, ours in pairs:
        torch.testing.assert_close(other, ours)


def test_same_seed_same_weights_and_the_global_generator_is_left_alone():
    cells, before = distances(600), np.random.get_state()[1].tobytes()
    found = [vars(fitted(cells, seed)) for seed in (SEED, SEED, SEED + 1)]
    assert np.random.get_state()[1].tobytes() == before
    for name in ("cell_weight", "image_weight"):
        assert torch.equal(found[0][name], found[1][name])
        assert not torch.equal(found[0][name], found[2][name])
    assert not torch.equal(found[0]["cell_weight"], found[0]["image_weight"])


@pytest.mark.parametrize("bank", range(3))
def test_distances_that_are_all_zero_are_refused(bank):
    cells = distances(60)
    cells[:, bank] = 0
    with pytest.raises(ValueError, match="distances to a bank are all zero.*bank_fraction below 1"):
        fitted(cells)

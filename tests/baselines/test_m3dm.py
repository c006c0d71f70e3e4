"""M3DM's decision layer: against scikit-learn's own score, and what its weights mean."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import SGDOneClassSVM

from g2sf_lib.baselines.m3dm import DecisionFusion

NU, SEED = 0.5, 3


def distances(num, seed=0, scale=(1.0, 5.0, 0.1)):
    """Distances of normal cells to three banks, each of its own size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 3, generator=generator).abs() * torch.tensor(scale)


@pytest.fixture
def decision():
    cells = distances(600)
    return DecisionFusion.fit(cells, cells.view(20, 30, 3).amax(1), NU, SEED)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scores_are_those_of_the_support_vector_machine(decision):
    cells = distances(600)
    images = cells.view(20, 30, 3).amax(1)
    scale = cells.mean(0)
    new = distances(50, seed=1)
    for rows, score in ((cells, decision.score_cells), (images, decision.score_images)):
        machine = SGDOneClassSVM(nu=NU, random_state=np.random.RandomState(SEED))
        machine.fit((rows / scale).double().numpy())
        expected = machine.score_samples((new / scale).double().numpy())
        assert expected.min() > 0
        np.testing.assert_allclose(score(new).numpy(), expected, rtol=1e-5)


def test_a_larger_distance_to_any_bank_is_more_anomalous(decision):
    assert (decision.cell_weight > 0).all() and (decision.image_weight > 0).all()
    cells = distances(20, seed=2)
    for bank in range(3):
        farther = cells.clone()
        farther[:, bank] *= 2
        assert (decision.score_cells(farther) > decision.score_cells(cells)).all()
        assert (decision.score_images(farther) > decision.score_images(cells)).all()


def test_scores_by_hand_and_never_negative():
    decision = DecisionFusion(
        scale=torch.tensor([2.0, 4.0]),
        cell_weight=torch.tensor([1.0, 3.0]),
        image_weight=torch.tensor([1.0, -1.0]),
    )
    rows = torch.tensor([[2.0, 4.0], [4.0, 2.0], [0.0, 8.0]])
    assert decision.score_cells(rows).tolist() == [4.0, 3.5, 6.0]
    assert decision.score_images(rows).tolist() == [0.0, 1.5, 0.0]  # -2 is cut at zero


def test_equal_banks_get_equal_weights_whatever_their_unit():
    one = distances(400)[:, :1]
    cells = one * torch.tensor([1.0, 1.0, 4.0])  # a power of two: the quotients are the same
    found = DecisionFusion.fit(cells, cells.view(20, 20, 3).amax(1), NU, SEED)
    for weight in (found.cell_weight, found.image_weight):
        torch.testing.assert_close(weight, weight[:1].expand(3))


def test_the_unit_of_a_bank_does_not_change_a_score(decision):
    cells, unit = distances(600), torch.tensor([1.0, 64.0, 0.125])
    images = cells.view(20, 30, 3).amax(1)
    other = DecisionFusion.fit(cells * unit, images * unit, NU, SEED)
    new = distances(50, seed=1)
    torch.testing.assert_close(other.score_cells(new * unit), decision.score_cells(new))
    torch.testing.assert_close(other.score_images(new * unit), decision.score_images(new))


def test_cells_and_images_have_weights_of_their_own(decision):
    assert not torch.equal(decision.cell_weight, decision.image_weight)


def test_same_seed_same_weights_and_the_global_generator_is_left_alone(decision):
    cells = distances(600)
    images = cells.view(20, 30, 3).amax(1)
    before = np.random.get_state()[1].tobytes()
    same = DecisionFusion.fit(cells, images, NU, SEED)
    other = DecisionFusion.fit(cells, images, NU, SEED + 1)
    assert np.random.get_state()[1].tobytes() == before
    for name in ("scale", "cell_weight", "image_weight"):
        assert torch.equal(getattr(same, name), getattr(decision, name))
        assert getattr(same, name).dtype == torch.float32
    assert torch.equal(other.scale, decision.scale)
    assert not torch.equal(other.cell_weight, decision.cell_weight)


def test_nu_is_read(decision):
    cells = distances(600)
    other = DecisionFusion.fit(cells, cells.view(20, 30, 3).amax(1), 0.1, SEED)
    assert not torch.equal(other.cell_weight, decision.cell_weight)


@pytest.mark.parametrize("bank", range(3))
def test_distances_that_are_all_zero_are_refused(bank):
    cells = distances(60)
    cells[:, bank] = 0
    with pytest.raises(ValueError, match="distances to a bank are all zero.*bank_fraction below 1"):
        DecisionFusion.fit(cells, cells[:6], NU, SEED)

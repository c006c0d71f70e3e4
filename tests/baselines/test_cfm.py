"""Crossmodal mapping: normal pairs are predicted, what is odd in either or both is not."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from g2sf_lib.baselines import cfm as module
from g2sf_lib.baselines.cfm import CFM, Crossmodal
from g2sf_lib.config import make_config
from g2sf_lib.memory import Rows

pytestmark = pytest.mark.usefixtures("one_thread")

DIMS = {"pcd": 9, "rgb": 14}


def train(feat, epochs=2, seed=0, folder=None):
    """The networks, trained on standardised features of normal cells."""
    settings = {"cfm_epochs": epochs, "cfm_batch_size": 64, "cfm_learning_rate": 3e-3}
    cfm = CFM(make_config("smoke", device="cpu", seed=seed, **settings))
    return cfm.fit(SimpleNamespace(standard=feat), folder).network


def world(num, seed):
    """Pairs of features that both follow from the same two hidden numbers, as normal cells do."""
    fixed = torch.Generator().manual_seed(77)
    lift = {mod: 2 * torch.randn(2, dim, generator=fixed) for mod, dim in DIMS.items()}
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.rand(num, 2, generator=draw) * 3 - 1.5
    return {
        mod: torch.sin(hidden @ lift[mod]) + 0.02 * torch.randn(num, dim, generator=draw)
        for mod, dim in DIMS.items()
    }


@pytest.fixture(scope="module")
def trained():
    return train(world(1500, 0), epochs=20)


def auroc(trained, normal, odd):
    scores = torch.cat([trained.errors(x).prod(1) for x in (normal, odd)])
    labels = [0] * len(normal["rgb"]) + [1] * len(odd["rgb"])
    return roc_auc_score(labels, scores.numpy())


@pytest.mark.parametrize("which", [("pcd",), ("rgb",), ("pcd", "rgb")])
def test_a_planted_outlier_scores_above_unseen_normal_cells(trained, which):
    normal, odd = world(400, 1), world(400, 2)
    for mod in which:
        odd[mod] = torch.randn(400, DIMS[mod], generator=torch.Generator().manual_seed(3))
    assert auroc(trained, normal, odd) > 0.97


def test_normal_features_that_do_not_belong_together_score_high(trained):
    """Each of them is normal on its own: no bank of one modality would say anything."""
    normal, odd = world(400, 1), world(400, 2)
    turn = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    odd["pcd"] = odd["pcd"][turn]
    assert auroc(trained, normal, odd) > 0.95


def test_errors_and_score_by_hand():
    """Networks that always say the same; the angle to the truth is 90, 180, 0 degrees."""
    cfm = Crossmodal({"pcd": 2, "rgb": 2})
    for parameter in cfm.parameters():
        parameter.detach().zero_()
    cfm.to_pcd[4].bias.data = torch.tensor([3.0, 0.0])
    cfm.to_rgb[4].bias.data = torch.tensor([0.0, 0.5])
    feat = {
        "pcd": torch.tensor([[0.0, 7.0], [-2.0, 0.0], [5.0, 0.0]]),
        "rgb": torch.tensor([[0.0, -4.0], [1.0, 1.0], [1.0, 0.0]]),
    }
    half = math.sqrt(2 - math.sqrt(2))  # chord of 45 degrees
    expected = torch.tensor([[math.sqrt(2), 2.0], [2.0, half], [0.0, math.sqrt(2)]])
    assert torch.allclose(cfm.errors(feat), expected, atol=1e-6)


def test_cells_scored_in_blocks_are_those_of_each(trained, monkeypatch):
    feat = world(50, 4)
    whole = trained.errors(feat)
    monkeypatch.setattr(module, "_CELLS_AT_ONCE", 7)
    assert torch.allclose(trained.errors(feat), whole, atol=1e-6)
    assert whole.shape == (50, 2) and not whole.requires_grad and whole.ge(0).all()


def test_rows_train_and_score_as_tensors_do(bytes_of):
    feat = {mod: value.half() for mod, value in world(300, 0).items()}
    rows = {mod: Rows([value[:100], value[100:]]) for mod, value in feat.items()}
    whole, by_rows = train(feat), train(rows)
    assert bytes_of(by_rows.state_dict()) == bytes_of(whole.state_dict())
    assert torch.equal(by_rows.errors(rows), whole.errors(feat))


def test_same_seed_same_bytes_other_seed_other_bytes(bytes_of):
    torch.manual_seed(1)
    first = bytes_of(train(world(200, 0)).state_dict())
    torch.manual_seed(2)
    assert bytes_of(train(world(200, 0)).state_dict()) == first
    assert bytes_of(train(world(200, 0), seed=1).state_dict()) != first


def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path, kill_after, bytes_of):
    feat = world(200, 0)
    with kill_after(2):
        train(feat, 5, folder=tmp_path)
    again = train(feat, 5, folder=tmp_path)
    assert bytes_of(again.state_dict()) == bytes_of(train(feat, 5).state_dict())


@pytest.mark.gpu
def test_errors_on_a_gpu_are_those_of_the_cpu(trained):
    feat = world(50, 6)
    expected = trained.errors(feat)
    on_gpu = copy.deepcopy(trained).to("cuda").errors(feat)
    assert on_gpu.device.type == "cpu" and torch.allclose(on_gpu, expected, atol=1e-4)

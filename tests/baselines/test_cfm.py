"""Crossmodal mapping: normal pairs are predicted, what is odd in either or both is not."""

import copy
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from g2sf_lib.baselines import cfm as module
from g2sf_lib.baselines.cfm import Crossmodal, train_cfm
from g2sf_lib.config import CFMConfig
from g2sf_lib.memory import Rows

pytestmark = pytest.mark.usefixtures("one_thread")

DIMS = {"pcd": 9, "rgb": 14}
SETTINGS = CFMConfig(cfm_epochs=20, cfm_batch_size=64, cfm_learning_rate=3e-3)
CPU = torch.device("cpu")


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
    return train_cfm(world(1500, 0), SETTINGS, 0, CPU)


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


def test_networks_have_the_published_widths():
    cfm = Crossmodal({"pcd": 11, "rgb": 21})
    shapes = [tuple(layer.weight.shape) for layer in cfm.to_rgb if hasattr(layer, "weight")]
    assert shapes == [(16, 11), (16, 16), (21, 16)]


def test_the_loss_falls_from_that_of_strangers():
    feat = world(600, 0)
    losses = {}

    def keep(*args, **more):
        losses["all"] = original(*args, **more)
        return losses["all"]

    original = module.train_epochs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_epochs", keep)
        train_cfm(feat, SETTINGS, 0, CPU)
    assert losses["all"][0] > 1  # two directions, each about a right angle
    assert losses["all"][-1] < 0.3 * losses["all"][0]


def test_the_scale_of_a_feature_does_not_matter(trained):
    """Only directions are compared: the truth may be of any length where nothing reads it."""
    feat = world(50, 1)
    longer = {"pcd": feat["pcd"], "rgb": 10 * feat["rgb"]}
    assert torch.allclose(
        trained.errors(longer)[:, 1], trained.errors(feat)[:, 1], atol=1e-6
    )  # predicted from the points, which are the same


def test_cells_scored_in_blocks_are_those_of_each(trained, monkeypatch):
    feat = world(50, 4)
    whole = trained.errors(feat)
    monkeypatch.setattr(module, "_CELLS_AT_ONCE", 7)
    assert torch.allclose(trained.errors(feat), whole, atol=1e-6)
    assert whole.shape == (50, 2) and not whole.requires_grad and whole.ge(0).all()


def test_rows_train_and_score_as_tensors_do(bytes_of):
    feat = {mod: value.half() for mod, value in world(300, 0).items()}
    settings = SETTINGS.replace(cfm_epochs=3)
    rows = {mod: Rows([value[:100], value[100:]]) for mod, value in feat.items()}
    whole = train_cfm(feat, settings, 0, CPU)
    by_rows = train_cfm(rows, settings, 0, CPU)
    assert bytes_of(by_rows.state_dict()) == bytes_of(whole.state_dict())
    assert torch.equal(by_rows.errors(rows), whole.errors(feat))


def test_only_batches_of_cells_are_ever_read(monkeypatch):
    rows = {mod: Rows([value]) for mod, value in world(1000, 0).items()}
    sizes = []
    read = Rows.__getitem__

    def watched(self, which):
        found = read(self, which)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(Rows, "__getitem__", watched)
    train_cfm(rows, SETTINGS.replace(cfm_epochs=2), 0, CPU)
    assert max(sizes) <= 112 and sum(sizes) == 2 * 2 * 1000


def test_same_seed_same_bytes_other_seed_other_bytes(bytes_of):
    feat, settings = world(200, 0), SETTINGS.replace(cfm_epochs=2)
    torch.manual_seed(1)
    first = train_cfm(feat, settings, 0, CPU).state_dict()
    torch.manual_seed(2)
    assert bytes_of(train_cfm(feat, settings, 0, CPU).state_dict()) == bytes_of(first)
    assert bytes_of(train_cfm(feat, settings, 1, CPU).state_dict()) != bytes_of(first)


def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path, kill_after, bytes_of):
    feat, settings = world(200, 0), SETTINGS.replace(cfm_epochs=5)
    path = tmp_path / "cfm.safetensors"
    with kill_after(2):
        train_cfm(feat, settings, 0, CPU, path)
    again = train_cfm(feat, settings, 0, CPU, path)
    assert bytes_of(again.state_dict()) == bytes_of(train_cfm(feat, settings, 0, CPU).state_dict())


def test_features_that_are_not_finite_stop_the_training():
    feat = world(100, 0)
    feat["rgb"][7, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="CFM: .*lower its learning rate"):
        train_cfm(feat, SETTINGS.replace(cfm_epochs=1), 0, CPU)


@pytest.mark.gpu
def test_errors_on_a_gpu_are_those_of_the_cpu(trained):
    feat = world(50, 6)
    expected = trained.errors(feat)
    on_gpu = copy.deepcopy(trained).to("cuda").errors(feat)
    assert on_gpu.device.type == "cpu" and torch.allclose(on_gpu, expected, atol=1e-4)

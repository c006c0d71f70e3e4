"""The loop of trained peers: what is killed goes on to the same bytes, and what is bad is told."""

import pytest
import torch
from torch import nn

from g2sf_lib.baselines.loop import build_seeded, train_epochs
from g2sf_lib.store import StoredFileError

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = torch.randn(60, 3, generator=torch.Generator().manual_seed(5))


def make():
    """A network with parameters and with buffers that training changes."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    return net, torch.optim.Adam(net.parameters(), lr=1e-2)


def train(path=None, epochs=6, seed=0, scale=1.0):
    net, optimiser = build_seeded(make, seed)

    def run_epoch(generator):
        total = 0.0
        for rows in torch.randperm(len(DATA), generator=generator).split(20):
            loss = (net(DATA[rows]) - DATA[rows]).square().mean() * scale
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) / 3
        return total

    return net, train_epochs(net, optimiser, run_epoch, epochs, seed, path, "toy")


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_a_killed_run_ends_with_the_same_bytes(epoch, tmp_path, kill_after, bytes_of):
    whole, losses = train()
    path = tmp_path / "new" / "toy.safetensors"
    with kill_after(epoch):
        train(path)
    again, losses_again = train(path)
    assert bytes_of(again.state_dict()) == bytes_of(whole.state_dict())
    assert losses_again == losses and len(losses) == 6


def test_a_finished_run_is_not_trained_again(tmp_path, bytes_of):
    path = tmp_path / "toy.safetensors"
    whole, losses = train(path)
    before = path.stat().st_mtime_ns
    again, losses_again = train(path)
    assert bytes_of(again.state_dict()) == bytes_of(whole.state_dict())
    assert losses_again == losses and path.stat().st_mtime_ns == before


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "toy.safetensors"
    train(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StoredFileError, match="toy.safetensors.*delete it"):
        train(path)


def test_a_loss_that_is_not_finite_is_refused_and_not_kept(tmp_path):
    path = tmp_path / "toy.safetensors"
    with pytest.raises(
        FloatingPointError, match="toy: the loss of epoch 1 is .*lower its learning rate"
    ):
        train(path, scale=float("inf"))
    assert not path.exists()


def test_weights_follow_the_seed_and_the_callers_random_state_stays():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, _ = build_seeded(make, 0)
    assert torch.equal(torch.rand(2), expected)
    same, _ = build_seeded(make, 0)
    other, _ = build_seeded(make, 1)
    assert torch.equal(first[0].weight, same[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)

"""Coreset and neighbours: a plain loop, cdist with topk, and the invariants of both."""

import pytest
import torch
from sklearn.random_projection import SparseRandomProjection

from g2sf_lib.memory import MemoryBank, Standardiser, greedy_coreset

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_greedy(features, num, start=0):
    """The definition: every step, the row farthest from those chosen; no row twice."""
    nearest = torch.full((len(features),), torch.inf, dtype=features.dtype)
    chosen, row = [], start
    for _ in range(num):
        chosen.append(row)
        distance = torch.linalg.vector_norm(features - features[row], dim=1)
        nearest = torch.minimum(nearest, distance)
        nearest[row] = -torch.inf
        row = int(nearest.argmax())
    return torch.tensor(chosen)


def gaussian(num, dim, seed=0):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def test_greedy_coreset_by_hand():
    # On a line: from 0 the farthest is 10; then 4 is 4 from 0; then 7, 3 from both 4 and 10.
    points = torch.tensor([[0.0], [1.0], [4.0], [7.0], [10.0]])
    assert greedy_coreset(points, 5).tolist() == [0, 4, 2, 3, 1]
    assert greedy_coreset(points, 3, start=4).tolist() == [4, 0, 2]


@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "far from the origin"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_coreset_is_the_plain_loop(seed, offset):
    features = gaussian(600, 24, seed) + offset
    expected = plain_greedy(features.double(), 150, start=7)
    assert torch.equal(greedy_coreset(features, 150, start=7), expected)


def test_greedy_coreset_among_duplicates_and_ties():
    draw = torch.Generator().manual_seed(0)
    repeated = gaussian(60, 8).repeat(4, 1)[torch.randperm(240, generator=draw)]
    rows = greedy_coreset(repeated, 50)
    assert torch.equal(repeated[rows], repeated[plain_greedy(repeated, 50)])
    assert len(rows.unique()) == 50
    # On a lattice distances tie all the time, and are exact: the first of the farthest is taken.
    lattice = torch.randint(0, 4, (300, 5), generator=draw).float()
    assert torch.equal(greedy_coreset(lattice, 90), plain_greedy(lattice, 90))


def test_greedy_coreset_of_identical_rows_takes_each_once():
    rows = greedy_coreset(torch.ones(12, 3) * 0.3, 12)
    assert rows.sort().values.tolist() == list(range(12))


def test_a_smaller_coreset_is_the_beginning_of_a_larger_one():
    features = gaussian(200, 6)
    assert torch.equal(greedy_coreset(features, 40), greedy_coreset(features, 90)[:40])
    assert greedy_coreset(features, 200).sort().values.tolist() == list(range(200))


@pytest.mark.parametrize("num", [0, 6, -1])
def test_greedy_coreset_refuses_an_impossible_number(num):
    with pytest.raises(ValueError, match=f"num is {num}; expected 1 to 5"):
        greedy_coreset(torch.ones(5, 2), num)


def test_the_radius_is_the_coverage_after_each_choice():
    features = gaussian(300, 6)
    bank = MemoryBank.fit(features, 0.1)
    for n in (1, 5, 30):
        covered = torch.cdist(features.double(), features[bank.rows[:n]].double()).amin(1).max()
        assert bank.radius[n - 1].item() == pytest.approx(covered.item(), rel=1e-4)
    assert (bank.radius.diff() <= 0).all()


def test_greedy_covers_better_than_random():
    features = gaussian(800, 4)
    radius = {}
    for coreset in ("greedy", "random"):
        bank = MemoryBank.fit(features, 0.05, coreset)
        radius[coreset] = torch.cdist(features, bank.prototypes).amin(1).max()
    assert radius["greedy"] < 0.9 * radius["random"]


def test_fit_keeps_the_fraction_and_says_which_rows():
    features = gaussian(97, 5)
    for coreset in ("greedy", "random"):
        bank = MemoryBank.fit(features, 0.1, coreset)
        assert bank.prototypes.shape == (10, 5) and len(bank.rows.unique()) == 10
        assert torch.equal(bank.prototypes, features[bank.rows])
    assert len(MemoryBank.fit(features, 0.001).prototypes) == 1


def test_a_random_bank_follows_its_seed():
    features = gaussian(100, 3)
    rows = [MemoryBank.fit(features, 0.2, "random", seed=seed).rows for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_a_projected_choice_is_greedy_in_the_projection():
    features = gaussian(200, 400)
    space = SparseRandomProjection(eps=0.9, random_state=0).fit_transform(features.numpy())
    assert space.shape[1] < 200
    bank = MemoryBank.fit(features, 0.2, projection_eps=0.9)
    assert torch.equal(bank.rows, plain_greedy(torch.from_numpy(space).double(), 40))
    assert torch.equal(bank.prototypes, features[bank.rows])  # but the features are kept


def test_features_shorter_than_the_projection_are_left_as_they_are():
    features = gaussian(200, 20)
    plain, projected = MemoryBank.fit(features, 0.2), MemoryBank.fit(features, 0.2, "greedy", 0.9)
    assert torch.equal(plain.rows, projected.rows)


@pytest.mark.parametrize(
    "features",
    [torch.empty(0, 3), torch.ones(4), torch.tensor([[1.0, float("nan")]]),
     torch.tensor([[float("inf"), 1.0]])],
    ids=["no row", "one axis", "nan", "infinite"],
)  # fmt: skip
def test_fit_refuses_what_is_no_features(features):
    with pytest.raises(ValueError, match=r"MemoryBank.fit: features of shape .* finite values"):
        MemoryBank.fit(features)


@pytest.mark.parametrize("num", [1, 5000], ids=["one row", "more than a block"])
def test_query_is_cdist_and_topk(num):
    bank = MemoryBank.fit(gaussian(400, 12), 0.5)
    feat = gaussian(num, 12, seed=5)
    index, distance = bank.query(feat, 7)
    expected = torch.cdist(feat.double(), bank.prototypes.double()).topk(7, largest=False)
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(distance.double(), expected.values, atol=1e-5, rtol=1e-5)


def test_prototypes_lie_exactly_on_themselves():
    bank = MemoryBank.fit(gaussian(300, 50) + 30, 0.3)
    index, distance = bank.query(bank.prototypes, 2)
    assert torch.equal(index[:, 0], torch.arange(len(bank.prototypes)))
    assert (distance[:, 0] == 0).all() and (distance[:, 1] > 0).all()


def test_distances_ascend_far_from_the_origin():
    """Where faiss's expanded squares cancel, the order is still that of the true distances."""
    features = gaussian(500, 16) * 1e-2 + 20
    bank = MemoryBank.fit(features, 1.0)
    index, distance = bank.query(features[:50], 6)
    assert (distance.diff(dim=1) >= 0).all()
    gathered = torch.linalg.vector_norm(features[:50, None] - bank.prototypes[index], dim=-1)
    torch.testing.assert_close(distance, gathered)
    assert (distance[:, 0] == 0).all()


def test_query_refuses_more_neighbours_than_there_are():
    bank = MemoryBank.fit(gaussian(10, 3), 0.5)
    with pytest.raises(ValueError, match="k is 6, but the bank has 5 prototypes"):
        bank.query(gaussian(2, 3), 6)


def test_standardiser_by_hand():
    feat = {"pcd": torch.tensor([[1.0, 3.0], [5.0, 7.0]]), "rgb": torch.tensor([[2.0], [6.0]])}
    both = Standardiser.fit(feat, "both")
    assert both.mean == {"pcd": 4.0, "rgb": 4.0}
    assert both.std["rgb"] == pytest.approx(8**0.5) and both.std["pcd"] == pytest.approx(
        20**0.5 / 3**0.5
    )
    torch.testing.assert_close(both(feat)["rgb"], torch.tensor([[-2.0], [2.0]]) / 8**0.5)
    rgb = Standardiser.fit(feat, "rgb")
    assert torch.equal(rgb(feat)["pcd"], feat["pcd"])
    torch.testing.assert_close(rgb(feat)["rgb"], both(feat)["rgb"])

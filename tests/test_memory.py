"""Coreset and neighbours: a plain loop, cdist with topk, and the invariants of both."""

import pytest
import torch
from sklearn.random_projection import SparseRandomProjection

from g2sf_lib import memory
from g2sf_lib.memory import MemoryBank, Rows, Standardiser, greedy_coreset, nearest

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


# --- rows ---


@pytest.fixture(params=["float32", "float16"])
def rows_and_plain(request):
    """Return `Rows` of three parts whose rows several cells share, and their tensor."""
    draw = torch.Generator().manual_seed(5)
    parts = [gaussian(num, 6, num).to(getattr(torch, request.param)) for num in (11, 1, 20)]
    place = torch.randint(32, (70,), generator=draw)
    rows = Rows(parts, place.int()).scaled(0.3, 1.7)
    return rows, (torch.cat(parts).float()[place] - 0.3) / 1.7


def test_rows_read_what_the_tensor_holds(rows_and_plain):
    rows, plain = rows_and_plain
    assert rows.shape == plain.shape == (len(rows), 6) and rows[:].dtype == torch.float32
    some = torch.tensor([69, 0, 33, 0, 12])
    for which in (slice(5, 41), slice(60, 99), some, some[:0], torch.arange(70) % 3 == 0):
        assert torch.equal(rows[which], plain[which])
    assert torch.equal(torch.cat(list(rows.blocks(9))), plain)
    assert torch.equal(rows.at(some)[:], plain[some])
    assert torch.equal(rows.at(torch.arange(70) < 9)[torch.tensor([8, 1])], plain[[8, 1]])
    assert torch.equal(rows.stored[rows.place], plain)


def test_rows_without_places_read_ranges_over_parts():
    parts = [gaussian(num, 4, num) for num in (3, 1, 8)]
    rows, plain = Rows(parts), torch.cat(parts)
    for which in (slice(None), slice(2, 9), slice(3, 4), slice(12, 12), torch.tensor([11, 3, 2])):
        assert torch.equal(rows[which], plain[which])
    rows[:].zero_()  # what was read is a copy
    assert torch.equal(rows[:], plain)
    both = Rows.joined([rows, Rows([parts[2]], torch.tensor([7, 7, 0]))])
    assert torch.equal(both[:], torch.cat([plain, parts[2][[7, 7, 0]]]))


def test_statistics_and_bank_of_rows_are_those_of_the_tensor(rows_and_plain):
    rows, plain = rows_and_plain
    feat = {"pcd": rows.stored, "rgb": rows.stored}
    raw = {mod: value[:] for mod, value in feat.items()}
    found = Standardiser.fit({mod: Rows([value]) for mod, value in raw.items()}, "both")
    assert found.mean["rgb"] == pytest.approx(raw["rgb"].mean().item(), rel=1e-5)
    assert found.std["pcd"] == pytest.approx(raw["pcd"].std().item(), rel=1e-5)
    ours, theirs = MemoryBank.fit(rows.stored, 0.4), MemoryBank.fit(raw["rgb"], 0.4)
    assert torch.equal(ours.rows, theirs.rows) and torch.equal(ours.prototypes, theirs.prototypes)
    index, distance = ours.query(rows, 3)
    expected = torch.cdist(plain.double(), ours.prototypes.double()).topk(3, largest=False).values
    torch.testing.assert_close(distance.double(), expected, atol=1e-5, rtol=1e-5)
    assert index.shape == (70, 3)


def test_shared_rows_are_chosen_once_and_counted_as_often_as_they_occur():
    rows = Rows([gaussian(50, 5)], torch.arange(50).repeat_interleave(4))
    bank = MemoryBank.fit(rows, 0.1)
    assert len(bank.prototypes) == 20  # a tenth of 200 cells
    assert len(bank.rows.unique()) == 20
    plain = MemoryBank.fit(rows[:], 0.1)  # every row four times: none is chosen twice
    assert torch.equal(bank.prototypes, plain.prototypes)
    assert len(MemoryBank.fit(rows, 0.9).prototypes) == 50  # there are no more


def test_blocks_and_pools_do_not_change_the_choice(monkeypatch):
    features = gaussian(900, 12)
    expected = plain_greedy(features.double(), 300)
    for pool, block, at_once in ((4096, 16384, 2**22), (64, 100, 512), (1, 7, 1), (350, 900, 4096)):
        monkeypatch.setattr(memory, "_POOL", pool)
        monkeypatch.setattr(memory, "_BLOCK_ROWS", block)
        monkeypatch.setattr(memory, "_AT_ONCE", at_once)
        assert torch.equal(greedy_coreset(features, 300), expected)


# --- coreset ---


def test_greedy_coreset_by_hand():
    # On a line: from 0 the farthest is 10; then 4 is 4 from 0; then 7, 3 from both 4 and 10.
    points = torch.tensor([[0.0], [1.0], [4.0], [7.0], [10.0]])
    assert greedy_coreset(points, 5).tolist() == [0, 4, 2, 3, 1]
    assert greedy_coreset(points, 3, start=4).tolist() == [4, 0, 2]


@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "far from the origin"])
def test_greedy_coreset_is_the_plain_loop(offset):
    features = gaussian(600, 24) + offset
    expected = plain_greedy(features.double(), 150, start=7)
    assert torch.equal(greedy_coreset(features, 150, start=7), expected)
    assert torch.equal(greedy_coreset(features, 40, start=7), expected[:40])


def test_greedy_coreset_among_duplicates_and_ties():
    draw = torch.Generator().manual_seed(0)
    repeated = gaussian(60, 8).repeat(4, 1)[torch.randperm(240, generator=draw)]
    rows = greedy_coreset(repeated, 50)
    assert torch.equal(repeated[rows], repeated[plain_greedy(repeated, 50)])
    assert len(rows.unique()) == 50
    assert greedy_coreset(torch.ones(12, 3) * 0.3, 12).sort().values.tolist() == list(range(12))
    # On a lattice distances tie all the time, and are exact: the first of the farthest is taken.
    lattice = torch.randint(0, 4, (300, 5), generator=draw).float()
    assert torch.equal(greedy_coreset(lattice, 90), plain_greedy(lattice, 90))


def coverage(features, chosen):
    return torch.cdist(features.double(), chosen.double()).amin(1).max().item()


@pytest.mark.parametrize("num", [1, 3, 8, 20, 61])
def test_the_approximate_choice_covers_better_than_random_rows(num):
    features = gaussian(500, 6, num)
    bank = MemoryBank.fit(features, num / 500, "approximate")
    assert len(bank.rows) == len(bank.rows.unique()) == num
    assert bank.rows[0] == 0 and torch.equal(bank.prototypes, features[bank.rows])

    random = [MemoryBank.fit(features, num / 500, "random", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(random[0].rows, random[1].rows)
    if num == 61:  # better than rows drawn at random, which follow the seed
        assert not torch.equal(random[0].rows, random[2].rows)
        covered = coverage(features, bank.prototypes)
        assert covered < 0.95 * coverage(features, random[0].prototypes)


def test_a_projected_choice_is_greedy_in_the_projection():
    features = gaussian(200, 400)
    space = SparseRandomProjection(eps=0.9, random_state=0).fit_transform(features.numpy())
    assert space.shape[1] < 200
    bank = MemoryBank.fit(features, 0.2, projection_eps=0.9)
    assert torch.equal(bank.rows, plain_greedy(torch.from_numpy(space).double(), 40))
    assert torch.equal(bank.prototypes, features[bank.rows])  # but the features are kept
    short = features[:, :20]  # shorter than the projection would be
    projected = MemoryBank.fit(short, 0.2, projection_eps=0.9)
    assert torch.equal(projected.rows, MemoryBank.fit(short, 0.2).rows)


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


def test_distances_ascend_far_from_the_origin():
    """Where faiss's expanded squares cancel, the order is still that of the true distances."""
    features = gaussian(500, 16) * 1e-2 + 20
    bank = MemoryBank.fit(features, 1.0)
    index, distance = bank.query(features[:50], 6)
    assert (distance.diff(dim=1) >= 0).all()
    gathered = torch.linalg.vector_norm(features[:50, None] - bank.prototypes[index], dim=-1)
    torch.testing.assert_close(distance, gathered)
    assert (distance[:, 0] == 0).all()


@pytest.mark.parametrize("num_own", [0, 1, 30])
def test_a_query_without_some_prototypes_is_that_of_a_bank_without_them(num_own):
    bank = MemoryBank(gaussian(60, 5), torch.arange(60))
    own = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:num_own]
    left = torch.tensor([n for n in range(60) if n not in own.tolist()])
    feat = torch.cat([gaussian(20, 5, seed=2), bank.prototypes[own]])  # they would find themselves
    index, distance = bank.query_without(feat, 7, own)
    alone = MemoryBank(bank.prototypes[left], torch.arange(len(left))).query(feat, 7)
    assert torch.equal(index, left[alone[0]])
    torch.testing.assert_close(distance, alone[1])
    rows = Rows([feat.half()])
    assert bank.query_without(rows, 7, own)[0].shape == (len(feat), 7)


def test_prototypes_left_out_come_last_where_the_others_are_too_few():
    bank = MemoryBank(gaussian(10, 5), torch.arange(10))
    index, _ = bank.query_without(gaussian(4, 5, seed=1), 5, torch.arange(7))
    assert (index[:, :3] >= 7).all() and (index[:, 3:] < 7).all()
    for query in (bank.query, lambda feat, k: bank.query_without(feat, k, torch.arange(7))):
        with pytest.raises(ValueError, match="k is 11, but the bank has 10 prototypes"):
            query(gaussian(2, 5), 11)
        index, distance = query(Rows([torch.zeros(0, 5)]), 4)  # nothing finds nothing
        assert index.shape == distance.shape == (0, 4)


def test_standardiser_by_hand():
    feat = {"pcd": torch.tensor([[1.0, 3.0], [5.0, 7.0]]), "rgb": torch.tensor([[2.0], [6.0]])}
    both = Standardiser.fit(feat, "both")
    assert both.mean == {"pcd": 4.0, "rgb": 4.0}
    assert both.std == pytest.approx({"pcd": (20 / 3) ** 0.5, "rgb": 8**0.5})
    torch.testing.assert_close(both(feat)["rgb"], torch.tensor([[-2.0], [2.0]]) / 8**0.5)
    rgb = Standardiser.fit(feat, "rgb")
    assert torch.equal(rgb(feat)["pcd"], feat["pcd"])
    torch.testing.assert_close(rgb(feat)["rgb"], both(feat)["rgb"])


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_neighbours_by_torch_are_those_of_faiss(offset):
    feat, bank = gaussian(300, 20) + offset, gaussian(150, 20, 1) + offset
    expected = torch.cdist(feat.double(), bank.double()).topk(5, largest=False).indices
    assert torch.equal(nearest(feat, bank, 5), expected)
    assert nearest(feat[:0], bank, 5).shape == (0, 5)


@pytest.mark.gpu
def test_bank_and_neighbours_on_a_gpu_are_those_on_the_cpu():
    features, queries = gaussian(3000, 64), gaussian(500, 64, 1)
    here = MemoryBank.fit(features, 0.1)
    there = MemoryBank.fit(features.cuda(), 0.1)
    # Equally far rows may be taken in another order: the coverage is what has to agree.
    radii = [coverage(features, bank.prototypes.cpu()) for bank in (here, there)]
    assert radii[1] == pytest.approx(radii[0], rel=1e-3)
    index, distance = here.query(queries, 5)
    for found in (here.query(queries.cuda(), 5), here.query(queries, 5, torch.device("cuda"))):
        assert torch.equal(found[0].cpu(), index)
        torch.testing.assert_close(found[1].cpu(), distance, atol=1e-4, rtol=1e-4)

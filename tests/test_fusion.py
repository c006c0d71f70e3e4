"""Eq. 1, 2, 3 and 11: by hand on three points, invariants, and the gathered network as oracle."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from g2sf_lib.config import MODALITIES
from g2sf_lib.fusion import LSPN, ByteDropout, GlobalScale, aggregate, encode, local_metric
from g2sf_lib.memory import MemoryBank

pytestmark = pytest.mark.usefixtures("one_thread")

HAND_FEAT = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 1.0]])
HAND_PROTO = torch.tensor([[[0.0, 0], [3, 0]], [[0, 0], [0, -2]], [[1, 1], [4, 5]]])


def test_encode_by_hand():
    d, s = encode(HAND_FEAT, HAND_PROTO)
    torch.testing.assert_close(s, torch.tensor([[5.0, 4.0], [0.0, 2.0], [0.0, 5.0]]))
    expected = torch.tensor([[[0.6, 0.8], [0, 1]], [[0, 0], [0, 1]], [[0, 0], [-0.6, -0.8]]])
    torch.testing.assert_close(d, expected)


def test_encoding_loses_nothing_and_directions_are_unit():
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(50, 7, generator=generator)
    proto = torch.randn(50, 4, 7, generator=generator)
    proto[3, 1] = feat[3]
    d, s = encode(feat, proto)
    torch.testing.assert_close(proto + s[..., None] * d, feat[:, None].expand_as(proto))
    torch.testing.assert_close(d.norm(dim=-1), (s > 0).float())
    assert s[3, 1] == 0 and not d[3, 1].any()


def test_local_metric_by_hand():
    w = torch.tensor([[[2.0, 0.5], [1.0, 3.0]]])
    s = torch.tensor([[[1.0, 4.0], [3.0, 2.0]]])
    # 2*1/4 + 0.5*4*3/4 = 2 and 1*3/4 + 3*2*3/4 = 5.25
    ell = local_metric(w, s, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(ell, torch.tensor([[2.0, 5.25]]))


def test_metric_with_w_one_is_the_plain_sum():
    s = torch.rand(20, 3, 2, generator=torch.Generator().manual_seed(0))
    ell = local_metric(torch.ones_like(s), s, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(ell, s.mean(-1))


def test_aggregate_by_hand():
    ell = torch.tensor([[2.0, 5.25, 1.0], [4.0, 4.0, 7.0], [0.0, 3.0, 9.0]])
    assert aggregate(ell).tolist() == aggregate(ell, "min").tolist() == [1.0, 4.0, 0.0]
    assert aggregate(ell, "max").tolist() == [5.25, 7.0, 9.0]
    assert aggregate(ell, "mean").tolist() == [2.75, 5.0, 4.0]
    assert aggregate(ell, "nearest").tolist() == [2.0, 4.0, 0.0]
    with pytest.raises(ValueError, match="'median'; expected 'min', 'max', 'mean' or 'nearest'"):
        aggregate(ell, "median")


def test_sigma_starts_at_one_half_and_by_hand():
    sigma = GlobalScale()
    assert sigma().tolist() == [0.5, 0.5]
    with torch.no_grad():
        sigma.sigma_raw.copy_(torch.tensor([math.atanh(0.5), math.atanh(-0.5)]))
    # (0.5 + 1) / 2 = 0.75 and (-0.5 + 1) / 2 = 0.25, whose sum is 1 already
    torch.testing.assert_close(sigma().detach(), torch.tensor([0.75, 0.25]))


@pytest.mark.parametrize("raw", [(-9.0, 3.0), (2.0, 2.0), (0.1, -4.0)])
def test_sigma_is_positive_with_sum_one(raw):
    sigma = GlobalScale()
    with torch.no_grad():
        sigma.sigma_raw.copy_(torch.tensor(raw))
    assert (sigma() > 0).all() and sigma().sum().item() == pytest.approx(1)


def random_lspn(dims, seed=0, dtype=torch.float64):
    """An LSPN whose head is not zero, so that its output depends on everything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lspn = LSPN(dims, hidden=16, embed=8, dropout=0.5)
        torch.nn.init.normal_(lspn.head.weight, std=0.5)
        torch.nn.init.normal_(lspn.head.bias, std=0.2)
    return lspn.to(dtype).eval()


def world(dtype=torch.float64, num=30):
    """Features, banks and neighbours; cell 0 lies on its prototypes, cell 1 on that of pcd."""
    generator = torch.Generator().manual_seed(1)
    dims = {"pcd": 5, "rgb": 7}
    bank = {m: torch.randn(25, d, generator=generator, dtype=dtype) for m, d in dims.items()}
    feat = {m: torch.randn(num, d, generator=generator, dtype=dtype) for m, d in dims.items()}
    feat["pcd"][0], feat["rgb"][0] = bank["pcd"][4], bank["rgb"][9]
    feat["pcd"][1] = bank["pcd"][7]
    index, d, s = {}, {}, {}
    for mod in MODALITIES:
        index[mod] = torch.cdist(feat[mod], bank[mod]).topk(4, largest=False).indices
        d[mod], s[mod] = encode(feat[mod], bank[mod][index[mod]])
    return dims, feat, bank, index, d, s


@pytest.mark.parametrize("form", ["paper", "official"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_from_bank_is_forward(form, dtype, atol):
    dims, feat, bank, index, d, s = world(dtype)
    lspn = random_lspn(dims, dtype=dtype)
    if form == "official":  # five times the difference over the joint distance
        joint = (s["pcd"].square() + s["rgb"].square()).sqrt().clamp_min(1e-3)
        d = {mod: 5 * d[mod] * (s[mod] / joint)[..., None] for mod in MODALITIES}
    expected = lspn({mod: bank[mod][index[mod]] for mod in MODALITIES}, d)
    assert expected.std() > 0.05  # else the comparison says nothing
    lspn.direction_form = form
    stacks = [torch.stack([x[mod] for mod in MODALITIES], dim=-1) for x in (index, s)]
    for given in ((index, s), stacks):
        found = lspn.from_bank(feat, bank, *given)
        assert found.shape == (30, 4, 2)
        torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def test_from_bank_gives_the_gradients_of_forward():
    dims, feat, bank, index, d, s = world()
    lspn, other = random_lspn(dims), random_lspn(dims)
    proto = {mod: bank[mod][index[mod]] for mod in MODALITIES}
    lspn(proto, d).square().sum().backward()
    banks = {mod: MemoryBank(bank[mod], torch.arange(25)) for mod in MODALITIES}  # taken as well
    other.from_bank(feat, banks, index, s).square().sum().backward()
    for one, two in zip(lspn.parameters(), other.parameters(), strict=True):
        assert one.grad.abs().max() > 0
        torch.testing.assert_close(one.grad, two.grad, atol=1e-10, rtol=1e-8)


class LargestTensor(TorchDispatchMode):
    """Remember the number of elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *(x.numel() for x in made)])
        return result


def test_from_bank_never_builds_n_k_d():
    num, k, dims = 64, 6, {"pcd": 300, "rgb": 200}
    generator = torch.Generator().manual_seed(0)
    feat = {mod: torch.randn(num, dim, generator=generator) for mod, dim in dims.items()}
    bank = {mod: torch.randn(90, dim, generator=generator) for mod, dim in dims.items()}
    found = {mod: MemoryBank(bank[mod], torch.arange(90)).query(feat[mod], k) for mod in dims}
    index, s = ({mod: found[mod][i] for mod in dims} for i in (0, 1))
    lspn = random_lspn(dims, dtype=torch.float32)
    with LargestTensor() as seen, torch.no_grad():
        lspn.from_bank(feat, bank, index, s)
    assert 0 < seen.largest < num * k * min(dims.values()) / 2


def test_a_fresh_network_returns_exactly_one():
    dims, feat, bank, index, d, s = world(torch.float32)
    for training in (True, False):
        lspn = LSPN(dims).train(training)
        assert (lspn({mod: bank[mod][index[mod]] for mod in MODALITIES}, d) == 1).all()
        assert (lspn.from_bank(feat, bank, index, s) == 1).all()


def test_scale_factors_lie_within_their_bounds():
    dims, feat, bank, index, _, s = world(torch.float32)
    lspn = random_lspn(dims, dtype=torch.float32)
    with torch.no_grad():
        lspn.head.weight.mul_(1000)
    w = lspn.from_bank(feat, bank, index, s)
    assert w.min() >= math.exp(-1) - 1e-6 and w.max() <= math.e + 1e-6
    assert w.min() < 0.4 and w.max() > 2.7  # the bounds are reached


def test_default_sizes_are_those_of_the_paper():
    lspn = LSPN({"pcd": 1152, "rgb": 768})
    shapes = [tuple(p.shape) for name, p in lspn.named_parameters() if name.endswith("weight")]
    branch = [(512, 1920), (128, 512)]
    assert sorted(shapes) == sorted([*branch, *branch, (256, 256), (2, 256)])
    assert lspn.dropout.threshold == 128  # of 256


def test_modalities_keep_their_columns():
    """Changing one modality's features moves w as `forward` says, not as the other's would."""
    dims, feat, bank, index, _, s = world()
    lspn = random_lspn(dims)
    with torch.no_grad():
        lspn.proto_in.weight[:, dims["pcd"] :] = 0  # deaf to rgb
        lspn.direction_in.weight[:, dims["pcd"] :] = 0
    w = lspn.from_bank(feat, bank, index, s)
    changed = dict(feat, rgb=feat["rgb"] + 1)
    torch.testing.assert_close(lspn.from_bank(changed, bank, index, s), w, atol=1e-12, rtol=0)
    changed = dict(feat, pcd=feat["pcd"] + 1)
    assert not torch.allclose(lspn.from_bank(changed, bank, index, s), w)


def test_gradients_are_the_same_bytes_on_every_run_with_several_threads():
    draw = torch.Generator().manual_seed(0)
    feat = {mod: torch.randn(512, dim, generator=draw) for mod, dim in (("pcd", 30), ("rgb", 20))}
    bank = {mod: torch.randn(90, value.shape[1], generator=draw) for mod, value in feat.items()}
    index = {mod: torch.randint(90, (512, 11), generator=draw) for mod in feat}
    s = {mod: 1 + torch.rand(512, 11, generator=draw) for mod in feat}
    lspn = LSPN({mod: value.shape[1] for mod, value in feat.items()}, hidden=512, dropout=0.0)
    torch.nn.init.normal_(lspn.head.weight, generator=draw)
    torch.set_num_threads(4)  # `one_thread` takes it back
    found = set()
    for _ in range(8):
        lspn.zero_grad()
        lspn.from_bank(feat, bank, index, s).sum().backward()
        found.add(b"".join(p.grad.numpy().tobytes() for p in lspn.parameters()))
    assert len(found) == 1


def dropped_out(p, shape, seed=0, dtype=torch.float32):
    """Return what dropout makes of ones in training, drawn with a seed."""
    layer = ByteDropout(p).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return layer(torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_expectation(p):
    found = dropped_out(p, (512, 250))
    share = round(256 * p) / 256  # a byte tells 256 levels
    values = torch.unique(found)
    assert values.tolist() == pytest.approx([0, 1 / (1 - share)])
    error = 5 * math.sqrt(share * (1 - share) / found.numel())
    assert (found == 0).float().mean().item() == pytest.approx(share, abs=error)
    assert found.mean().item() == pytest.approx(1, abs=error / (1 - share))


def test_dropout_has_no_favourite_among_the_bytes_of_a_word():
    dropped = dropped_out(0.5, (40_000, 8)) == 0
    assert (dropped.float().mean(0) - 0.5).abs().max() < 5 * math.sqrt(0.25 / 40_000)
    # and units beside each other have nothing to do with each other
    shared = (dropped[:, :-1] & dropped[:, 1:]).float().mean(0)
    assert (shared - 0.25).abs().max() < 5 * math.sqrt(0.1875 / 40_000)


def test_dropout_takes_any_size_and_follows_torchs_seed():
    for shape in ((1,), (7,), (8,), (9,), (2, 3, 5), (0,), (0, 4)):
        found = dropped_out(0.5, shape)
        assert found.shape == shape and ((found == 0) | (found == 2)).all()
    one, same, other = (dropped_out(0.5, (300,), seed) for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_dropout_does_nothing_at_scoring_and_with_probability_zero():
    x, state = torch.ones(50, 3), torch.get_rng_state()
    assert ByteDropout(0.5).eval()(x) is x
    assert ByteDropout(0.0).train()(x) is x
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn


def test_a_high_probability_still_keeps_a_unit_now_and_then():
    """Rounded to 255 of 256 at most, so nothing is divided by zero."""
    found = dropped_out(0.9999, (100_000,))
    assert torch.isfinite(found).all() and set(found.unique().tolist()) == {0.0, 256.0}


def test_dropout_passes_gradients_where_units_are_kept():
    x = torch.ones(1000, requires_grad=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y = ByteDropout(0.5).train()(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # 2 where kept, 0 elsewhere
    assert dropped_out(0.5, (20,), dtype=torch.float64).dtype == torch.float64

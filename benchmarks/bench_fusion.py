"""LSPN from the bank, beside LSPN on gathered prototypes and directions (N, K, D); its dropout.

``pytest benchmarks/bench_fusion.py --benchmark-only``. Both are timed in one run on the same
cells and must return the same w; no time is asserted. The sizes are those of a scan in the demo
and in the paper profile; the plain way counts the gathering, as it is what from_bank avoids.
"""

import pytest
import torch

from g2sf_lib.config import MODALITIES
from g2sf_lib.fusion import LSPN, ByteDropout, encode
from g2sf_lib.memory import MemoryBank

SIZES = {
    "demo": {"dims": {"pcd": 33, "rgb": 152}, "hidden": 128, "embed": 64, "cells": 2048},
    "paper": {"dims": {"pcd": 1152, "rgb": 768}, "hidden": 512, "embed": 128, "cells": 1024},
}


def world(dims, hidden, embed, cells, k=11):
    """Return a network with weights everywhere, features, prototypes, and their neighbours."""
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lspn = LSPN(dims, hidden, embed).eval()
        torch.nn.init.normal_(lspn.head.weight, std=0.3)
    bank = {mod: torch.randn(500, dim, generator=draw) for mod, dim in dims.items()}
    feat = {mod: torch.randn(cells, dim, generator=draw) for mod, dim in dims.items()}
    found = {m: MemoryBank(bank[m], torch.arange(500)).query(feat[m], k) for m in MODALITIES}
    index = {mod: found[mod][0] for mod in MODALITIES}
    return lspn, feat, bank, index, {mod: found[mod][1] for mod in MODALITIES}


def plain(lspn, feat, bank, index, s):
    """Return w by gathering every prototype and direction, Eq. 1 and 2 as they are written."""
    proto = {mod: bank[mod][index[mod]] for mod in MODALITIES}
    return lspn(proto, {mod: encode(feat[mod], proto[mod])[0] for mod in MODALITIES})


@pytest.mark.parametrize("how", ["ours", "gathered"])
@pytest.mark.parametrize("size", SIZES)
def test_scoring(benchmark, size, how):
    lspn, *rest = world(**SIZES[size])
    benchmark.group = f"w of {SIZES[size]['cells']} cells, {size}"

    @torch.no_grad()
    def run():
        return lspn.from_bank(*rest) if how == "ours" else plain(lspn, *rest)

    w = benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    with torch.no_grad():
        torch.testing.assert_close(w, plain(lspn, *rest), atol=2e-5, rtol=0)


@pytest.mark.parametrize("how", ["ours", "gathered"])
def test_training_step(benchmark, how):
    """Forward and backward, which is what an epoch consists of."""
    lspn, *rest = world(**SIZES["demo"])
    benchmark.group = f"gradient of {SIZES['demo']['cells']} cells, demo"

    def run():
        lspn.zero_grad()
        w = lspn.from_bank(*rest) if how == "ours" else plain(lspn, *rest)
        w.square().mean().backward()
        return [p.grad.clone() for p in lspn.parameters()]

    found = benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    lspn.zero_grad()
    plain(lspn, *rest).square().mean().backward()
    for one, parameter in zip(found, lspn.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("how", ["ours", "torch"])
def test_dropout(benchmark, how):
    """Forward and backward on a batch of the demo's first layer: `ByteDropout`, `nn.Dropout`."""
    layer = (ByteDropout if how == "ours" else torch.nn.Dropout)(0.5)
    benchmark.group = "dropout of (1024, 11, 64)"
    x = torch.ones(1024, 11, 64, requires_grad=True)

    def run():
        y = layer(x)
        y.sum().backward()
        return y.detach()

    y = benchmark.pedantic(run, rounds=20, warmup_rounds=2)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert (y == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)

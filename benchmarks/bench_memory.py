"""Greedy coreset: many choices a pass over the rows, beside the loop with one choice a pass.

``pytest benchmarks/bench_memory.py --benchmark-only``. Both are timed in one run on the same
features and must choose the same rows; no time is asserted.
"""

import faiss
import pytest
import torch

from g2sf_lib.memory import MemoryBank, greedy_coreset

NUM_CELLS, LENGTH, NUM_CHOSEN = 8000, 152, 400


def features():
    """Return cells of the default RGB features' length."""
    return torch.randn(NUM_CELLS, LENGTH, generator=torch.Generator().manual_seed(0))


def plain_coreset(cells, num):
    """Return the greedy choice, the full norm of every difference computed in every step."""
    nearest = torch.full((len(cells),), torch.inf)
    chosen, row = [], 0
    for _ in range(num):
        chosen.append(row)
        nearest = torch.minimum(nearest, torch.linalg.vector_norm(cells - cells[row], dim=1))
        nearest[row] = -torch.inf
        row = int(nearest.argmax())
    return torch.tensor(chosen)


@pytest.mark.benchmark(group=f"greedy coreset, {NUM_CHOSEN} of {NUM_CELLS} x {LENGTH}")
@pytest.mark.parametrize("how", ["ours", "plain loop"])
def test_greedy_coreset(benchmark, how):
    cells = features()
    choose = greedy_coreset if how == "ours" else plain_coreset
    rows = benchmark.pedantic(choose, args=(cells, NUM_CHOSEN), rounds=3, warmup_rounds=1)
    assert torch.equal(rows, plain_coreset(cells, NUM_CHOSEN))


@pytest.mark.benchmark(group=f"11 nearest of {NUM_CHOSEN}, {NUM_CELLS} cells")
@pytest.mark.parametrize("how", ["ours", "faiss alone", "cdist and topk"])
def test_query(benchmark, how):
    cells = features()
    bank = MemoryBank.fit(cells, NUM_CHOSEN / NUM_CELLS, "random")
    index = faiss.IndexFlatL2(LENGTH)
    index.add(bank.prototypes.numpy())
    search = {
        "ours": lambda: bank.query(cells, 11)[0],
        "faiss alone": lambda: torch.from_numpy(index.search(cells.numpy(), 11)[1]),
        "cdist and topk": lambda: torch.cdist(cells, bank.prototypes).topk(11, largest=False)[1],
    }[how]
    found = benchmark.pedantic(search, rounds=3, warmup_rounds=1)
    exact = torch.cdist(cells.double(), bank.prototypes.double()).topk(11, largest=False).indices
    # float32 may swap two neighbours that are equally far to the last digit
    assert (found == exact).float().mean() > 0.9999

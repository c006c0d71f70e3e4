"""One loop for the peers that are trained: killed at any moment, it ends with the same bytes."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from g2sf_lib.checkpoint import read_checkpoint, write_checkpoint


def build_seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network whose initial weights depend on the seed and on nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # that of the CPU only: GPUs keep theirs
        return build()


def train_epochs(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    run_epoch: Callable[[torch.Generator], float],
    epochs: int,
    seed: int,
    checkpoint: Path | None,
    name: str,
    progress: bool = False,
) -> list[float]:
    """Train a network in place; return the loss of every epoch.

    `run_epoch` trains one epoch, with no randomness but that of its generator (of the seed and the
    epoch's number), and returns its mean loss. All that outlives an epoch is in the checkpoint,
    written after each and read at the start (None: nowhere).
    """
    found = checkpoint and read_checkpoint(checkpoint, name, module, optimiser)
    losses = found[0]["losses"] if found else []
    bar = tqdm(total=epochs, initial=len(losses), desc=name, disable=not progress, mininterval=1.0)
    for epoch in range(len(losses) + 1, epochs + 1):
        loss = run_epoch(torch.Generator().manual_seed(1_000_003 * (seed + 1) + epoch))
        if not math.isfinite(loss):
            expected = "a finite number: lower its learning rate, or look at the features"
            told = f"{name}: the loss of epoch {epoch} is {loss}"
            raise FloatingPointError(f"{told}; expected {expected}")
        losses.append(loss)
        if checkpoint is not None:
            write_checkpoint(checkpoint, name, {"losses": losses}, module, optimiser)
        bar.update()
        bar.set_postfix(loss=f"{loss:.4f}")
    bar.close()
    return losses

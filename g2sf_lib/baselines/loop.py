"""One loop for the peers that are trained: killed at any moment, it ends with the same bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from g2sf_lib.storage import StoredFileError, read_tensors, write_tensors

Module = TypeVar("Module", bound=nn.Module)


def build_seeded(build: Callable[[], Module], seed: int) -> Module:
    """Return a network whose initial weights depend on the seed and on nothing else.

    Layers draw their weights from torch's global generator of the CPU; it is seeded for
    them and put back as it was.

    Args:
        build: makes the network on the CPU.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # that of the CPU only: GPUs keep theirs
        return build()


def fingerprint(settings: Any, data: Iterable[Tensor]) -> str:
    """Return what a checkpoint must agree with to be gone on from: settings and data.

    Args:
        settings: a dataclass of plain values.
        data: tensors that are read one after another.
    """
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
    for tensor in data:
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def train_epochs(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    run_epoch: Callable[[torch.Generator], float],
    epochs: int,
    seed: int,
    *,
    checkpoint: Path | None,
    fingerprint: str,
    name: str,
    lower: str,
    progress: bool,
) -> list[float]:
    """Train a network in place; return the loss of every epoch.

    An epoch's randomness depends on the seed and its number only, and all that outlives an
    epoch is in the checkpoint, so a run that was killed and goes on ends with the same bytes
    as one that was not.

    Args:
        module: the network, with its initial weights.
        optimiser: over parameters of the network.
        run_epoch: trains one epoch with the generator (of the CPU) that is its only
            randomness, and returns its mean loss.
        epochs: how many in all.
        seed: of the epochs.
        checkpoint: a file written after every epoch and read at the start where it is there;
            None: nothing is written.
        fingerprint: what the checkpoint must agree with; one of another run is not used.
        name: of what is trained, for the progress bar and errors.
        lower: the setting to lower where the loss is no longer finite.
        progress: whether a progress bar is shown.

    Raises:
        FloatingPointError: the loss of an epoch is not finite.
        StoredFileError: the checkpoint is damaged.
    """
    run = json.dumps([fingerprint, epochs, seed])
    losses: list[float] = []
    if checkpoint is not None:
        losses = _read(checkpoint, module, optimiser, run)
    bar = tqdm(total=epochs, initial=len(losses), desc=name, disable=not progress, mininterval=1.0)
    with bar:
        for epoch in range(len(losses) + 1, epochs + 1):
            generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + epoch)
            loss = float(run_epoch(generator))
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"{name}: the loss of epoch {epoch} is {loss}; expected a finite number: "
                    f"lower {lower}, or look at the features"
                )
            losses.append(loss)
            if checkpoint is not None:
                _write(checkpoint, module, optimiser, run, losses)
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}")
    return losses


def _write(
    path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, run: str, losses: list[float]
) -> None:
    """Write everything that the next epoch needs."""
    header = json.dumps({"run": run, "losses": losses}).encode()
    tensors = {"header": torch.tensor(list(header), dtype=torch.uint8)}
    tensors |= {f"module.{name}": value for name, value in module.state_dict().items()}
    for number, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{slot}": value for slot, value in slots.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors)


def _read(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, run: str) -> list[float]:
    """Go on from a checkpoint of this very run; return the losses of its epochs, or none."""
    if not path.exists():
        return []
    tensors = read_tensors(path)
    try:
        header = json.loads(bytes(tensors["header"].tolist()))
        if header["run"] != run:
            return []
        slots: dict[int, dict[str, Tensor]] = {}
        weights = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "module":
                weights[rest] = value
            elif kind == "optimiser":
                number, slot = rest.split(".")
                # A copy: the optimiser changes its state in place, and this is the mapped file.
                slots.setdefault(int(number), {})[slot] = value.clone()
        module.load_state_dict(weights)
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": slots, "param_groups": groups})
        return [float(loss) for loss in header["losses"]]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        what = " ".join(str(error).split())  # torch lists keys on lines of their own
        raise StoredFileError(
            f"{path}: truncated or changed ({what}); delete it to train from the start"
        ) from error

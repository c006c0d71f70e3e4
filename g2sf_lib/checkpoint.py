"""What an interrupted training needs to go on, in one file, for LSPN and for the peers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from g2sf_lib.store import StoredFileError, read_tensors, write_tensors


def write_checkpoint(
    path: Path,
    run: str,
    header: Mapping[str, Any],
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: Mapping[str, Tensor] | None = None,
) -> None:
    """Write everything that the next epoch needs."""
    text = json.dumps({"run": run} | dict(header)).encode()
    tensors = {"header": torch.tensor(list(text), dtype=torch.uint8)}
    tensors |= {f"module.{name}": value for name, value in module.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in (best or {}).items()}
    for number, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{slot}": value for slot, value in slots.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors)


def read_checkpoint(
    path: Path, run: str, module: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Put module and optimiser back; return header and best state, or None: there is none of `run`.

    Raises:
        StoredFileError: the file is damaged.
    """
    if not path.exists():
        return None
    tensors = read_tensors(path)
    try:
        header = json.loads(bytes(tensors.pop("header").tolist()))
        if header.pop("run") != run:
            return None
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "optimiser": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            # A copy: the optimiser changes its state in place, and this is the mapped file.
            parts[kind][rest] = value.clone()
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimiser"].items():
            number, slot = name.split(".")
            slots.setdefault(int(number), {})[slot] = value
        module.load_state_dict(parts["module"])
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": slots, "param_groups": groups})
        return header, parts["best"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        what = " ".join(str(error).split())  # torch lists keys on lines of their own
        raise StoredFileError(
            f"{path}: truncated or changed ({what}); delete it to train from the start"
        ) from error

"""Weight files of others, read as people have them, or refused in one clear line."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

# What training scripts keep beside the tensors: scores as numbers of numpy 1 and 2, options.
BESIDE_TENSORS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "argparse.Namespace",
)
# What a file begins with that is none -> what it is.
_NO_CHECKPOINT = {
    b"version https://git-lfs": "is a pointer of Git LFS (`git lfs pull` fetches the file itself)",
    b"<": "is a web page",
    b"pk": "is a zip archive that was cut short, or of something else",
    b"": "was cut short, or is of another format",
}


class WeightsError(RuntimeError):
    """A weight file that is missing or does not fit its network; the message says which."""


class _Unread:
    """Stands in for a value of `BESIDE_TENSORS`: takes whatever it was made from, keeps nothing."""

    def __init__(self, *arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def read_checkpoint(path: Path) -> Any:
    """Return what a .safetensors or .pth file holds, its tensors on the CPU.

    No code in the file is run: values of `BESIDE_TENSORS` come back as objects without content. A
    file that is damaged, no checkpoint, or needs more raises a WeightsError of one line.
    """
    unread = [(_Unread, name) for name in BESIDE_TENSORS]
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(unread):
            warnings.simplefilter("ignore")  # of a format that is then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes happen to ask for
        # torch's advice is to switch its protection off, which nobody here can or should do.
        reason = None if "weights_only" in str(error) else error
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            obstacle = f"needs {refused[1]}"
        elif isinstance(error, OSError) and error.strerror:
            obstacle = f"cannot be opened ({error.strerror})"
        else:
            with path.open("rb") as file:
                head = file.read(64).lstrip().lower()
            obstacle = next(what for at, what in _NO_CHECKPOINT.items() if head.startswith(at))
        raise WeightsError(
            f"{path}: not a readable checkpoint: it {obstacle}; expected tensors and plain values"
            " only"
        ) from reason

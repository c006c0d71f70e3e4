"""The one way to keep a result: written whole or not at all, known by the code that made it."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:  # torch takes seconds to import, and the workflow asks for names of files only
    from torch import Tensor

FORMAT_VERSION = 1


class StoredFileError(ValueError):
    """A stored file that is missing, truncated, changed, or of another format."""


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file atomically, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as a safetensors file, atomically; its folder exists."""
    from safetensors.torch import save_file

    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, temporary)
    os.replace(temporary, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; they are mapped, and read when used."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        message = f"{path}: cannot be read ({error}); delete it and run again"
        raise StoredFileError(message) from error


def _sha_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha_of(described: dict) -> str:
    """Return the SHA-256 of a description's content, whatever its layout."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def write_described(description: Path, content: dict, tensors: dict[str, Tensor]) -> None:
    """Write tensors beside a JSON file that states SHA-256 of both and the format version."""
    description.parent.mkdir(parents=True, exist_ok=True)
    path = description.with_suffix(".safetensors")
    write_tensors(path, tensors)
    described = {"format_version": FORMAT_VERSION, "sha256": _sha_of_file(path)} | content
    described = json.loads(json.dumps(described))  # as it will be read: keys are strings
    write_json(description, described | {"description_sha256": _sha_of(described)})


def read_described(description: Path) -> tuple[dict, dict[str, Tensor]]:
    """Return what `write_described` wrote: the content of the JSON file, and the tensors.

    Raises:
        StoredFileError: naming the file that cannot be used, and why.
    """
    path = description.with_suffix(".safetensors")
    for file in (description, path):
        if not file.is_file():
            raise StoredFileError(f"{file}: not there; expected a file that an earlier stage wrote")
    try:
        content = json.loads(description.read_text())
        version = content["format_version"]
        if version == FORMAT_VERSION:
            sha, sha_here = content["sha256"], content.pop("description_sha256")
    except (ValueError, KeyError, TypeError) as error:
        raise StoredFileError(f"{description}: truncated or changed ({error!r})") from error
    if version != FORMAT_VERSION:
        raise StoredFileError(f"{description}: format version {version}; expected {FORMAT_VERSION}")
    if _sha_of(content) != sha_here:
        raise StoredFileError(f"{description}: changed since it was written: another SHA-256")
    found = _sha_of_file(path)
    if found != sha:
        said = f"SHA-256 {found[:12]}..., expected {sha[:12]}..."
        raise StoredFileError(f"{path}: truncated or changed: {said}")
    return content, read_tensors(path)


@functools.cache
def _code(part: str) -> str:
    """Return code as it was when this process first asked, for that is what it runs."""
    name, _, wanted = part.partition(":")
    path, nodes = Path(__file__).parent / name, []
    for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            has_docstring = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            if has_docstring and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        for node in tree.body:  # all of them, or what defines the name that is wanted
            defined = getattr(node, "targets", [node])
            names = {getattr(one, "id", getattr(one, "name", "")) for one in defined}
            nodes += [node] if not wanted or wanted in names else []
    if not nodes:
        raise ValueError(f"code_hash: {path} has no {wanted!r}")
    return "\n".join(map(ast.unparse, nodes))


def code_hash(parts: Sequence[str]) -> str:
    """Return 12 hex digits of the library's code, which comments and docstrings do not change.

    Args:
        parts: files of the library (``memory.py``), folders of them (``features``), or single
            functions and constants of a file (``experiments.py:synthetic_scans``).
    """
    return hashlib.sha256("\n".join(map(_code, parts)).encode()).hexdigest()[:12]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process computes what belongs into a folder, and keep others out.

    The lock is the operating system's: it ends with the process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield

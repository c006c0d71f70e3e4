"""A run that is killed after any epoch, for the peers that are trained."""

import pytest

from g2sf_lib.baselines import loop


class Killed(Exception):
    """Stands for a signal that no one can catch."""


@pytest.fixture
def kill_after(monkeypatch):
    """Return a context that kills what trains in it once so many checkpoints are written."""

    class Kill:
        def __init__(self, num):
            self.left = num

        def write(self, *args):
            self.honest(*args)
            self.left -= 1
            if self.left == 0:
                raise Killed

        def __enter__(self):
            self.honest = loop._write
            monkeypatch.setattr(loop, "_write", self.write)

        def __exit__(self, kind, *_):
            monkeypatch.setattr(loop, "_write", self.honest)
            assert kind is Killed, "the run ended before it could be killed"
            return True

    return Kill


@pytest.fixture
def bytes_of():
    """Return a function: name -> tensor, as bytes."""

    def read(tensors):
        return {name: value.cpu().numpy().tobytes() for name, value in tensors.items()}

    return read

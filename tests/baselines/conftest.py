"""Made-up scans for the methods, and a run that is killed after any epoch."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from g2sf_lib.baselines import METHODS, Calibration, Scans, fit_concat_bank, loop
from g2sf_lib.detector import fit_banks, query_banks
from g2sf_lib.features import foreground_features
from g2sf_lib.memory import Standardiser


class Killed(Exception):
    """Stands for a signal that no one can catch."""


@pytest.fixture
def kill_after():
    """Return a context that kills what trains in it once so many checkpoints are written."""

    @contextmanager
    def kill(num):
        honest, left = loop.write_checkpoint, iter(range(num - 1))

        def write(*args):
            honest(*args)
            if next(left, None) is None:
                raise Killed

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(loop, "write_checkpoint", write)
            yield

    return kill


@pytest.fixture
def bytes_of():
    """Return a function: name -> tensor, as bytes."""

    def read(tensors):
        return {name: value.cpu().numpy().tobytes() for name, value in tensors.items()}

    return read


class MadeUp(Scans):
    """Scans whose depth is made up too: `pairs` of patches and depth."""

    def __init__(self, config, stored, pairs):
        super().__init__(config, [patches for patches, _ in pairs], stored)
        self.depths = lambda px: [depth for _, depth in pairs]


def made_depth(seed, side=8):
    """Return the depth of a made-up scan as AST reads it: waves of a millimetre, and noise."""
    generator = torch.Generator().manual_seed(seed)
    row, column = torch.meshgrid(*2 * [torch.arange(side) / 2.0], indexing="ij")
    wave = (row + torch.rand(1, generator=generator)).sin() * column.cos()
    return wave + 0.1 * torch.randn(4, side, side, generator=generator)


@pytest.fixture
def scan(make_patches):
    """Return a function seed -> patches and depth of a normal scan."""
    return lambda seed: (make_patches(seed)[0], made_depth(seed))


@pytest.fixture
def config(small_config):
    """Networks are trained for a moment; four depth samples a cell, as `made_depth` makes them."""
    return small_config.replace(ast=small_config.ast.replace(ast_depth_px=2))


@pytest.fixture
def scans_of(config, scan):
    """Return a function (pairs, config) -> scans beside banks of six normal ones."""

    def stored(config, num):
        feat = foreground_features([scan(n)[0] for n in range(num)])
        standardiser = Standardiser.fit(feat, config.features.standardise)
        feat, bank = standardiser(feat), config.bank
        banks = fit_banks(feat, bank) | {"concat": fit_concat_bank(feat, bank, False, None)}
        normal = standardiser(foreground_features([scan(50 + n)[0] for n in range(3)]))
        calibration = Calibration.fit(query_banks(banks, normal, 1)[1][:, 0])
        return SimpleNamespace(standardiser=standardiser, banks=banks, calibration=calibration)

    def make(pairs, config=config, num=6):
        return MadeUp(config, stored(config, num), pairs)

    return make


@pytest.fixture
def fit(config, scan, scans_of):
    """Return a function (method, config) -> the method, fitted to six scans."""

    def make(method, config=config):
        row = METHODS[method]
        train = scans_of([scan(n) for n in range(6)], config)
        return row.scorer(config, row.banks).fit(train)

    return make

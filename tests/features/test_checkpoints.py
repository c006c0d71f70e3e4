"""Weight files as people have them are read by both loaders, or refused in one clear line."""

import os
import re
import zipfile
from argparse import Namespace
from fractions import Fraction

import numpy as np
import pytest
import timm
import torch

from g2sf_lib.config import make_config
from g2sf_lib.features import pointmae
from g2sf_lib.features.checkpoints import WeightsError
from g2sf_lib.features.pointmae import PointMAE
from g2sf_lib.features.rgb import load_model

VIT = "test_vit"  # timm's smallest: 0.4 million numbers, and a classifier `head.`
# What a training script leaves beside the weights; a schedule's rates are numbers of numpy.
BESIDE = {
    "optimizer": {
        "state": {0: {"step": 7, "exp_avg": torch.ones(2)}},
        "param_groups": [{"lr": np.float64(5e-4), "betas": (0.9, 0.999), "params": [0]}],
    },
    "epoch": 300,
    "metrics": {"acc": np.float64(0.5), "kept": np.bool_(True)},
    "best_metrics": {"acc": np.float32(0.75), "epoch": np.int64(299), "name": np.str_("svm")},
    "args": Namespace(arch="vit_base", lr=0.0005, output_dir="."),
}


@pytest.fixture(autouse=True)
def one_block(monkeypatch):
    """Point-MAE with one of its twelve blocks: the names are the same, the files small."""
    monkeypatch.setattr(pointmae, "DEPTH", 1)


def read_points(path):
    net = PointMAE(num_groups=1, group_size=1)
    net.load_checkpoint(path)
    return net.state_dict()


def read_colour(path):
    size = timm.get_pretrained_cfg(VIT).input_size[-1]
    config = make_config().features
    return load_model(
        config.replace(rgb_model=VIT, rgb_weights=str(path), rgb_size=size)
    ).state_dict()


def make_points():
    torch.manual_seed(1)
    state = PointMAE(num_groups=1, group_size=1).state_dict()
    return state, {"base_model": prefixed("module.MAE_encoder.", state), **BESIDE}


def make_colour():
    torch.manual_seed(1)
    state = timm.create_model(VIT, pretrained=False).state_dict()
    return state, {"state_dict": prefixed("module.", state), **BESIDE}


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def projection(prefix):
    """DINO's projection head; whoever took it for a classifier would fail on its shapes."""
    names = ("mlp.0.weight", "mlp.4.bias", "last_layer.weight_g", "last_layer.weight_v")
    return {f"{prefix}head.{name}": torch.ones(3) for name in names}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


both = pytest.mark.parametrize(
    ("make", "read"),
    [(make_points, read_points), (make_colour, read_colour)],
    ids=["points", "colour"],
)


@both
@pytest.mark.parametrize("numpy_name", [None, b"numpy.core", b"numpy._core"])
def test_what_training_leaves_beside_the_weights_does_not_matter(tmp_path, make, read, numpy_name):
    state, checkpoint = make()
    path = tmp_path / "ckpt.pth"
    # The older format is one stream, in which the names of numpy 1 and 2 can be exchanged.
    torch.save(checkpoint, path, _use_new_zipfile_serialization=numpy_name is None)
    if numpy_name is not None:
        content, num = re.subn(rb"cnumpy\._?core\.", b"c" + numpy_name + b".", path.read_bytes())
        assert num == 1  # named once, then referred to
        path.write_bytes(content)
    allowed = set(torch.serialization.get_safe_globals())
    assert_same(read(path), state)
    assert set(torch.serialization.get_safe_globals()) == allowed


DINO = {
    "training": lambda right, wrong: {
        "student": prefixed("module.backbone.", wrong) | projection("module."),
        "teacher": prefixed("backbone.", right) | projection(""),
        "fp16_scaler": {"scale": 65536.0},
        "dino_loss": {"center": torch.zeros(1, 8)},
        **BESIDE,
    },
    "student alone": lambda right, wrong: {
        "student": prefixed("module.backbone.", right) | projection("module.")
    },
    "state_dict": lambda right, wrong: {"state_dict": prefixed("module.", right)},
    "model": lambda right, wrong: {"model": prefixed("backbone.", right) | projection("")},
    "nested": lambda right, wrong: {
        "model": {"student": wrong, "teacher": prefixed("backbone.", right)}
    },
    "bare": lambda right, wrong: right,
}


@pytest.mark.parametrize("layout", DINO.values(), ids=DINO)
def test_every_layout_of_dino_gives_its_teacher(tmp_path, layout):
    right, _ = make_colour()
    wrong = {key: value + 1 for key, value in right.items()}
    torch.save(layout(right, wrong), tmp_path / "dino.pth")
    assert_same(read_colour(tmp_path / "dino.pth"), right)


@both
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, make, read):
    monkeypatch.setenv("HOME", str(tmp_path))
    state, checkpoint = make()
    torch.save(checkpoint, tmp_path / "mine.pth")
    assert_same(read("~/mine.pth"), state)
    with pytest.raises(WeightsError, match="~nobody-of-this-name/mine.pth"):
        read("~nobody-of-this-name/mine.pth")


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(value, **options):
    return lambda path: torch.save({"state_dict": value, "base_model": value}, path, **options)


def written(content):
    return lambda path: path.write_bytes(content)


def halved(**options):
    def write(path):
        saved({"norm.bias": torch.ones(5000)}, **options)(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.md", "nothing of torch")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
DAMAGED = {
    "a folder": lambda path: path.mkdir(),
    "empty": written(b""),
    "a web page": written(b"\n<!DOCTYPE html>\n<html><body>Not Found</body></html>"),
    "a pointer of Git LFS": written(POINTER),
    "another zip": write_zip,
    "half a zip": halved(),
    "half a stream": halved(_use_new_zipfile_serialization=False),
    "a pickle of torch, protocol 4": saved({"norm.bias": torch.ones(1)}, pickle_protocol=4),
    "a list": lambda path: torch.save([1, 2], path),
    "numbers, no tensors": saved({"norm.bias": np.float64(1), 3: 4}),
    "a table that is none": saved("norm.bias"),
}
NEEDING = {
    "Fraction": saved(Fraction(1, 3)),
    "_reconstruct": saved(np.ones(3)),
    "open": saved(Calls(open, "trace", "w")),
    "system": saved(Calls(os.system, "touch trace")),
    "eval": saved(Calls(eval, "open('trace', 'w')"), _use_new_zipfile_serialization=False),
}


def assert_refused(read, path):
    with pytest.raises(WeightsError) as caught:
        read(path)
    text, cause = str(caught.value), caught.value.__cause__
    assert path.name in text and "\n" not in text
    # Neither the line nor what a notebook prints above it has torch's advice.
    assert "weights_only" not in f"{text} {cause}" and "safe_globals" not in f"{text} {cause}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return text


@both
@pytest.mark.parametrize("write", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_is_no_checkpoint_is_named(tmp_path, recwarn, make, read, write, suffix):
    path = tmp_path / f"weights.{suffix}"
    write(path)
    recwarn.clear()
    text = assert_refused(read, path)
    assert path.is_dir() or "expected" in text or "missing" in text
    assert not recwarn.list


@both
@pytest.mark.parametrize(("name", "write"), NEEDING.items(), ids=NEEDING)
def test_code_in_a_file_is_not_run_but_named(tmp_path, monkeypatch, make, read, name, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "evil.pth")
    before = sorted(os.listdir())
    text = assert_refused(read, tmp_path / "evil.pth")
    assert name in text and "expected" in text
    assert sorted(os.listdir()) == before

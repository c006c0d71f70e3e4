"""What is written comes back, and what was changed is refused by name."""

import json

import pytest
import torch

from g2sf_lib.store import StoredFileError, read_described, write_described, write_json

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False])}
CONTENT = {"note": "x", "numbers": [0.1, 2], "nested": {"k": None}, "not_a_number": float("nan")}


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "deep" / "thing.json"
    write_described(path, CONTENT, TENSORS)
    return path


def test_what_is_written_comes_back(stored):
    content, tensors = read_described(stored)
    assert {key: content[key] for key in ("note", "numbers", "nested")} == {
        key: CONTENT[key] for key in ("note", "numbers", "nested")
    }
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_only_the_two_files_are_left_and_the_same_content_gives_the_same_bytes(stored):
    names = sorted(p.name for p in stored.parent.iterdir())
    assert names == ["thing.json", "thing.safetensors"]
    before = [p.read_bytes() for p in sorted(stored.parent.iterdir())]
    write_described(stored, CONTENT, TENSORS)
    assert [p.read_bytes() for p in sorted(stored.parent.iterdir())] == before


def test_tensors_that_share_memory_or_need_a_gradient_are_written(tmp_path):
    whole = torch.arange(12.0, requires_grad=True)
    write_described(tmp_path / "t.json", {}, {"view": whole.view(3, 4).T, "whole": whole})
    _, tensors = read_described(tmp_path / "t.json")
    assert torch.equal(tensors["view"], whole.detach().view(3, 4).T)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_missing_file_is_named(stored, suffix):
    stored.with_suffix(suffix).unlink()
    with pytest.raises(StoredFileError, match=rf"thing\{suffix}: not there"):
        read_described(stored)


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_truncated_tensors_are_refused_by_name(stored, keep):
    path = stored.with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoredFileError, match=r"thing\.safetensors: truncated or changed: SHA-256"):
        read_described(stored)


def test_one_changed_bit_is_refused_by_name(stored):
    path = stored.with_suffix(".safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoredFileError, match=r"thing\.safetensors: truncated or changed"):
        read_described(stored)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"format_version": 1}', "\x00\x01"])
def test_a_damaged_description_is_refused_by_name(stored, text):
    stored.write_text(text)
    with pytest.raises(StoredFileError, match=r"thing\.json: truncated or changed"):
        read_described(stored)


def test_a_truncated_description_is_refused_by_name(stored):
    stored.write_text(stored.read_text()[:-5])
    with pytest.raises(StoredFileError, match=r"thing\.json: truncated or changed"):
        read_described(stored)


def test_a_changed_number_in_the_description_is_refused_by_name(stored):
    content = json.loads(stored.read_text())
    content["numbers"][0] = 0.2
    write_json(stored, content)
    with pytest.raises(StoredFileError, match=r"thing\.json: changed"):
        read_described(stored)


def test_the_layout_of_the_description_does_not_matter(stored):
    stored.write_text(json.dumps(json.loads(stored.read_text()), indent=7, sort_keys=True))
    read_described(stored)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused(stored, version):
    content = json.loads(stored.read_text()) | {"format_version": version}
    write_json(stored, content)
    with pytest.raises(
        StoredFileError, match=rf"thing\.json: format version {version}; expected 1"
    ):
        read_described(stored)


def test_write_json_replaces_at_once(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})  # fails while it writes
    assert json.loads(path.read_text()) == {"a": 1}

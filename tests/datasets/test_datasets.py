import os

import pytest

from g2sf_lib.config import CATEGORIES
from g2sf_lib.datasets import ScanError, category_names, in_processes


def test_a_process_that_dies_is_told():
    with pytest.raises(RuntimeError, match="a worker process died .*fewer workers"):
        list(in_processes(os._exit, [3, 3], 2))


@pytest.mark.parametrize("dataset", ["mvtec3d", "eyecandies", "procedural"])
def test_published_categories_that_are_there_in_published_order(tmp_path, dataset):
    known = CATEGORIES[dataset]
    for name in (known[3], known[1], "something else"):
        (tmp_path / name).mkdir()
    (tmp_path / known[0]).write_text("a file")
    assert category_names(dataset, tmp_path) == (known[1], known[3])
    assert category_names(dataset, str(tmp_path)) == (known[1], known[3])


def test_names_of_ones_own_categories_are_free(tmp_path):
    (tmp_path / "zinc/train").mkdir(parents=True)
    (tmp_path / "bagel/test").mkdir(parents=True)
    (tmp_path / "readme").mkdir()
    assert category_names("folder", tmp_path) == ("bagel", "zinc")
    with pytest.raises(ScanError, match="no category found"):
        category_names("folder", tmp_path / "readme")

import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from halcon import write_points
from PIL import Image

from g2sf_lib.config import CATEGORIES
from g2sf_lib.datasets import SPLITS, reader
from g2sf_lib.datasets.check import check, main

CATEGORY = {"mvtec3d": "bagel", "eyecandies": "CandyCane", "folder": "my part"}


# ------------------------------------------------------- what can be wrong, and how it is said


def save(array):
    return lambda path: Image.fromarray(array).save(path)


def points(change):
    """Return a corruption of a TIFF: its array through `change`."""

    def corrupt(path):
        array = change(tifffile.imread(path))
        tifffile.imwrite(path, array, photometric="minisblack" if array.ndim < 3 else "rgb")

    return corrupt


def at(row, column, value):
    def change(xyz):
        xyz[row, column, 1] = value
        return xyz

    return change


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    path.unlink()


def text(content):
    return lambda path: path.write_text(content)


def gone(path):
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    path.rmdir()


def emptied(path):
    gone(path)
    path.mkdir()


def only_good(path):
    for kind in ("cut", "contamination"):
        gone(path / kind)


def one_scan_left(path):
    for kind, suffix in (("rgb", ".png"), ("xyz", ".tiff")):
        (path / "good" / kind / f"001{suffix}").unlink()


def good_is_called(label):
    def corrupt(path):
        (path / "good").rename(path / label)
        for image in (path / label / "rgb").glob("*.png"):
            (path / label / "gt").mkdir(exist_ok=True)
            Image.new("L", Image.open(image).size, 255).save(path / label / "gt" / image.name)

    return corrupt


def doubled(suffix):
    return lambda path: path.with_suffix(suffix).write_bytes(path.read_bytes())


def coded(value):
    def change(xyz):
        xyz[3:9, 4:20] = value
        return xyz

    return change


def other_domain(path):
    xyz = tifffile.imread(path)
    domain = (xyz != 0).any(axis=-1)
    domain[5:9, 10:14] ^= True
    write_points(path, xyz, domain)


def convert(mode):
    def corrupt(path):
        Image.open(path).convert(mode).save(path)

    return corrupt


GREY = np.arange(576, dtype=np.uint16).reshape(24, 24)
MVTEC = {
    "shape": ("train/good/xyz/001.tiff", points(lambda a: a[:-1]), "29 x 40 points; expected 30"),
    "nan": ("train/good/xyz/001.tiff", points(at(7, 9, np.nan)), "row 7, column 9"),
    "empty": ("test/cut/xyz/000.tiff", points(lambda a: a * 0), "empty cloud"),
    "dtype": ("test/good/xyz/000.tiff", points(lambda a: a.astype(float)), "float64"),
    "one channel": ("train/good/xyz/000.tiff", points(lambda a: a[..., 2]), "shape (30, 40)"),
    "cut points": ("train/good/xyz/000.tiff", cut, "truncated"),
    "no points": ("train/good/xyz/001.tiff", remove, "missing, but"),
    "no truth": ("test/cut/gt/000.png", remove, "missing, but"),
    "grey image": ("train/good/rgb/000.png", convert("L"), "mode L"),
    "colour truth": ("test/cut/gt/000.png", convert("RGB"), "expected a single-channel PNG"),
    "small truth": ("test/cut/gt/000.png", save(np.ones((5, 6), np.uint8)), "5 x 6 pixels"),
    "good is bad": ("test/good/gt/000.png", save(np.ones((30, 40), np.uint8)), "1200 anomalous"),
    "no split": ("validation", gone, "no such folder"),
    "no label": ("train", emptied, "no sub-folder found"),
    "only good": ("test", only_good, "1 good and 0 defective test scans", ""),
    "one to train": ("train", one_scan_left, "1 good and 0 defective train scans", ""),
    "defect to train": (
        "train",
        good_is_called("cut"),
        "train/cut/000 is 'cut' and 1 more; expected 'good'",
        "",
    ),
    "jpeg beside": ("train/good/rgb/001.png", doubled(".jpg"), ".jpg", "train/good/rgb/001.jpg"),
    "twice": ("test/good/rgb/000.png", doubled(".PNG"), "found too", "test/good/rgb/000.png"),
    "text": ("train/good/xyz/001.tiff", doubled(".txt"), ".txt found", "train/good/xyz/001.txt"),
    "beside": ("test/000.png", text("?"), "a file; expected folders alone"),
    "no defect": ("test/cut/gt/000.png", save(np.zeros((30, 40), np.uint8)), "no anomalous pixel"),
    "millimetres": ("train/good/xyz/001.tiff", points(lambda a: a * 1000), "above 100"),
    "centimetres": ("train/good/xyz/001.tiff", points(lambda a: a * 100), "expected metres"),
    "a code": ("train/good/xyz/001.tiff", points(coded((0, 0, -1))), "hold the same point"),
    "domain": ("train/good/xyz/001.tiff", other_domain, "its domain is (30, 40)"),
}
EYECANDIES = {
    "no mask": ("test_public/data/00_mask.png", remove, "missing, but"),
    "bits": ("train/data/000_depth.png", save(GREY.astype(np.uint8)), "8 bits"),
    "shape": ("train/data/000_depth.png", save(GREY[1:]), "23 x 24 points; expected 24 x 24"),
    "empty": ("train/data/000_depth.png", save(GREY * 0), "every depth is 0"),
    "cut depth": ("train/data/000_depth.png", cut, "cannot be read"),
    "no yaml": ("train/data/000_info_depth.yaml", text("{min: [\n"), "cannot be read"),
    "pose": ("train/data/000_pose.txt", text("1 0 0 0\n0 1 0 0\n0 0 1 0\n"), "3 x 4 values"),
    "no motion": ("train/data/000_pose.txt", text("1 1 1 1\n" * 4), "not a rigid motion"),
    "train is bad": ("train/data/000_mask.png", save(np.ones((24, 24), np.uint8)), "anomalous"),
    "metadata": ("test_public/data/01_metadata.yaml", text("- bumps"), "kinds of defect"),
    "no split": ("val", gone, "no such folder", "val/data"),
    "empty split": ("train/data", emptied, "no scan found"),
}
FOLDER = {
    "no camera": ("camera.yaml", remove, "expected the camera"),
    "camera": ("camera.yaml", text("{fx: 1, fy: 1, cx: 1, cy: 1}"), "found fx, fy, cx, cy;"),
    "empty": ("train/good/depth/000.png", save(np.zeros((30, 40), np.uint16)), "empty cloud"),
    "shape": ("train/good/depth/000.png", save(GREY), "24 x 24 points; expected 30 x 40"),
    "no split": ("validation", gone, "calibrate the scores"),
}
VARIANTS = [
    pytest.param(dataset, variant, id=f"{dataset}: {name}")
    for dataset, table_ in (("mvtec3d", MVTEC), ("eyecandies", EYECANDIES), ("folder", FOLDER))
    for name, variant in table_.items()
]


@pytest.mark.parametrize(("dataset", "variant"), VARIANTS)
def test_every_corrupted_variant_is_named(tmp_path, make_tree, dataset, variant):
    name, corrupt, words, *named = variant
    root = make_tree(dataset, tmp_path / "raw")
    assert check(dataset, root).problems == []
    category = root / CATEGORY[dataset]
    corrupt(category / name)
    report = check(dataset, root)
    assert len(report.problems) == 1
    (line,) = report.problems
    assert line.startswith(f"{category / (named or [name])[0]}: ") and words in line
    assert "\n" not in line and "expected" in line
    folder = name.split("/")[0]
    split = {"val": "validation", "test_public": "test"}.get(folder, folder)
    hit = report.counts["split"][report.counts["problems"] > 0].tolist()
    assert hit == ([split] if folder != "camera.yaml" else list(SPLITS))


@pytest.mark.parametrize("dataset", CATEGORY)
def test_a_whole_tree_has_no_problem_and_is_counted(tmp_path, make_tree, dataset):
    root = make_tree(dataset, tmp_path / "raw")
    before = {p: (p.stat().st_mtime_ns, p.is_dir() or p.read_bytes()) for p in root.rglob("*")}
    report = check(dataset, root)
    category = CATEGORY[dataset]
    assert report.problems == []
    columns = ["category", "split", "good", "defective", "all", "problems"]
    assert report.counts[columns].to_numpy().tolist() == [
        [category, "train", 2, 0, 2, 0],
        [category, "validation", 1, 0, 1, 0],
        [category, "test", 1, 2, 3, 0],
    ]
    after = {p: (p.stat().st_mtime_ns, p.is_dir() or p.read_bytes()) for p in root.rglob("*")}
    assert after == before


def test_the_first_bad_file_stops_nothing(tmp_path, mvtec_tree, monkeypatch):
    root = mvtec_tree(tmp_path, ("bagel", "cookie"), side=(20, 30), num=(4, 2, 2, 3))
    bad = [
        root / "bagel/train/good/xyz/000.tiff",
        root / "bagel/test/hole/gt/000.png",
        root / "cookie/train/good/rgb/003.png",
        root / "cookie/test/good/xyz/001.tiff",
    ]
    for path in bad[:3]:
        cut(path)
    bad[3].unlink()
    gone(root / "bagel/validation")
    report = check("mvtec3d", root)
    assert len(report.problems) == 5
    for path in [*bad, root / "bagel/validation"]:
        assert sum(line.startswith(str(path)) for line in report.problems) == 1
    assert report.counts["all"].tolist() == [4, 0, 5, 4, 2, 4]
    assert report.counts["problems"].tolist() == [1, 1, 1, 1, 0, 1]
    assert check("mvtec3d", root, workers=2).problems == report.problems
    read_scan = reader("mvtec3d").read_scan

    def out_of_memory(files):
        if files.index == "002":
            raise MemoryError("too large")
        return read_scan(files)

    monkeypatch.setattr(reader("mvtec3d"), "read_scan", out_of_memory)
    odd = [line for line in check("mvtec3d", root).problems if "too large" in line]
    assert odd[1].startswith(f"{root / 'cookie/train/good/rgb/002.png'} or ")


def test_a_root_without_categories_is_a_problem(tmp_path):
    assert check("mvtec3d", tmp_path / "nowhere").problems == [
        f"{tmp_path}/nowhere: no such folder; expected the folder that holds the categories"
    ]
    (tmp_path / "Bagel").mkdir()
    for dataset in ("mvtec3d", "eyecandies"):
        report = check(dataset, tmp_path)
        (line,) = report.problems
        if dataset == "mvtec3d":  # nearly the name of a category, so it is meant as one
            assert line.startswith(f"{tmp_path}/Bagel: ") and line.endswith("called bagel")
        else:
            assert line.startswith(f"{tmp_path}: no category found, it holds Bagel; expected ")
            assert line.endswith(CATEGORIES[dataset][-1])
        assert len(report.counts) == 0
    (line,) = check("folder", tmp_path).problems
    assert line.startswith(f"{tmp_path}: no category found; expected <category>/train")


# ---------------------------------------------------------------- command line


def run(*arguments):
    command = [sys.executable, "-m", "g2sf_lib.datasets.check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_command_reads_by_all_cores_and_succeeds(tmp_path, make_tree, capsys, monkeypatch):
    make_tree("eyecandies", tmp_path)
    arguments = ["--dataset", "eyecandies", "--data-root", str(tmp_path)]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[3].split() == ["CandyCane", "test", "1", "2", "3", "0"]
    assert lines[-1] == "no problem found" and "6/6" in done.stderr
    cut(tmp_path / "CandyCane/val/data/000_depth.png")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert main(arguments) == 1
    out = capsys.readouterr().out.splitlines()
    assert "000_depth.png" in out[-2] and out[-1] == "1 problem: a run would fail"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "mvtec3d", "--data-root", ""], "--data-root is empty"),
        (["--dataset", "mvtec3d"], "--data-root"),
        (["--dataset", "procedural", "--data-root", "x"], "invalid choice"),
    ],
)
def test_bad_arguments_are_refused(capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and words in capsys.readouterr().err

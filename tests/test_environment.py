"""pyproject.toml is the one list of dependencies; the lock and conda's file agree with it."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def locked() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_lock_pins_every_dependency_to_an_allowed_version_and_is_what_runs():
    """Numbers in the book come from these versions."""
    assert not re.search("file:|@|-e |g2sf", (ROOT / "requirements.lock").read_text())
    pins = locked()
    assert all(str(pin.specifier).startswith("==") for pin in pins.values())
    for text in (*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["dev"]):
        requirement = Requirement(text)
        assert canonicalize_name(requirement.name) in pins, f"{text}: run `make lock`"
        (pin,) = pins[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(pin.version, prereleases=True), text
    for name in ("torch", "numpy", "scikit-learn", "open3d", "timm", "snakemake", "jupyter-book"):
        (pin,) = pins[name].specifier
        assert importlib.metadata.version(name).split("+")[0] == pin.version.split("+")[0], name


def test_extras_choose_exactly_one_faiss_and_the_plugin_of_slurm():
    names = {group: [Requirement(text).name for text in texts] for group, texts in EXTRAS.items()}
    assert (names["cpu"], names["gpu"]) == (["faiss-cpu"], ["faiss-gpu"])
    assert not [name for name in names["dev"] if name.startswith("faiss")]
    assert set(EXTRAS["slurm"]) <= set(EXTRAS["dev"]) - set(PROJECT["dependencies"])


def test_conda_file_agrees_with_the_project():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    (through_pip,) = (entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert through_pip == ["-e .[dev]"]  # so that dependencies stand in pyproject.toml only
    plain = [entry for entry in conda["dependencies"] if isinstance(entry, str)]
    versions = dict(re.fullmatch(r"([\w-]+)(.*)", entry).groups() for entry in plain)
    assert set(versions) == {"python", "pip", "libusb", "faiss-gpu"}
    assert SpecifierSet(PROJECT["requires-python"]).contains(versions["python"].lstrip("="))
    assert versions["faiss-gpu"] == str(Requirement(EXTRAS["cpu"][0]).specifier)


def make(*arguments: str) -> subprocess.CompletedProcess:
    """Call make with the environment taken as it is."""
    command = ["make", "--no-print-directory", "-o", ".venv/installed-cpu", "GPU=0", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@needs_make
@pytest.mark.parametrize("by", ["command line", "environment"])
def test_make_hands_text_over_as_it_was_given(tmp_path, monkeypatch, by):
    """Neither make nor the shell reads a `$`, a quote, a blank, a brace or a `#` in it again."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    python.chmod(0o755)
    given = {
        "PROFILE": "smoke",
        "DATASET": "folder",
        "DATA_ROOT": "/tmp/we ird#a:{x}$'q\"`id`$(id)\\",
        "CATEGORIES": "['part a', '001']",
        "SETTINGS": '{rgb_model: "001", alpha: 1e-4}',
        "DEVICE": "cpu",
        "HTML": "/tmp/a book$HOME",
        "CHAPTER": "00_data",
    }
    words = [f"{name}={value}" for name, value in given.items() if by == "command line"]
    for name, value in given.items() if by == "environment" else ():
        monkeypatch.setenv(name, value)
    options = [f"--{name.lower().replace('_', '-')}={value}" for name, value in given.items()]
    place, every = set(options[:3]), set(options)
    expected = {"chapter": every, "book": every - {"--chapter=00_data"}, "readme": place}
    expected["check-data"] = place - {"--profile=smoke"}
    for target, handed in expected.items():
        got = json.loads(make(f"PY={python}", target, *words).stdout.splitlines()[-1])
        assert {word for word in got if word.startswith("--") and "=" in word} == handed


@needs_make
def test_make_names_its_targets_and_passes_their_options_on():
    told = set(re.findall(r"^make ([\w-]+) ", make("help").stdout, re.MULTILINE))
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    assert set(targets.split()) - told == {"help", "environment"}
    assert "-m g2sf_lib.features.weights" in make("-n", "weights").stdout
    asked = make("check-data")
    said = [line for line in asked.stderr.splitlines() if not line.startswith(("make: ", "make["))]
    assert asked.returncode != 0 and asked.stdout == ""
    assert len(said) == 1 and "DATASET=mvtec3d|eyecandies|folder DATA_ROOT=" in said[0]


def test_weights_and_computed_files_are_not_committed():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"data/weights/", "data/runs/", "data/raw/"} <= set(ignored)
    assert "data/paper/" not in ignored and "data/results/" not in ignored


@pytest.fixture
def bootstrap(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    return importlib.import_module("bootstrap")


def test_what_the_machine_lacks_is_said_in_one_line(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "has_libusb", lambda: False)
    monkeypatch.setattr(bootstrap, "apt_install", lambda package: False)
    with pytest.raises(SystemExit, match="libusb-1.0: .*apt-get install .*dnf.*brew or conda"):
        bootstrap.check_machine()
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 10, 4, "final", 0))
    with pytest.raises(SystemExit, match=r"^.*Python 3.11 or newer is needed, .* is 3\.10\.4.*$"):
        bootstrap.check_machine()
    monkeypatch.setattr(bootstrap, "NEEDED_GB", 1e9)
    with pytest.raises(SystemExit, match=r"GB free, .venv needs 1000000000.0 GB"):
        bootstrap.install(tmp_path / ".venv", "cpu")


def test_failure_of_pip_is_explained_in_one_line(bootstrap, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nraise SystemExit(1)\n")
    python.chmod(0o755)
    with pytest.raises(SystemExit, match=r"pip failed .*python -m pip .* install x; .*PyPI"):
        bootstrap.run_pip(python, "install", "x")

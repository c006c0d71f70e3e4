"""pyproject.toml is the one list of dependencies; the lock and conda's file agree with it."""

import importlib.metadata
import importlib.util
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


def locked() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def wanted(*groups: str) -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(text for group in groups for text in EXTRAS[group])]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("requirement", wanted("cpu", "dev"), ids=str)
def test_lock_pins_every_dependency_to_an_allowed_version(requirement):
    pins = locked()
    assert canonicalize_name(requirement.name) in pins, "run `make lock`"
    (pin,) = pins[canonicalize_name(requirement.name)].specifier
    assert pin.operator == "=="
    assert requirement.specifier.contains(pin.version, prereleases=True)


def test_lock_holds_exact_versions_from_an_index_only():
    text = (ROOT / "requirements.lock").read_text()
    assert "file:" not in text and "@" not in text and "-e " not in text
    assert all(str(pin.specifier).startswith("==") for pin in locked().values())
    assert "g2sf-lib" not in locked()


def test_what_runs_is_what_is_locked():
    """Numbers in the book come from these versions."""
    for name in ("torch", "numpy", "scikit-learn", "open3d", "timm", "snakemake", "jupyter-book"):
        (pin,) = locked()[name].specifier
        assert importlib.metadata.version(name).split("+")[0] == pin.version.split("+")[0], name


def test_exactly_one_faiss_is_chosen():
    names = {group: [Requirement(text).name for text in EXTRAS[group]] for group in ("cpu", "gpu")}
    assert names == {"cpu": ["faiss-cpu"], "gpu": ["faiss-gpu"]}
    assert not [r for r in wanted("dev") if r.name.startswith("faiss")]


def test_conda_file_agrees_with_the_project():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    (through_pip,) = (entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert through_pip == ["-e .[dev]"]  # so that dependencies stand in pyproject.toml only
    plain = [entry for entry in conda["dependencies"] if isinstance(entry, str)]
    versions = dict(re.fullmatch(r"([\w-]+)(.*)", entry).groups() for entry in plain)
    assert set(versions) == {"python", "pip", "libusb", "faiss-gpu"}
    python = versions["python"].lstrip("=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    (floor,) = Requirement(EXTRAS["cpu"][0]).specifier
    assert versions["faiss-gpu"] == str(floor)


def make(*arguments: str) -> subprocess.CompletedProcess:
    """Call make with the environment taken as it is."""
    command = ["make", "--no-print-directory", "-o", ".venv/installed-cpu", "GPU=0", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
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
    words = [f"{name}={value}" for name, value in given.items()]
    if by == "environment":
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        words = []
    place = {f"--{name.lower().replace('_', '-')}={given[name]}" for name in list(given)[:3]}
    every = {f"--{name.lower().replace('_', '-')}={value}" for name, value in given.items()}
    expected = {"chapter": every, "book": every - {"--chapter=00_data"}, "readme": place}
    expected["check-data"] = place - {"--profile=smoke"}
    for target, options in expected.items():
        got = json.loads(make(f"PY={python}", target, *words).stdout.splitlines()[-1])
        assert {word for word in got if word.startswith("--") and "=" in word} == options


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
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


def test_slurm_s_plugin_is_an_extra_and_there_for_the_tests():
    (plugin,) = EXTRAS["slurm"]
    assert plugin in EXTRAS["dev"] and plugin not in PROJECT["dependencies"]


@pytest.fixture
def bootstrap():
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "workflow" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_old_python_is_refused_in_one_line(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 10, 4, "final", 0))
    with pytest.raises(SystemExit) as stopped:
        bootstrap.check_python()
    assert "Python 3.11 or newer is needed" in str(stopped.value)
    assert "3.10.4" in str(stopped.value) and "\n" not in str(stopped.value)


def test_full_disk_is_refused_in_one_line(bootstrap, tmp_path):
    with pytest.raises(SystemExit, match=r"GB free, the environment needs 1000000000 GB"):
        bootstrap.check_disk(tmp_path, 1e9)


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("Failed to establish a new connection: Temporary failure in name resolution", "PyPI"),
        ("ERROR: Could not find a version (from versions: none)", "PyPI cannot be reached"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: something else", "pip failed"),
    ],
)
def test_failure_of_pip_is_explained_in_one_line(bootstrap, tmp_path, said, meaning):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nprint({said!r}); raise SystemExit(1)\n")
    python.chmod(0o755)
    with pytest.raises(SystemExit, match=meaning):
        bootstrap.run_pip(python, "install", "x")


@pytest.mark.parametrize("tool", ["apt-get", "dnf", "brew", "conda"])
def test_missing_libusb_gives_the_one_command(bootstrap, monkeypatch, tool):
    monkeypatch.setattr(bootstrap, "has_libusb", lambda: False)
    monkeypatch.setattr(bootstrap, "can_use_apt", lambda: False)
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: name if name == tool else None)
    with pytest.raises(SystemExit) as stopped:
        bootstrap.check_libusb()
    assert str(stopped.value).endswith(": " + bootstrap.LIBUSB_COMMANDS[tool])

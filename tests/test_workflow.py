"""The Snakefile decides rightly what to run; notebooks fail, stop and succeed cleanly."""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml

from g2sf_lib import config as library

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = (
    "00_data",
    "01_feature_extraction",
    "02_memory_bank",
    "03_lspn_training",
    "04_anomaly_scoring",
    "05_benchmark",
    "06_table3_score_metrics",
    "07_table4_loss_ablation",
    "08_table5_aggregation",
    "09_figure6_distributions",
    "10_figure7_maps",
    "11_analyses",
    "12_metric_playground",
    "13_training_cells",
    "90_loss_weights",
    "91_real_data",
    "92_peer_settings",
)
ALL_JOBS = {
    "data": 1, "features": 2, "bank": 2, "lspn": 4, "loss_weights": 1, "peer_settings": 1,
    "scores": 1, "benchmark": 2, "comparison": 1, "real_data": 1, "book": 1, "all": 1,
    "table3": 1, "table4_category": 2, "table4": 1, "table5": 1, "figure6": 1, "figure7": 1,
    "analyses_category": 1, "analyses": 1, "playground": 1,
    "staircase_category": 1, "staircase": 1,
}  # fmt: skip
TRAINING_NEEDS_NOT = ("data", "features", "bank", "peer_settings", "real_data", "playground")
FROM_TRAINING = {k: v for k, v in ALL_JOBS.items() if k not in TRAINING_NEEDS_NOT}
PARTS = ("table3", "table4_category", "table4", "table5", "figure7", "analyses_category")
PARTS += (
    "analyses",
    "staircase_category",
    "staircase",
)  # what looks at parts and variants of G2SF, and at no peer
COMPARED_AGAIN = {"benchmark": 2, "comparison": 1, "figure6": 1, "book": 1, "all": 1}
ALARMS_AGAIN = {"analyses_category": 1, "analyses": 1}  # of the maximum, a method of banks, too
PAPER_JOBS = {
    "data": 1, "features": 10, "bank": 10, "lspn": 30,
    "scores": 1, "benchmark": 10, "comparison": 1, "real_data": 1, "book": 1, "all": 1,
    "table3": 1, "table5": 1, "figure6": 1, "figure7": 1, "playground": 1,
}  # fmt: skip
SLURM = ("--workflow-profile", "workflow/profiles/slurm")
# Stand-ins for the two programs that jobs start: they leave the files and compute nothing.
STAND_IN_NOTEBOOK = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[2])
given = json.loads(sys.argv[sys.argv.index("--parameters") + 1])
sys.path.insert(0, ".")
from g2sf_lib import config as library
place = {name: given[name] for name in ("profile", "dataset", "data_root", "category")}
config = library.make_config(**place)
runs, category = library.dataset_dir(config), library.folder_name(given["category"])
stage = {"00": "scans/data", "01": f"{category}/features", "02": f"{category}/bank",
         "03": f"{category}/seed{given.get('seed')}/lspn", "04": f"{category}/scores",
         "05": f"{category}/benchmark", "90": "loss_weights", "92": "peer_settings"}
done = [runs / f"{name}.json" for name in [stage.get(out.name[:2])] if name]
if out.name[:2] == "05":  # the comparison of all categories writes their records once more
    names = map(library.folder_name, given["categories"])
    again = [runs / name / "benchmark.json" for name in names]
else:
    again = []
if given.get("write_results"):
    summaries = {"06": "table3", "07": "table4", "08": "table5", "09": "figure6",
                 "11": "analyses", "13": "staircase"}
    done = [library.results_file(config, summaries.get(out.name[:2]))]
written = [out, *again, *done]
for path in written:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(given | {"by": str(out)}))
"""
STAND_IN_BOOK = """
import pathlib, sys
page = pathlib.Path(sys.argv[sys.argv.index("--html") + 1], "index.html")
page.parent.mkdir(parents=True, exist_ok=True)
page.write_text("a book")
"""


def snakemake(tree: Path, *arguments: str, check: bool = True) -> str:
    command = [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", *arguments]
    if "--workflow-profile" not in arguments:
        command += ["--cores", "4", "--scheduler", "greedy"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == check, said
    return said


def jobs(tree: Path, *config: str, profile: str = "smoke", more: tuple = ()) -> dict[str, int]:
    """Return rule -> number of jobs that would run now."""
    said = snakemake(tree, "-n", *more, "--config", f"profile={profile}", *config)
    if "Nothing to be done" in said:
        return {}
    table = said[said.index("Job stats:") :].split("total")[0]
    return {name: int(num) for name, num in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A copy of what the Snakefile reads, the jobs' programs replaced by stand-ins."""
    tree = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("workflow", "g2sf_lib"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("book/_ext", "book/_static"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("_config.yml", "book/_toc.yml"):
        shutil.copy2(ROOT / name, tree / name)
    shutil.copytree(ROOT / "data" / "paper", tree / "data" / "paper")
    (tree / "data" / "results").mkdir()
    for name in ("scale", "mvtec3d_demo"):
        (tree / "data" / "results" / f"{name}.json").write_text("{}")
    (tree / "book" / "intro.md").write_text("# Introduction\n")
    (tree / "notebooks").mkdir()
    for name in NOTEBOOKS:
        (tree / "notebooks" / f"{name}.ipynb").write_text("{}")
    (tree / "workflow" / "run_notebook.py").write_text(STAND_IN_NOTEBOOK)
    (tree / "workflow" / "build_book.py").write_text(STAND_IN_BOOK)
    return tree


@pytest.fixture(scope="module")
def finished(pristine):
    """The same tree after one complete run; tests put back what they change."""
    assert jobs(pristine) == ALL_JOBS
    snakemake(pristine, "--quiet", "all", "--config", "profile=smoke")
    return pristine


@pytest.fixture
def edit(finished):
    """Append to a file of the tree, and undo that (content and date) after the test."""
    changed = []

    def append(name: str, text: str) -> None:
        path = finished / name
        changed.append((path, path.read_bytes(), path.stat()))
        path.write_bytes(path.read_bytes() + text.encode())

    yield append
    for path, content, stat in reversed(changed):
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_second_run_has_nothing_to_do(finished):
    assert jobs(finished) == {}


def test_parameters_reach_the_notebooks(finished):
    executed = finished / "book" / "executed" / "smoke" / "procedural"
    given = {
        path.relative_to(executed).with_suffix("").as_posix(): json.loads(path.read_text())
        for path in executed.rglob("*.ipynb")
    }
    assert all(x["profile"] == "smoke" and x["dataset"] == "procedural" for x in given.values())
    # Those of all categories get one of them: the notebook's default may not be there.
    assert {x["category"] for name, x in given.items() if "/" not in name} == {"gland"}
    assert all(x["category"] == name.split("/")[0] for name, x in given.items() if "/" in name)
    assert given["cookie/03_lspn_training_seed1"]["seed"] == 1
    assert given["gland/04_anomaly_scoring"]["seeds"] == [0, 1]
    assert "categories" not in given["gland/04_anomaly_scoring"]
    assert "cookie/04_anomaly_scoring" not in given
    everything = ["cookie", "gland"]
    assert given["92_peer_settings"]["categories"] == everything
    compared, one = given["05_benchmark"], given["cookie/05_benchmark"]
    assert compared["categories"] == everything and one["categories"] == ["cookie"]
    assert compared["seeds"] == one["seeds"] == [0, 1]
    # Other jobs run beside that of one category: no frame rates, and no summary of all.
    assert compared["write_results"] and "frame_scans" not in compared
    assert one["frame_scans"] == 0 and "write_results" not in one
    summary = json.loads((finished / "data" / "results" / "smoke.json").read_text())
    assert summary == compared


def test_changed_loss_weight_reruns_training_and_what_follows(finished):
    assert jobs(finished, "settings={alpha: 2.5}") == FROM_TRAINING


def test_changed_scoring_reruns_only_scoring(finished):
    after = {"scores": 1} | COMPARED_AGAIN | {name: ALL_JOBS[name] for name in PARTS}
    assert jobs(finished, "settings={blur_sigma_px: 2.0}") == after


@pytest.mark.parametrize(
    ("setting", "also"),
    [
        ("cfm_epochs: 9", {"peer_settings": 1}),
        ("ast_learning_rate: 0.002", {"peer_settings": 1}),
        ("svm_nu: 0.4", ALARMS_AGAIN),
        ("reweight_neighbours: 9", ALARMS_AGAIN),
    ],
)
def test_changed_setting_of_a_peer_reruns_only_the_benchmark(finished, setting, also):
    assert jobs(finished, f"settings={{{setting}}}") == COMPARED_AGAIN | also


def test_changed_settings_reach_the_notebooks_that_read_them(pristine):
    changed = "settings={alpha: 2.5, cfm_epochs: 9, blur_sigma_px: 2.0}"
    more = ("--forceall", "--printshellcmds", "--config", "profile=smoke", changed)
    said = snakemake(pristine, "-n", *more)
    told = {}
    for line in re.findall(r"^.*run_notebook\.py .*$", said, re.MULTILINE):
        words = shlex.split(line)
        name = Path(words[words.index("--parameters") - 4]).stem
        given = json.loads(words[words.index("--parameters") + 1])
        told[name] = {x for x in ("alpha", "cfm_epochs", "blur_sigma_px") if x in given}
    assert told == {
        "00_data": set(),
        "01_feature_extraction": set(),
        "02_memory_bank": set(),
        "03_lspn_training": {"alpha"},
        "04_anomaly_scoring": {"alpha", "blur_sigma_px"},
        "05_benchmark": {"alpha", "cfm_epochs", "blur_sigma_px"},
        "06_table3_score_metrics": {"alpha", "blur_sigma_px"},
        "07_table4_loss_ablation": {"alpha", "blur_sigma_px"},
        "08_table5_aggregation": {"alpha", "blur_sigma_px"},
        "09_figure6_distributions": {"alpha", "cfm_epochs", "blur_sigma_px"},
        "10_figure7_maps": {"alpha", "blur_sigma_px"},
        "11_analyses": {"alpha", "blur_sigma_px"},
        "12_metric_playground": set(),
        "13_training_cells": {"alpha", "blur_sigma_px"},
        "90_loss_weights": {"alpha"},
        "91_real_data": set(),
        "92_peer_settings": {"cfm_epochs"},
    }


def test_changed_default_in_config_reruns_only_its_stage(finished):
    path = finished / "g2sf_lib" / "config.py"
    text, stat = path.read_text(), path.stat()
    changed = re.sub(r"(alpha: float = setting\()[\d.]+", r"\g<1>7.5", text)
    assert changed != text
    path.write_text(changed)
    try:
        assert jobs(finished) == FROM_TRAINING
    finally:
        path.write_text(text)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_changed_module_reruns_the_stages_that_use_it(finished, edit):
    edit("g2sf_lib/losses.py", "\n# another line\n")
    assert jobs(finished) == FROM_TRAINING | {"playground": 1}  # which trains a toy by it


def test_changed_module_of_a_peer_leaves_the_other_chapters_alone(finished, edit):
    edit("g2sf_lib/baselines/m3dm.py", "\n# another line\n")
    assert jobs(finished) == COMPARED_AGAIN | ALARMS_AGAIN


def test_changed_table_of_the_paper_reruns_only_what_shows_it(finished, edit):
    edit("data/paper/table1.csv", "\n")
    tables = {"table3": 1, "table4_category": 2, "table4": 1, "table5": 1, "figure6": 1}
    tables |= {"figure7": 1, "analyses_category": 1, "analyses": 1}
    tables |= {"staircase_category": 1, "staircase": 1}
    after = {"comparison": 1, "real_data": 1, "book": 1, "all": 1}
    assert jobs(finished) == after | tables


def test_changed_notebook_reruns_its_stage_and_what_follows(finished, edit):
    edit("notebooks/02_memory_bank.ipynb", "\n")
    before = ("data", "features", "real_data", "playground")
    after = {k: v for k, v in ALL_JOBS.items() if k not in before}
    assert jobs(finished) == after


def test_changed_prose_rebuilds_only_the_book(finished, edit):
    edit("book/intro.md", "One more sentence.\n")
    assert jobs(finished) == {"book": 1, "all": 1}


def test_changed_measurements_run_only_the_chapter_that_shows_them(finished, edit):
    edit("data/results/scale.json", "\n")
    assert jobs(finished) == {"real_data": 1, "book": 1, "all": 1}


def test_a_new_date_alone_reruns_nothing(finished, edit):
    for name in ("g2sf_lib/fusion.py", "notebooks/00_data.ipynb", "book/intro.md"):
        edit(name, "")
    assert jobs(finished) == {}


def test_lost_output_reruns_its_job_and_what_follows(finished):
    done = finished / "data/runs/smoke/procedural/cookie/seed1/lspn.json"
    content, stat = done.read_bytes(), done.stat()
    done.unlink()
    try:
        after = jobs(finished)
    finally:
        done.write_bytes(content)
        os.utime(done, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    # cookie is not the showcase, so no chapter reads it but those of all categories
    again = ("lspn", "benchmark", "comparison", "table4_category", *PARTS[:1], "table4", "table5")
    assert after == dict.fromkeys((*again, "figure6", "figure7", "book", "all"), 1)


def test_every_module_of_the_library_is_an_input_of_some_job(pristine):
    said = snakemake(pristine, "-n", "--forceall", "--config", "profile=smoke")
    inputs = set(re.findall(r"g2sf_lib/[\w/]+\.py", said))
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "g2sf_lib").rglob("*.py")}
    # config.py reaches the stages through their settings, see the test above
    assert modules - inputs == {"g2sf_lib/__init__.py", "g2sf_lib/config.py"}


def test_failing_job_keeps_the_committed_table_and_the_old_book(finished, edit):
    fails = "\nif given.get('write_results'): sys.exit('planted failure')\n"
    edit("workflow/run_notebook.py", fails)
    edit("notebooks/05_benchmark.ipynb", "\n")
    table = finished / "data" / "results" / "smoke.json"
    before = table.read_bytes()
    said = snakemake(finished, "--config", "profile=smoke", check=False)
    assert "planted failure" in said
    assert table.read_bytes() == before
    assert (finished / "_build/html/index.html").read_text() == "a book"
    edit("workflow/run_notebook.py", "")  # undone, with the rest, when the test ends
    (finished / "workflow/run_notebook.py").write_text(STAND_IN_NOTEBOOK)
    snakemake(finished, "--quiet", "all", "--config", "profile=smoke")  # and it resumes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (["profile=smok"], "profile is 'smok'; expected one of "),
        (["profile=smoke", "settings={alhpa: 1.0}"], "unknown parameter 'alhpa'; allowed: "),
        (["profile=smoke", "settings={epochs: many}"], "epochs is 'many'; expected int >= 1"),
        (["profile=smoke", "dataset=mvtec3d"], "needs data_root"),
        (["profile=smoke", "dataset=mvtec"], "dataset is 'mvtec'; expected one of "),
        (["profile=smoke", "device=gpu"], "device is 'gpu'; expected one of "),
        (["profile=smoke", "categories=gland tire"], "category is 'tire'; found in dataset "),
        (["profile=smoke", "settings={category: rope}"], "category is 'rope'; this run has "),
        (["profile=smoke", "settings={device: cpu}"], "device is no setting of the profile"),
        (["profile=smoke", "settings=alpha"], "settings is 'alpha'; expected a mapping"),
        (["dataset=folder", "data_root=/nowhere"], "data_root is '/nowhere', where there is no "),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(pristine, config, message):
    assert message in snakemake(pristine, "-n", "--config", *config, check=False)


def test_demo_has_its_categories_and_asks_for_no_gpu(pristine):
    said = snakemake(pristine, "-n", "--config", "profile=demo")
    assert re.search(r"^lspn +15$", said, re.MULTILINE)
    assert re.search(r"^loss_weights +1$", said, re.MULTILINE)
    assert re.search(r"^peer_settings +1$", said, re.MULTILINE)
    assert re.search(r"^benchmark +5$", said, re.MULTILINE)
    assert re.search(r"^table4_category +5$", said, re.MULTILINE)
    assert re.search(r"^analyses_category +3$", said, re.MULTILINE)
    assert "mem_mb=3000" in said and not re.search(r"gpu=[1-9]", said)


# ------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Returns a function that makes a folder with empty categories: a plan needs no scans."""

    def make(dataset: str, names=None) -> Path:
        root = tmp_path_factory.mktemp(dataset)
        for name in names or library.CATEGORIES[dataset]:
            (root / name / "train" / "good" / "rgb").mkdir(parents=True)
        return root

    return make


def resources(tree: Path, *arguments: str) -> dict[str, dict[str, int]]:
    """Return rule -> its jobs' resources, and threads, all whole numbers, as a dry run has them."""
    said = snakemake(tree, "-n", *arguments)
    found = {}
    for block in re.split(r"\n(?:local)?rule (?=\w+:)", said)[1:]:
        rule = block.split(":")[0]
        threads = re.search(r"^    threads: (\d+)$", block, re.MULTILINE)
        line = re.search(r"^    resources: (.*)$", block, re.MULTILINE).group(1)
        plain = {name: int(num) for name, num in re.findall(r"(\w+)=(\d+)(?=,|$)", line)}
        plain |= {"threads": int(threads.group(1)) if threads else 1}
        assert found.setdefault(rule, plain) == plain  # the same for every job of a rule
    return found


@pytest.mark.parametrize("more", [(), SLURM], ids=["here", "slurm"])
def test_plan_of_all_of_mvtec3d(pristine, data_root, more):
    real = ("dataset=mvtec3d", f"data_root={data_root('mvtec3d')}")
    assert jobs(pristine, *real, profile="paper", more=more) == PAPER_JOBS


def test_plans_of_eyecandies_of_a_part_and_of_ones_own_scans(pristine, data_root):
    sweets = ("dataset=eyecandies", f"data_root={data_root('eyecandies')}")
    assert jobs(pristine, *sweets, profile="paper") == PAPER_JOBS
    part = ("dataset=mvtec3d", f"data_root={data_root('mvtec3d', ['tire', 'bagel'])}")
    two = PAPER_JOBS | {"features": 2, "bank": 2, "lspn": 6, "benchmark": 2}
    assert jobs(pristine, *part, profile="paper") == two
    own = ("dataset=folder", f"data_root={data_root('folder', ['left door', 'lid (v1.2)'])}")
    assert jobs(pristine, *own, profile="paper") == two
    alone = PAPER_JOBS | {"features": 1, "bank": 1, "lspn": 3, "benchmark": 1}
    assert jobs(pristine, *part, "categories=bagel", profile="paper") == alone


def test_one_category_of_ones_own_runs_to_the_book(pristine, data_root, tmp_path):
    """With a name that has to be quoted in shells and escaped in patterns."""
    tree = tmp_path / "tree"
    shutil.copytree(pristine, tree)
    root = data_root("folder", ["it's a (lid)"])
    given = ("profile=smoke", "dataset=folder", f"data_root={root}", f"html={tmp_path}/a book")
    snakemake(tree, "--quiet", "all", "--config", *given)
    config = library.make_config("smoke", dataset="folder", data_root=str(root), category="any")
    summary = json.loads((tree / library.results_file(config)).read_text())
    assert summary["categories"] == ["it's a (lid)"] and summary["data_root"] == str(root)
    assert (tmp_path / "a book" / "index.html").read_text() == "a book"
    assert jobs(tree, *given[1:]) == {}


def test_memory_time_and_gpu_of_each_rule_arrive_in_the_plan(pristine, data_root):
    real = ("dataset=mvtec3d", f"data_root={data_root('mvtec3d')}")
    plan = resources(pristine, *SLURM, "--config", "profile=paper", *real)
    wanted = ("mem_mb", "runtime", "gpu", "threads")
    shown = {rule: tuple(x.get(n, 0) for n in wanted) for rule, x in plan.items() if rule != "all"}
    assert shown == {
        "data": (32000, 120, 0, 8),
        "features": (12000, 240, 1, 1),
        "bank": (12000, 120, 1, 1),
        "lspn": (12000, 720, 1, 1),
        "scores": (12000, 120, 1, 1),
        "benchmark": (12000, 1440, 1, 1),
        "comparison": (12000, 480, 1, 8),
        "table3": (12000, 480, 1, 1),
        "table5": (12000, 480, 1, 1),
        "figure6": (12000, 480, 1, 1),
        "figure7": (12000, 480, 1, 1),
        "playground": (3000, 240, 0, 1),
        "real_data": (3000, 240, 0, 1),
        "book": (3000, 240, 0, 1),
    }
    again = ("--attempt", "2", "--config", "profile=paper", *real, "device=cpu")
    tried_again_on_cpu = resources(pristine, *SLURM, *again)
    assert not any(x.get("gpu") for x in tried_again_on_cpu.values())
    assert tried_again_on_cpu["lspn"]["mem_mb"] == 24000
    assert tried_again_on_cpu["lspn"]["runtime"] == 1440
    on_gpu = resources(pristine, "--config", "profile=demo", "device=cuda")
    assert {x["mem_mb"] for rule, x in on_gpu.items() if rule != "all"} == {3000}
    assert {rule for rule, x in on_gpu.items() if x.get("gpu")} == {
        "features", "bank", "lspn", "scores", "benchmark", "comparison",
        "loss_weights", "peer_settings", "table3", "table4_category", "table4", "table5",
        "figure6", "figure7", "analyses_category", "analyses", "staircase_category", "staircase",
    }  # fmt: skip


def test_nothing_runs_beside_the_measurement_of_frame_rates(pristine):
    plan = resources(pristine, "--forceall", "--config", "profile=smoke")
    assert plan["comparison"]["threads"] == 4  # all that the call offers
    assert {x["threads"] for rule, x in plan.items() if rule not in ("comparison", "data")} == {1}


def test_slurm_is_asked_for_what_the_plan_says(pristine, data_root):
    """The plugin's own functions make sbatch's options of it."""
    slurm = pytest.importorskip("snakemake_executor_plugin_slurm.submit_string")
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    class Resources(dict):
        __getattr__ = dict.__getitem__

    real = ("dataset=mvtec3d", f"data_root={data_root('mvtec3d')}")
    plan = resources(pristine, *SLURM, "--config", "profile=paper", *real)
    named = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    options = {}
    for rule in ("data", "lspn"):
        job = SimpleNamespace(resources=Resources(plan[rule]), threads=plan[rule]["threads"])
        call = slurm.get_submit_command(job, dict.fromkeys(named, "")) + set_gres_string(job)
        options[rule] = set(re.findall(r"(?:--mem|-t|--gpus|--cpus-per-task)[ =]\S+", call))
    assert options == {
        "data": {"--mem 32000", "-t 120", "--cpus-per-task=8"},
        "lspn": {"--mem 12000", "-t 720", "--cpus-per-task=1", "--gpus=1"},
    }


def test_every_rule_that_the_slurm_profile_names_exists():
    text = (ROOT / "workflow/profiles/slurm/config.yaml").read_text()
    examples = text[text.index("#set-resources") :].splitlines()
    shown = "\n".join([text, *(line.removeprefix("#") for line in examples)])
    rules = set(re.findall(r"^rule (\w+):", (ROOT / "workflow/Snakefile").read_text(), re.M))
    for profile in (yaml.safe_load(text), yaml.safe_load(shown)):
        assert profile["executor"] == "slurm" and profile["retries"] >= 1
        assert profile["rerun-incomplete"] and profile["latency-wait"] > 0
        assert set(profile.get("set-resources", {})) | set(profile["set-threads"]) <= rules
    assert set(yaml.safe_load(shown)["set-resources"]) == {"lspn", "features"}


def test_paper_profile_chooses_no_settings_but_can_be_asked_to(pristine, data_root):
    real = ("dataset=mvtec3d", f"data_root={data_root('mvtec3d')}")
    said = snakemake(pristine, "-n", "--printshellcmds", "--config", "profile=paper", *real)
    assert "rule loss_weights" not in said and "rule peer_settings" not in said
    left_out = shlex.split(re.search(r"--left-out .*", said).group())[1]
    assert list(json.loads(left_out)) == [
        "07_table4_loss_ablation",
        "11_analyses",
        "13_training_cells",
        "90_loss_weights",
        "92_peer_settings",
    ]
    for name in ("loss_weights", "peer_settings"):
        asked = jobs(pristine, *real, profile="paper", more=(name,))
        assert asked[name] == 1 and "lspn" not in asked and "benchmark" not in asked
    asked = jobs(pristine, *real, profile="paper", more=("table4",))
    assert asked["table4_category"] == 10 and "benchmark" not in asked
    assert jobs(pristine, *real, profile="paper", more=("analyses",))["analyses_category"] == 3


# ------------------------------------------------------------------ run.py


def load(name: str):
    """Import a program of the workflow's folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"workflow_{name}", ROOT / f"workflow/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def call_run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "workflow/run.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_wrong_folder_is_told_in_one_line(data_root, tmp_path):
    real = ("--profile", "paper", "--dataset", "mvtec3d", "--data-root")
    holds_others = data_root("folder", ["screws", "nuts"])
    names = ", ".join(library.CATEGORIES["mvtec3d"])
    for root, message in (
        ("", "dataset 'mvtec3d' needs data_root, the folder that holds its categories"),
        (str(tmp_path / "no"), f"data_root is '{tmp_path}/no', where there is no folder"),
        (
            str(holds_others),
            f"data_root is '{holds_others}', which holds the folders: nuts, screws; "
            f"expected one or more of {names}",
        ),
    ):
        done = call_run(*real, root)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr == f"g2sf-book: {message}\n"


def test_wrong_settings_and_missing_weights_are_told_in_one_line(data_root, tmp_path):
    done = call_run("--profile", "smoke", "--settings", "{alpha: ", "-n")
    assert done.stderr.startswith("g2sf-book: settings is '{alpha: '; expected a mapping")
    done = call_run("--profile", "smoke", "--settings", "{alhpa: 1}", "-n")
    assert done.stderr.startswith("g2sf-book: unknown parameter 'alhpa'")
    missing = str(tmp_path / "no.pth")
    real = ["--profile", "paper", "--dataset", "mvtec3d", "--data-root", str(data_root("mvtec3d"))]
    done = call_run(*real, "--settings", f"{{pcd_weights: {missing}}}")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert missing in done.stderr and "make weights" in done.stderr


def test_a_chapter_alone_is_found_and_an_unknown_one_is_told(tmp_path):
    plan = load("plan")
    given = plan.make_plan({"profile": "smoke"})
    where = "book/executed/smoke/procedural"
    targets = {
        "00_data": f"{where}/00_data.ipynb",
        "02_memory_bank": f"{where}/gland/02_memory_bank.ipynb",
        "03_lspn_training": f"{where}/gland/03_lspn_training_seed0.ipynb",
        "11_analyses": f"{where}/11_analyses.ipynb",
    }
    for chapter, target in targets.items():
        assert plan.chapter_target(given, chapter, ROOT / "notebooks") == target
    with pytest.raises(library.ConfigError, match="chapter is '7'; expected one of 00_data, "):
        plan.chapter_target(given, "7", ROOT / "notebooks")


def test_a_chapter_alone_asks_for_what_it_needs_only(pristine):
    targets = "book/executed/smoke/procedural/07_table4_loss_ablation.ipynb"
    needed = {"data": 1, "features": 2, "bank": 2, "lspn": 4, "table4_category": 2, "table4": 1}
    assert jobs(pristine, more=("--forceall", targets)) == needed


def test_what_jobs_share_is_limited_by_the_machine(monkeypatch):
    run = load("run")
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    (memory,) = run.limits()
    assert int(memory.removeprefix("mem_mb=")) == run.psutil.virtual_memory().total // 2**20
    monkeypatch.setattr(run.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert run.limits() == [memory, "gpu=1"]
    command = run.snakemake_command(Path("run.json"), 3, ["loss_weights", "-n"])
    assert command[-4:] == ["loss_weights", "-n", "--configfile", "run.json"]
    assert command[command.index("loss_weights") - 2 :][:2] == ["--scheduler", "greedy"]


def test_jobs_too_large_to_run_side_by_side_are_planned_all_the_same(pristine, data_root):
    """On 8 GB a job of 12 GB is no error: it runs alone."""
    real = ("dataset=mvtec3d", f"data_root={data_root('mvtec3d')}")
    more = ("--resources", "mem_mb=8000", "gpu=1", "--scheduler", "greedy")
    assert jobs(pristine, *real, profile="paper", more=more) == PAPER_JOBS


# ------------------------------------------------------------------ texts on their way


ODD_ROOT = "we ird#a: {x}$'q\"%\\`é"  # for YAML, shell, make and Snakemake each something else
ODD_NAMES = ("001", "2023_01", "part a", "a, b", "True", "1e3", "lid {x}", "n" * 200)


@pytest.fixture(scope="module")
def odd_run(pristine, tmp_path_factory):
    """A tree in which run.py has run a chapter on a folder with odd names, and that folder."""
    tree = tmp_path_factory.mktemp("odd") / "tree"
    shutil.copytree(pristine, tree)
    root = tree.parent / ODD_ROOT
    for name in ODD_NAMES:
        (root / name / "train" / "good" / "rgb").mkdir(parents=True)
    return tree, root


def run_in(tree: Path, *arguments: str) -> str:
    command = [sys.executable, "workflow/run.py", "--profile=smoke", "--dataset=folder", *arguments]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_odd_names_reach_the_notebooks_as_they_are(odd_run):
    tree, root = odd_run
    settings = '{learning_rate: 1e-4, rgb_model: "001"}'
    given = (f"--data-root={root}", f"--settings={settings}", "--jobs=4")
    chapter = "07_table4_loss_ablation"
    where = re.search(r"^Chapter: (.*)$", run_in(tree, *given, f"--chapter={chapter}"), re.M)[1]
    seen = {}
    for path in Path(where).parent.rglob("*.ipynb"):
        read = json.loads(path.read_text())
        assert read["data_root"] == str(root)
        seen.setdefault(path.stem, []).append(read)
    assert set(seen["00_data"][0]["categories"]) == set(ODD_NAMES)
    for chapter in ("01_feature_extraction", "03_lspn_training_seed1", "07_table4_loss_ablation"):
        assert {read["category"] for read in seen[chapter]} == set(ODD_NAMES)
    assert {read["rgb_model"] for read in seen["01_feature_extraction"]} == {"001"}
    assert {read["learning_rate"] for read in seen["03_lspn_training_seed0"]} == {1e-4}
    assert "Nothing to be done" in run_in(tree, *given, f"--chapter={chapter}", "-n")


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("001", ["001"]),
        ("001, 2023_01/", ["001", "2023_01"]),
        ("['part a', 001]", ["001", "part a"]),
        ("['a, b', \"True\"]", ["True", "a, b"]),
        ("1e3", ["1e3"]),
    ],
)
def test_some_of_the_odd_names_are_chosen(odd_run, asked, chosen):
    tree, root = odd_run
    run_in(tree, f"--data-root={root}", f"--categories={asked}", "--chapter=00_data")
    (path,) = tree.glob("book/executed/smoke/folder-*/00_data.ipynb")
    read = json.loads(path.read_text())
    assert read["categories"] == chosen and read["data_root"] == str(root)


def test_snakemake_called_directly_takes_texts_or_says_that_they_are_lost(odd_run):
    tree, root = odd_run
    named = f"data_root={json.dumps([str(root)], ensure_ascii=False)}"
    own = ("dataset=folder", named)
    assert jobs(tree, *own, 'categories=["001"]')["bank"] == 1
    assert jobs(tree, *own, "categories=['part a', 001]")["bank"] == 2
    said = snakemake(tree, "-n", "--config", *own, "categories=001", check=False)
    assert "categories is 1, no text any more; with Snakemake: --config 'categories=[" in said
    said = snakemake(tree, "-n", "--config", "dataset=folder", "data_root=/a: b", check=False)
    assert "data_root is {'/a': 'b'}, no text any more" in said


def test_the_plan_reads_settings_by_their_type():
    make_plan = load("plan").make_plan
    text = "{learning_rate: 1e-4, epochs: 1_0, quantise: yes, background: none, rgb_model: '001'}"
    expected = {"learning_rate": 1e-4, "epochs": 10, "quantise": True, "background": "none"}
    expected |= {"rgb_model": "001"}
    as_mapping = yaml.load(text, Loader=yaml.BaseLoader)  # what `snakemake --config` makes of it
    for settings in (text, "\ufeff" + text, as_mapping, expected):
        plan = make_plan({"profile": "smoke", "settings": settings})
        assert plan.settings == expected
        assert plan.base.training.learning_rate == 1e-4 and plan.base.features.rgb_model == "001"
    for name in ("seed", "runs_root", "profile", "data_root"):  # accepted, they would be ignored
        with pytest.raises(library.ConfigError, match=f"{name} is no setting of the profile"):
            make_plan({"settings": f"{{{name}: 1}}"})
    with pytest.raises(library.ConfigError, match="html is '_build/{x}'; expected no braces"):
        make_plan({"html": "_build/{x}"})


def test_some_categories_give_other_pastes_than_all_and_the_same_features():
    plan = load("plan").make_plan
    alone, both = (plan({"profile": "smoke", "categories": x}) for x in ("gland", "gland cookie"))
    assert both.base == plan({"profile": "smoke"}).base
    assert library.listed(alone.base.synthesis.pasted_from) == ["gland"]
    assert alone.base.stage_hash("data") == both.base.stage_hash("data")
    assert alone.base.stage_hash("features") == both.base.stage_hash("features")
    assert alone.base.stage_hash("pastes") != both.base.stage_hash("pastes")


def test_every_entry_point_finds_the_home_folder(pristine, data_root, monkeypatch):
    root = data_root("folder", ["lid"])
    monkeypatch.setenv("HOME", str(root.parent))
    text = f"~/{root.name}/"
    assert jobs(pristine, "dataset=folder", f"data_root={text}")["data"] == 1
    place = ("--dataset=folder", f"--data-root={text}")
    done = call_run("--profile=smoke", *place, "--categories=lid/", "--chapter=00_data", "-n")
    assert done.returncode == 0, done.stderr
    check = [sys.executable, "-m", "g2sf_lib.datasets.check", *place, "--category=lid/"]
    said = subprocess.run(check, cwd=ROOT, capture_output=True, text=True).stdout
    assert f"{root}/lid" in said and "~" not in said  # it holds no scans, but it was found
    assert "no category" not in said and "no such folder; expected the folder that" not in said


# ------------------------------------------------------------------ two runs beside each other


def test_a_second_folder_of_ones_own_leaves_the_first_one_alone(pristine, data_root, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(pristine, tree)
    written = []
    for names in (["lid", "nut"], ["lid"]):
        before = set(tree.rglob("*.json")) | set(tree.rglob("*.ipynb")) | set(tree.rglob("*.html"))
        stats = {path: path.stat().st_mtime_ns for path in before if ".snakemake" not in str(path)}
        given = ("profile=smoke", "dataset=folder", f"data_root={data_root('folder', names)}")
        snakemake(tree, "--quiet", "all", "--config", *given)
        assert all(path.stat().st_mtime_ns == at for path, at in stats.items())
        written.append({p for p in tree.rglob("index.html")} - before)
        assert jobs(tree, *given[1:]) == {}
    first, second = (str(path.relative_to(tree)) for (path,) in written)
    pattern = r"_build/smoke-folder-folder\d-[0-9a-f]{6}/html/index\.html"
    assert first != second and re.fullmatch(pattern, first) and re.fullmatch(pattern, second)


def test_a_run_on_another_root_or_with_other_settings_is_made_again(pristine, data_root, tmp_path):
    """Pages and tables of a published data set are replaced; nothing old is taken for new."""
    tree = tmp_path / "tree"
    shutil.copytree(pristine, tree)
    roots = [data_root("mvtec3d", ["bagel", "tire"]) for _ in range(2)]
    given = [("dataset=mvtec3d", f"data_root={root}") for root in roots]
    snakemake(tree, "--quiet", "all", "--config", "profile=smoke", *given[0])
    assert jobs(tree, *given[0]) == {}
    again = jobs(tree, *given[1])
    assert {name for name in again if name not in ("all", "book")} >= {"data", "features", "lspn"}
    assert jobs(tree, *given[0], "categories=bagel")["features"] == 1
    plans = [
        load("plan").make_plan({"dataset": "mvtec3d", "data_root": str(r)} | more)
        for r in roots
        for more in ({}, {"categories": "bagel"}, {"settings": "{alpha: 3}"})
    ]
    folders = {library.stage_dir(plan.base, "lspn") for plan in plans}
    assert len(folders) == len(plans)


def test_pages_of_an_earlier_run_are_no_part_of_this_one(tmp_path, monkeypatch):
    builder = load("build_book")
    (tmp_path / "book" / "_static").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks" / "07_x.ipynb", "a = 1")
    monkeypatch.setattr(builder, "ROOT", tmp_path)
    executed = tmp_path / "executed"
    places = {"a/03_x_seed0": "/one", "b/03_x_seed0": "/one", "05_x": "/one", "07_x": "/other"}
    for place, root in places.items():
        path = executed / f"{place}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        notebook = nbformat.read(write_notebook(path, f"place = '{place}'"), as_version=4)
        papermill = {"end_time": "2026-01-01T00:00:00", "parameters": {"data_root": root}}
        notebook.metadata["papermill"] = papermill
        nbformat.write(notebook, path)
        path.with_suffix(".tsv").write_text("s\tmax_rss\n1.0\t2.0\n")
    source = tmp_path / "source"
    left_out = {"07_x": "Not asked for."}
    builder.assemble(executed, "a", source, left_out, categories=["a"], data_root="/one")
    status = (source / "status.md").read_text()
    assert "executed/a/03_x_seed0.ipynb" in status and "executed/05_x.ipynb" in status
    assert "b/03_x" not in status and "07_x" not in status
    assert "Not asked for." in (source / "07_x.ipynb").read_text()


def test_run_prints_and_reads_what_this_run_wrote(pristine, data_root, tmp_path, monkeypatch):
    """The book's folder, and the table of this data set, whatever the locale writes."""
    tree = tmp_path / "tree"
    shutil.copytree(pristine, tree)
    root = data_root("folder", ["lid"])
    config = library.make_config("smoke", dataset="folder", data_root=str(root), category="lid")
    method = {"method": "g2sf", "i_auroc": 0.9, "i_auroc_se": 0.1, "i_auroc_seed_std": 0.0}
    method |= {"p_auroc": 0.8, "aupro_30": 0.7, "aupro_1": 0.1}
    table = {"methods": [method], "differences": [], "seeds": [0]}
    with (tree / "workflow" / "run_notebook.py").open("a") as file:
        file.write(f"\nif out.name[:2] == '05' and given.get('write_results'):\n    "
                   f"done[0].write_text({json.dumps(table)!r})\n")  # fmt: skip
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for name, value in plain.items():
        monkeypatch.setenv(name, value)
    said = run_in(tree, f"--data-root={root}/")
    html = tree / f"_build/smoke-{library.run_name(config)}/html/index.html"
    assert f"Book: {html}" in said and html.is_file() and "0.900 ± 0.100" in said


# ------------------------------------------------------------------ the book's pages


def test_a_notebook_that_was_not_run_has_a_page_that_says_why(tmp_path, monkeypatch):
    """Its links resolve: the book is built with warnings as errors."""
    pytest.importorskip("jupyter_book")
    builder = load("build_book")
    (tmp_path / "book" / "_static").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book" / "_toc.yml").write_text(
        "format: jb-book\nroot: intro\nchapters:\n- file: 90_loss_weights\n- file: status\n"
    )
    (tmp_path / "book" / "intro.md").write_text("# A book\n\nSee [there](90_loss_weights.ipynb).\n")
    (tmp_path / "_config.yml").write_text("title: A book\nonly_build_toc_files: true\n")
    notebook = write_notebook(tmp_path / "notebooks" / "90_loss_weights.ipynb", "a = 1", "b = 2")
    monkeypatch.setattr(builder, "ROOT", tmp_path)
    executed = tmp_path / "executed"
    executed.mkdir()
    source = tmp_path / "work" / "source"
    builder.assemble(executed, "foam", source, {"90_loss_weights": "Nothing is chosen here."})
    builder.build(source, tmp_path / "work", tmp_path / "html")
    page = (tmp_path / "html" / "90_loss_weights.html").read_text()
    assert "A title" in page and "Nothing is chosen here." in page and "b = 2" not in page
    assert "90_loss_weights.html" in (tmp_path / "html" / "intro.html").read_text()
    # One that was run all the same is shown.
    ran = nbformat.read(notebook, as_version=4)
    ran.metadata["papermill"] = {"end_time": "2026-01-01T00:00:00"}
    nbformat.write(ran, executed / "90_loss_weights.ipynb")
    (executed / "90_loss_weights.tsv").write_text("s\tmax_rss\n1.0\t2.0\n")
    builder.assemble(executed, "foam", source, {"90_loss_weights": "Nothing is chosen here."})
    assert "b = 2" in (source / "90_loss_weights.ipynb").read_text()


def test_a_page_of_all_categories_goes_before_that_of_the_showcase(tmp_path, monkeypatch):
    builder = load("build_book")
    (tmp_path / "book" / "_static").mkdir(parents=True)
    monkeypatch.setattr(builder, "ROOT", tmp_path)
    executed = tmp_path / "executed"
    places = ("a/05_benchmark", "05_benchmark", "foam/05_benchmark", "foam/04_anomaly_scoring")
    for place in (*places, "a/04_anomaly_scoring", "foam/03_lspn_training_seed1"):
        path = executed / f"{place}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        notebook = nbformat.read(write_notebook(path, f"place = '{place}'"), as_version=4)
        notebook.metadata["papermill"] = {"end_time": "2026-01-01T00:00:00"}
        nbformat.write(notebook, path)
        path.with_suffix(".tsv").write_text("s\tmax_rss\n1.0\t2.0\n")
    source = tmp_path / "source"
    builder.assemble(executed, "foam", source, {})
    pages = {path.stem: path.read_text() for path in source.glob("*.ipynb")}
    assert set(pages) == {"04_anomaly_scoring", "05_benchmark"}
    assert "place = '05_benchmark'" in pages["05_benchmark"]
    assert "place = 'foam/04_anomaly_scoring'" in pages["04_anomaly_scoring"]
    status = (source / "status.md").read_text()  # the others are there to be downloaded
    for place in places:
        assert f"executed/{place}.ipynb" in status and (source / f"executed/{place}.ipynb").exists()


def test_marks_in_the_prose_are_replaced_by_what_was_measured():
    builder = load("build_book")
    text = "took {{ cost a_chapter }}; {{cost other}}; $w_{{i}}$"
    told = "took 3 s, 40 MB; not measured in this run; $w_{{i}}$"
    assert builder.filled(text, {"a_chapter": "3 s, 40 MB"}) == told
    with pytest.raises(SystemExit, match="costs a_chapter.*expected cost"):
        builder.filled("{{ costs a_chapter }}", {})


def test_each_chapter_has_its_cost_in_the_prose():
    found = [
        mark.split()
        for page in (ROOT / "book").glob("*.md")
        for mark in re.findall(r"\{\{ (.+?) \}\}", page.read_text())
    ]
    assert {kind for kind, _ in found} == {"cost"}
    assert {name for _, name in found} == set(NOTEBOOKS)


def test_costs_of_a_chapter_are_those_of_all_its_runs(tmp_path):
    builder = load("build_book")
    runs = {"a/03_x_seed0": (30, 100), "a/03_x_seed1": (35, 300), "b/03_x_seed0": (5, 200)}
    runs |= {"11_y": (9.6, 50)}
    paths = [tmp_path / f"{name}.ipynb" for name in runs]
    for path, (wall_s, peak_mb) in zip(paths, runs.values(), strict=True):
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".tsv").write_text(f"s\tmax_rss\n{wall_s}\t{peak_mb}\n")
    assert builder.costs(tmp_path, paths) == {
        "03_x": "1 min 10 s in 3 runs, 300 MB",
        "11_y": "10 s, 50 MB",
    }


# ------------------------------------------------------------------ one notebook


def write_notebook(path: Path, *cells: str) -> Path:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_markdown_cell("# A title")]
    for number, source in enumerate(cells):
        cell = nbformat.v4.new_code_cell(source)
        cell.metadata["tags"] = ["parameters"] if number == 0 else []
        notebook.cells.append(cell)
    nbformat.write(notebook, path)
    return path


def command(notebook: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "workflow/run_notebook.py"), str(notebook), str(out), *more]


def wait_until(is_so, timeout_s: float = 60.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.1)
    return False


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_notebook_runs_with_parameters_and_threads_and_text_bars(tmp_path):
    bars = "from tqdm.auto import tqdm\nfor _ in tqdm(range(2), desc='seen from outside'): pass"
    show = "import os\nprint(value, other, os.environ['OMP_NUM_THREADS'], os.getcwd())"
    notebook = write_notebook(tmp_path / "in.ipynb", "value = 0\nother = 'x'", bars, show)
    out = tmp_path / "deep" / "out.ipynb"
    more = ["--parameters", '{"value": 7}', "--also", "other=cpu", "--threads", "3"]
    done = subprocess.run(
        command(notebook, out, *more), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "seen from outside" in done.stderr and "in: cell 1 of " in done.stderr
    printed = nbformat.read(out, as_version=4).cells[-1].outputs[0].text
    assert printed.split() == ["7", "cpu", "3", str(tmp_path)]
    assert [path.name for path in out.parent.iterdir()] == ["out.ipynb"]


def test_a_notebook_runs_whatever_the_folder_of_temporary_files(tmp_path, monkeypatch):
    """The path of a socket has 107 bytes at most."""
    notebook = write_notebook(tmp_path / "in.ipynb", "a = 1", "print(a)")
    long = tmp_path / ("d" * 150)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    done = subprocess.run(
        command(notebook, tmp_path / "out.ipynb"), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "over TCP" not in done.stderr and not list(long.iterdir())


def test_where_no_socket_can_be_made_the_kernel_talks_over_ports(tmp_path, monkeypatch):
    notebook_runner = load("run_notebook")
    with contextlib.ExitStack() as stack:
        folder = Path(notebook_runner.kernel_channels(stack)["ip"]).parent
        assert folder.is_dir()
    assert not folder.exists()

    class NoSocket(socket.socket):
        def bind(self, address):
            raise OSError("AF_UNIX is not known here")

    monkeypatch.setattr(notebook_runner.socket, "socket", NoSocket)
    with contextlib.ExitStack() as stack:
        assert notebook_runner.kernel_channels(stack) == {"transport": "tcp"}
    tcp = "module.kernel_channels = lambda stack: {'transport': 'tcp'}\nmodule.main()"
    start = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'workflow')!r}); import run_notebook as module"
    )
    notebook = write_notebook(tmp_path / "in.ipynb", "a = 1")
    out = tmp_path / "out.ipynb"
    run = [sys.executable, "-c", f"{start}\n{tcp}", str(notebook), str(out)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and out.is_file(), done.stderr


def test_texts_that_look_like_numbers_stay_texts_in_a_notebook(tmp_path):
    show = "print(repr(category), repr(other), repr(workers))"
    notebook = write_notebook(tmp_path / "in.ipynb", "category = other = ''\nworkers = 0", show)
    out = tmp_path / "out.ipynb"
    more = ["--parameters", '{"category": "001"}', "--also", "other=002", "--number", "workers=8"]
    subprocess.run(command(notebook, out, *more), cwd=tmp_path, check=True, capture_output=True)
    printed = nbformat.read(out, as_version=4).cells[-1].outputs[0].text
    assert printed.split() == ["'001'", "'002'", "8"]


def test_failing_notebook_names_its_cell_and_keeps_the_partial_copy(tmp_path):
    failing = "# why it fails\n\nraise ValueError('the message')"
    notebook = write_notebook(tmp_path / "in.ipynb", "a = 1", "print('before')", failing, "b = 2")
    out = tmp_path / "out.ipynb"
    done = subprocess.run(command(notebook, out), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert not out.exists()
    partial = tmp_path / "out.partial.ipynb"
    assert f"{notebook} failed in code cell 3: raise ValueError('the message')" in done.stderr
    assert "ValueError: the message" in done.stderr and str(partial) in done.stderr
    assert "before" in partial.read_text() and "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["interrupt", "terminate", "parent killed"])
def test_stopped_notebook_leaves_no_output_and_no_kernel(tmp_path, how):
    note = tmp_path / "kernel.pid"
    source = f"import os, pathlib\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))"
    sleep = "import time\ntime.sleep(120)"
    notebook = write_notebook(tmp_path / "in.ipynb", "a = 1", source, sleep)
    out = tmp_path / "out.ipynb"
    start = command(notebook, out)
    if how == "parent killed":
        code = f"import subprocess\nsubprocess.run({start!r})"
        start = [sys.executable, "-c", code]
    process = subprocess.Popen(
        start,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A shell's background jobs inherit "ignore" for Ctrl-C; a terminal's do not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert wait_until(lambda: note.exists() and note.read_text())
        kernel = int(note.read_text())
        send = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM}.get(how, signal.SIGKILL)
        process.send_signal(send)
        said = process.communicate(timeout=60)[1].decode()
        assert wait_until(lambda: not is_running(kernel), 20), "the kernel went on"
        assert not out.exists()
        if how != "parent killed":
            assert process.returncode == 130
            assert said.splitlines()[-1] == f"{notebook} interrupted"
    finally:
        process.kill()


def test_a_second_run_is_refused_while_the_first_holds_the_lock(tmp_path):
    run = load("run")
    held = run.hold_lock(tmp_path / "state" / "lock")
    with pytest.raises(SystemExit, match="Another run is at work"):
        run.hold_lock(tmp_path / "state" / "lock")
    os.close(held)  # what the system does when a process ends, however it ends
    os.close(run.hold_lock(tmp_path / "state" / "lock"))

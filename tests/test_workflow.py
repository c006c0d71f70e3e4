"""The Snakefile decides rightly what to run; notebooks fail, stop and succeed cleanly."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from g2sf_lib.config import CATEGORIES, ConfigError, listed, make_config
from g2sf_lib.stages import STAGES, results_file, stage_dir

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "workflow"))
from chapters import BY_NOTEBOOK, CHAPTERS  # noqa: E402

ALL_JOBS = {
    "data": 1, "feature_extraction": 2, "memory_bank": 2, "lspn_training": 4,
    "anomaly_scoring": 1, "benchmark_category": 2, "benchmark": 1, "table3_score_metrics": 1,
    "table4_loss_ablation_category": 2, "table4_loss_ablation": 1, "table5_aggregation": 1,
    "figure6_distributions": 1, "figure7_maps": 1, "analyses_category": 1, "analyses": 1,
    "metric_playground": 1, "training_cells_category": 1, "training_cells": 1, "loss_weights": 1,
    "peer_settings": 1, "real_data": 1, "book": 1, "all": 1,
}  # fmt: skip
TRAINING_NEEDS_NOT = ("data", "feature_extraction", "memory_bank", "peer_settings")
TRAINING_NEEDS_NOT += ("metric_playground",)
OF_PEERS = ("benchmark_category", "benchmark", "figure6_distributions", "analyses_category")
OF_PEERS += ("analyses", "peer_settings", "real_data", "book", "all")
PAPER_JOBS = {
    "data": 1, "feature_extraction": 10, "memory_bank": 10, "lspn_training": 30,
    "anomaly_scoring": 1, "benchmark_category": 10, "benchmark": 1, "table3_score_metrics": 1,
    "table5_aggregation": 1, "figure6_distributions": 1, "figure7_maps": 1,
    "metric_playground": 1, "real_data": 1, "book": 1, "all": 1,
}  # fmt: skip
SLURM = ("--workflow-profile", "workflow/profiles/slurm")
# Stand-ins for the two programs that jobs start: they leave the files and compute nothing.
STAND_IN_NOTEBOOK = """
import json, pathlib, re, sys
out = pathlib.Path(sys.argv[2])
given = json.loads(sys.argv[sys.argv.index("--parameters") + 1])
sys.path[:0] = [".", "workflow"]
from chapters import BY_NOTEBOOK
from g2sf_lib.config import make_config
from g2sf_lib.stages import done_file, results_file
chapter = BY_NOTEBOOK[re.sub(r"_seed\\d+$", "", out.stem)]
place = {name: given[name] for name in ("profile", "dataset", "data_root", "category", "seed")
         if name in given}
if "category" not in place and place.get("dataset") == "folder":
    place["category"] = "any"
config = make_config(**place)
written = [out]
if chapter.record:  # the comparison of all categories writes their records once more
    config_of = lambda name: config.replace(category=name)
    again = given.get("categories", []) if chapter.record == "benchmark" else []
    written += [done_file(config_of(c), chapter.record) for c in again or [config.category]]
if given.get("write_results"):
    written.append(results_file(config, chapter.summary or None))
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
    for name in ("workflow", "g2sf_lib", "notebooks", "book/_ext", "book/_static", "data/paper"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "book/_toc.yml"):
        shutil.copy2(ROOT / name, tree / name)
    (tree / "book" / "intro.md").write_text("# Introduction\n")
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


def after(*changed: str) -> dict[str, int]:
    """Return the jobs that follow from some."""
    return {name: num for name, num in ALL_JOBS.items() if name in changed}


FROM_TRAINING = after(*(set(ALL_JOBS) - set(TRAINING_NEEDS_NOT)))


def test_second_run_has_nothing_to_do(finished):
    assert jobs(finished) == {}


def test_a_notebook_is_given_parameters_that_it_has_and_no_others(finished):
    executed = finished / "book" / "executed" / "smoke" / "procedural"
    given = {
        path.relative_to(executed).with_suffix("").as_posix(): json.loads(path.read_text())
        for path in executed.rglob("*.ipynb")
    }
    for name, read in given.items():
        chapter = BY_NOTEBOOK[re.sub(r"_seed\d+$", "", name.split("/")[-1])]
        assert set(read) - {"by"} <= chapter.parameters(), name
        assert read["profile"] == "smoke"
        if "/" in name and "category" in read:
            assert read["category"] == name.split("/")[0]
    assert given["cookie/03_lspn_training_seed1"]["seed"] == 1
    assert given["gland/04_anomaly_scoring"]["seeds"] == [0, 1]
    assert "cookie/04_anomaly_scoring" not in given
    compared, one = given["05_benchmark"], given["cookie/05_benchmark"]
    assert compared["categories"] == ["cookie", "gland"] and one["categories"] == ["cookie"]
    # Other jobs run beside that of one category: no frame rates, and no summary of all.
    assert compared["write_results"] and "frame_scans" not in compared
    assert one["frame_scans"] == 0 and "write_results" not in one
    assert json.loads((finished / "data" / "results" / "smoke.json").read_text()) == compared


def test_a_changed_setting_reruns_what_reads_it(finished):
    assert jobs(finished, "settings={alpha: 2.5}") == FROM_TRAINING | after("metric_playground")
    only = jobs(finished, "settings={blur_sigma_px: 2.0}")
    assert not set(only) & {"feature_extraction", "memory_bank", "lspn_training", "loss_weights"}
    assert {"anomaly_scoring", "benchmark", "table3_score_metrics"} <= set(only)
    assert jobs(finished, "settings={cfm_epochs: 9}") == after(*OF_PEERS)


def test_changed_settings_reach_the_notebooks_that_read_them(pristine):
    changed = "settings={alpha: 2.5, cfm_epochs: 9}"
    more = ("--forceall", "--printshellcmds", "--config", "profile=smoke", changed)
    told = {}
    for line in re.findall(r"^.*run_notebook\.py .*$", snakemake(pristine, "-n", *more), re.M):
        words = shlex.split(line)
        given = json.loads(words[words.index("--parameters") + 1])
        name = Path(words[words.index("--parameters") - 4]).stem
        told[name] = {x for x in ("alpha", "cfm_epochs") if x in given}
    assert told["02_memory_bank"] == set() and told["03_lspn_training"] == {"alpha"}
    assert told["05_benchmark"] == {"alpha", "cfm_epochs"}


def test_a_changed_line_of_code_reruns_what_depends_on_it_and_a_comment_nothing(finished, edit):
    edit("g2sf_lib/losses.py", "\n# another line\n")
    assert jobs(finished) == {}
    edit("g2sf_lib/losses.py", "\nANOTHER = 1\n")
    assert jobs(finished) == FROM_TRAINING | after("metric_playground")


def test_a_changed_line_of_a_peer_leaves_training_alone(finished, edit):
    edit("g2sf_lib/baselines/m3dm.py", "\nANOTHER = 1\n")
    assert jobs(finished) == after(*OF_PEERS)


def test_a_changed_notebook_or_table_reruns_it_and_what_follows(finished, edit):
    edit("notebooks/02_memory_bank.ipynb", "\n")
    before = ("data", "feature_extraction", "metric_playground")
    assert jobs(finished) == {k: v for k, v in ALL_JOBS.items() if k not in before}


def test_changed_prose_rebuilds_only_the_book(finished, edit):
    edit("book/intro.md", "One more sentence.\n")
    assert jobs(finished) == {"book": 1, "all": 1}


def test_a_new_date_alone_reruns_nothing(finished, edit):
    for name in ("g2sf_lib/fusion.py", "notebooks/00_data.ipynb", "book/intro.md"):
        edit(name, "")
    assert jobs(finished) == {}


def test_lost_output_reruns_its_job_and_what_follows(finished):
    done = finished / "data/runs/smoke/procedural/cookie/seed1/lspn.json"
    content, stat = done.read_bytes(), done.stat()
    done.unlink()
    try:
        again = jobs(finished)
    finally:
        done.write_bytes(content)
        os.utime(done, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert again["lspn_training"] == 1 and again["table3_score_metrics"] == 1
    assert "anomaly_scoring" not in again  # cookie is not the showcase


def test_failing_job_keeps_the_committed_table_and_the_old_book(finished, edit):
    fails = "\nif given.get('write_results'): sys.exit('planted failure')\n"
    edit("workflow/run_notebook.py", fails)
    edit("data/paper/table1.csv", "\n")
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
    ("given", "message"),
    [
        ({"profile": "smok"}, "profile is 'smok'; expected one of "),
        ({"settings": "{alhpa: 1.0}"}, "unknown parameter 'alhpa'; allowed: "),
        ({"settings": "{epochs: many}"}, "epochs is 'many'; expected integer"),
        ({"settings": "alpha"}, "settings is 'alpha'; expected a mapping"),
        ({"settings": "{device: cpu}"}, "device is no setting of the profile"),
        ({"settings": "{category: tire}"}, "category is 'tire'; this run has "),
        ({"dataset": "mvtec3d"}, "needs data_root"),
        ({"dataset": "mvtec"}, "dataset is 'mvtec'; expected 'procedural'"),
        ({"device": "gpu"}, "device is 'gpu'; expected 'auto'"),
        ({"categories": "gland tire"}, "category is 'tire'; found in dataset "),
        ({"dataset": "folder", "data_root": "/nowhere"}, "'/nowhere', where there is no "),
        ({"html": "_build/{x}"}, "html is '_build/{x}'; expected no braces"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load("plan").make_plan({"profile": "smoke"} | given)


def test_a_wrong_call_of_snakemake_is_refused_with_the_same_words(pristine):
    said = snakemake(pristine, "-n", "--config", "profile=smok", check=False)
    assert "profile is 'smok'; expected one of " in said


# ------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Returns a function that makes a folder with empty categories: a plan needs no scans."""

    def make(dataset: str, names=None) -> Path:
        root = tmp_path_factory.mktemp(dataset)
        for name in names or CATEGORIES[dataset]:
            (root / name / "train" / "good" / "rgb").mkdir(parents=True)
        return root

    return make


@pytest.mark.parametrize("more", [(), SLURM], ids=["here", "slurm"])
def test_plan_of_all_of_mvtec3d(pristine, data_root, more):
    real = ("dataset=mvtec3d", f"data_root={data_root('mvtec3d')}")
    assert jobs(pristine, *real, profile="paper", more=more) == PAPER_JOBS


def test_one_category_of_ones_own_runs_to_the_book(pristine, data_root, tmp_path):
    """With a name that has to be quoted in shells and escaped in patterns."""
    tree = tmp_path / "tree"
    shutil.copytree(pristine, tree)
    root = data_root("folder", ["it's a (lid)"])
    given = ("profile=smoke", "dataset=folder", f"data_root={root}", f"html={tmp_path}/a book")
    snakemake(tree, "--quiet", "all", "--config", *given)
    config = make_config("smoke", dataset="folder", data_root=str(root), category="any")
    summary = json.loads((tree / results_file(config)).read_text())
    assert summary["categories"] == ["it's a (lid)"] and summary["data_root"] == str(root)
    assert (tmp_path / "a book" / "index.html").read_text() == "a book"
    assert jobs(tree, *given[1:]) == {}


def test_what_jobs_need_arrives_in_the_plan(pristine, data_root):
    real = ("dataset=mvtec3d", f"data_root={data_root('mvtec3d')}")
    said = snakemake(pristine, "-n", *SLURM, "--config", "profile=paper", *real)
    found = {}
    for block in re.split(r"\n(?:local)?rule (?=\w+:)", said)[1:]:
        line = re.search(r"^    resources: (.*)$", block, re.MULTILINE).group(1)
        found[block.split(":")[0]] = dict(re.findall(r"(\w+)=(\d+)(?=,|$)", line))
    for chapter in CHAPTERS:
        if not chapter.trains:
            plan = found[chapter.name]
            assert (int(plan["mem_mb"]), int(plan["runtime"])) == chapter.needs
            assert int(plan.get("gpu", 0)) == chapter.on_gpu
    on_demo = snakemake(pristine, "-n", "--config", "profile=demo")
    assert "mem_mb=3000" in on_demo and not re.search(r"gpu=[1-9]", on_demo)


def test_every_rule_that_the_slurm_profile_names_exists():
    text = (ROOT / "workflow/profiles/slurm/config.yaml").read_text()
    examples = text[text.index("#set-resources") :].splitlines()
    shown = "\n".join([text, *(line.removeprefix("#") for line in examples)])
    for profile in (yaml.safe_load(text), yaml.safe_load(shown)):
        assert profile["executor"] == "slurm" and profile["retries"] >= 1
        named = set(profile.get("set-resources", {})) | set(profile["set-threads"])
        assert named <= set(ALL_JOBS)


def test_paper_profile_leaves_out_what_trains_many_times_but_can_be_asked_to(pristine, data_root):
    real = ("dataset=mvtec3d", f"data_root={data_root('mvtec3d')}")
    said = snakemake(pristine, "-n", "--printshellcmds", "--config", "profile=paper", *real)
    left_out = json.loads(shlex.split(re.search(r"--left-out .*", said).group())[1])
    assert set(left_out) == {c.notebook for c in CHAPTERS if c.trains}
    asked = jobs(pristine, *real, profile="paper", more=("table4_loss_ablation",))
    assert asked["table4_loss_ablation_category"] == 10 and "benchmark" not in asked


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
    names = ", ".join(CATEGORIES["mvtec3d"])
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
        assert plan.chapter_target(given, chapter) == target
    with pytest.raises(ConfigError, match="chapter is '7'; expected one of 00_data, "):
        plan.chapter_target(given, "7")


def test_a_chapter_alone_asks_for_what_it_needs_only(pristine):
    targets = "book/executed/smoke/procedural/07_table4_loss_ablation.ipynb"
    needed = after("data", "feature_extraction", "memory_bank", "lspn_training")
    needed |= after("table4_loss_ablation_category", "table4_loss_ablation")
    assert jobs(pristine, more=("--forceall", targets)) == needed


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
    for name in ("01_feature_extraction", "03_lspn_training_seed1"):
        assert {read["category"] for read in seen[name]} == set(ODD_NAMES)
    assert {read["rgb_model"] for read in seen["01_feature_extraction"]} == {"001"}
    assert {read["learning_rate"] for read in seen["03_lspn_training_seed0"]} == {1e-4}
    assert "Nothing to be done" in run_in(tree, *given, f"--chapter={chapter}", "-n")


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("001", ("001",)),
        ("001, 2023_01/", ("001", "2023_01")),
        ("['part a', 001]", ("001", "part a")),
        ("['a, b', \"True\"]", ("True", "a, b")),
        ("1e3", ("1e3",)),
    ],
)
def test_some_of_the_odd_names_are_chosen(odd_run, asked, chosen):
    given = {"profile": "smoke", "dataset": "folder", "data_root": str(odd_run[1])}
    assert load("plan").make_plan(given | {"categories": asked}).categories == chosen


def test_snakemake_called_directly_takes_texts_or_says_that_they_are_lost(odd_run):
    tree, root = odd_run
    named = f"data_root={json.dumps([str(root)], ensure_ascii=False)}"
    own = ("dataset=folder", named)
    assert jobs(tree, *own, 'categories=["001"]')["memory_bank"] == 1
    assert jobs(tree, *own, "categories=['part a', 001]")["memory_bank"] == 2
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
        with pytest.raises(ConfigError, match=f"{name} is no setting of the profile"):
            make_plan({"settings": f"{{{name}: 1}}"})


def test_some_categories_give_other_pastes_than_all_and_the_same_features():
    plan = load("plan").make_plan
    alone, both = (plan({"profile": "smoke", "categories": x}) for x in ("gland", "gland cookie"))
    assert both.base == plan({"profile": "smoke"}).base
    assert listed(alone.base.synthesis.pasted_from) == ["gland"]
    assert STAGES["data"].hash(alone.base) == STAGES["data"].hash(both.base)
    assert STAGES["features"].hash(alone.base) == STAGES["features"].hash(both.base)
    assert STAGES["pastes"].hash(alone.base) != STAGES["pastes"].hash(both.base)


# ------------------------------------------------------------------ two runs beside each other


def test_runs_on_other_roots_or_settings_lie_apart(data_root):
    roots = [data_root("mvtec3d", ["bagel", "tire"]) for _ in range(2)]
    plans = [
        load("plan").make_plan({"dataset": "mvtec3d", "data_root": str(r)} | more)
        for r in roots
        for more in ({}, {"categories": "bagel"}, {"settings": "{alpha: 3}"})
    ]
    assert len({stage_dir(plan.base, "lspn") for plan in plans}) == len(plans)


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
    builder.assemble(executed, "a", source, left_out, (["a"], "/one"))
    status = (source / "status.md").read_text()
    assert "executed/a/03_x_seed0.ipynb" in status and "executed/05_x.ipynb" in status
    assert "b/03_x" not in status and "07_x" not in status
    assert "Not asked for." in (source / "07_x.ipynb").read_text()


# ------------------------------------------------------------------ the book's pages


def test_a_notebook_that_was_not_run_has_a_page_that_says_why(tmp_path):
    page = load("build_book").left_out_page("90_loss_weights.ipynb", "Nothing is chosen here.")
    (cell,) = page["cells"]
    assert cell["source"].startswith("# ") and "Nothing is chosen here." in cell["source"]


def test_the_first_page_has_the_picture_and_the_result(tmp_path):
    builder = load("build_book")
    output = {"data": {"text/html": '<img src="data:image/png;base64,aGVybw==" alt="x">'}}
    cell = {"cell_type": "code", "metadata": {"tags": ["hero"]}, "outputs": [output], "source": ""}
    (tmp_path / "04_x.ipynb").write_text(json.dumps({"cells": [cell]}))
    assert builder.hero(tmp_path) == b"hero"
    assert "No comparison" in builder.headline(tmp_path / "none.json")
    assert "| G²SF |" in builder.headline(ROOT / "data" / "results" / "demo.json")


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


def test_every_chapter_has_a_row_and_its_cost_a_mark():
    assert {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} == set(BY_NOTEBOOK)
    marks = re.findall(r"\{\{ cost (\w+) \}\}", (ROOT / "book" / "reproduce.md").read_text())
    assert set(marks) == set(BY_NOTEBOOK)
    pages = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    files = re.findall(r"'file': '(\d\d_\w+)'", str(pages))
    assert sorted(files) == sorted(BY_NOTEBOOK)


def test_costs_of_a_chapter_are_those_of_all_its_runs(tmp_path):
    builder = load("build_book")
    runs = {"a/03_x_seed0": (30, 100), "a/03_x_seed1": (35, 300), "b/03_x_seed0": (5, 200)}
    runs |= {"11_y": (9.6, 50)}
    paths = [tmp_path / f"{name}.ipynb" for name in runs]
    for path, (wall_s, peak_mb) in zip(paths, runs.values(), strict=True):
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".tsv").write_text(f"s\tmax_rss\n{wall_s}\t{peak_mb}\n")
    assert builder.costs(paths) == {
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
    show = "import os\nprint(value, device, workers, os.environ['OMP_NUM_THREADS'], os.getcwd())"
    notebook = write_notebook(
        tmp_path / "in.ipynb", "value = 0\ndevice = 'x'\nworkers = 1", bars, show
    )
    out = tmp_path / "deep" / "out.ipynb"
    more = ["--parameters", '{"value": 7}', "--device", "cpu", "--threads", "3"]
    done = subprocess.run(
        command(notebook, out, *more), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "seen from outside" in done.stderr and "in: cell 1 of " in done.stderr
    printed = nbformat.read(out, as_version=4).cells[-1].outputs[0].text
    assert printed.split() == ["7", "cpu", "3", "3", str(tmp_path)]
    assert [path.name for path in out.parent.iterdir()] == ["out.ipynb"]


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

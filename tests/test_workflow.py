"""The Snakefile decides rightly what to run; notebooks fail, stop and succeed cleanly."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = (
    "00_data",
    "01_feature_extraction",
    "02_memory_bank",
    "03_lspn_training",
    "04_anomaly_scoring",
    "90_loss_weights",
)
ALL_JOBS = {
    "data": 1, "features": 2, "bank": 2, "lspn": 4, "loss_weights": 1,
    "scores": 1, "showcase": 1, "book": 1, "all": 1,
}  # fmt: skip
FROM_TRAINING = {k: v for k, v in ALL_JOBS.items() if k not in ("data", "features", "bank")}
# Stand-ins for the two programs that jobs start: they leave the files and compute nothing.
STAND_IN_NOTEBOOK = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[2])
given = json.loads(sys.argv[sys.argv.index("--parameters") + 1])
runs = pathlib.Path("data/runs", given["profile"], given["dataset"])
stage = {"00": "scans/data", "01": "features", "02": "bank", "03": f"seed{given.get('seed')}/lspn",
         "04": "scores", "90": "loss_weights"}[out.name[:2]]
done = runs / given.get("category", "") / f"{stage}.json"
results = pathlib.Path("data/results/smoke.json")
written = [out, done] + [results] * (out.name[:2] == "04" and len(given["categories"]) > 1)
for path in written:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(given))
"""
STAND_IN_BOOK = """
import pathlib, sys
page = pathlib.Path(sys.argv[sys.argv.index("--html") + 1], "index.html")
page.parent.mkdir(parents=True, exist_ok=True)
page.write_text("a book")
"""


def snakemake(tree: Path, *arguments: str, check: bool = True) -> str:
    command = [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", "--cores", "4"]
    command += ["--scheduler", "greedy", *arguments]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == check, said
    return said


def jobs(tree: Path, *config: str) -> dict[str, int]:
    """Return rule -> number of jobs that would run now."""
    said = snakemake(tree, "-n", "--config", "profile=smoke", *config)
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
    for path, content, stat in changed:
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_second_run_has_nothing_to_do(finished):
    assert jobs(finished) == {}


def test_parameters_reach_the_notebooks(finished):
    executed = finished / "book" / "executed" / "smoke" / "procedural"
    last = json.loads((executed / "gland" / "04_anomaly_scoring.ipynb").read_text())
    assert last["categories"] == ["cookie", "gland"] and last["seeds"] == [0, 1]
    other = json.loads((executed / "cookie" / "04_anomaly_scoring.ipynb").read_text())
    assert other["categories"] == ["cookie"]
    trained = json.loads((executed / "cookie" / "03_lspn_training_seed1.ipynb").read_text())
    assert trained["seed"] == 1 and trained["category"] == "cookie"


def test_changed_loss_weight_reruns_training_and_what_follows(finished):
    assert jobs(finished, "settings={alpha: 2.5}") == FROM_TRAINING


def test_changed_scoring_reruns_only_scoring(finished):
    after = {"scores": 1, "showcase": 1, "book": 1, "all": 1}
    assert jobs(finished, "settings={blur_sigma_px: 2.0}") == after


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
    assert jobs(finished) == FROM_TRAINING


def test_changed_notebook_reruns_its_stage_and_what_follows(finished, edit):
    edit("notebooks/02_memory_bank.ipynb", "\n")
    after = {k: v for k, v in ALL_JOBS.items() if k not in ("data", "features")}
    assert jobs(finished) == after


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
        after = jobs(finished)
    finally:
        done.write_bytes(content)
        os.utime(done, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert after == {"lspn": 1, "scores": 1, "showcase": 1, "book": 1, "all": 1}


def test_every_module_of_the_library_is_an_input_of_some_job(pristine):
    said = snakemake(pristine, "-n", "--forceall", "--config", "profile=smoke")
    inputs = set(re.findall(r"g2sf_lib/[\w/]+\.py", said))
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "g2sf_lib").rglob("*.py")}
    # config.py reaches the stages through their settings, see the test above
    assert modules - inputs == {"g2sf_lib/__init__.py", "g2sf_lib/config.py"}


def test_failing_job_keeps_the_committed_table_and_the_old_book(finished, edit):
    edit("workflow/run_notebook.py", "\nif '04' in out.name: sys.exit('planted failure')\n")
    edit("notebooks/04_anomaly_scoring.ipynb", "\n")
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
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(pristine, config, message):
    assert message in snakemake(pristine, "-n", "--config", *config, check=False)


def test_demo_and_real_data_have_their_categories(pristine):
    said = snakemake(pristine, "-n", "--quiet", "rules", "--config", "profile=demo")
    assert re.search(r"^lspn\s+15$", said, re.MULTILINE), said
    real = ["profile=paper", "dataset=mvtec3d", "data_root=/data/mvtec3d"]
    said = snakemake(pristine, "-n", "--quiet", "rules", "--config", *real)
    assert re.search(r"^lspn\s+30$", said, re.MULTILINE), said


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
    spec = importlib.util.spec_from_file_location("workflow_run", ROOT / "workflow" / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    held = run.hold_lock(tmp_path / "state" / "lock")
    with pytest.raises(SystemExit, match="Another run is at work"):
        run.hold_lock(tmp_path / "state" / "lock")
    os.close(held)  # what the system does when a process ends, however it ends
    os.close(run.hold_lock(tmp_path / "state" / "lock"))

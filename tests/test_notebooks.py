"""The rules that every notebook keeps: they teach, and all that computes is in the library."""

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest

from g2sf_lib.baselines import peer_stages
from g2sf_lib.config import PROFILES, ConfigError, config_from_notebook, leaf_fields, make_config
from g2sf_lib.stages import STAGES

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
sys.path.append(str(ROOT / "workflow"))
from chapters import CHAPTERS as ROWS  # noqa: E402

CHAPTERS = sorted(row.notebook for row in ROWS)
LINES, FOLDED = 25, 40
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def parameters_cell(path):
    tagged = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1, f"{path.name}: {len(tagged)} cells are tagged parameters"
    return tagged[0]


def calls(tree, name):
    """Return the calls of a function, however it is reached."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    ]


def parameters(path):
    """Return name -> default of the notebook's parameters."""
    values = {}
    for node in ast.parse(parameters_cell(path).source).body:
        assert isinstance(node, ast.Assign) and len(node.targets) == 1, ast.unparse(node)
        values[node.targets[0].id] = ast.literal_eval(node.value)
    return values


def extras(path):
    """Return the parameters that the notebook declares as its own."""
    found = []
    for cell in code_cells(path):
        for call in calls(ast.parse(cell.source), "config_from_notebook"):
            given = {word.arg: word.value for word in call.keywords}
            found.append(ast.literal_eval(given["extra"]) if "extra" in given else ())
    assert len(found) == 1, f"{path.name}: config_from_notebook is called {len(found)} times"
    return set(found[0])


def prose(path):
    """Return the Markdown of a notebook without code, formulas and directives' options."""
    text = "\n\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
    text = re.sub(r"\$[^$]*\$", "", text)
    return re.sub(r"`[^`\n]+`", "", text)


def test_the_chapters_are_there():
    assert [path.stem for path in NOTEBOOKS] == CHAPTERS


@each_notebook
def test_one_title_and_a_question_below_it(path):
    cells = read(path).cells
    assert cells[0].cell_type == "markdown"
    headings = re.findall(r"^# .+$", "\n".join(prose(path).splitlines()), flags=re.M)
    assert len(headings) == 1 and cells[0].source.startswith(headings[0])
    question = cells[0].source.split("\n\n")[1]
    assert question.startswith("**") and question.rstrip().endswith("?**")
    box = cells[0].source
    assert box.count("```{admonition}") == 1
    for entry in ("Paper", "Reads", "Writes", "Run time"):
        assert f"**{entry}**" in box


@each_notebook
def test_it_is_stored_unexecuted_and_the_same_whoever_stores_it(path):
    notebook = read(path)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in code_cells(path):
        assert not cell.outputs and cell.execution_count is None, cell.source


@each_notebook
def test_parameters_are_literals_with_comments(path):
    cell = parameters_cell(path)
    assert cell is not None and cell.source == code_cells(path)[0].source  # the first code cell
    for line in filter(str.strip, cell.source.splitlines()):
        assert re.fullmatch(r"\w+ = [^#]+  # .{3,}", line), line
    assert {"hide-input"} <= set(cell.metadata["tags"])  # folded on the page


@each_notebook
def test_every_parameter_is_read(path):
    """By the notebook itself, or as a setting of a stage that it depends on."""
    (row,) = [row for row in ROWS if row.notebook == path.stem]
    source = "\n".join(c.source for c in code_cells(path)[1:])
    own, names = extras(path), set(parameters(path))
    for name in own:
        assert re.search(rf"\b{name}\b", source.replace(f'"{name}"', "")), name
    stages = [STAGES[s] for s in row.stages if s != "peers"] + peer_stages() * (
        "peers" in row.stages
    )
    read = {"profile", "dataset", "data_root", "device"}
    for stage in stages:
        for key, value in stage.settings(make_config()).items():
            read |= set(value) if isinstance(value, dict) else {key}
    # What a page shows of one category or seed it asks the config for.
    read |= {name for name in ("category", "seed") if row.per in ("category", "seed", "showcase")}
    read |= {name for name in names if re.search(rf"config\.(\w+\.)?{name}\b", source)}
    assert names - own <= read, names - own - read


@each_notebook
def test_parameters_are_settings_or_declared(path):
    names, own = set(parameters(path)), extras(path)
    assert own <= names
    assert not own & set(leaf_fields())
    assert names - own <= set(leaf_fields())


@each_notebook
@pytest.mark.parametrize("profile", PROFILES)
def test_defaults_are_those_of_the_profile(path, profile):
    own = extras(path)
    chosen = parameters(path) | {"profile": profile}
    assert config_from_notebook(chosen, extra=tuple(own)) == make_config(profile)


@each_notebook
def test_another_parameter_is_refused(path):
    chosen = parameters(path) | {"epocs": 3}
    with pytest.raises(ConfigError, match="'epocs'.*epochs"):
        config_from_notebook(chosen, extra=tuple(extras(path)))


@each_notebook
def test_the_config_is_made_before_anything_else_can_be_taken_for_a_parameter(path):
    body = ast.parse(code_cells(path)[1].source).body
    rest = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
    assert calls(rest[0], "config_from_notebook"), ast.unparse(rest[0])
    names = {alias.asname or alias.name for node in body for alias in getattr(node, "names", [])}
    assert not any(name.isupper() for name in names)  # a constant would pass for a parameter


@each_notebook
def test_cells_are_short(path):
    for cell in code_cells(path):
        lines = [x for x in cell.source.splitlines() if x.strip() and not x.strip().startswith("#")]
        is_folded = "hide-input" in cell.metadata.get("tags", [])
        assert len(lines) <= (FOLDED if is_folded else LINES), cell.source


@each_notebook
def test_no_cell_asks_the_shell(path):
    assert not any(re.search(r"^\s*[%!]", c.source, flags=re.M) for c in code_cells(path))


@each_notebook
def test_every_figure_has_alternative_text(path):
    shows = [call for c in code_cells(path) for call in calls(ast.parse(c.source), "show")]
    assert shows
    for call in shows:
        (alt,) = [word.value for word in call.keywords if word.arg == "alt"]
        texts = [c.value for c in ast.walk(alt) if isinstance(c, ast.Constant)]
        assert len("".join(map(str, texts))) > 40, ast.unparse(call)


@each_notebook
def test_no_number_of_a_result_is_typed_into_the_prose(path):
    text = re.sub(r"Sections? \d\.\d", "", prose(path))
    assert not re.findall(r"\d+\.\d+", text)


@each_notebook
def test_equations_are_those_of_the_notation(path):
    labels = set(re.findall(r":label: (eq-\d+)", (ROOT / "book" / "notation.md").read_text()))
    text = "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    assert set(re.findall(r"\{eq\}`([^`]+)`", text)) <= labels
    keys = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "book" / "references.bib").read_text(), re.M))
    cited = {key.strip() for group in re.findall(r"\{cite:\w\}`([^`]+)`", text)
             for key in group.split(",")}  # fmt: skip
    assert cited <= keys
    for target in re.findall(r"\]\(([\w.]+)\)", text):
        stem, suffix = target.split(".")
        assert stem in CHAPTERS if suffix == "ipynb" else target == "status.md" or (
            ROOT / "book" / target
        ).exists()  # fmt: skip


@each_notebook
def test_it_ends_with_summary_limits_exercises_and_the_next_chapter(path):
    end = read(path).cells[-1].source
    order = [end.find(part) for part in ("## Summary", "**Limits.**", "## Exercises", "**Next**")]
    assert min(order) >= 0 and order == sorted(order)
    assert end.count("```{dropdown} Solution") >= 1
    assert len(re.findall(r"^\d\. ", end, flags=re.M)) >= 3


def test_the_equations_of_the_method_are_all_explained():
    text = "\n".join(
        c.source for path in NOTEBOOKS for c in read(path).cells if c.cell_type == "markdown"
    )
    cited = set(re.findall(r"\{eq\}`eq-(\d+)`", text))
    assert cited >= {str(number) for number in range(1, 12)}

"""The rules that every notebook keeps: teachable, parameterised, without code of its own."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from g2sf_lib.config import ConfigError, config_from_notebook, leaf_fields

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXTRAS = {"categories", "workers", "seeds"}
ALLOWED_IMPORTS = {"g2sf_lib", "IPython", "pandas", "numpy", "dataclasses", "pathlib", "json"}


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path):
    return [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]


def parameters(path):
    (cell,) = [c for c in code(path) if "parameters" in c.metadata.get("tags", [])]
    return cell


def test_all_chapters_are_there():
    names = [path.stem for path in NOTEBOOKS]
    assert names == [
        "00_data",
        "01_feature_extraction",
        "02_memory_bank",
        "03_lspn_training",
        "04_anomaly_scoring",
        "90_loss_weights",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestNotebook:
    def test_is_stored_without_outputs(self, path):
        assert all(not cell.outputs and cell.execution_count is None for cell in code(path))

    def test_has_one_title_a_question_and_a_box(self, path):
        first = prose(path)[0]
        titles = [line for text in prose(path) for line in text.splitlines() if line[:2] == "# "]
        assert len(titles) == 1 and first.startswith("# ")
        assert "?" in first.split("```")[0]
        for word in ("admonition", "Paper", "Reads", "Writes", "Run time"):
            assert word in first

    def test_parameters_are_commented_literals_with_known_names(self, path):
        cell = parameters(path)
        for node in ast.parse(cell.source).body:
            assert isinstance(node, ast.Assign)
            ast.literal_eval(node.value)
            (target,) = node.targets
            assert target.id in set(leaf_fields()) | EXTRAS
        assert all("#" in line for line in cell.source.splitlines() if line.strip())

    def test_refuses_a_parameter_that_it_does_not_know(self, path):
        # What papermill leaves in the namespace of a notebook without such a parameter.
        namespace: dict = {}
        exec(parameters(path).source, namespace)  # noqa: S102
        namespace.pop("__builtins__")
        setup = next(c.source for c in code(path) if "config_from_notebook(" in c.source)
        call = next(
            node
            for node in ast.walk(ast.parse(setup))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "config_from_notebook"
        )
        extra = next((ast.literal_eval(k.value) for k in call.keywords if k.arg == "extra"), ())
        config_from_notebook(namespace, extra)
        with pytest.raises(ConfigError, match="epochz"):
            config_from_notebook(namespace | {"epochz": 3}, extra)

    def test_holds_no_code_of_its_own(self, path):
        for cell in code(path):
            tree = ast.parse(cell.source)
            for node in ast.walk(tree):
                assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.While)
                if isinstance(node, ast.For):
                    inner = [n for n in ast.walk(node) if isinstance(n, ast.For) and n is not node]
                    assert not inner, cell.source
                if isinstance(node, ast.Import):
                    roots = {name.name.split(".")[0] for name in node.names}
                elif isinstance(node, ast.ImportFrom):
                    roots = {node.module.split(".")[0]}
                else:
                    continue
                assert roots <= ALLOWED_IMPORTS, cell.source

    def test_cells_are_short(self, path):
        for cell in code(path):
            lines = [x for x in cell.source.splitlines() if x.strip()]
            limit = 40 if "parameters" in cell.metadata.get("tags", []) else 12
            assert len(lines) <= limit, cell.source

    def test_every_figure_has_an_alternative_text(self, path):
        calls = [
            node
            for cell in code(path)
            for node in ast.walk(ast.parse(cell.source))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "plots.show"
        ]
        assert path.stem == "90_loss_weights" or calls
        for call in calls:
            assert len(call.args) == 2 or "alt" in {k.arg for k in call.keywords}

    def test_prose_quotes_no_results(self, path):
        for text in prose(path):
            plain = re.sub(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$", "", text, flags=re.S)
            assert not re.search(r"\b0\.\d\d+\b", plain), text

    def test_ends_with_summary_limits_exercises_and_the_next_chapter(self, path):
        text = "\n".join(prose(path))
        for word in ("## Summary", "Limits", "## Exercises", "Next"):
            assert word in text, word

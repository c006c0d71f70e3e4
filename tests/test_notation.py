"""The notation page and the library speak the same language, and the prose cites what exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTATION = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
PROSE = sorted((ROOT / "book").glob("*.md"))
MODULES = sorted((ROOT / "g2sf_lib").rglob("*.py"))
LABELS = re.findall(r"^:label: (eq-\d+)$", NOTATION, flags=re.M)
# The contract: names that readers, notebooks and tests from outside rely on.
CONTRACT = {
    *("mod", "feat", "proto", "d", "s", "LSPN", "w", "sigma", "sigma_raw", "ell", "cell_score"),
    *("is_anomalous", "loss_sep", "loss_mar", "loss_cns", "loss_sc", "loss_cma", "eta"),
    *("alpha", "beta", "gamma", "mu"),
}


def table_rows():
    """Cells of the symbol table, a list a row, without header and rule."""
    section = NOTATION.split("## Symbols")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code_names():
    """Every name in backticks of the table's code and meaning columns that is an identifier."""
    found = [
        name for row in table_rows() for cell in row[1:] for name in re.findall(r"`(.+?)`", cell)
    ]
    return {name for name in found if name.isidentifier()}


def equations_cited(text):
    """Numbers that "Eq. 4-9", "Eq. 1, 2, 3, 11" and the like name."""
    numbers = set()
    for listing in re.findall(r"\bEqs?\. (\d+(?:(?:-|, )\d+)*)", text):
        for part in listing.split(", "):
            first, _, last = part.partition("-")
            numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]


def identifiers(path):
    """Names that the code of a module defines or uses; comments and docstrings do not count."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
    return names


def test_reading_of_citations():
    assert equations_cited("as Eq. 2; (Eq. 1, 2, 3, 11), Eq. 4-6 a modality, Eq. 8, or") == {
        *(1, 2, 3, 11),
        *(4, 5, 6),
        8,
    }


def test_the_eleven_equations_are_there_once_and_in_order():
    # In order and alone with a label, they get the paper's own numbers when the page is built.
    assert LABELS == [f"eq-{number}" for number in range(1, 12)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_equation_that_a_docstring_cites_is_on_the_page(path):
    for docstring in docstrings(path):
        cited = {f"eq-{number}" for number in equations_cited(docstring)}
        cited |= set(re.findall(r"\beq-\d+\b", docstring))
        assert cited <= set(LABELS), docstring


def test_every_equation_on_the_page_is_cited_by_the_library():
    cited = {
        number for path in MODULES for text in docstrings(path) for number in equations_cited(text)
    }
    assert {f"eq-{number}" for number in cited} >= set(LABELS)


def test_every_code_name_on_the_page_is_a_name_of_the_library():
    used = set().union(*(identifiers(path) for path in MODULES))
    assert code_names() - used == set()


def test_the_page_has_all_names_of_the_contract():
    assert CONTRACT - code_names() == set()


def test_the_core_uses_the_names_and_not_others_for_the_same():
    # fusion.py and losses.py are what readers compare with the page.
    core = {
        name
        for file in ("fusion.py", "losses.py")
        for name in identifiers(ROOT / "g2sf_lib" / file)
    }
    assert {"mod", "feat", "proto", "d", "s", "w", "ell", "sigma", "is_anomalous", "eta"} <= core
    assert not core & {"m", "lam", "dist", "label", "y_true", "modality"}


def test_modalities_come_in_the_order_that_the_page_states():
    from g2sf_lib.config import MODALITIES

    assert f"`{MODALITIES!r}`".replace("'", '"') in NOTATION


def test_prose_cites_only_works_and_equations_that_exist():
    bibliography = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    keys = set(re.findall(r"^@\w+\{([^,]+),", bibliography, flags=re.M))
    for path in PROSE:
        text = path.read_text(encoding="utf-8")
        cited = {
            key.strip()
            for keys in re.findall(r"\{cite(?::\w)?\}`([^`]+)`", text)
            for key in keys.split(",")
        }
        assert cited <= keys, path.name
        assert set(re.findall(r"\{eq\}`([^`]+)`", text)) <= set(LABELS), path.name


def test_every_switch_of_the_losses_is_explained_among_the_deviations():
    from g2sf_lib.config import LossConfig

    page = (ROOT / "book" / "deviations.md").read_text(encoding="utf-8")
    switches = [name for name in LossConfig.__dataclass_fields__ if name.endswith("form")]
    assert len(switches) == 7
    assert [name for name in switches if f"`{name}`" not in page and f".{name}`" not in page] == []


def test_every_setting_that_prose_names_as_a_parameter_exists():
    from g2sf_lib.config import leaf_fields

    text = (ROOT / "book" / "deviations.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    last_column = [re.findall(r"`([a-z0-9_]+)`", line.strip("|").split("|")[-1]) for line in rows]
    named = {name for names in last_column for name in names if "_" in name}
    assert named - set(leaf_fields()) <= {"num_thresholds", "negative_pairs"}
    assert len(named & set(leaf_fields())) >= 10

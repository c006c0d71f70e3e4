"""The notation page and the library speak the same language, and the prose cites what exists."""

import ast
import re
from pathlib import Path

from g2sf_lib.config import MODALITIES, LossConfig, leaf_fields

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


def code_names():
    """Every identifier in backticks of the symbol table's code and meaning columns."""
    section = NOTATION.split("## Symbols")[1].split("\n## ")[0]
    rows = re.findall(r"^\|.*?\|(.*)", section, flags=re.M)[2:]
    return {name for name in re.findall(r"`(.+?)`", " ".join(rows)) if name.isidentifier()}


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
    parts = {ast.Name: "id", ast.arg: "arg", ast.Attribute: "attr"}
    parts |= {ast.FunctionDef: "name", ast.ClassDef: "name"}
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {getattr(node, parts[type(node)]) for node in nodes if type(node) in parts}


def test_reading_of_citations():
    text = "as Eq. 2; (Eq. 1, 2, 3, 11), Eq. 4-6 a modality, Eq. 8, or"
    assert equations_cited(text) == {1, 2, 3, 4, 5, 6, 8, 11}


def test_the_eleven_equations_are_there_once_and_in_order():
    # In order and alone with a label, they get the paper's own numbers when the page is built.
    assert LABELS == [f"eq-{number}" for number in range(1, 12)]


def test_docstrings_cite_the_equations_of_the_page_and_no_others():
    cited = set()
    for path in MODULES:
        for text in docstrings(path):
            found = {f"eq-{number}" for number in equations_cited(text)}
            found |= set(re.findall(r"\beq-\d+\b", text))
            assert found <= set(LABELS), f"{path.name}: {text}"
            cited |= found
    assert cited == set(LABELS)


def test_names_on_the_page_are_those_of_the_library_and_all_of_the_contract():
    used = set().union(*(identifiers(path) for path in MODULES))
    assert code_names() - used == set()
    assert CONTRACT - code_names() == set()


def test_the_core_uses_the_names_and_not_others_for_the_same():
    # fusion.py and losses.py are what readers compare with the page.
    paths = (ROOT / "g2sf_lib" / name for name in ("fusion.py", "losses.py"))
    core = set().union(*map(identifiers, paths))
    assert {"mod", "feat", "proto", "d", "s", "w", "ell", "sigma", "is_anomalous", "eta"} <= core
    assert not core & {"m", "lam", "dist", "label", "y_true", "modality"}


def test_modalities_come_in_the_order_that_the_page_states():
    assert f"`{MODALITIES!r}`".replace("'", '"') in NOTATION


def test_prose_cites_only_works_and_equations_that_exist():
    bibliography = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    keys = set(re.findall(r"^@\w+\{([^,]+),", bibliography, flags=re.M))
    for path in PROSE:
        text = path.read_text(encoding="utf-8")
        cited = ",".join(re.findall(r"\{cite(?::\w)?\}`([^`]+)`", text)).split(",")
        assert {key.strip() for key in cited} <= keys | {""}, path.name
        assert set(re.findall(r"\{eq\}`([^`]+)`", text)) <= set(LABELS), path.name


def test_deviations_explain_every_switch_of_the_losses_and_name_settings_that_exist():
    text = (ROOT / "book" / "deviations.md").read_text(encoding="utf-8")
    switches = [name for name in LossConfig.model_fields if name.endswith("form")]
    assert len(switches) == 7
    assert [name for name in switches if f"`{name}`" not in text and f".{name}`" not in text] == []
    last_columns = re.findall(r"([^|\n]*)\|$", text, flags=re.M)
    named = {n for n in re.findall(r"`([a-z0-9_]+)`", " ".join(last_columns)) if "_" in n}
    assert named - set(leaf_fields()) <= {"num_thresholds", "negative_pairs"}
    assert len(named & set(leaf_fields())) >= 10

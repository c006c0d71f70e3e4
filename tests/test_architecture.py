"""The house holds: imports point one way, and no module keeps state, seeds or odd names."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "g2sf_lib"
FILES = sorted(LIBRARY.rglob("*.py"))
# From the ground up; a module imports from lower floors, and from its own package.
FLOORS = (
    ("config", "store"),
    ("stages", "checkpoint"),
    ("datasets", "memory", "fusion", "evaluation", "stats"),
    ("synthesis", "features", "losses", "tables"),
    ("cells", "published"),
    ("training",),
    ("detector",),
    ("baselines",),
    ("experiments",),
    ("benchmark",),
    ("timing", "tuning", "quantities", "distributions"),
    ("results",),
    ("ablations",),
    ("toy",),
)
BESIDE = ("plots",)  # arrays in, Figure out
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
DRAWING = {"matplotlib", "seaborn", "plotly"}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(LIBRARY)))


def module_name(path):
    parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path, at_import_only=False):
    """Return every module that a file imports, as dotted names; also inside of functions."""
    names = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_import_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(dotted):
    """Return the part of the house that a dotted name of ours belongs to."""
    return dotted.split(".")[1]


def ours(path, at_import_only=False):
    modules = {module_name(file) for file in FILES} - {"g2sf_lib"}
    return imported(path, at_import_only) & modules


def test_there_is_something_to_look_at():
    parts = {part(module_name(file)) for file in FILES if module_name(file) != "g2sf_lib"}
    assert parts == set(FLOOR) | set(BESIDE)


@each_file
def test_imports_point_one_way(path):
    name = module_name(path)
    if name == "g2sf_lib":
        assert not ours(path)
        return
    here = part(name)
    for other in ours(path):
        there = part(other)
        if here == there:
            continue
        assert there not in BESIDE, f"{name} imports {other}"
        assert here not in BESIDE or there == "config", f"{name} imports {other}"
        if here not in BESIDE:
            assert FLOOR[there] < FLOOR[here], f"{name} imports {other}"


def test_no_circle_of_modules():
    graph = {module_name(file): ours(file, at_import_only=True) for file in FILES}
    list(TopologicalSorter(graph).static_order())


@each_file
def test_only_plots_draws(path):
    drawing = {name.split(".")[0] for name in imported(path)} & DRAWING
    assert not drawing or part(module_name(path)) == "plots"


@each_file
def test_nothing_imports_notebooks_or_tests(path):
    for name in imported(path):
        assert not {"notebooks", "tests", "nbformat", "papermill"} & set(name.split("."))


@each_file
def test_names_of_modules_say_something(path):
    assert not {"utils", "util", "common", "args", "helpers", "misc", "registry"} & set(
        path.with_suffix("").relative_to(LIBRARY).parts
    )


def calls_at_import(tree):
    """Yield every call that runs when the module is imported: none inside a function."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
        waiting += ast.iter_child_nodes(node)


@each_file
def test_no_seed_generator_or_device_at_module_level(path):
    forbidden = ("manual_seed", "random.seed", "default_rng", "Generator", "RandomState")
    forbidden += ("torch.device", "set_default_device", "set_num_threads")
    for call in calls_at_import(ast.parse(path.read_text())):
        assert not call.endswith(forbidden), f"{path}: {call}() at import"


@each_file
def test_no_global_numpy_seed_anywhere(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert not call.endswith(("np.random.seed", "numpy.random.seed")), path
            assert call not in ("random.seed", "np.random.rand", "np.random.randn"), path
        assert not isinstance(node, ast.Global), f"{path}: module-level state"


def test_torchs_global_seed_is_set_only_where_it_is_put_back():
    """Dropout and initial weights read torch's global generators: seeded inside fork_rng only."""
    texts = {str(path.relative_to(LIBRARY)): path.read_text() for path in FILES}
    ways = ("torch.manual_seed(", "torch.default_generator.manual_seed(", "torch.seed(")
    setting = {name: text for name, text in texts.items() if any(way in text for way in ways)}
    assert setting.keys() == {"baselines/loop.py", "training.py"}
    assert all("torch.random.fork_rng(" in text for text in setting.values())


@each_file
def test_every_public_function_and_class_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path}: no docstring"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, kinds) and not inner.name.startswith("_"):
                    assert ast.get_docstring(inner), f"{path}: {node.name}.{inner.name}"


def test_fusion_is_one_module_of_its_own():
    """The file that readers come for reads config and nothing else of ours."""
    assert ours(LIBRARY / "fusion.py") == {"g2sf_lib.config"}


@each_file
def test_nothing_is_pickled(path):
    called = {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }
    assert not called & {"pickle.load", "pickle.loads", "pickle.dump", "pickle.dumps", "torch.save"}
    if path.name != "checkpoints.py":  # weights of others come as they come
        assert "torch.load" not in called


MOST_LINES, LONGEST = 10_000, 500
LONGER = {"config.py": "every setting with its reason in one file"}


def lines(folder, pattern="*.py"):
    return sum(len(path.read_text().splitlines()) for path in folder.rglob(pattern))


def test_the_library_is_small():
    """A measure of when to stop and think: design.md, section 1."""
    library, root = lines(LIBRARY), LIBRARY.parent
    assert library <= MOST_LINES
    assert lines(root / "tests") <= 1.25 * library
    long = {
        p.relative_to(LIBRARY).as_posix()
        for p in FILES
        if len(p.read_text().splitlines()) > LONGEST
    }
    assert long <= set(LONGER)

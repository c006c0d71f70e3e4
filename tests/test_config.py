"""The tree of settings: what is refused, what None means, which hash changes with what."""

import dataclasses
import math
import re
import typing
from pathlib import Path

import pytest

from g2sf_lib import config as module
from g2sf_lib.config import (
    PROFILES,
    SEEDED_STAGES,
    STAGE_NEEDS,
    STAGE_SECTIONS,
    STAGES,
    Config,
    ConfigError,
    config_from_notebook,
    dataset_dir,
    folder_name,
    from_text,
    leaf_fields,
    listed,
    make_config,
    normal_path,
    raw_dir,
    results_file,
    run_name,
    scans_dir,
    settings_table,
    stage_chain,
    stage_dir,
    stage_files,
)
from g2sf_lib.detector import flat_settings

LEAVES = leaf_fields()


def test_leaf_names_are_unique():
    hints = typing.get_type_hints(Config)
    names = []
    for top in dataclasses.fields(Config):
        if dataclasses.is_dataclass(hints[top.name]):
            names += [leaf.name for leaf in dataclasses.fields(hints[top.name])]
        else:
            names.append(top.name)
    assert len(names) == len(set(names)) == len(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_every_setting_has_a_reason_and_a_default_that_fits(name):
    _, leaf, kind = LEAVES[name]
    assert len(leaf.metadata["reason"]) >= 5
    assert module._fits(leaf.default, kind, leaf.metadata["low"], leaf.metadata["high"])


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_can_be_built_and_gives_reasons(profile):
    config = make_config(profile)
    assert config.profile == profile
    for name, (value, reason) in PROFILES[profile].items():
        section = LEAVES[name][0]
        assert getattr(getattr(config, section), name) == value
        assert len(reason) >= 5
    rows = {row["name"]: row for row in settings_table(config)}
    assert rows.keys() == LEAVES.keys() and all(row["reason"] for row in rows.values())
    for name, (value, reason) in PROFILES[profile].items():
        assert rows[name]["value"] == value and rows[name]["reason"] == reason


def test_the_paper_profile_has_the_published_settings():
    config = make_config("paper")
    assert (config.model.hidden, config.model.embed, config.model.dropout) == (512, 128, 0.5)
    assert (config.training.epochs, config.training.batch_size) == (80, 8192)
    assert (config.training.learning_rate, config.training.l1) == (1.5e-4, 5e-4)
    assert (config.model.k, config.loss.eta_0, config.features.grid_size) == (5, 1.2, 56)
    assert (config.bank.bank_fraction, config.bank.projection_eps) == (0.1, 0.9)
    assert config.loss.form == "paper"  # the paper is the specification, in every profile


def test_the_tree_is_frozen():
    config = make_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.loss.alpha = 1.0


def test_leaves_land_in_their_sections():
    config = make_config("smoke", alpha=10.0, category="rope", aggregate="mean", seed=4)
    assert config.loss.alpha == 10.0 and config.scoring.aggregate == "mean"
    assert (config.category, config.seed, config.profile) == ("rope", 4, "smoke")
    assert config.data.num_train == PROFILES["smoke"]["num_train"][0]


@pytest.mark.parametrize("name", ["alpa", "loss", "", "Alpha", "data"])
def test_an_unknown_name_is_refused_with_the_allowed_ones(name):
    with pytest.raises(ConfigError, match="unknown parameter") as caught:
        make_config("demo", **{name: 1})
    assert repr(name) in str(caught.value)
    assert all(leaf in str(caught.value) for leaf in LEAVES)


def test_an_unknown_profile_is_refused_with_the_allowed_ones():
    with pytest.raises(ConfigError, match="'quick'; expected one of 'demo', 'smoke', 'paper'"):
        make_config("quick")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 3.0, "int >= 1"),
        ("epochs", "3", "int >= 1"),
        ("epochs", True, "int >= 1"),
        ("epochs", 0, "int >= 1"),
        ("epochs", None, "int >= 1"),
        ("alpha", "10", "float >= 0"),
        ("alpha", True, "float >= 0"),
        ("alpha", -0.1, "float >= 0"),
        ("alpha", math.nan, "float >= 0"),
        ("alpha", math.inf, "float >= 0"),
        ("alpha", [1.0], "float >= 0"),
        ("dropout", 1.0, "float >= 0 <= 0.99"),
        ("quantise", 1, "bool"),
        ("quantise", "yes", "bool"),
        ("category", 3, "str (papermill keeps a text with -r: -r category 3)"),
        ("aggregate", "median", "one of 'min', 'max', 'mean', 'nearest'"),
        ("form", "authors", "one of 'paper', 'official'"),
        ("sigma_rule", "free", "one of 'learned', 'fixed'"),
        ("prototype_input", "random", "one of 'given', 'zeros'"),
        ("direction_input", "noise", "one of 'given', 'zeros', 'random'"),
        ("heldout_by", "scan", "one of 'target', 'image', 'cell'"),
        ("sep_form", "authors", "one of 'paper', 'official' or None"),
        ("projection_eps", 1.5, "float >= 0 <= 1 or None"),
        ("projection_eps", False, "float >= 0 <= 1 or None"),
        ("rgb_weights", 0, "str or None (papermill keeps a text with -r: -r rgb_weights 0)"),
        ("device", "gpu", "one of 'auto', 'cpu', 'cuda'"),
        ("seed", -1, "int >= 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(name, value, expected):
    with pytest.raises(ConfigError) as caught:
        make_config("demo", **{name: value})
    assert str(caught.value) == f"{name} is {value!r}; expected {expected}"


def test_none_is_a_value_where_it_is_allowed():
    config = make_config("paper", projection_eps=None, rgb_weights=None, sep_form=None)
    assert config.bank.projection_eps is None


@pytest.mark.parametrize(("name", "value"), [("alpha", 1), ("projection_eps", 1)])
def test_an_integer_for_a_float_is_the_same_setting(name, value):
    one, other = make_config(**{name: value}), make_config(**{name: float(value)})
    assert one == other and one.stage_hash("lspn") == other.stage_hash("lspn")


def test_a_real_data_set_needs_its_folder():
    with pytest.raises(ConfigError, match="'mvtec3d' needs data_root"):
        make_config("paper", dataset="mvtec3d")
    config = make_config("paper", dataset="mvtec3d", data_root="/data")
    assert raw_dir(config) == Path("/data")


def test_flat_settings_give_the_same_config_again():
    config = make_config("paper", alpha=3.5, category="rope", projection_eps=None, seed=2)
    assert make_config(**flat_settings(config)) == config


def notebook(**parameters):
    """What `globals()` of a notebook looks like before anything but parameters has run."""
    around = {"__name__": "__main__", "_i1": "x", "In": ["x"], "Out": {}, "Path": Path, "m": module}
    return around | {"profile": "smoke", "category": "rope", "seed": 1} | parameters


def test_config_from_notebook_reads_parameters_only():
    config = config_from_notebook(notebook(alpha=2.0, data_root=None, epochs=None))
    assert config == make_config("smoke", category="rope", seed=1, alpha=2.0)


def test_config_from_notebook_takes_none_for_what_the_profile_says():
    config = config_from_notebook(notebook(epochs=None, profile="paper"))
    assert config.training.epochs == 80


@pytest.mark.parametrize("value", [1, 0.5, "x", None, True, [1], {"a": 1}])
def test_config_from_notebook_refuses_an_unknown_injected_name(value):
    with pytest.raises(ConfigError, match="unknown parameter 'alfa'; allowed: .*alpha"):
        config_from_notebook(notebook(alfa=value))


def test_config_from_notebook_leaves_a_notebooks_own_parameters_to_it():
    names = ("seeds", "workers")
    config = config_from_notebook(notebook(seeds=[0, 1], workers=2), extra=names)
    assert config == make_config("smoke", category="rope", seed=1)
    with pytest.raises(ConfigError, match="'seeds'"):
        config_from_notebook(notebook(seeds=[0, 1]))


def test_config_from_notebook_refuses_an_ill_typed_value():
    with pytest.raises(ConfigError, match="epochs is '3'; expected int >= 1"):
        config_from_notebook(notebook(epochs="3"))


SCORES = ("scores", "quantities", "bank_scores", "cfm_scores", "ast_scores")
OF_METRIC = ("lspn", "scores", "quantities")  # LSPN, and what is computed with it
AFTER_BANK = ("lspn", "cfm", "ast", *SCORES)
AFTER_DATA = tuple(stage for stage in STAGES if stage != "data")
# section, or leaf of the run itself -> the stages whose hash depends on it
DEPENDS = {
    "data": STAGES,
    "preprocess": STAGES,
    "features": AFTER_DATA,
    "synthesis": ("pastes", "cells", *OF_METRIC),
    "bank": ("bank", "cells", *AFTER_BANK),
    "cells": ("cells", *OF_METRIC),
    "model": OF_METRIC,
    "loss": OF_METRIC,
    "training": OF_METRIC,
    "cfm": ("cfm", "cfm_scores"),
    "ast": ("ast", "ast_scores"),
    "rules": ("bank_scores",),
    "scoring": SCORES,
    "dataset": STAGES,
    "data_root": STAGES,
    "category": AFTER_DATA,
    "seed": AFTER_BANK,
    "device": (),
    "runs_root": (),
    "profile": (),
}


@pytest.mark.parametrize("name", LEAVES)
def test_hashes_change_with_the_right_stages(name):
    base, section, value = make_config(), LEAVES[name][0], "another value"
    if section is None:
        changed = dataclasses.replace(base, **{name: value})
    else:
        part = dataclasses.replace(getattr(base, section), **{name: value})
        changed = dataclasses.replace(base, **{section: part})
    differs = {stage for stage in STAGES if base.stage_hash(stage) != changed.stage_hash(stage)}
    assert differs == set(DEPENDS[section or name])


def test_every_section_belongs_to_one_stage_or_to_all_that_score():
    sections = {section for section, _, _ in LEAVES.values() if section is not None}
    homes = {s: [stage for stage in STAGES if s in STAGE_SECTIONS[stage]] for s in sections}
    assert homes.pop("scoring") == list(SCORES)
    assert all(len(stages) == 1 for stages in homes.values()), homes


@pytest.mark.parametrize(
    ("stage", "chain"),
    [
        ("data", ["data"]),
        ("bank", ["data", "features", "bank"]),
        ("cells", ["data", "features", "bank", "pastes", "cells"]),
        ("scores", ["data", "features", "bank", "pastes", "cells", "lspn", "scores"]),
        ("quantities", ["data", "features", "bank", "pastes", "cells", "lspn", "quantities"]),
        ("bank_scores", ["data", "features", "bank", "bank_scores"]),
        ("cfm_scores", ["data", "features", "bank", "cfm", "cfm_scores"]),
        ("ast_scores", ["data", "features", "bank", "ast", "ast_scores"]),
    ],
)
def test_the_stages_that_one_builds_on(stage, chain):
    assert list(stage_chain(stage)) == chain


def test_every_stage_needs_some_that_are_there_before_it():
    assert list(STAGE_NEEDS) == list(STAGES)
    for stage, needs in STAGE_NEEDS.items():
        assert (needs == ()) == (stage == "data")
        assert all(STAGES.index(before) < STAGES.index(stage) for before in needs)


def test_settings_of_a_stage_are_those_of_its_chain():
    config = make_config("paper", category="rope", seed=3)
    whole = config.stage_settings("cfm_scores")
    run = {"dataset": "procedural", "data_root": None, "category": "rope", "seed": 3}
    sections = ("data", "preprocess", "features", "bank", "cfm", "scoring")
    assert whole == run | {name: dataclasses.asdict(getattr(config, name)) for name in sections}
    assert "synthesis" in config.stage_settings("lspn")
    assert config.stage_settings("data").keys() == {"dataset", "data_root", "data", "preprocess"}


def test_only_what_is_trained_or_drawn_depends_on_the_seed():
    config = make_config(seed=7)
    seeded = {stage for stage in STAGES if "seed" in config.stage_settings(stage)}
    assert seeded == set(AFTER_BANK) and set(SEEDED_STAGES) < seeded


# file of the library -> the stages whose hash its code changes
CODE = {
    "datasets/preprocess.py": STAGES,
    "features/rgb.py": AFTER_DATA,
    "memory.py": ("bank", "cells", *AFTER_BANK),
    "baselines/banks.py": ("bank", "cells", *AFTER_BANK),
    "synthesis.py": ("pastes", "cells", *OF_METRIC),
    "losses.py": OF_METRIC,
    "quantities.py": ("quantities",),
    "baselines/cfm.py": ("cfm", "cfm_scores"),
    "baselines/student_teacher.py": ("ast", "ast_scores"),
    "baselines/loop.py": ("cfm", "cfm_scores", "ast", "ast_scores"),
    "baselines/m3dm.py": ("bank_scores",),
    "baselines/__init__.py": ("bank_scores", "cfm", "cfm_scores", "ast", "ast_scores"),
    "evaluation.py": SCORES,
    "benchmark.py": SCORES,
    "datasets/check.py": (),
    "results.py": (),
    "ablations.py": (),
    "distributions.py": (),
}


@pytest.mark.parametrize("name", CODE)
def test_the_hash_changes_with_the_code_of_a_stage(monkeypatch, name):
    config = make_config()
    before = {stage: config.stage_hash(stage) for stage in STAGES}
    changed, real = Path(module.__file__).parent / name, module._source
    assert changed.is_file()
    monkeypatch.setattr(module, "_source", lambda p: real(p) + (b"#" if p == changed else b""))
    differs = {stage for stage in STAGES if config.stage_hash(stage) != before[stage]}
    assert differs == set(CODE[name])


def test_files_of_a_stage_exist_and_are_more_than_those_of_the_one_it_needs():
    for stage, needs in STAGE_NEEDS.items():
        files = stage_files(stage)
        assert all(file.is_file() for file in files) and len(set(files)) == len(files)
        assert not {file.name for file in files} & set(module.NO_STAGE)
        for before in needs:
            assert set(stage_files(before)) < set(files)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[0, 1]", [0, 1]),
        (" ['g2sf', 'cfm'] ", ["g2sf", "cfm"]),
        ("(2,)", [2]),
        ("[]", []),
        ([0, 1], [0, 1]),
        (None, None),
        (3, 3),
        ("foam", "foam"),
        ("(5)", "(5)"),  # a number in brackets is no list
        ("[0, 1", "[0, 1"),
        ("[open('x')]", "[open('x')]"),  # read, never run
    ],
)
def test_listed_turns_only_the_text_of_a_list_into_one(value, expected):
    assert listed(value) == expected and type(listed(value)) is type(expected)


def test_folders_keep_profiles_data_sets_categories_and_settings_apart():
    base = make_config("smoke", runs_root="runs")
    assert dataset_dir(base) == Path("runs/smoke/procedural")
    assert scans_dir(base).parent == dataset_dir(base)
    assert stage_dir(base, "lspn").parent == dataset_dir(base) / "foam"
    folders = {
        stage_dir(config, "lspn")
        for config in (
            base,
            dataclasses.replace(base, seed=1),
            dataclasses.replace(base, category="rope"),
            make_config("demo", runs_root="runs"),
            make_config("smoke", runs_root="runs", alpha=9.0),
        )
    }
    assert len(folders) == 5


def test_raw_data_lie_apart_by_the_code_that_renders_them(monkeypatch):
    """All of it: the modules of `datasets` that the renderer imports, however many there are."""
    folder = Path(module.__file__).parent / "datasets"
    before = raw_dir(make_config())
    text = "\n".join(p.read_text() for p in (folder / "procedural.py", folder / "defects.py"))
    rendering = {"procedural"} | set(re.findall(r"from g2sf_lib\.datasets\.(\w+) import", text))
    real = module._source
    for name in rendering:
        monkeypatch.setattr(
            module, "_source", lambda p, n=name: real(p) + (b"#" if p.stem == n else b"")
        )
        assert raw_dir(make_config()) != before, name


def test_raw_data_lie_apart_by_how_they_are_rendered():
    base = make_config("smoke")
    assert raw_dir(base) != raw_dir(make_config("smoke", num_train=9))
    assert raw_dir(base) != raw_dir(make_config("smoke", seed_set="development"))
    assert raw_dir(base) == raw_dir(make_config("smoke", epochs=9, category="rope"))


def test_the_hash_is_that_of_the_code_that_runs(tmp_path):
    """Somebody who edits the library beside a run does not move the run's results away."""
    path = tmp_path / "module.py"
    path.write_text("x = 1")
    before = module._code_hash([path])
    path.write_text("x = 2")
    assert module._code_hash([path]) == before


@pytest.mark.parametrize("dataset", ["procedural", "mvtec3d", "eyecandies"])
def test_a_category_that_a_data_set_has_not_is_refused(dataset):
    with pytest.raises(ConfigError, match=f"category is 'nut'; dataset '{dataset}' has .*folder"):
        make_config(dataset=dataset, data_root="/x", category="nut")
    for category in module.CATEGORIES[dataset]:
        assert make_config(dataset=dataset, data_root="/x", category=category)
    assert make_config(dataset="folder", data_root="/x", category="nut").category == "nut"


def test_profile_paper_has_the_formulas_of_the_paper_with_the_weights_of_the_demo():
    """Those of the authors' code, 10, 40, 3 and 20, belong to its own forms (`RECIPE`)."""
    loss = make_config("paper").loss
    assert loss == make_config("demo").loss
    assert loss.form == "paper" and make_config("paper").training.max_batch_share == 0.035


@pytest.mark.parametrize("profile", PROFILES)
def test_ablations_are_off_in_every_profile(profile):
    """What LSPN sees, what is learned and how it is judged are the paper's until one asks."""
    config = make_config(profile)
    assert (config.model.sigma_rule, config.training.heldout_by) == ("learned", "target")
    assert (config.model.prototype_input, config.model.direction_input) == ("given", "given")


def test_quantities_lie_beside_scores_and_never_in_the_same_folder():
    config = make_config()
    assert STAGE_NEEDS["quantities"] == STAGE_NEEDS["scores"] == ("lspn",)
    assert config.stage_settings("quantities") == config.stage_settings("scores")
    assert config.stage_hash("quantities") != config.stage_hash("scores")


# ------------------------------------------------------------------ texts, paths, names


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "1e-4", 1e-4),  # YAML 1.1 wants a point in it
        ("epochs", "1_000", 1000),
        ("epochs", "010", 10),  # YAML 1.1 reads eight
        ("epochs", "1e3", "1e3"),  # to be refused: no whole number
        ("epochs", "", ""),
        ("quantise", "yes", True),
        ("quantise", "off", False),
        ("quantise", "1", "1"),
        ("rgb_model", "001", "001"),
        ("rgb_model", "yes", "yes"),
        ("rgb_model", "null", "null"),
        ("rgb_weights", "null", None),
        ("rgb_weights", "1e5", "1e5"),
        ("background", "none", "none"),
        ("sep_form", "None", None),
        ("projection_eps", "~", None),
        ("projection_eps", ".9", 0.9),
        ("category", "001", "001"),
        ("alpha", 2.5, 2.5),
        ("no_setting", "1", "1"),
    ],
)
def test_a_text_is_read_as_its_setting_wants_it(name, text, value):
    assert from_text(name, text) == value and type(from_text(name, text)) is type(value)


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A home folder, and in it the folder that programs run in."""
    here = tmp_path / "clone"
    (here / "scans").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(here)
    return tmp_path


def spellings(home: Path) -> dict[str, tuple[str, ...]]:
    inside = ("scans", "scans/", "./scans", ".//scans/.", "~/clone/scans", "../clone/scans")
    return {
        "scans": (*inside, f"{home}/clone/scans/"),
        f"{home}/scans": ("~/scans", "~/scans/", "../scans", f"{home}/./scans", f"{home}//scans"),
        ".": (".", "./", f"{home}/clone"),
    }


def test_all_spellings_of_a_path_are_one(at_home):
    for name, given in spellings(at_home).items():
        assert {normal_path(text) for text in given} == {name}
    (at_home / "elsewhere").mkdir()
    (at_home / "clone" / "linked").symlink_to(at_home / "elsewhere")
    assert normal_path("linked") == "linked"  # where a link leads is the machine's business
    assert normal_path("linked/../x") == f"{at_home}/x"  # but the system goes up from there


@pytest.mark.parametrize("name", ["data_root", "runs_root", "rgb_weights", "pcd_weights"])
def test_hashes_and_folders_are_the_same_for_all_spellings(at_home, name):
    for given in spellings(at_home).values():
        place = {"dataset": "folder", "data_root": "x", "category": "nut"}
        configs = [make_config(**(place | {name: text})) for text in given]
        assert len(set(configs)) == 1
        for stage in ("data", "features", "lspn"):
            assert len({stage_dir(config, stage) for config in configs}) == 1


def test_hashes_do_not_change_when_the_clone_moves(tmp_path, monkeypatch):
    hashes = set()
    for clone in ("one", "other"):
        (tmp_path / clone).mkdir()
        monkeypatch.chdir(tmp_path / clone)
        place = {"dataset": "folder", "category": "nut", "runs_root": "runs"}
        config = make_config(**place, data_root=str(tmp_path / clone / "scans"))
        hashes.add((config.stage_hash("bank"), stage_dir(config, "bank"), run_name(config)))
    assert len(hashes) == 1


def test_a_category_is_the_name_of_one_folder():
    place = {"dataset": "folder", "data_root": "/x"}
    assert make_config(**place, category="nut/") == make_config(**place, category="./nut")
    assert make_config(category="rope/").category == "rope"
    for text in ("", ".", "..", "a/b", "/nut", "../nut"):
        with pytest.raises(ConfigError, match=f"category is {text!r}; expected the name of a fol"):
            make_config(**place, category=text)


def test_runs_on_ones_own_scans_lie_apart():
    roots = ("/a/screws", "/b/screws", "screws", "/a/it's {new}", "/", "/a/" + "x" * 255)
    names = [run_name(make_config(dataset="folder", data_root=r, category="any")) for r in roots]
    assert len(set(names)) == len(roots)
    assert names[0].startswith("folder-screws-") and names[3].startswith("folder-it-s-new-")
    assert all(re.fullmatch(r"folder-[\w-]{1,40}-[0-9a-f]{6}", name) for name in names)
    own = make_config("smoke", dataset="folder", data_root="/a/screws", category="any")
    assert dataset_dir(own) == Path("data/runs/smoke") / names[0]
    assert results_file(own) == Path(f"data/results/{names[0]}_smoke.json")
    assert results_file(own, "table3") == Path(f"data/results/table3_{names[0]}_smoke.json")
    real = make_config("paper", dataset="mvtec3d", data_root="/a/screws", category="bagel")
    assert run_name(real) == "mvtec3d"
    assert results_file(real) == Path("data/results/mvtec3d_paper.json")
    assert results_file(make_config("smoke")) == Path("data/results/smoke.json")


def test_names_of_folders_are_safe_and_apart():
    for name in ("foam", "001", "2023_01", "part a", "it's a (lid)", "v1.2, new", "Größe 3", "x"):
        assert folder_name(name) == name
    odd = ("a{x}", "a{y}", "a{x", "a ", " a", "a#b", "a`b", "a<b>", "a|b", "x" * 200, "x" * 201)
    odd += ("ä" * 100, "a\nb", "a:b", "*", "**")
    names = [folder_name(name) for name in odd]
    assert len(set(names)) == len(odd)
    assert all(re.fullmatch(r"[\w-]{1,47}", name) for name in names)


def test_numbers_in_the_place_of_texts_are_refused_with_the_way_out():
    """Papermill's -p makes 1 of 001; what was written is lost by then."""
    with pytest.raises(ConfigError, match=r"category is 1; expected str \(.*-r category 1\)$"):
        config_from_notebook({"dataset": "folder", "data_root": "/x", "category": 1})
    with pytest.raises(ConfigError, match=r"rgb_weights is 2.5; .*-r rgb_weights 2.5"):
        make_config(rgb_weights=2.5)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"min_offset_m": 0.003}, ("min_offset_m", "max_offset_m")),
        ({"max_offset_m": 0.00001}, ("min_offset_m", "max_offset_m")),
        ({"min_component_px": 1601}, ("min_component_px", "max_component_px")),
        ({"max_component_px": 99}, ("min_component_px", "max_component_px")),
        ({"border_px": 128}, ("border_px", "scan_size")),
        ({"scan_size": 64, "border_px": 40}, ("border_px", "scan_size")),
        ({"bank_fraction": 0}, ("bank_fraction", "k")),
        ({"k": 5000}, ("bank_fraction", "k")),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(given, named):
    with pytest.raises(ConfigError) as caught:
        make_config("demo", **given)
    assert all(re.search(rf"\b{name}\b", str(caught.value)) for name in named)


def test_the_limits_of_pairs_are_allowed():
    make_config(min_offset_m=0.001, min_component_px=1600, border_px=127)
    make_config("smoke", bank_fraction=11 / (8 * 28**2))
    own = {"dataset": "folder", "data_root": "/x", "category": "any"}
    make_config(**own, border_px=200, bank_fraction=0.0)  # its scans may be larger, and many


def test_results_name_where_points_were_pasted_from():
    """Pastes of a run on some categories are not those of a run on all; features are."""
    alone = make_config(pasted_from='["foam"]')
    assert alone.stage_hash("data") == make_config().stage_hash("data")
    assert alone.stage_hash("features") == make_config().stage_hash("features")
    assert alone.stage_hash("pastes") != make_config().stage_hash("pastes")


def test_pastes_follow_the_data_set_unless_they_are_set():
    """Real data sets have those of the paper; rendered parts weaker, one-sided ones."""
    rendered = make_config().synthesis
    assert (rendered.paste_in, rendered.max_offset_m) == ("either", 0.001)
    real = make_config(dataset="mvtec3d", data_root="/x", category="foam").synthesis
    assert (real.paste_in, real.max_offset_m) == ("both", 0.002)
    assert make_config("smoke", paste_in="both").synthesis.paste_in == "both"
    reasons = {row["name"]: row["reason"] for row in module.settings_table(make_config())}
    assert reasons["paste_in"] == module.DATASETS["procedural"]["paste_in"][1]

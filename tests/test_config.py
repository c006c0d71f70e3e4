"""The tree of settings: what is refused, what None means."""

import math
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from g2sf_lib import config as module
from g2sf_lib.config import (
    PROFILES,
    Config,
    ConfigError,
    Settings,
    config_from_notebook,
    flat_settings,
    from_text,
    leaf_fields,
    listed,
    make_config,
    normal_path,
    settings_table,
)

LEAVES = leaf_fields()


def test_leaf_names_are_unique_and_have_reasons():
    names = []
    for top, info in Config.model_fields.items():
        is_section = isinstance(info.default, Settings)
        names += list(type(info.default).model_fields) if is_section else [top]
    assert len(names) == len(set(names)) == len(LEAVES)
    assert all(len(leaf.description) >= 5 for _, leaf in LEAVES.values())


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


def test_the_tree_is_frozen_and_replacing_is_checked():
    config = make_config()
    for holder, name in ((config, "seed"), (config.loss, "alpha")):
        with pytest.raises(ValidationError):
            setattr(holder, name, 1)
    assert config.replace(seed=4).seed == 4 and config.seed == 0
    with pytest.raises(ConfigError, match="alpha is -1.0"):
        config.loss.replace(alpha=-1.0)
    with pytest.raises(ConfigError, match="category is 'nut'"):
        config.replace(category="nut")


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
        ("epochs", 3.0, "integer"),
        ("epochs", "3", "integer"),
        ("epochs", True, "integer"),
        ("epochs", 0, "greater than or equal to 1"),
        ("epochs", None, "integer"),
        ("alpha", "10", "number"),
        ("alpha", True, "number"),
        ("alpha", -0.1, "greater than or equal to 0"),
        ("alpha", math.nan, "a finite number"),
        ("alpha", math.inf, "a finite number"),
        ("alpha", [1.0], "number"),
        ("dropout", 1.0, "less than or equal to 0.99"),
        ("quantise", 1, "boolean"),
        ("category", 3, "string (papermill keeps a text with -r: -r category 3)"),
        ("aggregate", "median", "'min', 'max', 'mean' or 'nearest'"),
        ("direction_input", "noise", "'given', 'zeros' or 'random'"),
        ("sep_form", "authors", "'paper' or 'official'"),
        ("projection_eps", 1.5, "less than or equal to 1"),
        ("projection_eps", False, "number"),
        ("rgb_weights", 0, "string (papermill keeps a text with -r: -r rgb_weights 0)"),
        ("seed", -1, "greater than or equal to 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(name, value, expected):
    with pytest.raises(ConfigError) as caught:
        make_config("demo", **{name: value})
    assert str(caught.value) == f"{name} is {value!r}; expected {expected}"


def test_none_is_a_value_where_it_is_allowed():
    config = make_config("paper", projection_eps=None, rgb_weights=None, sep_form=None)
    assert config.bank.projection_eps is None


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


def test_a_category_is_the_name_of_one_folder():
    place = {"dataset": "folder", "data_root": "/x"}
    assert make_config(**place, category="nut/") == make_config(**place, category="./nut")
    assert make_config(category="rope/").category == "rope"
    for text in ("", ".", "..", "a/b", "/nut", "../nut"):
        with pytest.raises(ConfigError, match=f"category is {text!r}; expected the name of a fol"):
            make_config(**place, category=text)


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


def test_pastes_follow_the_data_set_unless_they_are_set():
    """Real data sets have those of the paper; rendered parts weaker, one-sided ones."""
    rendered = make_config().synthesis
    assert (rendered.paste_in, rendered.max_offset_m) == ("either", 0.001)
    real = make_config(dataset="mvtec3d", data_root="/x", category="foam").synthesis
    assert (real.paste_in, real.max_offset_m) == ("both", 0.002)
    assert make_config("smoke", paste_in="both").synthesis.paste_in == "both"
    reasons = {row["name"]: row["reason"] for row in module.settings_table(make_config())}
    assert reasons["paste_in"] == module.DATASETS["procedural"]["paste_in"][1]

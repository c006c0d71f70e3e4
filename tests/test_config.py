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
    sections = [field.default for field in Config.model_fields.values()]
    sections = [type(section).model_fields for section in sections if isinstance(section, Settings)]
    num = len(Config.model_fields) - len(sections) + sum(map(len, sections))
    assert num == len(LEAVES)
    assert all(len(leaf.description) >= 5 for _, leaf in LEAVES.values())


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_can_be_built_and_gives_reasons(profile):
    config = make_config(profile)
    rows = {row["name"]: row for row in settings_table(config)}
    assert rows.keys() == LEAVES.keys() and all(row["reason"] for row in rows.values())
    for name, (value, reason) in PROFILES[profile].items():
        assert rows[name]["value"] == flat_settings(config)[name] == value
        assert rows[name]["reason"] == reason and len(reason) >= 5
    # What LSPN sees, what is learned and how it is judged are the paper's until one asks.
    assert (config.model.sigma_rule, config.training.heldout_by) == ("learned", "target")
    assert (config.model.prototype_input, config.model.direction_input) == ("given", "given")


def test_the_paper_profile_has_the_published_settings():
    config = make_config("paper")
    assert (config.model.hidden, config.model.embed, config.model.dropout) == (512, 128, 0.5)
    training = config.training
    assert (training.epochs, training.batch_size, training.max_batch_share) == (80, 8192, 0.035)
    assert (training.learning_rate, training.l1) == (1.5e-4, 5e-4)
    assert (config.model.k, config.loss.eta_0, config.features.grid_size) == (5, 1.2, 56)
    assert (config.bank.bank_fraction, config.bank.projection_eps) == (0.1, 0.9)
    # The authors' weights, 10, 40, 3 and 20, belong to the forms of their code.
    assert config.loss == make_config("demo").loss and config.loss.form == "paper"


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


@pytest.mark.parametrize("name", ["alpa", "", "Alpha", "data"])
def test_an_unknown_name_is_refused_with_the_allowed_ones(name):
    with pytest.raises(ConfigError, match="unknown parameter") as caught:
        make_config("demo", **{name: 1})
    assert repr(name) in str(caught.value)
    assert all(leaf in str(caught.value) for leaf in LEAVES)
    with pytest.raises(ConfigError, match="'quick'; expected one of 'demo', 'smoke', 'paper'"):
        make_config("quick")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 3.0, "integer"),
        ("epochs", "3", "integer"),
        ("epochs", True, "integer"),
        ("epochs", 0, "greater than or equal to 1"),
        ("alpha", True, "number"),
        ("alpha", -0.1, "greater than or equal to 0"),
        ("alpha", math.nan, "a finite number"),
        ("dropout", 1.0, "less than or equal to 0.99"),
        ("quantise", 1, "boolean"),
        ("category", 3, "string (papermill keeps a text with -r: -r category 3)"),
        ("aggregate", "median", "'min', 'max', 'mean' or 'nearest'"),
        ("projection_eps", 1.5, "less than or equal to 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(name, value, expected):
    with pytest.raises(ConfigError) as caught:
        make_config("demo", **{name: value})
    assert str(caught.value) == f"{name} is {value!r}; expected {expected}"


def test_flat_settings_give_the_same_config_again():
    config = make_config("paper", alpha=3.5, category="rope", projection_eps=None, seed=2)
    assert config.bank.projection_eps is None  # a value where it is allowed
    assert make_config(**flat_settings(config)) == config


def notebook(**parameters):
    """What `globals()` of a notebook looks like before anything but parameters has run."""
    around = {"__name__": "__main__", "_i1": "x", "In": ["x"], "Out": {}, "Path": Path, "m": module}
    return around | {"profile": "smoke", "category": "rope", "seed": 1} | parameters


def test_config_from_notebook_reads_parameters_only_and_none_is_what_the_profile_says():
    config = config_from_notebook(notebook(alpha=2.0, data_root=None, epochs=None))
    assert config == make_config("smoke", category="rope", seed=1, alpha=2.0)
    for value in (1, 0.5, "x", None, True, [1], {"a": 1}):
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
        ([0, 1], [0, 1]),
        (None, None),
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


# ------------------------------------------------------------------ texts, paths, names


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "1e-4", 1e-4),  # YAML 1.1 wants a point in it
        ("epochs", "010", 10),  # YAML 1.1 reads eight
        ("epochs", "1e3", "1e3"),  # to be refused: no whole number
        ("quantise", "yes", True),
        ("quantise", "off", False),
        ("rgb_model", "001", "001"),
        ("rgb_model", "null", "null"),
        ("rgb_weights", "null", None),
        ("background", "none", "none"),
        ("sep_form", "None", None),
        ("projection_eps", "~", None),
        ("projection_eps", ".9", 0.9),
        ("alpha", 2.5, 2.5),
        ("no_setting", "1", "1"),
    ],
)
def test_a_text_is_read_as_its_setting_wants_it(name, text, value):
    assert from_text(name, text) == value and type(from_text(name, text)) is type(value)


def test_all_spellings_of_a_path_are_one(tmp_path, monkeypatch):
    here = tmp_path / "clone"
    (here / "scans").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(here)
    inside = ("scans", "scans/", "./scans", ".//scans/.", "~/clone/scans", "../clone/scans")
    spellings = {
        "scans": (*inside, f"{here}/scans/"),
        f"{tmp_path}/scans": ("~/scans/", "../scans", f"{tmp_path}/./scans", f"{tmp_path}//scans"),
        ".": (".", "./", f"{here}"),
    }
    for name, given in spellings.items():
        assert {normal_path(text) for text in given} == {name}
    (tmp_path / "elsewhere").mkdir()
    (here / "linked").symlink_to(tmp_path / "elsewhere")
    assert normal_path("linked") == "linked"  # where a link leads is the machine's business
    assert normal_path("linked/../x") == f"{tmp_path}/x"  # but the system goes up from there


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
        ({"max_component_px": 99}, ("min_component_px", "max_component_px")),
        ({"border_px": 128}, ("border_px", "scan_size")),
        ({"bank_fraction": 0}, ("bank_fraction", "k")),
        ({"k": 5000}, ("bank_fraction", "k")),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(given, named):
    with pytest.raises(ConfigError) as caught:
        make_config("demo", **given)
    assert all(re.search(rf"\b{name}\b", str(caught.value)) for name in named)
    make_config(min_offset_m=0.001, min_component_px=1600, border_px=127)  # the limits are allowed
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

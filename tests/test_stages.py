"""Stages: what each depends on, and where results lie."""

import re
from pathlib import Path

import pytest

from g2sf_lib import stages as module
from g2sf_lib import store
from g2sf_lib.baselines import METHODS
from g2sf_lib.config import Settings, leaf_fields, make_config
from g2sf_lib.stages import STAGES as OWN
from g2sf_lib.stages import dataset_dir, folder_name, raw_dir, results_file, run_name, stage_dir

LEAVES = leaf_fields()
LIBRARY = Path(module.__file__).parent
STAGES = OWN | {"bank_scores": METHODS["m3dm"].score_stage}
STAGES |= {name: METHODS[name].stage for name in ("cfm", "ast")}
STAGES |= {f"{name}_scores": METHODS[name].score_stage for name in ("cfm", "ast")}
SCORES = ("scores", "quantities", "bank_scores", "cfm_scores", "ast_scores")
OF_METRIC = ("lspn", "scores", "quantities")  # LSPN, and what is computed with it
AFTER_BANK = ("lspn", "cfm", "ast", *SCORES)
AFTER_DATA = tuple(stage for stage in STAGES if stage != "data")
# section, or leaf of the run itself -> the stages whose hash depends on it
DEPENDS = dict.fromkeys(("data", "preprocess", "dataset", "data_root"), STAGES) | {
    **dict.fromkeys(("features", "category"), AFTER_DATA),
    "synthesis": ("pastes", "cells", *OF_METRIC),
    "bank": ("bank", "cells", *AFTER_BANK),
    "cells": ("cells", *OF_METRIC),
    **dict.fromkeys(("model", "loss", "training"), OF_METRIC),
    **{name: (name, f"{name}_scores") for name in ("cfm", "ast")},
    "rules": ("bank_scores",),
    "scoring": SCORES,
    "seed": AFTER_BANK,
    **dict.fromkeys(("device", "runs_root", "profile"), ()),
}


def hashes(config):
    return {name: stage.hash(config) for name, stage in STAGES.items()}


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # values that no setting can have
@pytest.mark.parametrize("name", LEAVES)
def test_hashes_change_with_the_right_stages(name):
    base, section, value = make_config(), LEAVES[name][0], "another value"
    if section is None:
        changed = base.model_copy(update={name: value})
    else:
        part = getattr(base, section).model_copy(update={name: value})
        changed = base.model_copy(update={section: part})
    before, after = hashes(base), hashes(changed)
    assert {s for s in STAGES if before[s] != after[s]} == set(DEPENDS[section or name])


def test_every_section_is_read_by_a_stage():
    sections = {name for name, info in type(make_config()).model_fields.items()
                if isinstance(info.default, Settings)}  # fmt: skip
    assert {name for stage in STAGES.values() for name in stage.sections} == sections


def test_a_chain_has_each_stage_once_and_after_what_it_needs():
    for stage in STAGES.values():
        chain = stage.chain()
        assert len(set(chain)) == len(chain) and chain[-1] is stage
        assert all(chain.index(need) < chain.index(one) for one in chain for need in one.needs)
    names = [stage.name for stage in STAGES["scores"].chain()]
    assert names == ["data", "features", "bank", "pastes", "cells", "lspn", "scores"]


def test_settings_of_a_stage_are_those_of_its_chain():
    config = make_config("paper", category="rope", seed=3)
    whole = STAGES["cfm_scores"].settings(config)
    run = {"dataset": "procedural", "data_root": None, "category": "rope", "seed": 3}
    sections = ("data", "preprocess", "features", "bank", "cfm", "scoring")
    assert whole == run | {name: getattr(config, name).model_dump() for name in sections}
    assert "synthesis" in STAGES["lspn"].settings(config)
    assert STAGES["data"].settings(config).keys() == {"dataset", "data_root", "data", "preprocess"}


# module of the library, or a function of one -> the stages whose hash its code changes
CODE = {
    "datasets/preprocess.py": STAGES,
    "features/rgb.py": AFTER_DATA,
    "memory.py": ("bank", "cells", *AFTER_BANK),
    "synthesis.py": ("pastes", "cells", *OF_METRIC),
    "experiments.py:synthetic_scans": ("pastes", "cells", *OF_METRIC),
    "experiments.py:training_cells": ("cells", *OF_METRIC),
    "cells.py:pasted_patches": ("pastes", "cells", *OF_METRIC),
    "cells.py": ("cells", *OF_METRIC),
    "fusion.py": OF_METRIC,
    "losses.py": OF_METRIC,
    "quantities.py": ("quantities",),
    "baselines/cfm.py": ("cfm", "cfm_scores"),
    "baselines/m3dm.py": ("bank_scores",),
    "evaluation.py": SCORES,
    "experiments.py:categories_of": (),
    "stats.py": (),
    "tables.py": (),
}


@pytest.fixture
def edited(monkeypatch):
    """Return a function that changes the text of a module for `store.code_hash`."""
    real = Path.read_text

    def edit(path, change):
        store._code.cache_clear()
        keep = lambda text: text  # noqa: E731
        monkeypatch.setattr(
            Path, "read_text", lambda self: (change if self == path else keep)(real(self))
        )

    yield edit
    store._code.cache_clear()


@pytest.mark.parametrize("name", CODE)
def test_the_hash_changes_with_the_code_of_a_stage_and_not_with_comments(edited, name):
    path, _, function = name.partition(":")
    config, before = make_config(), hashes(make_config())

    def is_changed(text):
        edited(LIBRARY / path, text)
        after = hashes(config)
        return {stage for stage in STAGES if before[stage] != after[stage]}

    start = rf"(def {function}\(.*?\) -> [^\n]*:\n)" if function else r"(.*)"
    add = "    print()\n" if function else "\nprint()\n"
    code = lambda old: re.sub(start, lambda m: m[0] + add, old, count=1, flags=re.DOTALL)  # noqa: E731
    assert is_changed(code) == set(CODE[name])
    comment = lambda old: "# more\n" + old.replace('"""Return', '"""Give back')  # noqa: E731
    assert is_changed(comment) == set()


def test_the_code_that_stages_name_is_there():
    for stage in STAGES.values():
        for part in stage.code:
            assert re.fullmatch(r"[0-9a-f]{12}", store.code_hash([part])), part
    with pytest.raises(ValueError, match="no 'nowhere'"):
        store.code_hash(["fusion.py:nowhere"])


def test_folders_keep_profiles_categories_and_settings_apart():
    base = make_config("smoke", runs_root="runs")
    assert stage_dir(base, "lspn").parent == Path("runs/smoke/procedural/foam")
    others = [base.replace(**one) for one in ({"seed": 1}, {"category": "rope"})]
    others += [make_config(runs_root="runs"), make_config("smoke", runs_root="runs", alpha=9.0)]
    assert len({stage_dir(config, "lspn") for config in (base, *others)}) == 5


def test_raw_data_lie_apart_by_how_they_are_rendered():
    base = make_config("smoke")
    assert raw_dir(base) != raw_dir(make_config("smoke", num_train=9))
    assert raw_dir(base) != raw_dir(make_config("smoke", seed_set="development"))
    assert raw_dir(base) == raw_dir(make_config("smoke", epochs=9, category="rope"))


@pytest.mark.parametrize("name", ["data_root", "runs_root", "rgb_weights", "pcd_weights"])
def test_hashes_and_folders_are_the_same_for_all_spellings(tmp_path, monkeypatch, name):
    """Which spellings are one is shown in test_config.py."""
    (tmp_path / "clone/scans").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "clone")
    for spellings in (("scans", "./scans/", "~/clone/scans"), ("../scans", f"{tmp_path}/scans")):
        place = {"dataset": "folder", "data_root": "x", "category": "nut"}
        configs = [make_config(**(place | {name: text})) for text in spellings]
        for stage in ("data", "features", "lspn"):
            assert len({stage_dir(config, stage) for config in configs}) == 1


def test_hashes_do_not_change_when_the_clone_moves(tmp_path, monkeypatch):
    hashes = set()
    for clone in ("one", "other"):
        (tmp_path / clone).mkdir()
        monkeypatch.chdir(tmp_path / clone)
        place = {"dataset": "folder", "category": "nut", "runs_root": "runs"}
        config = make_config(**place, data_root=str(tmp_path / clone / "scans"))
        hashes.add((STAGES["bank"].hash(config), stage_dir(config, "bank"), run_name(config)))
    assert len(hashes) == 1


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

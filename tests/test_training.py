"""The loop: every loss falls, a seed gives the same bytes, an interrupted run ends as any other."""

import dataclasses
import json
import math
import warnings

import pytest
import torch

from g2sf_lib import fusion, training
from g2sf_lib.cells import Cells
from g2sf_lib.config import MODALITIES, LossConfig, ModelConfig, TrainingConfig
from g2sf_lib.fusion import LSPN, GlobalScale, Metric, encode
from g2sf_lib.memory import Rows
from g2sf_lib.store import StoredFileError, read_tensors
from g2sf_lib.training import (
    TERMS,
    CollapseWarning,
    heldout_auroc,
    heldout_images,
    loss_terms,
    train_metric,
)

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = ModelConfig(hidden=48, embed=16, dropout=0.1, k=2)
LOSS = LossConfig(mu=0.1)
TRAINING = TrainingConfig(
    epochs=6, batch_size=64, learning_rate=1e-2, criterion="losses", normaliser="mean"
)
LONGER = TRAINING.replace(epochs=15)


def train(world, loss=LOSS, training=TRAINING, seed=0, **more):
    cells, bank = world
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return train_metric(cells, bank, MODEL, loss, training, seed, progress=False, **more)


def bytes_of(metric):
    """Every learned number of a metric, as bytes."""
    return b"".join(v.numpy().tobytes() for v in metric.state_dict().values())


def random_metric(seed=0, direction_form="paper"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lspn = LSPN({"pcd": 6, "rgb": 8}, 24, 12, direction_form=direction_form)
        torch.nn.init.normal_(lspn.head.weight, std=0.5)
    return Metric(lspn, GlobalScale(), torch.tensor([0.7, 0.9])).eval()


@pytest.mark.parametrize(
    ("term", "share"),
    # The bounds of L_mar follow the batch, so the overlap shrinks by less than a sum would.
    [("sep", 0.7), ("mar", 0.9), ("cns", 0.7), ("sc", 0.7), ("cma", 0.7)],
)
def test_each_loss_falls_when_it_is_minimised(toy, term, share):
    cells, bank = toy()
    metric = random_metric()
    parameters = [*metric.lspn.parameters(), *metric.sigma.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    values = []
    for _ in range(60):
        draw = torch.Generator().manual_seed(0)
        value = loss_terms(metric, cells, bank, 8.0, 2, LOSS, draw)[0][term]
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[0] > 0.01
    assert values[-1] < share * values[0]


def test_the_losses_fall_on_held_out_images_and_w_parts_the_classes(toy):
    _, history = train(toy(), training=LONGER)
    first, last = history[0], min(history[1:], key=lambda row: row["heldout"])
    for name in ("heldout", "heldout_sep", "heldout_mar", "heldout_sc"):
        assert last[name] < first[name], name
    for name in ("sep", "mar", "sc"):  # and in training
        assert history[-1][name] < history[1][name], name
    for mod in MODALITIES:
        assert first[f"w_normal_{mod}"] == first[f"w_synthetic_{mod}"] == 1
        assert last[f"w_synthetic_{mod}"] > last[f"w_normal_{mod}"] + 0.1


def test_history_says_what_it_promises(toy):
    _, history = train(toy())
    assert [row["epoch"] for row in history] == list(range(7))
    for row in history[1:]:
        assert set(TERMS) <= row.keys() and {f"heldout_{name}" for name in TERMS} <= row.keys()
        heldout = row["heldout_sep"] + LOSS.alpha * row["heldout_mar"]
        assert row["heldout"] == pytest.approx(heldout)
        assert row["sigma_pcd"] + row["sigma_rgb"] == pytest.approx(1)
    json.dumps(history, allow_nan=False)


def test_same_seed_same_bytes_other_seed_other_bytes(toy):
    runs = [train(toy(), seed=seed) for seed in (0, 0, 1)]
    assert bytes_of(runs[0][0]) == bytes_of(runs[1][0]) and runs[0][1] == runs[1][1]
    assert bytes_of(runs[0][0]) != bytes_of(runs[2][0])


def test_the_callers_random_state_neither_matters_nor_moves(toy):
    world = toy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one = bytes_of(train(world)[0])
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        other = bytes_of(train(world)[0])
    assert one == other


class Interrupting:
    """A loss that stands in for another and raises KeyboardInterrupt at its n-th call."""

    def __init__(self, loss, at):
        self.loss, self.left = loss, at

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.loss(*args, **kwargs)


def interrupt(monkeypatch, world, checkpoint, at):
    with monkeypatch.context() as patch:
        patch.setattr(training, "loss_cma", Interrupting(training.loss_cma, at))
        with pytest.raises(KeyboardInterrupt):
            train(world, checkpoint=checkpoint)


def test_an_interrupted_training_ends_with_the_same_bytes(toy, tmp_path, monkeypatch):
    world = toy()
    whole, history = train(world)
    steps = int((~_held_out(world)).sum()) // TRAINING.batch_size
    path = tmp_path / "runs" / "checkpoint.safetensors"
    # One observation before training, then the steps and one observation an epoch: the first
    # interruption falls into the middle of epoch 3, the second, after going on, into epoch 5.
    interrupt(monkeypatch, world, path, 1 + 2 * (steps + 1) + 1)
    assert len(_history(path)) == 1 + 2
    interrupt(monkeypatch, world, path, 2 * (steps + 1) + 1)
    assert len(_history(path)) == 1 + 4
    resumed, resumed_history = train(world, checkpoint=path)
    assert bytes_of(resumed) == bytes_of(whole)
    assert resumed_history == history
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def _held_out(world):
    draw = torch.Generator().manual_seed(0)
    return heldout_images(world[0].image, TRAINING.heldout_fraction, draw)


def _history(path):
    return json.loads(bytes(read_tensors(path)["header"].tolist()))["history"]


def test_a_finished_checkpoint_is_not_trained_again(toy, tmp_path, monkeypatch):
    world, path = toy(), tmp_path / "checkpoint.safetensors"
    metric, history = train(world, checkpoint=path)
    monkeypatch.setattr(training, "loss_cma", Interrupting(training.loss_cma, 0))
    again, again_history = train(world, checkpoint=path)
    assert bytes_of(again) == bytes_of(metric) and again_history == history


@pytest.mark.parametrize("what", ["learning_rate", "alpha", "seed", "cells"])
def test_a_checkpoint_of_another_run_is_not_used(toy, tmp_path, what):
    path = tmp_path / "checkpoint.safetensors"
    train(toy(), checkpoint=path)
    world, settings = toy(1 if what == "cells" else 0), {}
    if what == "learning_rate":
        settings["training"] = TRAINING.replace(learning_rate=1e-3)
    elif what == "alpha":
        settings["loss"] = LOSS.replace(alpha=2.0)
    elif what == "seed":
        settings["seed"] = 1
    expected = bytes_of(train(world, **settings)[0])
    assert bytes_of(train(world, checkpoint=path, **settings)[0]) == expected


def test_a_damaged_checkpoint_is_named(toy, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    train(toy(), checkpoint=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StoredFileError, match=r"checkpoint\.safetensors: cannot be read"):
        train(toy(), checkpoint=path)


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5, 0.95])
def test_the_held_out_split_is_by_image(fraction):
    image = torch.randint(0, 10, (500,), generator=torch.Generator().manual_seed(0))
    held = heldout_images(image, fraction, torch.Generator().manual_seed(1))
    inside, outside = set(image[held].tolist()), set(image[~held].tolist())
    assert not inside & outside
    assert len(inside) == min(max(round(fraction * 10), 1), 9)


def test_the_held_out_split_follows_its_generator():
    image = torch.arange(20).repeat_interleave(3)
    splits = [heldout_images(image, 0.5, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(splits[0], splits[1]) and not torch.equal(splits[0], splits[2])


def test_one_image_cannot_be_split():
    with pytest.raises(ValueError, match="1 image; expected at least 2"):
        heldout_images(torch.zeros(5, dtype=torch.long), 0.5, torch.Generator())


def test_held_out_images_choose_the_epoch_and_nothing_else(toy):
    """With one epoch there is nothing to choose: they leave no trace in what is learned."""
    cells, bank = toy()
    held = _held_out((cells, bank))
    changed = dataclasses.replace(
        cells,
        feat={mod: torch.where(held[:, None], 0.5 * x, x) for mod, x in cells.feat.items()},
        s=torch.where(held[:, None, None], 3 * cells.s, cells.s),
    )
    once = TRAINING.replace(epochs=1)
    (one, history), (other, other_history) = (
        train((c, bank), training=once) for c in (cells, changed)
    )
    assert bytes_of(one) == bytes_of(other)
    assert history[1]["heldout"] != other_history[1]["heldout"]


def test_the_epoch_with_the_lowest_held_out_loss_is_kept(toy):
    metric, history = train(toy(), training=LONGER.replace(epochs=40))
    best = training.best_row(history)["epoch"]
    assert 1 < best < 40  # else nothing is shown
    stopped, _ = train(toy(), training=LONGER.replace(epochs=best))
    assert bytes_of(stopped) == bytes_of(metric)
    assert not metric.lspn.training


def test_the_unit_of_distance_and_m0_by_hand(toy, monkeypatch):
    """The mean over normal training cells, and twice the largest distance of anomalous ones.

    In either modality, and as they are: squares of the official form do not square the bound.
    """
    cells, bank = toy()
    kept = ~_held_out((cells, bank))
    seen = []
    real = training.loss_sep
    monkeypatch.setattr(
        training,
        "loss_sep",
        lambda ell0, y, m0, **kw: seen.append((y, m0)) or real(ell0, y, m0, **kw),
    )
    metric, _ = train((cells, bank), training=TRAINING.replace(epochs=1))
    mean = cells.s[kept & ~cells.is_anomalous, 0].mean(0)
    torch.testing.assert_close(metric.s_mean, mean)
    largest = (cells.s[kept & cells.is_anomalous, 0] / mean).max().item()
    assert all(m0 == pytest.approx(2 * largest) for _, m0 in seen)
    batches = [y for y, _ in seen[1:-1]]
    assert batches and all(len(y) == 64 and y.sum() == 32 for y in batches)  # balanced


def test_the_unit_may_be_the_spread_instead_of_the_mean(toy):
    cells, bank = toy()
    once = TRAINING.replace(epochs=1, normaliser="std")
    metric, _ = train((cells, bank), training=once)
    normal = cells.s[~_held_out((cells, bank)) & ~cells.is_anomalous, 0]
    # In proportion to the spread; the mean over modalities of the mean distance is one.
    torch.testing.assert_close(metric.s_mean / metric.s_mean[0], normal.std(0) / normal.std(0)[0])
    assert float((normal.mean(0) / metric.s_mean).mean()) == pytest.approx(1.0)


def some_images():
    """Three scans of two cells each, and four pastes of a cell each on the first two of them."""
    target = torch.tensor([0, 0, 1, 1, 2, 2, 0, 0, 1, 1])
    image = torch.tensor([0, 0, 1, 1, 2, 2, 3, 4, 5, 6])
    is_bad = torch.arange(10) >= 6
    cells = Cells({}, {}, torch.zeros(10, 5, 2), is_bad, image, target=target)
    return cells, torch.tensor([1.0, 2.0, 3.0, 1.0, 5.0, 1.0, 4.0, 1.0, 2.0, 6.0])


def test_held_out_images_are_told_apart_by_hand():
    cells, score = some_images()
    # untouched: 2, 3, 5; pasted: max(4, 2) = 4, max(1, 2) = 2, max(2, 3) = 3, max(6, 3) = 6
    # pairs won: 4 > 2, 3; 2 = 2; 3 > 2, 3 = 3; 6 > 2, 3, 5: 2 + 0.5 + 1.5 + 3 of 12
    assert heldout_auroc(score, cells) == pytest.approx(7 / 12)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert heldout_auroc(score[order], cells.without_features(order)) == pytest.approx(7 / 12)


def test_false_alarms_hide_pastes_of_held_out_images():
    cells, score = some_images()
    score[[1, 2, 4]] = torch.tensor([7.0, 8.0, 9.0])  # a sound cell of each scan, above all pastes
    # untouched: 7, 8, 9; pasted: 7, 7, 8, 8: 0.5 + 0.5 + 1.5 + 1.5 of 12
    assert heldout_auroc(score, cells) == pytest.approx(4 / 12)


def test_without_sound_cells_no_image_is_told():
    cells, score = some_images()
    bad = torch.nonzero(cells.is_anomalous)[:, 0]
    assert math.isnan(heldout_auroc(score[bad], cells.without_features(bad)))


def test_the_criterion_of_images_keeps_the_epoch_that_tells_them_best(toy):
    chosen = LONGER.replace(criterion="images")
    metric, history = train(toy(), training=chosen)
    assert all(row["heldout"] == 1 - row["heldout_auroc"] for row in history)
    best = training.best_row(history)
    assert best["heldout_auroc"] == max(row["heldout_auroc"] for row in history)
    stopped, _ = train(toy(), training=chosen.replace(epochs=max(best["epoch"], 1)))
    if best["epoch"]:
        assert bytes_of(stopped) == bytes_of(metric)


def test_the_untrained_metric_is_kept_where_training_makes_it_worse(toy, monkeypatch):
    real, calls = training._observe, []

    def worse_and_worse(*given):
        calls.append(None)
        return real(*given) | {"heldout": float(len(calls))}

    monkeypatch.setattr(training, "_observe", worse_and_worse)
    metric, history = train(toy())
    assert len(history) == 7 and training.best_row(history)["epoch"] == 0
    assert not metric.lspn.head.weight.any() and metric.sigma().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("label", [False, True])
def test_cells_of_one_class_are_refused(toy, label):
    cells, bank = toy()
    one = dataclasses.replace(cells, is_anomalous=torch.full((len(cells),), label))
    with pytest.raises(ValueError, match="cells of one class only; expected normal and anomalous"):
        train((one, bank))


def test_a_diverged_training_is_refused(toy):
    settings = TRAINING.replace(learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"held-out loss of epoch 1 is nan"):
        train(toy(), training=settings)


def collapse_warnings(world, loss, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen = TRAINING.replace(**settings)
        train_metric(*world, MODEL, loss, chosen, 0, progress=False)
    return [str(w.message) for w in caught if w.category is CollapseWarning]


AUTHORS = {"alpha": 10.0, "beta": 40.0, "gamma": 3.0, "mu": 20.0}


@pytest.mark.parametrize("weights", [AUTHORS, {"mu": 1000.0}], ids=["authors'", "huge mu"])
def test_collapse_is_told_once_with_its_cause(toy, weights):
    """The authors' weights belong to their own form; with the paper's, L_cma drives w to e."""
    told = collapse_warnings(toy(), LossConfig(**weights), epochs=12)
    assert len(told) == 1
    assert "LSPN has collapsed: in epoch 12 w_pcd and w_rgb hardly differ" in told[0]
    assert "every w is near e" in told[0] and f"mu = {weights['mu']:g}" in told[0]
    assert "lower mu" in told[0]


def test_a_network_that_does_not_move_is_told_with_another_cause(toy):
    told = collapse_warnings(toy(), LOSS, epochs=1, learning_rate=1e-9)
    assert len(told) == 1 and "too few epochs" in told[0]


def test_a_healthy_run_warns_of_nothing(toy):
    assert collapse_warnings(toy(), LOSS, epochs=15) == []


def test_an_l1_that_is_too_heavy_flattens_w(toy):
    told = collapse_warnings(toy(), LOSS, epochs=15, l1=1.0)
    assert len(told) == 1 and "an l1 that outweighs the losses" in told[0]


@pytest.mark.parametrize("form", ["paper", "official"])
def test_training_reads_the_network_as_forward_does(toy, form):
    """w of the batch is `forward` on the gathered prototypes and directions of that form."""
    cells, bank = toy()
    cells = cells.take(torch.arange(40))
    metric = random_metric(direction_form=form)
    _, w = loss_terms(metric, cells, bank, 8.0, 2, LOSS, torch.Generator())
    proto = {mod: bank[mod].prototypes[cells.index[mod]] for mod in MODALITIES}
    coded = {mod: encode(cells.feat[mod], proto[mod]) for mod in MODALITIES}
    d, s = ({mod: coded[mod][i] for mod in MODALITIES} for i in (0, 1))
    if form == "official":  # five times the difference over the joint distance
        joint = (s["pcd"].square() + s["rgb"].square()).sqrt().clamp_min(1e-3)
        d = {mod: 5 * d[mod] * (s[mod] / joint)[..., None] for mod in MODALITIES}
    expected = metric.lspn(proto, d)
    torch.testing.assert_close(w, expected, atol=1e-5, rtol=0)
    found = metric.scale_factors(cells.feat, bank, cells.index, cells.s)
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=0)


def test_form_chooses_every_switch_and_a_switch_overrules_it(toy):
    cells, bank = toy()
    metric = random_metric()

    def values(**switches):
        draw = torch.Generator().manual_seed(0)
        terms, _ = loss_terms(metric, cells, bank, 8.0, 2, LossConfig(**switches), draw)
        return {name: float(value.detach()) for name, value in terms.items()}

    paper = values()
    for switch, name in (("sep_form", "sep"), ("mar_form", "mar"), ("cma_form", "cma")):
        one = values(**{switch: "official"})
        assert {key for key in TERMS if one[key] != paper[key]} == {name}
    moved = values(jitter_form="official")
    assert all(moved[name] != paper[name] for name in TERMS)
    official = values(form="official")
    assert official != paper
    back = {f"{name}_form": "paper" for name in ("sep", "mar", "cma", "direction", "jitter")}
    assert values(form="official", **back) == paper


def test_direction_form_reaches_the_metric(toy):
    once = TRAINING.replace(epochs=1)
    for loss, expected in (
        (LossConfig(), "paper"),
        (LossConfig(form="official"), "official"),
        (LossConfig(form="official", direction_form="paper"), "paper"),
    ):
        assert train(toy(), loss=loss, training=once)[0].lspn.direction_form == expected


def test_jitter_stays_within_its_bounds(toy):
    cells, bank = toy()
    metric = random_metric()
    moved, own = training._jittered(metric, cells, bank, torch.Generator().manual_seed(0))
    distances = []
    for m, mod in enumerate(MODALITIES):
        reach = 0.1 * metric.s_mean[m].item()
        step = torch.linalg.vector_norm(moved.feat[mod] - cells.feat[mod], dim=1)
        assert 0 < step.min() and 0.9 * reach < step.max() <= reach * 1.0001
        before, after = bank[mod].prototypes[cells.index[mod]], own[mod][moved.index[mod]]
        step = torch.linalg.vector_norm(after - before, dim=-1)
        assert 0.9 * reach < step[:, 0].max() <= reach * 1.0001 and step[:, 0].min() > 0
        assert not step[:, 1:].any()  # only the nearest prototypes move
        distances.append(encode(moved.feat[mod], after)[1])
    torch.testing.assert_close(moved.s, torch.stack(distances, dim=-1))
    assert moved.is_anomalous is cells.is_anomalous
    assert torch.equal(cells.feat["pcd"], toy()[0].feat["pcd"])  # the input is left alone


def test_scale_factors_of_many_cells_are_those_of_each(toy):
    cells, bank = toy(images=4)
    metric = random_metric()
    many = cells.take(torch.arange(len(cells)).repeat(90))
    assert len(many) > 8192
    w = metric.scale_factors(many.feat, bank, many.index, many.s)
    one = metric.scale_factors(cells.feat, bank, cells.index, cells.s)
    torch.testing.assert_close(w, one.repeat(90, 1, 1), atol=1e-6, rtol=0)
    none = cells.take(torch.zeros(0, dtype=torch.long))
    assert metric.scale_factors(none.feat, bank, none.index, none.s).shape == (0, 5, 2)


def test_scoring_leaves_dropout_out(toy):
    cells, bank = toy(images=2)
    metric = random_metric()
    metric.lspn.train()
    values = [metric.scale_factors(cells.feat, bank, cells.index, cells.s) for _ in range(2)]
    assert torch.equal(*values)


def test_cells_take_rows_of_everything(toy):
    cells, _ = toy(images=2)
    rows = torch.tensor([5, 3])
    taken = cells.take(rows)
    assert isinstance(taken, Cells) and len(taken) == 2
    assert torch.equal(taken.feat["rgb"], cells.feat["rgb"][rows])
    assert torch.equal(taken.index["pcd"], cells.index["pcd"][rows])
    assert torch.equal(taken.s, cells.s[rows]) and torch.equal(taken.image, cells.image[rows])
    assert torch.equal(
        cells.take(cells.is_anomalous).is_anomalous, torch.ones(16, dtype=torch.bool)
    )


def test_cells_read_batch_by_batch_train_to_the_same_bytes(toy):
    cells, bank = toy()
    rows = {mod: Rows(value.split([100, 1, 259])) for mod, value in cells.feat.items()}
    small = {mod: value.int() for mod, value in cells.index.items()}
    lazy = dataclasses.replace(cells, feat=rows, index=small)
    assert bytes_of(train((lazy, bank))[0]) == bytes_of(train((cells, bank))[0])


def test_only_batches_of_cells_are_ever_read(toy, monkeypatch):
    cells, bank = toy()
    lazy = dataclasses.replace(cells, feat={m: Rows([v]) for m, v in cells.feat.items()})
    most = []
    real = Rows.__getitem__

    def watched(self, which):
        found = real(self, which)
        most.append(len(found))
        return found

    monkeypatch.setattr(Rows, "__getitem__", watched)
    monkeypatch.setattr(training, "CELLS_AT_ONCE", 50)
    monkeypatch.setattr(training, "MOST_JUDGED", 32)
    train((lazy, bank))
    assert 0 < max(most) <= TRAINING.batch_size < len(cells)


def test_held_out_cells_judged_in_parts_give_the_same_history(toy, monkeypatch):
    whole = train(toy())[1]
    monkeypatch.setattr(training, "CELLS_AT_ONCE", 32)
    monkeypatch.setattr(fusion, "CELLS_AT_ONCE", 32)
    parts = train(toy())[1]
    for one, other in zip(whole, parts, strict=True):
        same = {k for k in one if k != "heldout_cma"}  # mismatched pairs come from one part
        assert {k: other[k] for k in same} == pytest.approx({k: one[k] for k in same}, rel=1e-4)


def test_a_batch_is_at_most_a_share_of_the_cells(toy, monkeypatch):
    sizes = []
    real = training.loss_terms

    def watched(metric, cells, *rest, is_training=True):
        sizes.append(len(cells)) if is_training else None
        return real(metric, cells, *rest, is_training=is_training)

    monkeypatch.setattr(training, "loss_terms", watched)
    training_config = TRAINING.replace(epochs=1, batch_size=64, max_batch_share=0.1)
    train(toy(), training=training_config)
    assert set(sizes) == {18} and len(sizes) == 10  # a tenth of 180 cells trained on


@pytest.mark.gpu
def test_training_on_a_gpu_agrees_with_the_cpu(toy):
    cells, bank = toy()
    here = train((cells, bank))[1]
    there = train(
        (cells.to(torch.device("cuda")), {m: b.prototypes.cuda() for m, b in bank.items()})
    )
    # Dropout draws other numbers on a GPU, so the course agrees and the digits do not.
    assert there[1][0]["heldout"] == pytest.approx(here[0]["heldout"], rel=1e-4)
    assert there[1][-1]["heldout"] == pytest.approx(here[-1]["heldout"], rel=0.3)
    assert there[0].s_mean.is_cuda


@pytest.mark.gpu
def test_scale_factors_on_a_gpu_are_those_of_the_cpu(toy):
    cells, bank = toy()
    metric = random_metric()
    here = metric.scale_factors(cells.feat, bank, cells.index, cells.s)
    metric.cuda()
    rows = {mod: Rows([value]) for mod, value in cells.feat.items()}
    there = metric.scale_factors(rows, bank, cells.index, cells.s)
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------ ablations of what LSPN sees


def blind(metric, prototype_input="given", direction_input="given"):
    metric.lspn.inputs = (prototype_input, direction_input)
    return metric


def w_of(metric, cells, bank):
    return metric.scale_factors(cells.feat, bank, cells.index, cells.s)


def turned(cells, bank):
    """Return the cells with every direction turned round: m - (f - m), as far from each m0."""
    feat = {mod: 2 * bank[mod].prototypes[cells.index[mod][:, 0]] - cells.feat[mod] for mod in bank}
    return dataclasses.replace(cells, feat=feat)


def moved(cells, bank):
    """Return cells and banks moved together: other prototypes, the same directions."""
    feat = {mod: cells.feat[mod] + 3.0 for mod in bank}
    return dataclasses.replace(cells, feat=feat), {m: b.prototypes + 3.0 for m, b in bank.items()}


def test_a_network_that_sees_everything_depends_on_everything(toy):
    cells, bank = toy()
    metric = random_metric()
    w = w_of(metric, cells, bank)
    assert (w_of(metric, turned(cells, bank), bank) - w).abs().max() > 0.05
    assert (w_of(metric, *moved(cells, bank)) - w).abs().max() > 0.05


def test_without_directions_w_depends_on_prototypes_alone(toy):
    cells, bank = toy()
    metric = blind(random_metric(), direction_input="zeros")
    w = w_of(metric, cells, bank)
    assert torch.equal(w_of(metric, turned(cells, bank), bank), w)
    assert w[:, 0].std(0).min() > 0.01
    same = (cells.index["pcd"][:, 0] == cells.index["pcd"][0, 0]) & (
        cells.index["rgb"][:, 0] == cells.index["rgb"][0, 0]
    )
    assert same.sum() > 1  # cells of one pair of prototypes, in different directions
    torch.testing.assert_close(w[same, 0], w[:1, 0].expand(int(same.sum()), 2))


def test_without_prototypes_w_depends_on_directions_alone(toy):
    cells, bank = toy()
    metric = blind(random_metric(), prototype_input="zeros")
    w = w_of(metric, cells, bank)
    torch.testing.assert_close(w_of(metric, *moved(cells, bank)), w, atol=1e-4, rtol=0)
    assert (w_of(metric, turned(cells, bank), bank) - w).abs().max() > 0.05


def test_without_either_w_is_one_number_a_modality(toy):
    cells, bank = toy()
    metric = blind(random_metric(), prototype_input="zeros", direction_input="zeros")
    w = w_of(metric, cells, bank)
    assert torch.equal(w, w[:1, :1].expand_as(w))
    zeros = torch.zeros(1, 24)
    with torch.no_grad():
        hidden = [zeros + part.bias for part in (metric.lspn.proto_in, metric.lspn.direction_in)]
        torch.testing.assert_close(w[0, :1], metric.lspn._decode(*hidden))
    assert (w[0, 0] - 1).abs().min() > 1e-3  # a number that was learned, not the Euclidean one


def test_random_directions_have_length_one_and_nothing_to_do_with_the_cell():
    weight, draw = torch.eye(24)[:, :8], torch.Generator().manual_seed(1)
    found = fusion._random_directions(weight, (200, 5), draw)
    unit = found[..., :8]  # the first units of the layer are the direction itself
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(200, 5))
    assert unit.mean((0, 1)).abs().max() < 0.1  # no side is preferred
    assert len(torch.unique(unit.flatten(0, 1), dim=0)) > 500  # of 1024
    assert not found[..., 8:].any()
    assert not torch.equal(fusion._random_directions(weight, (200, 5), draw), found)  # drawn anew


def test_random_directions_are_the_same_on_every_call_at_scoring(toy):
    cells, bank = toy()
    metric = blind(random_metric(), direction_input="random")
    w = w_of(metric, cells, bank)
    assert torch.equal(w_of(metric, cells, bank), w)
    assert torch.equal(w_of(metric, turned(cells, bank), bank), w)
    assert not torch.equal(w, w_of(random_metric(), cells, bank))


def train_as(world, training=TRAINING, loss=LOSS, seed=0, **model):
    cells, bank = world
    chosen = MODEL.replace(**model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return train_metric(cells, bank, chosen, loss, training, seed, progress=False)


@pytest.mark.parametrize(
    "inputs",
    [{"direction_input": "zeros"}, {"direction_input": "random"}, {"prototype_input": "zeros"}],
    ids=["no direction", "random direction", "no prototype"],
)
def test_a_blind_network_is_trained_blind_and_the_same_on_every_run(toy, inputs):
    cells, bank = toy()
    metric, history = train_as((cells, bank), LONGER, **inputs)
    again, same = train_as((cells, bank), LONGER, **inputs)
    assert bytes_of(metric) == bytes_of(again) and history == same
    assert set(inputs.values()) <= set(metric.lspn.inputs)
    seeing, _ = train((cells, bank), training=LONGER)
    assert bytes_of(metric) != bytes_of(seeing)
    assert (seeing.prototype_input, seeing.direction_input) == ("given", "given")
    if "direction_input" in inputs:
        w = w_of(metric, cells, bank)
        assert torch.equal(w_of(metric, turned(cells, bank), bank), w)


def test_directions_are_what_tells_these_cells_apart(toy):
    """The toy's anomalous cells leave in other directions: a blind network cannot learn it."""
    kept = {
        name: min(row["heldout_sep"] for row in train_as(toy(), LONGER, direction_input=name)[1])
        for name in ("given", "zeros", "random")
    }
    assert kept["given"] < 0.95 * min(kept["zeros"], kept["random"])


# ------------------------------------------------------------------ sigma, held-out cells


def test_a_fixed_sigma_stays_at_one_half(toy):
    metric, history = train_as(toy(), LONGER, sigma_rule="fixed")
    assert metric.sigma().tolist() == [0.5, 0.5]
    assert all(row["sigma_pcd"] == row["sigma_rgb"] == 0.5 for row in history)
    free, moving = train(toy(), training=LONGER)
    assert max(abs(row["sigma_pcd"] - 0.5) for row in moving) > 1e-3
    other = free.state_dict()
    for name, value in metric.state_dict().items():
        assert torch.equal(value, other[name]) == (name == "s_mean"), name
    # Sigma draws no random number, so the state before training is the same.
    assert history[0] == moving[0]


def test_a_training_with_a_fixed_sigma_goes_on_after_an_interruption(toy, tmp_path):
    cells, bank = toy()
    model = MODEL.replace(sigma_rule="fixed")
    whole, history = train_as((cells, bank), sigma_rule="fixed")

    def stop(epoch, metric):
        if epoch == 3:
            raise KeyboardInterrupt

    given = (cells, bank, model, LOSS, TRAINING, 0, tmp_path / "checkpoint.safetensors", False)
    with pytest.raises(KeyboardInterrupt):
        train_metric(*given, stop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        resumed, same = train_metric(*given)
    assert bytes_of(resumed) == bytes_of(whole) and same == history


def held_out_in(monkeypatch, world, **settings):
    """Return which cells a training holds out."""
    found, real = [], training.heldout_images
    with monkeypatch.context() as patch:
        patch.setattr(
            training, "heldout_images", lambda *given: found.append(real(*given)) or found[0]
        )
        train(world, training=TRAINING.replace(epochs=1, **settings))
    (held,) = found
    return held


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_held_out_by_cell_or_by_image(toy, monkeypatch, fraction):
    cells, bank = toy()
    sides = {}
    for way in ("image", "cell"):
        held = held_out_in(monkeypatch, (cells, bank), heldout_by=way, heldout_fraction=fraction)
        inside, outside = (set(cells.image[side].tolist()) for side in (held, ~held))
        sides[way] = inside & outside
        num = len(cells) if way == "cell" else 12
        assert held.sum() == round(fraction * num) * (len(cells) // num)
    assert sides["image"] == set()
    assert sides["cell"] == set(range(12))  # 30 cells an image: some on both sides


# ------------------------------------------------------------------ what is kept on the way


def watching():
    """Return a function for `after_epoch`, and the list that it fills."""
    seen = []

    def watch(epoch, metric):
        assert not metric.lspn.training
        seen.append((epoch, {n: v.clone() for n, v in metric.state_dict().items()}))

    return watch, seen


def test_somebody_may_watch_every_epoch(toy):
    watch, seen = watching()
    metric, history = train(toy(), training=LONGER, after_epoch=watch)
    assert [epoch for epoch, _ in seen] == list(range(16))
    alone, same = train(toy(), training=LONGER)
    assert bytes_of(alone) == bytes_of(metric) and same == history  # watching changes nothing
    untrained = seen[0][1]
    assert not untrained["lspn.head.weight"].any() and not untrained["sigma.sigma_raw"].any()
    best = min(history[1:], key=lambda row: row["heldout"])["epoch"]
    assert all(torch.equal(v, metric.state_dict()[n]) for n, v in seen[best][1].items())
    stopped = LONGER.replace(epochs=4)
    watch, shorter = watching()
    train(toy(), training=stopped, after_epoch=watch)
    assert all(torch.equal(v, seen[4][1][n]) for n, v in shorter[4][1].items())


def test_a_training_that_goes_on_is_watched_from_there(toy, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    watch, whole = watching()
    train(toy(), after_epoch=watch)
    numbers = []

    def stop(epoch, metric):
        numbers.append(epoch)
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(toy(), checkpoint=path, after_epoch=stop)
    assert numbers == [0, 1, 2, 3]
    watch, rest = watching()
    train(toy(), checkpoint=path, after_epoch=watch)
    assert [epoch for epoch, _ in rest] == [3, 4, 5, 6]  # the third was not written down
    for (_, one), (_, other) in zip(rest, whole[3:], strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    watch, none = watching()
    train(toy(), checkpoint=path, after_epoch=watch)
    assert none == []

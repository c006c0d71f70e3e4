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
    best_row,
    heldout_auroc,
    heldout_images,
    loss_terms,
    train_metric,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::g2sf_lib.training.CollapseWarning"),
]

MODEL = ModelConfig(hidden=48, embed=16, dropout=0.1, k=2)
LOSS = LossConfig(mu=0.1)
TRAINING = TrainingConfig(
    epochs=6, batch_size=64, learning_rate=1e-2, criterion="losses", normaliser="mean"
)


def train(world, seed=0, checkpoint=None, after_epoch=None, **settings):
    """Train on cells and their banks, with settings of any of the three sections replaced."""
    sections = [
        section.replace(**{n: v for n, v in settings.items() if n in type(section).model_fields})
        for section in (MODEL, LOSS, TRAINING)
    ]
    return train_metric(*world, *sections, seed, checkpoint, False, after_epoch)


def bytes_of(metric):
    """Every learned number of a metric, as bytes."""
    return b"".join(v.numpy().tobytes() for v in metric.state_dict().values())


def random_metric(seed=0, direction_form="paper", inputs=("given", "given")):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lspn = LSPN({"pcd": 6, "rgb": 8}, 24, 12, direction_form=direction_form)
        torch.nn.init.normal_(lspn.head.weight, std=0.5)
    lspn.inputs = inputs
    return Metric(lspn, GlobalScale(), torch.tensor([0.7, 0.9])).eval()


def w_of(metric, cells, bank):
    return metric.scale_factors(cells.feat, bank, cells.index, cells.s)


def is_held_out(world):
    draw = torch.Generator().manual_seed(0)
    return heldout_images(world[0].image, TRAINING.heldout_fraction, draw)


# ------------------------------------------------------------------ losses and history


@pytest.mark.parametrize(
    ("term", "share"),
    # The bounds of L_mar follow the batch, so the overlap shrinks by less than a sum would.
    [("sep", 0.7), ("mar", 0.9), ("cns", 0.7), ("sc", 0.7), ("cma", 0.7)],
)
def test_each_loss_falls_when_it_is_minimised(toy, term, share):
    cells, bank = toy()
    metric = random_metric()
    optimiser = torch.optim.Adam(metric.parameters(), lr=1e-2)
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
    _, history = train(toy(), epochs=15)
    first, last = history[0], best_row(history)
    for name in ("heldout", "heldout_sep", "heldout_mar", "heldout_sc"):
        assert last[name] < first[name], name
    for name in ("sep", "mar", "sc"):  # and in training
        assert history[-1][name] < history[1][name], name
    for mod in MODALITIES:
        assert first[f"w_normal_{mod}"] == first[f"w_synthetic_{mod}"] == 1
        assert last[f"w_synthetic_{mod}"] > last[f"w_normal_{mod}"] + 0.1
    assert [row["epoch"] for row in history] == list(range(16))
    for row in history[1:]:
        assert set(TERMS) <= row.keys() and {f"heldout_{name}" for name in TERMS} <= row.keys()
        assert row["sigma_pcd"] + row["sigma_rgb"] == pytest.approx(1)
    json.dumps(history, allow_nan=False)


def test_a_seed_gives_the_same_bytes_whatever_the_callers_random_state(toy):
    found = []
    for seed, state in ((0, 1), (0, 2), (1, 2)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            before = torch.get_rng_state()
            metric, history = train(toy(), seed)
            assert torch.equal(torch.get_rng_state(), before)
        found.append((bytes_of(metric), history))
    assert found[0] == found[1] and found[0][0] != found[2][0]


@pytest.mark.parametrize("form", ["paper", "official"])
def test_training_reads_the_network_as_forward_does(toy, form):
    """w of the batch is `forward` on the gathered prototypes and directions of that form."""
    cells, bank = toy(images=2)
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
    torch.testing.assert_close(w_of(metric, cells, bank), expected.detach(), atol=1e-5, rtol=0)


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
    jittered = values(jitter_form="official")
    assert all(jittered[name] != paper[name] for name in TERMS)
    assert values(form="official") != paper
    back = {f"{name}_form": "paper" for name in ("sep", "mar", "cma", "direction", "jitter")}
    assert values(form="official", **back) == paper
    for switches, expected in (
        ({}, "paper"),
        ({"form": "official"}, "official"),
        ({"form": "official", "direction_form": "paper"}, "paper"),
    ):
        assert train(toy(), epochs=1, **switches)[0].lspn.direction_form == expected


def test_jitter_stays_within_its_bounds(toy):
    cells, bank = toy()
    metric = random_metric()
    moved, own = training._jittered(metric, cells, bank, torch.Generator().manual_seed(0))
    for m, mod in enumerate(MODALITIES):
        reach = 0.1 * metric.s_mean[m].item()
        step = torch.linalg.vector_norm(moved.feat[mod] - cells.feat[mod], dim=1)
        assert 0 < step.min() and 0.9 * reach < step.max() <= reach * 1.0001
        before, after = bank[mod].prototypes[cells.index[mod]], own[mod][moved.index[mod]]
        step = torch.linalg.vector_norm(after - before, dim=-1)
        assert 0.9 * reach < step[:, 0].max() <= reach * 1.0001 and step[:, 0].min() > 0
        assert not step[:, 1:].any()  # only the nearest prototypes move
        torch.testing.assert_close(moved.s[..., m], encode(moved.feat[mod], after)[1])
    assert moved.is_anomalous is cells.is_anomalous
    assert torch.equal(cells.feat["pcd"], toy()[0].feat["pcd"])  # the input is left alone


def test_the_unit_of_distance_and_m0_by_hand(toy, monkeypatch):
    """The mean over normal training cells, and twice the largest distance of anomalous ones.

    In either modality, and as they are: squares of the official form do not square the bound.
    """
    cells, bank = toy()
    kept, seen, real = ~is_held_out((cells, bank)), [], training.loss_sep

    def watched(ell0, is_anomalous, m0, **more):
        seen.append((is_anomalous, m0))
        return real(ell0, is_anomalous, m0, **more)

    monkeypatch.setattr(training, "loss_sep", watched)
    metric, _ = train((cells, bank), epochs=1)
    normal = cells.s[kept & ~cells.is_anomalous, 0]
    mean = normal.mean(0)
    torch.testing.assert_close(metric.s_mean, mean)
    largest = (cells.s[kept & cells.is_anomalous, 0] / mean).max().item()
    assert all(m0 == pytest.approx(2 * largest) for _, m0 in seen)
    batches = [y for y, _ in seen[1:-1]]
    assert batches and all(len(y) == 64 and y.sum() == 32 for y in batches)  # balanced
    # In proportion to the spread, the mean over modalities of the mean distance is one.
    s_mean = train((cells, bank), epochs=1, normaliser="std")[0].s_mean
    torch.testing.assert_close(s_mean / s_mean[0], normal.std(0) / normal.std(0)[0])
    assert float((normal.mean(0) / s_mean).mean()) == pytest.approx(1.0)


def test_a_fixed_sigma_stays_at_one_half(toy):
    metric, history = train(toy(), sigma_rule="fixed")
    assert metric.sigma().tolist() == [0.5, 0.5]
    assert all(row["sigma_pcd"] == row["sigma_rgb"] == 0.5 for row in history)
    _, moving = train(toy())
    assert max(abs(row["sigma_pcd"] - 0.5) for row in moving) > 1e-3
    # Sigma draws no random number, so the state before training is the same.
    assert history[0] == moving[0] and history[-1]["heldout"] != moving[-1]["heldout"]


# ------------------------------------------------------------------ interruptions


class Interrupting:
    """A loss that stands in for another and raises KeyboardInterrupt at its n-th call."""

    def __init__(self, loss, at):
        self.loss, self.left = loss, at

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.loss(*args, **kwargs)


@pytest.mark.parametrize("sigma_rule", ["learned", "fixed"])
def test_an_interrupted_training_ends_with_the_same_bytes(toy, tmp_path, monkeypatch, sigma_rule):
    world, path = toy(), tmp_path / "runs" / "checkpoint.safetensors"
    whole, history = train(world, sigma_rule=sigma_rule)
    steps = int((~is_held_out(world)).sum()) // TRAINING.batch_size
    loss = training.loss_cma
    # One observation before training, then the steps and one observation an epoch: the first
    # interruption falls into the middle of epoch 3, the second, after going on, into epoch 5.
    for at, known in ((1 + 2 * (steps + 1) + 1, 1 + 2), (2 * (steps + 1) + 1, 1 + 4)):
        monkeypatch.setattr(training, "loss_cma", Interrupting(loss, at))
        with pytest.raises(KeyboardInterrupt):
            train(world, checkpoint=path, sigma_rule=sigma_rule)
        header = json.loads(bytes(read_tensors(path)["header"].tolist()))
        assert len(header["history"]) == known
    for most in (1000, 0):  # what is finished is not trained again
        monkeypatch.setattr(training, "loss_cma", Interrupting(loss, most))
        resumed, same = train(world, checkpoint=path, sigma_rule=sigma_rule)
        assert bytes_of(resumed) == bytes_of(whole) and same == history
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("other", [{"learning_rate": 1e-3}, {"alpha": 2.0}, {"seed": 1}, {}])
def test_a_checkpoint_of_another_run_is_not_used(toy, tmp_path, other):
    path = tmp_path / "checkpoint.safetensors"
    train(toy(), checkpoint=path)
    world = toy(0 if other else 1)
    metric, history = train(world, **other)
    found, same = train(world, checkpoint=path, **other)
    assert bytes_of(found) == bytes_of(metric) and same == history


def test_a_damaged_checkpoint_is_named(toy, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    train(toy(), checkpoint=path, epochs=1)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StoredFileError, match=r"checkpoint\.safetensors: cannot be read"):
        train(toy(), checkpoint=path, epochs=1)


def test_somebody_may_watch_every_epoch_from_where_it_goes_on(toy, tmp_path):
    path, seen = tmp_path / "checkpoint.safetensors", []

    def watch(epoch, metric):
        assert not metric.lspn.training
        seen.append((epoch, bytes_of(metric)))
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(toy(), checkpoint=path, after_epoch=watch)
    metric, history = train(toy(), checkpoint=path, after_epoch=watch)
    # The third was not written down.
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3, 3, 4, 5, 6] and seen[3] == seen[4]
    alone, same = train(toy())
    assert bytes_of(alone) == bytes_of(metric) and same == history  # watching changes nothing
    assert dict(seen)[best_row(history)["epoch"]] == bytes_of(metric)
    train(toy(), checkpoint=path, after_epoch=watch)
    assert len(seen) == 8


# ------------------------------------------------------------------ what is held out, and kept


def test_the_held_out_split_is_by_image_and_follows_its_generator():
    image = torch.randint(0, 10, (500,), generator=torch.Generator().manual_seed(0))
    for fraction, num in ((0.05, 1), (0.3, 3), (0.5, 5), (0.95, 9)):
        draws = (torch.Generator().manual_seed(seed) for seed in (0, 0, 1))
        held, same, other = (heldout_images(image, fraction, draw) for draw in draws)
        inside, outside = set(image[held].tolist()), set(image[~held].tolist())
        assert not inside & outside and len(inside) == num
        assert torch.equal(held, same) and not torch.equal(held, other)
    with pytest.raises(ValueError, match="1 image; expected at least 2"):
        heldout_images(torch.zeros(5, dtype=torch.long), 0.5, torch.Generator())


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_held_out_by_cell_or_by_image(toy, fraction):
    cells, _ = toy()
    for way, num, shared in (("image", 12, set()), ("cell", len(cells), set(range(12)))):
        chosen = TRAINING.replace(heldout_by=way, heldout_fraction=fraction)
        split = training._split(cells, chosen, 0)
        assert len(split.heldout) == round(fraction * num) * (len(cells) // num)
        inside, outside = cells.image[split.heldout], cells.image[torch.cat(split.fit)]
        # 30 cells an image: some on both sides
        assert set(inside.tolist()) & set(outside.tolist()) == shared


def test_held_out_images_choose_the_epoch_and_nothing_else(toy):
    cells, bank = toy()
    held = is_held_out((cells, bank))
    changed = dataclasses.replace(
        cells,
        feat={mod: torch.where(held[:, None], 0.5 * x, x) for mod, x in cells.feat.items()},
        s=torch.where(held[:, None, None], 3 * cells.s, cells.s),
    )
    ends, heldout = [], []
    for each in (cells, changed):
        _, history = train(
            (each, bank), after_epoch=lambda _, metric: ends.append(bytes_of(metric))
        )
        heldout.append(history[-1]["heldout"])
    assert ends[:7] == ends[7:] and len(set(ends)) == 7
    assert heldout[0] != heldout[1]


@pytest.mark.parametrize("criterion", ["losses", "images"])
def test_the_epoch_with_the_lowest_criterion_is_kept(toy, criterion):
    metric, history = train(toy(), epochs=40, criterion=criterion)
    for row in history:
        losses = row["heldout_sep"] + LOSS.alpha * row["heldout_mar"]
        expected = losses if criterion == "losses" else 1 - row["heldout_auroc"]
        assert row["heldout"] == pytest.approx(expected)
    best = best_row(history)["epoch"]
    assert 0 < best < 40  # else nothing is shown
    stopped, _ = train(toy(), epochs=best, criterion=criterion)
    assert bytes_of(stopped) == bytes_of(metric)
    assert not metric.lspn.training


def test_held_out_images_are_told_apart_by_hand():
    """Three scans of two cells each, and four pastes of a cell each on the first two of them."""
    target = torch.tensor([0, 0, 1, 1, 2, 2, 0, 0, 1, 1])
    image = torch.tensor([0, 0, 1, 1, 2, 2, 3, 4, 5, 6])
    cells = Cells({}, {}, torch.zeros(10, 5, 2), torch.arange(10) >= 6, image, target=target)
    score = torch.tensor([1.0, 2.0, 3.0, 1.0, 5.0, 1.0, 4.0, 1.0, 2.0, 6.0])
    # untouched: 2, 3, 5; pasted: max(4, 2) = 4, max(1, 2) = 2, max(2, 3) = 3, max(6, 3) = 6
    # pairs won: 4 > 2, 3; 2 = 2; 3 > 2, 3 = 3; 6 > 2, 3, 5: 2 + 0.5 + 1.5 + 3 of 12
    assert heldout_auroc(score, cells) == pytest.approx(7 / 12)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert heldout_auroc(score[order], cells.without_features(order)) == pytest.approx(7 / 12)
    assert math.isnan(heldout_auroc(score[6:], cells.without_features(torch.arange(6, 10))))
    score[[1, 2, 4]] = torch.tensor([7.0, 8.0, 9.0])  # a sound cell of each scan, above all pastes
    # untouched: 7, 8, 9; pasted: 7, 7, 8, 8: 0.5 + 0.5 + 1.5 + 1.5 of 12
    assert heldout_auroc(score, cells) == pytest.approx(4 / 12)


def test_the_untrained_metric_is_kept_where_training_makes_it_worse(toy, monkeypatch):
    real, calls = training._observe, []

    def worse_and_worse(*given):
        calls.append(None)
        return real(*given) | {"heldout": float(len(calls))}

    monkeypatch.setattr(training, "_observe", worse_and_worse)
    metric, history = train(toy())
    assert len(history) == 7 and best_row(history)["epoch"] == 0
    assert not metric.lspn.head.weight.any() and metric.sigma().tolist() == [0.5, 0.5]


def test_cells_of_one_class_and_a_diverged_training_are_refused(toy):
    cells, bank = toy()
    for label in (False, True):
        one = dataclasses.replace(cells, is_anomalous=torch.full((len(cells),), label))
        with pytest.raises(ValueError, match="cells of one class only; expected normal and anom"):
            train((one, bank))
    with pytest.raises(FloatingPointError, match=r"held-out loss of epoch 1 is nan"):
        train((cells, bank), learning_rate=1e30)


AUTHORS = {"alpha": 10.0, "beta": 40.0, "gamma": 3.0, "mu": 20.0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        # The authors' weights belong to their own form; with the paper's, L_cma drives w to e.
        (AUTHORS | {"epochs": 12}, ("epoch 12 w_pcd and w_rgb", "near e", "mu = 20", "lower mu")),
        ({"mu": 1000.0, "epochs": 12}, ("every w is near e", "mu = 1000")),
        ({"epochs": 1, "learning_rate": 1e-9}, ("too few epochs",)),
        ({"epochs": 15, "l1": 1.0}, ("an l1 that outweighs the losses",)),
        ({"epochs": 15}, ()),
    ],
    ids=["authors' weights", "huge mu", "no move", "heavy l1", "healthy"],
)
def test_collapse_is_told_once_with_its_cause(toy, settings, words):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(toy(), **settings)
    told = [str(w.message) for w in caught if w.category is CollapseWarning]
    assert len(told) == bool(words)
    assert all(word in told[0] for word in words)


# ------------------------------------------------------------------ cells in parts


def test_scale_factors_of_many_cells_are_those_of_each_without_dropout(toy):
    cells, bank = toy(images=4)
    metric = random_metric()
    metric.lspn.train()
    many = cells.take(torch.arange(len(cells)).repeat(90))
    assert len(many) > fusion.CELLS_AT_ONCE
    one = w_of(metric, cells, bank).repeat(90, 1, 1)
    torch.testing.assert_close(w_of(metric, many, bank), one, atol=1e-6, rtol=0)
    assert w_of(metric, cells.take(torch.zeros(0, dtype=torch.long)), bank).shape == (0, 5, 2)


def test_only_batches_of_cells_are_ever_read_and_train_to_the_same_bytes(toy, monkeypatch):
    cells, bank = toy()
    rows = {mod: Rows(value.split([100, 1, 259])) for mod, value in cells.feat.items()}
    small = {mod: value.int() for mod, value in cells.index.items()}
    lazy, sizes, real = dataclasses.replace(cells, feat=rows, index=small), [], Rows.__getitem__

    def watched(self, which):
        found = real(self, which)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(Rows, "__getitem__", watched)
    monkeypatch.setattr(training, "CELLS_AT_ONCE", 50)
    monkeypatch.setattr(training, "MOST_JUDGED", 32)
    (one, history), (other, same) = train((lazy, bank)), train((cells, bank))
    assert bytes_of(one) == bytes_of(other) and history == same
    assert 0 < max(sizes) <= TRAINING.batch_size < len(cells)


def test_held_out_cells_judged_in_parts_give_the_same_history(toy, monkeypatch):
    whole = train(toy())[1]
    monkeypatch.setattr(training, "CELLS_AT_ONCE", 32)
    monkeypatch.setattr(fusion, "CELLS_AT_ONCE", 32)
    for one, other in zip(whole, train(toy())[1], strict=True):
        one["heldout_cma"] = other["heldout_cma"]  # mismatched pairs come from one part
        assert other == pytest.approx(one, rel=1e-4)


def test_a_batch_is_at_most_a_share_of_the_cells(toy, monkeypatch):
    sizes, real = [], training.loss_terms

    def watched(metric, cells, *rest, is_training=True):
        sizes.append(len(cells) if is_training else 0)
        return real(metric, cells, *rest, is_training=is_training)

    monkeypatch.setattr(training, "loss_terms", watched)
    train(toy(), epochs=1, max_batch_share=0.1)
    assert sizes == [0, *[18] * 10, 0]  # a tenth of 180 cells trained on


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu(toy):
    cells, bank = toy()
    metric = random_metric()
    here = w_of(metric, cells, bank)
    rows = {mod: Rows([value]) for mod, value in cells.feat.items()}
    there = metric.cuda().scale_factors(rows, bank, cells.index, cells.s)
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=1e-4)
    here = train((cells, bank))[1]
    prototypes = {mod: one.prototypes.cuda() for mod, one in bank.items()}
    metric, there = train((cells.to(torch.device("cuda")), prototypes))
    # Dropout draws other numbers on a GPU, so the course agrees and the digits do not.
    assert there[0]["heldout"] == pytest.approx(here[0]["heldout"], rel=1e-4)
    assert there[-1]["heldout"] == pytest.approx(here[-1]["heldout"], rel=0.3)
    assert metric.s_mean.is_cuda


# ------------------------------------------------------------------ ablations of what LSPN sees


def turned(cells, bank):
    """Return the cells with every direction turned round: m - (f - m), as far from each m0."""
    feat = {mod: 2 * bank[mod].prototypes[cells.index[mod][:, 0]] - cells.feat[mod] for mod in bank}
    return dataclasses.replace(cells, feat=feat), bank


def moved(cells, bank):
    """Return cells and banks moved together: other prototypes, the same directions."""
    feat = {mod: cells.feat[mod] + 3.0 for mod in bank}
    return dataclasses.replace(cells, feat=feat), {m: b.prototypes + 3.0 for m, b in bank.items()}


@pytest.mark.parametrize("prototype", ["given", "zeros"])
@pytest.mark.parametrize("direction", ["given", "zeros", "random"])
def test_w_depends_on_what_is_given_and_on_nothing_else(toy, prototype, direction):
    world = toy()
    metric = random_metric(inputs=(prototype, direction))
    w = w_of(metric, *world)
    assert torch.equal(w_of(metric, *world), w)  # random directions are the same at scoring
    for change, what in ((turned, direction), (moved, prototype)):
        difference = (w_of(metric, *change(*world)) - w).abs().max()
        assert difference > 0.05 if what == "given" else difference < 1e-4
    if direction != "given":
        assert torch.equal(w_of(metric, *turned(*world)), w)
    if (prototype, direction) == ("zeros", "zeros"):  # a number that was learned, not 1
        assert torch.equal(w, w[:1, :1].expand_as(w)) and (w[0, 0] - 1).abs().min() > 1e-3
    else:
        assert w[:, 0].std(0).min() > 0.01


def test_random_directions_have_length_one_and_nothing_to_do_with_the_cell():
    weight, draw = torch.eye(24)[:, :8], torch.Generator().manual_seed(1)
    found = fusion._random_directions(weight, (200, 5), draw)
    unit = found[..., :8]  # the first units of the layer are the direction itself
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(200, 5))
    assert unit.mean((0, 1)).abs().max() < 0.1  # no side is preferred
    assert len(torch.unique(unit.flatten(0, 1), dim=0)) > 500  # of 1024
    assert not found[..., 8:].any()
    assert not torch.equal(fusion._random_directions(weight, (200, 5), draw), found)  # drawn anew


def test_directions_are_what_tells_these_cells_apart_and_blind_training_is_repeated(toy):
    """The toy's anomalous cells leave in other directions: a blind network cannot learn it."""
    kept = {}
    for name in ("given", "zeros", "random"):
        (metric, history), (again, same) = (
            train(toy(), epochs=15, direction_input=name) for _ in range(2)
        )
        assert bytes_of(metric) == bytes_of(again) and history == same
        assert metric.lspn.inputs == ("given", name)
        kept[name] = min(row["heldout_sep"] for row in history)
    assert kept["given"] < 0.95 * min(kept["zeros"], kept["random"])

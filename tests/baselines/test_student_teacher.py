"""Student and teacher: the flow is a flow, the student follows it, and what is odd parts them."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from g2sf_lib.baselines import student_teacher as module
from g2sf_lib.baselines.student_teacher import (
    AST,
    StudentTeacher,
    ast_input,
    position_encoding,
    train_ast,
)
from g2sf_lib.config import ASTConfig, make_config
from g2sf_lib.memory import Rows

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = (6, 7)
NUM_RGB = 6
SETTINGS = ASTConfig(
    ast_coupling_blocks=2,
    ast_flow_channels=12,
    ast_student_channels=24,
    ast_student_blocks=1,
    ast_depth_px=1,
    ast_epochs=25,
    ast_batch_size=4,
    ast_learning_rate=5e-3,
)
QUICK = SETTINGS.replace(ast_epochs=3)
CPU = torch.device("cpu")


def world(num, seed):
    """Scans of a part whose colours follow two hidden numbers, and whose height follows one.

    The part is a disc; every second scan lacks a corner of it.
    """
    fixed = torch.Generator().manual_seed(77)
    lift = torch.randn(2, NUM_RGB, generator=fixed)
    draw = torch.Generator().manual_seed(seed)
    row, column = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in GRID), indexing="ij")
    maps, foreground = [], []
    for number in range(num):
        phase = 6 * torch.rand(2, generator=draw)
        hidden = torch.stack([torch.sin(3 * row + phase[0]), torch.cos(2 * column + phase[1])], -1)
        rgb = (hidden @ lift).permute(2, 0, 1)
        depth = 5 + 2 * hidden[None, ..., 0]
        one = torch.cat([rgb, depth])
        inside = row.square() + column.square() < 1.3
        if number % 2:
            inside &= row + column < 1
        one = one + 0.05 * torch.randn(one.shape, generator=draw)
        maps.append(torch.where(inside, one, 0.0))
        foreground.append(inside.flatten())
    return torch.stack(maps), torch.stack(foreground)


@pytest.fixture(scope="module")
def trained():
    """Networks trained on normal scans, and the losses of teacher and student."""
    losses = {}
    original = module.train_epochs

    def keep(*args):
        losses[args[6]] = original(*args)
        return losses[args[6]]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fixture of a module is made before that of a test
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_epochs", keep)
        ast = train_ast(*world(24, 0), SETTINGS, 0, CPU)
    torch.set_num_threads(threads)
    return ast, losses


def score(ast, maps, foreground):
    """Return the scores of the foreground cells of each scan, as `AST.score_cells` does."""
    depths = [one[NUM_RGB:] for one in maps]
    patches = [
        SimpleNamespace(
            cells={"rgb": one[:NUM_RGB].flatten(1)[:, inside].T}, foreground=inside, grid=GRID
        )
        for one, inside in zip(maps, foreground, strict=True)
    ]
    scorer = AST(make_config("smoke", device="cpu"))
    scorer.network = ast
    stored = SimpleNamespace(standardiser=lambda cells: cells)
    scans = SimpleNamespace(patches=patches, depths=lambda px: depths, stored=stored)
    return scorer.score_cells(scans).split(foreground.sum(1).tolist())


def random_ast(seed=0, channels=5, grid=(3, 2), scale=0.3):
    """A flow that is not the identity."""
    settings = SETTINGS.replace(ast_coupling_blocks=3)
    ast = StudentTeacher(channels, grid, settings).eval()
    draw = torch.Generator().manual_seed(seed)
    for parameter in ast.parameters():
        if parameter.requires_grad:
            parameter.data = scale * torch.randn(parameter.shape, generator=draw)
    return ast.double()


def test_the_teacher_can_be_inverted():
    ast = random_ast()
    x, is_inside = ast.standardised(torch.randn(4, 5, 3, 2), torch.rand(4, 6) > 0.3)
    z, _ = ast.teach(x, is_inside)
    assert (z - x).abs().max() > 0.5
    assert torch.allclose(ast.teach(z, is_inside, rev=True)[0], x, atol=1e-9)


@pytest.mark.parametrize("outside", [0, 2])
def test_the_log_determinant_is_that_of_the_jacobian(outside):
    ast = random_ast()
    inside = torch.arange(6)[None] >= outside
    x, is_inside = ast.standardised(torch.randn(1, 5, 3, 2), inside)
    jacobian = torch.autograd.functional.jacobian(lambda v: ast.teach(v, is_inside)[0], x)
    expected = torch.linalg.slogdet(jacobian.view(30, 30))[1]
    log_det = ast.teach(x, is_inside)[1]
    assert abs(float(expected)) > 0.1
    assert torch.allclose(log_det[0], expected, atol=1e-9)


def test_background_passes_the_teacher_as_it_is():
    ast = random_ast()
    inside = torch.arange(6)[None] >= 3
    x, is_inside = ast.standardised(torch.randn(1, 5, 3, 2), inside)
    z, _ = ast.teach(x, is_inside)
    assert z.flatten(2)[0, :, :3].eq(0).all() and z.flatten(2)[0, :, 3:].ne(0).all()


def test_a_new_teacher_is_a_permutation():
    """Then the likelihood is that of the standardised input itself."""
    ast = StudentTeacher(5, (3, 2), SETTINGS)
    x, is_inside = ast.standardised(torch.randn(2, 5, 3, 2), torch.ones(2, 6, dtype=torch.bool))
    z, log_det = ast.teach(x, is_inside)
    assert torch.equal(z.sort(dim=1).values, x.sort(dim=1).values)
    assert log_det.eq(0).all()
    assert torch.allclose(ast.nll(x, is_inside), 0.5 * x.square().mean())


def test_both_losses_fall(trained):
    _, losses = trained
    teacher, student = losses["AST teacher"], losses["AST student"]
    assert teacher[0] < 0.6  # standardised channels start with 1/2
    assert teacher[-1] < teacher[0] - 0.5
    assert student[-1] < 0.4 * student[0]


@pytest.mark.parametrize("kind", ["rgb", "depth", "both"])
def test_a_planted_outlier_scores_above_unseen_normal_cells(trained, kind):
    maps, foreground = world(12, 5)
    odd = maps.clone()
    spot = torch.zeros(GRID, dtype=torch.bool)
    spot[2:4, 2:4] = True
    if kind != "depth":
        turned = torch.randn(NUM_RGB, 1, generator=torch.Generator().manual_seed(1))
        odd[:, :NUM_RGB, spot] = 1.5 * turned
    if kind != "rgb":
        odd[:, NUM_RGB:, spot] += 4
    scores = [found.numpy() for found in score(trained[0], odd, foreground)]
    labels = [spot.flatten()[inside].numpy() for inside in foreground]
    assert roc_auc_score(np.concatenate(labels), np.concatenate(scores)) > 0.9
    before = torch.cat(score(trained[0], maps, foreground))
    assert np.concatenate(scores)[np.concatenate(labels)].mean() > 3 * float(before.mean())


def test_unseen_normal_scans_score_as_training_scans_do(trained):
    seen = torch.cat(score(trained[0], *world(24, 0))).mean()
    unseen = torch.cat(score(trained[0], *world(24, 9))).mean()
    assert unseen < 2.5 * seen


def test_scores_are_the_mean_squared_distances_of_foreground_cells(trained):
    ast = trained[0]
    maps, foreground = world(3, 6)
    x, is_inside = ast.standardised(maps, foreground)
    with torch.no_grad():
        difference = ast.imitate(x) - ast.teach(x, is_inside)[0]
    scores = score(ast, maps, foreground)
    for one, inside, found in zip(difference, foreground, scores, strict=True):
        expected = one.flatten(1)[:, inside].square().mean(0)
        assert torch.allclose(found, expected, atol=1e-5) and not found.requires_grad


def test_a_score_does_not_depend_on_its_company(trained):
    ast = trained[0]
    maps, foreground = world(4, 6)
    together = score(ast, maps, foreground)
    alone = score(ast, maps[2:3], foreground[2:3])[0]
    assert torch.equal(together[2], alone)


def spoiled(maps, foreground):
    """The same scans with nonsense on the background, not finite in one place."""
    noise = 50 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(4))
    outside = ~foreground.view(len(maps), 1, *GRID)
    noise[0, 0, 0, 0] = torch.nan
    assert outside[0, 0, 0, 0]
    return torch.where(outside, noise, maps)


def test_values_on_background_are_read_by_nobody(trained, bytes_of):
    """Which cells are background matters to their neighbours; what is written there does not."""
    maps, foreground = world(6, 0)
    clean = train_ast(maps, foreground, QUICK, 0, CPU)
    found = train_ast(spoiled(maps, foreground), foreground, QUICK, 0, CPU)
    assert bytes_of(found.state_dict()) == bytes_of(clean.state_dict())
    for a, b in zip(
        score(trained[0], maps, foreground),
        score(trained[0], spoiled(maps, foreground), foreground),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_same_seed_same_bytes_other_seed_other_bytes(bytes_of):
    data = world(6, 0)
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1)
    np.random.seed(1)
    first = train_ast(*data, QUICK, 0, CPU).state_dict()
    assert torch.equal(torch.rand(3), expected[0])  # the caller's random state stays
    assert np.array_equal(np.random.rand(3), expected[1])
    assert bytes_of(train_ast(*data, QUICK, 0, CPU).state_dict()) == bytes_of(first)
    assert bytes_of(train_ast(*data, QUICK, 1, CPU).state_dict()) != bytes_of(first)


@pytest.mark.parametrize("written", [1, 3, 4])
def test_an_interrupted_training_ends_with_the_same_bytes(written, tmp_path, kill_after, bytes_of):
    """Killed while the teacher learns, between the two, and while the student learns."""
    data = world(6, 0)
    with kill_after(written):
        train_ast(*data, QUICK, 0, CPU, tmp_path / "ast")
    names = sorted(path.name for path in (tmp_path / "ast").iterdir())
    assert names == ["student.safetensors"] * (written > 3) + ["teacher.safetensors"]
    again = train_ast(*data, QUICK, 0, CPU, tmp_path / "ast")
    assert bytes_of(again.state_dict()) == bytes_of(train_ast(*data, QUICK, 0, CPU).state_dict())


def test_units_are_those_of_foreground_cells_and_no_channel_is_blown_up():
    maps, foreground = world(6, 0)
    maps[:, 2] = 3.0  # a channel that says nothing
    ast = train_ast(maps, foreground, QUICK.replace(ast_epochs=1), 0, CPU)
    cells = torch.cat(
        [one.flatten(1)[:, inside] for one, inside in zip(maps, foreground, strict=True)], 1
    )
    std = cells.std(1, correction=0)
    assert torch.allclose(ast.mean, cells.mean(1), atol=1e-5)
    assert torch.allclose(ast.std[[0, 1, 3, 4, 5, 6]], std[[0, 1, 3, 4, 5, 6]], atol=1e-5)
    assert ast.std[2] == pytest.approx(0.1 * float(std[:NUM_RGB].mean()), rel=1e-4)


def test_a_training_that_diverges_is_told():
    maps, foreground = world(4, 0)
    maps[1, 0] = maps[1, 0] + torch.inf * foreground[1].view(GRID)
    with pytest.raises(FloatingPointError, match="AST teacher: .*lower its learning rate"):
        train_ast(maps, foreground, QUICK, 0, CPU)


def test_an_input_map_by_hand():
    foreground = torch.tensor([True, False, False, True])
    rgb = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    depth = torch.tensor([[[5.0, 6.0], [7.0, 8.0]]])
    expected = torch.tensor([[[1.0, 0], [0, 3]], [[2, 0], [0, 4]], [[5, 0], [0, 8]]])
    assert torch.equal(ast_input(rgb, foreground, (2, 2), depth), expected)
    # One stored row for both cells, in half precision, read as a standardised feature.
    rows = Rows([rgb[:1].half()], torch.tensor([0, 0])).scaled(1.0, 0.5)
    found = ast_input(rows, foreground, (2, 2), depth)
    assert found.dtype == torch.float32
    assert torch.equal(found[:2], torch.tensor([[[0.0, 0], [0, 0]], [[2, 0], [0, 2]]]))


def test_positions_differ_between_any_two_cells():
    found = position_encoding(9, 11)
    assert found.shape == (32, 9, 11) and found.abs().max() <= 1
    assert torch.equal(found[:8, 3, 0], (3 * 10_000.0 ** -(torch.arange(8) / 8)).sin())
    assert found[:16].std(2).max() == 0 and found[16:].std(1).max() == 0
    flat = found.flatten(1).T
    assert (torch.cdist(flat, flat) + 9 * torch.eye(99)).min() > 0.5


def test_nothing_is_printed(capfd, recwarn):
    train_ast(*world(2, 0), QUICK.replace(ast_epochs=1), 0, CPU)
    assert capfd.readouterr() == ("", "") and not recwarn.list


@pytest.mark.gpu
def test_scores_on_a_gpu_are_those_of_the_cpu(trained):
    data = world(3, 6)
    on_gpu = copy.deepcopy(trained[0]).to("cuda")
    for a, b in zip(score(on_gpu, *data), score(trained[0], *data), strict=True):
        assert a.device.type == "cpu" and torch.allclose(a, b, rtol=1e-2, atol=1e-3)

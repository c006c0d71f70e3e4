"""Student and teacher: the flow is a flow, the student follows it, and what is odd parts them."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from g2sf_lib.baselines.student_teacher import AST, StudentTeacher, position_encoding
from g2sf_lib.config import make_config
from g2sf_lib.memory import Rows

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = (6, 7)
NUM_RGB = 6
SETTINGS = {
    "ast_coupling_blocks": 2,
    "ast_flow_channels": 12,
    "ast_student_channels": 24,
    "ast_student_blocks": 1,
    "ast_depth_px": 1,
    "ast_batch_size": 4,
    "ast_learning_rate": 5e-3,
}


def method(epochs=3, seed=0):
    return AST(make_config("smoke", device="cpu", seed=seed, ast_epochs=epochs, **SETTINGS))


def train(data, folder=None, **settings):
    return method(**settings).fit(scans_of(*data), folder).network


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
    """Networks trained on normal scans."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fixture of a module is made before that of a test
    yield train(world(24, 0), epochs=25)
    torch.set_num_threads(threads)


def scans_of(maps, foreground):
    """Scans of these maps, as `AST` reads them."""
    depths = [one[NUM_RGB:] for one in maps]
    patches = [
        SimpleNamespace(
            cells={"rgb": one[:NUM_RGB].flatten(1)[:, inside].T}, foreground=inside, grid=GRID
        )
        for one, inside in zip(maps, foreground, strict=True)
    ]
    stored = SimpleNamespace(standardiser=lambda cells: cells)
    return SimpleNamespace(patches=patches, depths=lambda px: depths, stored=stored)


def score(ast, maps, foreground):
    """Return the scores of the foreground cells of each scan."""
    scorer = method()
    scorer.network = ast
    return scorer.score_cells(scans_of(maps, foreground)).split(foreground.sum(1).tolist())


def random_ast():
    """A flow that is not the identity."""
    ast = StudentTeacher(5, (3, 2), method().config.ast.replace(ast_coupling_blocks=3)).eval()
    draw = torch.Generator().manual_seed(0)
    for parameter in ast.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
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


def test_a_new_teacher_is_a_permutation():
    """Then the likelihood is that of the standardised input itself."""
    ast = StudentTeacher(5, (3, 2), method().config.ast)
    x, is_inside = ast.standardised(torch.randn(2, 5, 3, 2), torch.ones(2, 6, dtype=torch.bool))
    z, log_det = ast.teach(x, is_inside)
    assert torch.equal(z.sort(dim=1).values, x.sort(dim=1).values)
    assert log_det.eq(0).all()
    assert torch.allclose(ast.nll(x, is_inside), 0.5 * x.square().mean())


def test_both_losses_fall(trained):
    fresh = copy.deepcopy(trained)
    fresh.student = StudentTeacher(NUM_RGB + 1, GRID, method().config.ast).student
    data = world(24, 0)
    assert trained.nll(*trained.standardised(*data)) < 0  # standardised channels start with 1/2
    after, before = (ast.distance(*ast.standardised(*data)).mean() for ast in (trained, fresh))
    assert after < 0.4 * before


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
    scores = [found.numpy() for found in score(trained, odd, foreground)]
    labels = [spot.flatten()[inside].numpy() for inside in foreground]
    assert roc_auc_score(np.concatenate(labels), np.concatenate(scores)) > 0.9
    before = torch.cat(score(trained, maps, foreground))
    assert np.concatenate(scores)[np.concatenate(labels)].mean() > 3 * float(before.mean())


def test_values_on_background_are_read_by_nobody(trained, bytes_of):
    """Which cells are background matters to their neighbours; what is written there does not."""
    maps, foreground = world(6, 0)
    outside = ~foreground.view(6, 1, *GRID)
    noise = 50 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(4))
    noise[0, 0, 0, 0] = torch.nan
    spoiled = torch.where(outside, noise, maps)
    assert outside[0, 0, 0, 0]
    for loss in (trained.nll, trained.distance):
        plain, other = (loss(*trained.standardised(x, foreground)) for x in (maps, spoiled))
        assert torch.equal(plain, other)


def test_same_seed_same_bytes_other_seed_other_bytes(bytes_of):
    data, before = world(6, 0), (torch.get_rng_state(), np.random.get_state()[1].copy())
    first = bytes_of(train(data).state_dict())
    assert torch.equal(torch.get_rng_state(), before[0])  # the caller's random state stays
    assert np.array_equal(np.random.get_state()[1], before[1])
    torch.manual_seed(1)
    np.random.seed(1)
    assert bytes_of(train(data).state_dict()) == first
    assert bytes_of(train(data, seed=1).state_dict()) != first


@pytest.mark.parametrize("written", [1, 3, 4])
def test_an_interrupted_training_ends_with_the_same_bytes(written, tmp_path, kill_after, bytes_of):
    """Killed while the teacher learns, between the two, and while the student learns."""
    data = world(6, 0)
    with kill_after(written):
        train(data, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["student.safetensors"] * (written > 3) + ["teacher.safetensors"]
    assert bytes_of(train(data, tmp_path).state_dict()) == bytes_of(train(data).state_dict())


def test_units_are_those_of_foreground_cells_and_no_channel_is_blown_up():
    maps, foreground = world(6, 0)
    maps[:, 2] = 3.0  # a channel that says nothing
    ast = train((maps, foreground), epochs=1)
    cells = torch.cat(
        [one.flatten(1)[:, inside] for one, inside in zip(maps, foreground, strict=True)], 1
    )
    std = cells.std(1, correction=0)
    std[2] = 0.1 * std[:NUM_RGB].mean()
    torch.testing.assert_close(ast.mean, cells.mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(ast.std, std, atol=1e-5, rtol=1e-4)


def test_an_input_map_by_hand():
    """One stored row for both cells, in half precision, read as a standardised feature."""
    rows = Rows([torch.tensor([[1.0, 2.0]]).half()], torch.tensor([0, 0])).scaled(1.0, 0.5)
    inside = torch.tensor([True, False, False, True])
    patches = [SimpleNamespace(cells={"rgb": rows}, foreground=inside, grid=(2, 2))]
    depth = torch.tensor([[[5.0, 6.0], [7.0, 8.0]]])
    scans = SimpleNamespace(
        patches=patches,
        depths=lambda px: [depth],
        stored=SimpleNamespace(standardiser=lambda cells: cells),
    )
    (found,) = method().maps(scans)
    expected = torch.tensor([[[0.0, 0], [0, 0]], [[2, 0], [0, 2]], [[5, 0], [0, 8]]])
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_positions_differ_between_any_two_cells():
    found = position_encoding(9, 11)
    assert found.shape == (32, 9, 11) and found.abs().max() <= 1
    assert torch.equal(found[:8, 3, 0], (3 * 10_000.0 ** -(torch.arange(8) / 8)).sin())
    assert found[:16].std(2).max() == 0 and found[16:].std(1).max() == 0
    flat = found.flatten(1).T
    assert (torch.cdist(flat, flat) + 9 * torch.eye(99)).min() > 0.5


@pytest.mark.gpu
def test_scores_on_a_gpu_are_those_of_the_cpu(trained):
    data = world(3, 6)
    on_gpu = copy.deepcopy(trained).to("cuda")
    for a, b in zip(score(on_gpu, *data), score(trained, *data), strict=True):
        assert a.device.type == "cpu" and torch.allclose(a, b, rtol=1e-2, atol=1e-3)

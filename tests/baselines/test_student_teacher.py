"""Student and teacher: the flow is a flow, the student follows it, and what is odd parts them."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from g2sf_lib.baselines import student_teacher as module
from g2sf_lib.baselines.student_teacher import (
    AST,
    ast_input,
    depth_map,
    position_encoding,
    train_ast,
)
from g2sf_lib.config import ASTConfig
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
QUICK = dataclasses.replace(SETTINGS, ast_epochs=3)
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

    def keep(*args, **more):
        losses[more["name"]] = original(*args, **more)
        return losses[more["name"]]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fixture of a module is made before that of a test
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_epochs", keep)
        ast = train_ast(*world(24, 0), SETTINGS, 0, CPU)
    torch.set_num_threads(threads)
    return ast, losses


def random_ast(seed=0, channels=5, grid=(3, 2), scale=0.3):
    """A flow that is not the identity."""
    settings = dataclasses.replace(SETTINGS, ast_coupling_blocks=3)
    ast = AST(channels, grid, settings).eval()
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
    assert torch.allclose(ast.invert(z, is_inside), x, atol=1e-9)


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
    ast = AST(5, (3, 2), SETTINGS)
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
    scores = [score.numpy() for score in trained[0].score(odd, foreground)]
    labels = [spot.flatten()[inside].numpy() for inside in foreground]
    assert roc_auc_score(np.concatenate(labels), np.concatenate(scores)) > 0.9
    before = torch.cat(trained[0].score(maps, foreground))
    assert np.concatenate(scores)[np.concatenate(labels)].mean() > 3 * float(before.mean())


def test_unseen_normal_scans_score_as_training_scans_do(trained):
    seen = torch.cat(trained[0].score(*world(24, 0))).mean()
    unseen = torch.cat(trained[0].score(*world(24, 9))).mean()
    assert unseen < 2.5 * seen


def test_scores_are_the_mean_squared_distances_of_foreground_cells(trained):
    ast = trained[0]
    maps, foreground = world(3, 6)
    x, is_inside = ast.standardised(maps, foreground)
    with torch.no_grad():
        difference = ast.imitate(x) - ast.teach(x, is_inside)[0]
    scores = ast.score(maps, foreground)
    assert [len(score) for score in scores] == foreground.sum(1).tolist()
    for one, inside, score in zip(difference, foreground, scores, strict=True):
        expected = one.flatten(1)[:, inside].square().mean(0)
        assert torch.allclose(score, expected, atol=1e-5) and not score.requires_grad


def test_a_score_does_not_depend_on_its_company_nor_on_the_mode(trained):
    ast = trained[0]
    maps, foreground = world(4, 6)
    together = ast.score(maps, foreground)
    alone = ast.score(maps[2:3], foreground[2:3])[0]
    assert torch.equal(together[2], alone)
    ast.train()
    assert torch.equal(ast.score(maps, foreground)[2], alone)


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
    assert bytes_of(found.tensors()) == bytes_of(clean.tensors())
    for a, b in zip(
        trained[0].score(maps, foreground),
        trained[0].score(spoiled(maps, foreground), foreground),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_scan_of_background_alone_changes_nothing_but_the_order():
    maps, foreground = world(3, 0)
    nothing = torch.zeros_like(foreground[0])
    one_batch = dataclasses.replace(QUICK, ast_batch_size=1)
    ast = train_ast([*maps, maps[0]], [*foreground, nothing], one_batch, 0, CPU)
    assert all(bool(torch.isfinite(value).all()) for value in ast.tensors().values())
    assert [len(s) for s in ast.score(maps[:1], nothing[None])] == [0]


def test_same_seed_same_bytes_other_seed_other_bytes(bytes_of):
    data = world(6, 0)
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1)
    np.random.seed(1)
    first = train_ast(*data, QUICK, 0, CPU).tensors()
    assert torch.equal(torch.rand(3), expected[0])  # the caller's random state stays
    assert np.array_equal(np.random.rand(3), expected[1])
    assert bytes_of(train_ast(*data, QUICK, 0, CPU).tensors()) == bytes_of(first)
    assert bytes_of(train_ast(*data, QUICK, 1, CPU).tensors()) != bytes_of(first)


def test_two_threads_give_the_same_bytes_twice(bytes_of):
    torch.set_num_threads(2)
    data = world(6, 0)
    first, second = (train_ast(*data, QUICK, 0, CPU).tensors() for _ in range(2))
    assert bytes_of(first) == bytes_of(second)


@pytest.mark.parametrize("written", [1, 3, 4])
def test_an_interrupted_training_ends_with_the_same_bytes(written, tmp_path, kill_after, bytes_of):
    """Killed while the teacher learns, between the two, and while the student learns."""
    data = world(6, 0)
    with kill_after(written):
        train_ast(*data, QUICK, 0, CPU, tmp_path / "ast")
    names = sorted(path.name for path in (tmp_path / "ast").iterdir())
    assert names == ["student.safetensors"] * (written > 3) + ["teacher.safetensors"]
    again = train_ast(*data, QUICK, 0, CPU, tmp_path / "ast")
    assert bytes_of(again.tensors()) == bytes_of(train_ast(*data, QUICK, 0, CPU).tensors())


def test_a_checkpoint_of_other_scans_is_not_used(tmp_path, bytes_of):
    train_ast(*world(6, 0), QUICK, 0, CPU, tmp_path)
    found = train_ast(*world(6, 1), QUICK, 0, CPU, tmp_path)
    expected = train_ast(*world(6, 1), QUICK, 0, CPU)
    assert bytes_of(found.tensors()) == bytes_of(expected.tensors())


def test_half_precision_maps_are_enough(trained):
    maps, foreground = world(24, 0)
    ast = train_ast(maps.half(), foreground, SETTINGS, 0, CPU)
    half, full = (torch.cat(net.score(*world(6, 7))) for net in (ast, trained[0]))
    assert half.dtype == torch.float32
    assert 0.5 < float(half.mean() / full.mean()) < 2


def test_tensors_make_the_same_networks(trained, bytes_of):
    tensors = {name: value.clone() for name, value in trained[0].tensors().items()}
    again = AST.from_tensors(tensors, SETTINGS)
    assert bytes_of(again.tensors()) == bytes_of(tensors)
    data = world(2, 8)
    for a, b in zip(again.score(*data), trained[0].score(*data), strict=True):
        assert torch.equal(a, b)


def test_foreign_tensors_are_refused(trained):
    tensors = trained[0].tensors()
    fewer = {name: value for name, value in tensors.items() if name != "student.0.bias"}
    wider = dataclasses.replace(SETTINGS, ast_student_channels=25)
    for wrong, settings in ((fewer, SETTINGS), ({}, SETTINGS), (tensors, wider)):
        with pytest.raises(ValueError, match="AST.from_tensors: not the tensors of an AST"):
            AST.from_tensors(wrong, settings)


def test_units_are_those_of_foreground_cells_and_no_channel_is_blown_up():
    maps, foreground = world(6, 0)
    maps[:, 2] = 3.0  # a channel that says nothing
    ast = train_ast(maps, foreground, dataclasses.replace(QUICK, ast_epochs=1), 0, CPU)
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
    with pytest.raises(FloatingPointError, match="AST teacher: .*lower ast_learning_rate"):
        train_ast(maps, foreground, QUICK, 0, CPU)


def test_scans_that_do_not_fit_are_refused():
    maps, foreground = world(3, 0)
    with pytest.raises(ValueError, match="0 maps"):
        train_ast([], [], QUICK, 0, CPU)
    with pytest.raises(ValueError, match="3 maps and 2 foregrounds"):
        train_ast(maps, foreground[:2], QUICK, 0, CPU)
    with pytest.raises(ValueError, match="scan 2 has a map of shape .7, 6, 6"):
        train_ast([*maps[:2], maps[2, :, :, :6]], foreground, QUICK, 0, CPU)
    with pytest.raises(ValueError, match="no foreground cell"):
        train_ast(maps, foreground & False, QUICK, 0, CPU)


def test_maps_of_another_shape_are_refused(trained):
    maps, foreground = world(2, 0)
    for wrong in ((maps[:, :6], foreground), (maps, foreground[:1]), (maps, foreground[:, 1:])):
        with pytest.raises(ValueError, match=r"AST.score: .*expected \(B, 7, 6, 7\) and \(B, 42\)"):
            trained[0].score(*wrong)


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


def test_an_input_map_of_parts_that_do_not_fit_is_refused():
    foreground, depth = torch.tensor([True, False, False, True]), torch.zeros(1, 2, 2)
    for wrong in (
        (torch.zeros(3, 2), foreground, (2, 2), depth),
        (torch.zeros(2, 2), foreground, (2, 3), depth),
        (torch.zeros(2, 2), foreground, (2, 2), torch.zeros(1, 4, 4)),
    ):
        with pytest.raises(ValueError, match="ast_input: "):
            ast_input(*wrong)


def test_depth_is_relative_in_millimetres_and_unshuffled():
    """A 4 x 4 picture, 2 x 2 cells of 2 x 2 samples: nothing is resized."""
    height = np.arange(16.0).reshape(4, 4)  # millimetres
    xyz = np.ones((4, 4, 3), np.float32)
    xyz[..., 2] = 0.4 + height / 1000
    found = depth_map(xyz, 2, 2)
    assert found.shape == (4, 2, 2) and found.dtype == torch.float32
    relative = torch.from_numpy(height - 7.5).float()
    for i in range(2):
        for j in range(2):
            assert torch.allclose(found[2 * i + j], relative[i::2, j::2], atol=1e-4)
    farther = xyz + np.array([0.1, 0, 0.25], np.float32)
    assert torch.allclose(depth_map(farther, 2, 2), found, atol=1e-3)


def test_small_holes_are_closed_and_the_rest_is_zero():
    xyz = np.zeros((40, 40, 3), np.float32)
    xyz[:, :20] = (0.1, 0.1, 0.5)
    xyz[:20, :20, 2] = 0.502
    xyz[5:11, 5:11] = 0  # six pixels wide
    found = depth_map(xyz, 40, 1)[0]
    top = found[0, 0]
    assert 0.5 < float(top) < 1.5 and torch.allclose(found[5:11, 5:11], top.expand(6, 6))
    assert found[:, 23:].eq(0).all() and found[:, 22].ne(0).all()


def test_depth_is_read_at_the_nearest_pixel():
    xyz = np.ones((9, 6, 3), np.float32)
    xyz[..., 2] = 0.3 + np.arange(54).reshape(9, 6) / 1000
    found = depth_map(xyz, 3, 1)[0]
    middle = torch.tensor([[1.0], [4], [7]]) * 6 + torch.tensor([1.0, 3, 5])
    assert torch.allclose(found, middle - 26.5, atol=1e-4)


def test_a_scan_without_points_is_refused():
    with pytest.raises(ValueError, match="depth_map: no point"):
        depth_map(np.zeros((8, 8, 3), np.float32), 2, 2)
    with pytest.raises(ValueError, match="depth_map: points of shape"):
        depth_map(np.zeros((8, 8), np.float32), 2, 2)


def test_positions_differ_between_any_two_cells():
    found = position_encoding(9, 11)
    assert found.shape == (32, 9, 11) and found.abs().max() <= 1
    assert torch.equal(found[:8, 3, 0], (3 * 10_000.0 ** -(torch.arange(8) / 8)).sin())
    assert found[:16].std(2).max() == 0 and found[16:].std(1).max() == 0
    flat = found.flatten(1).T
    assert (torch.cdist(flat, flat) + 9 * torch.eye(99)).min() > 0.5


def test_nothing_is_printed(capfd, recwarn):
    train_ast(*world(2, 0), dataclasses.replace(QUICK, ast_epochs=1), 0, CPU)
    assert capfd.readouterr() == ("", "") and not recwarn.list


@pytest.mark.gpu
def test_scores_on_a_gpu_are_those_of_the_cpu(trained):
    data = world(3, 6)
    on_gpu = AST.from_tensors(trained[0].tensors(), SETTINGS).to("cuda")
    for a, b in zip(on_gpu.score(*data), trained[0].score(*data), strict=True):
        assert a.device.type == "cpu" and torch.allclose(a, b, rtol=1e-2, atol=1e-3)

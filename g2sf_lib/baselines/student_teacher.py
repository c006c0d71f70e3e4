"""Asymmetric student and teacher (AST): where a network fails to imitate a flow.

The teacher is a normalising flow that turns the map of a normal scan into Gaussian noise, one
to one. The student is a plain convolutional network that learns to give the same outputs. They
are built so differently that what neither has seen sets them apart: a cell's score is their
distance.

Both read one map a scan, (C, rows, columns): the RGB features of the common grid, and the
depth samples of each cell as further channels. Shapes: B scans, C channels, cells = rows *
columns in row-major order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from g2sf_lib.baselines.loop import build_seeded, fingerprint, train_epochs
from g2sf_lib.config import ASTConfig
from g2sf_lib.features import nearest_index
from g2sf_lib.memory import Rows, as_rows

POSITION_CHANNELS = 32
CLAMP = 1.9  # |log scale| of a coupling is at most this
LEAK = 0.2  # slope of the student's leaky ReLU
FILL_ROUNDS = 3  # holes of the depth image are closed from their rims
UNITS_PER_METRE = 1000.0  # millimetres: relief and defects are of order one


def depth_map(xyz: np.ndarray, grid_size: int, px: int) -> Tensor:
    """Return the depth samples of each cell, as channels.

    Depth is relative to the mean of the scan, so that it says how far a pixel stands out and
    not how far away the part lies. Three times, a pixel without a point takes the mean of its
    neighbours that have one, so holes up to six pixels wide are closed; pixels farther from any
    point are zero.

    Args:
        xyz: (H, W, 3) metres; (0, 0, 0) where there is no point.
        grid_size: cells along each side.
        px: samples along each side of a cell, read at the nearest pixel.

    Returns:
        (px * px, grid_size, grid_size) float32, millimetres; channel i * px + j is the
        sample in row i and column j of the cell.

    Raises:
        ValueError: there is no point, or the shape is another.

    Source: as of `AST`, whose paper unshuffles its depth images too. Ours: the unit, and how
    holes are closed.
    """
    if xyz.ndim != 3 or xyz.shape[2] != 3:
        raise ValueError(f"depth_map: points of shape {xyz.shape}; expected (H, W, 3)")
    has_depth = (xyz != 0).any(-1)
    if not has_depth.any():
        raise ValueError("depth_map: no point; expected a scan of an object")
    z = xyz[..., 2].astype(np.float64)
    depth = np.where(has_depth, (z - z[has_depth].mean()) * UNITS_PER_METRE, 0.0)
    for _ in range(FILL_ROUNDS):
        share = ndimage.uniform_filter(has_depth.astype(np.float64), 3, mode="constant")
        mean = ndimage.uniform_filter(depth, 3, mode="constant") / np.maximum(share, 1e-9)
        is_rim = ~has_depth & (share > 0.1)  # a ninth: one neighbour
        depth[is_rim] = mean[is_rim]
        has_depth |= is_rim
    rows, columns = (nearest_index(side, grid_size * px) for side in depth.shape)
    samples = torch.from_numpy(depth[np.ix_(rows, columns)].astype(np.float32))
    return pixel_unshuffle(samples[None], px)


def ast_input(
    cells: Rows | Tensor, foreground: Tensor, grid: tuple[int, int], depth: Tensor
) -> Tensor:
    """Return the map (D + px * px, rows, columns) of one scan, float32, zero on background.

    Args:
        cells: (n, D) RGB features of the foreground cells, row-major.
        foreground: (cells,) bool, n of them True.
        grid: (rows, columns).
        depth: (px * px, rows, columns) of `depth_map`.

    Raises:
        ValueError: the parts do not fit each other.
    """
    rows, columns = grid
    num = int(foreground.sum())
    fits = foreground.shape == (rows * columns,) and tuple(depth.shape[1:]) == (rows, columns)
    if not fits or len(cells) != num:
        raise ValueError(
            f"ast_input: {len(cells)} features, foreground of shape {tuple(foreground.shape)} with "
            f"{num} cells, depth of shape {tuple(depth.shape)}; expected as many features as "
            f"foreground cells, on a grid of {rows} x {columns}"
        )
    rgb = as_rows(cells)[:]
    flat = rgb.new_zeros(rgb.shape[1] + len(depth), rows * columns)
    flat[: rgb.shape[1], foreground] = rgb.T
    flat[rgb.shape[1] :, foreground] = depth.to(rgb).flatten(1)[:, foreground]
    return flat.view(-1, rows, columns)


def position_encoding(rows: int, columns: int, channels: int = POSITION_CHANNELS) -> Tensor:
    """Return (channels, rows, columns) sines and cosines: half of the channels tell the row.

    Args:
        rows: of the grid.
        columns: of the grid.
        channels: divisible by 4; wave lengths grow from 2 pi cells to ten thousand times that.
    """
    num = channels // 4
    frequency = 10_000.0 ** -(torch.arange(num) / num)
    row = frequency[:, None] * torch.arange(rows)
    column = frequency[:, None] * torch.arange(columns)
    return torch.cat(
        [
            torch.cat([row.sin(), row.cos()])[:, :, None].expand(-1, -1, columns),
            torch.cat([column.sin(), column.cos()])[:, None, :].expand(-1, rows, -1),
        ]
    )


class _Subnet(nn.Module):
    """Log scale and shift of a coupling block; both are zero on background.

    So a background cell passes the flow as it is and adds nothing to the log-determinant.
    The last channel of the input is the foreground. It starts at zero, the flow as identity.
    """

    def __init__(self, num_in: int, num_out: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(num_in, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, num_out, 1)
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * x[:, -1:]


def _flow(channels: int, grid: tuple[int, int], settings: ASTConfig) -> nn.Module:
    """Return the teacher: permutations and affine couplings that know position and foreground."""
    # Imported here, since it takes a second that only those who use AST should wait.
    import FrEIA.framework as Ff
    import FrEIA.modules as Fm

    flow = Ff.SequenceINN(channels, *grid)
    numpy_state = np.random.get_state()  # the permutations are drawn from it, after a seed
    for number in range(settings.ast_coupling_blocks):
        flow.append(Fm.PermuteRandom, seed=number)
        flow.append(
            Fm.GLOWCouplingBlock,
            cond=0,
            cond_shape=(POSITION_CHANNELS + 1, *grid),
            subnet_constructor=lambda i, o: _Subnet(i, o, settings.ast_flow_channels),
            clamp=CLAMP,
        )
    np.random.set_state(numpy_state)
    return flow


class _Residual(nn.Module):
    """Two 3 x 3 convolutions whose result is added to their input."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(LEAK),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _student(channels: int, settings: ASTConfig) -> nn.Sequential:
    """Return the student: from the map and its positions to the teacher's outputs."""
    width = settings.ast_student_channels
    return nn.Sequential(
        nn.Conv2d(channels + POSITION_CHANNELS, width, 3, padding=1),
        nn.LeakyReLU(LEAK),
        *(_Residual(width) for _ in range(settings.ast_student_blocks)),
        nn.Conv2d(width, channels, 3, padding=1),
    )


class AST(nn.Module):
    """Teacher, student, and the units of their inputs.

    What a map says on background cells is not read: after standardising they are zero, so
    scores and trained parameters do not depend on them. Which cells are background matters,
    for convolutions read the zeros, and the teacher is told.

    Args:
        channels: C of the maps.
        grid: (rows, columns) of the maps.
        settings: sizes of both networks.

    Source: Rudolph et al., "Asymmetric Student-Teacher Networks for Industrial Anomaly
    Detection", WACV 2023. Ours: a coupling's scale and shift come from one network, whose
    second convolution is 1 x 1; the teacher's condition tells the foreground too; every
    channel is standardised.
    """

    def __init__(self, channels: int, grid: tuple[int, int], settings: ASTConfig):
        super().__init__()
        self.teacher = _flow(channels, grid, settings)
        self.student = _student(channels, settings)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("position", position_encoding(*grid))

    def standardised(self, maps: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, C, rows, columns), zero on background, and (B, 1, rows, columns).

        Args:
            maps: (B, C, rows, columns), of any float type.
            foreground: (B, cells) bool.
        """
        maps = maps.to(self.mean)
        is_inside = foreground.to(maps.device).view(len(maps), 1, *maps.shape[2:])
        scaled = (maps - self.mean[:, None, None]) / self.std[:, None, None]
        return torch.where(is_inside, scaled, 0.0), is_inside

    def teach(self, x: Tensor, is_inside: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's outputs (B, C, rows, columns) and log-determinants (B,).

        Args:
            x: (B, C, rows, columns) of `standardised`.
            is_inside: (B, 1, rows, columns) bool.
        """
        return self.teacher(x, c=[self._condition(x, is_inside)])

    def invert(self, z: Tensor, is_inside: Tensor) -> Tensor:
        """Return the inputs whose outputs `teach` gives as z."""
        return self.teacher(z, c=[self._condition(z, is_inside)], rev=True)[0]

    def imitate(self, x: Tensor) -> Tensor:
        """Return the student's outputs (B, C, rows, columns)."""
        return self.student(torch.cat([x, self._positions(x)], dim=1))

    def nll(self, x: Tensor, is_inside: Tensor) -> Tensor:
        """Return the negative log-likelihood, mean over foreground cells and channels.

        The part that does not depend on the flow, log(2 pi) / 2, is left out, so 1/2 is what
        standardised channels start with.
        """
        z, log_det = self.teach(x, is_inside)
        num = is_inside.sum() * x.shape[1]
        return (0.5 * (z * is_inside).square().sum() - log_det.sum()) / num

    def distance(self, x: Tensor, is_inside: Tensor) -> Tensor:
        """Return squared distances (B, rows, columns) of both outputs, mean over channels."""
        with torch.no_grad():
            z, _ = self.teach(x, is_inside)
        return (self.imitate(x) - z).square().mean(1)

    @torch.no_grad()
    def score(self, maps: Tensor, foreground: Tensor) -> list[Tensor]:
        """Return the scores of the foreground cells of every scan, on the CPU.

        One scan at a time, so a score does not depend on the company it is computed in.

        Args:
            maps: (B, C, rows, columns) of `ast_input`, on any device.
            foreground: (B, cells) bool.

        Returns:
            B tensors (n_b,), row-major, not negative: squared distance of student and
            teacher, mean over channels.

        Raises:
            ValueError: the maps are not of the shape that this was trained on.
        """
        expected = (len(self.mean), *self.position.shape[1:])
        cells = expected[1] * expected[2]
        if tuple(maps.shape[1:]) != expected or foreground.shape != (len(maps), cells):
            raise ValueError(
                f"AST.score: maps of shape {tuple(maps.shape)}, foreground of shape "
                f"{tuple(foreground.shape)}; expected (B, {', '.join(map(str, expected))}) "
                f"and (B, {cells})"
            )
        self.eval()
        scores = []
        for one, inside in zip(maps.split(1), foreground.split(1), strict=True):
            distance = self.distance(*self.standardised(one, inside)).cpu()
            scores.append(distance.flatten()[inside[0].cpu()])
        return scores

    def tensors(self) -> dict[str, Tensor]:
        """Return what `from_tensors` needs to make the same networks, name -> tensor."""
        return {name: value.detach() for name, value in self.state_dict().items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], settings: ASTConfig) -> AST:
        """Return the networks that `tensors` came from, on the CPU, ready to score.

        Args:
            tensors: of `tensors`.
            settings: those that the networks were trained with.

        Raises:
            ValueError: the tensors are not those of networks of these settings.
        """
        try:
            rows, columns = tensors["position"].shape[1:]
            ast = cls(len(tensors["mean"]), (rows, columns), settings)
            ast.load_state_dict(dict(tensors))
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"AST.from_tensors: not the tensors of an AST of these settings: {error}"
            ) from error
        return ast.eval()

    def _positions(self, x: Tensor) -> Tensor:
        return self.position.expand(len(x), -1, -1, -1)

    def _condition(self, x: Tensor, is_inside: Tensor) -> Tensor:
        return torch.cat([self._positions(x), is_inside.to(x)], dim=1)


def train_ast(
    maps: Sequence[Tensor],
    foreground: Sequence[Tensor],
    settings: ASTConfig,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> AST:
    """Return teacher and student, trained on the foreground cells of normal scans.

    First the teacher, by the negative log-likelihood; then the student, by its squared
    distance to the frozen teacher. An epoch takes every scan once, in an order of its own.

    Args:
        maps: (C, rows, columns) of `ast_input`, one a scan; half precision is enough.
        foreground: (cells,) bool, one a scan.
        settings: sizes of both networks, epochs, scans a batch, learning rate.
        seed: of the initial weights and of the orders.
        device: where both are trained and stay.
        checkpoint: a folder for the checkpoint of either, see `train_epochs`; None: nothing
            is written.
        progress: whether progress bars are shown.

    Returns:
        AST, in evaluation mode.

    Raises:
        ValueError: there is no foreground cell, or the shapes differ.
        FloatingPointError: a loss is no longer finite.
        StoredFileError: a checkpoint is damaged.

    Source: as of `AST`.
    """
    _check(maps, foreground)
    ast = build_seeded(lambda: AST(len(maps[0]), tuple(maps[0].shape[1:]), settings), seed)
    ast.mean, ast.std = _units(maps, foreground, settings.ast_depth_px**2)
    ast.to(device)
    known = fingerprint(settings, itertools.chain(maps, foreground))

    def train(module: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], name: str) -> None:
        learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimiser = torch.optim.Adam(learned, lr=settings.ast_learning_rate)

        def run_epoch(generator: torch.Generator) -> float:
            total, num = 0.0, 0
            order = torch.randperm(len(maps), generator=generator)
            for scans in order.split(settings.ast_batch_size):
                inside = torch.stack([foreground[i] for i in scans]).to(device)
                if not inside.any():
                    continue
                batch = torch.stack([maps[i].to(device).float() for i in scans])
                loss = loss_of(*ast.standardised(batch, inside))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                cells = int(inside.sum())
                total, num = total + float(loss.detach()) * cells, num + cells
            return total / num

        train_epochs(
            module,
            optimiser,
            run_epoch,
            settings.ast_epochs,
            seed,
            checkpoint=None if checkpoint is None else checkpoint / f"{name}.safetensors",
            fingerprint=known,
            name=f"AST {name}",
            lower="ast_learning_rate",
            progress=progress,
        )

    def student_loss(x: Tensor, is_inside: Tensor) -> Tensor:
        return ast.distance(x, is_inside)[is_inside[:, 0]].mean()

    ast.train()
    train(ast.teacher, ast.nll, "teacher")
    train(ast.student, student_loss, "student")
    return ast.eval()


def _check(maps: Sequence[Tensor], foreground: Sequence[Tensor]) -> None:
    """Refuse scans that do not fit together."""
    if not len(maps) or len(maps) != len(foreground):
        raise ValueError(
            f"train_ast: {len(maps)} maps and {len(foreground)} foregrounds; expected as many, "
            "at least 1"
        )
    shape = tuple(maps[0].shape)
    for number, (one, inside) in enumerate(zip(maps, foreground, strict=True)):
        if len(shape) != 3 or tuple(one.shape) != shape or inside.shape != (shape[1] * shape[2],):
            raise ValueError(
                f"train_ast: scan {number} has a map of shape {tuple(one.shape)} and a foreground "
                f"of shape {tuple(inside.shape)}; expected (C, rows, columns) and (rows * "
                f"columns,), as scan 0 with {shape}"
            )
    if not any(bool(inside.any()) for inside in foreground):
        raise ValueError("train_ast: no foreground cell in any scan")


def _units(
    maps: Sequence[Tensor], foreground: Sequence[Tensor], num_depth: int
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C,) of every channel over foreground cells.

    A channel that hardly varies would be blown up by what varies in a defect: no deviation is
    less than a tenth of the mean one of its kind, RGB or depth (the last `num_depth`).
    """
    num, total, squares = 0, 0.0, 0.0
    for one, inside in zip(maps, foreground, strict=True):
        cells = one.cpu().flatten(1)[:, inside.cpu()].double()  # (C, n)
        num += cells.shape[1]
        total, squares = total + cells.sum(1), squares + cells.square().sum(1)
    mean = total / num
    std = (squares / num - mean.square()).clamp_min(0).sqrt()
    for kind in (std[:-num_depth], std[-num_depth:]):  # views
        floor = 0.1 * float(kind.mean()) if kind.any() else 1.0
        kind.clamp_min_(floor)
    return mean.float(), std.float()

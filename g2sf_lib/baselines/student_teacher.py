"""Asymmetric student and teacher (AST): where a network fails to imitate a flow.

The teacher is a normalising flow that turns the map of a normal scan into Gaussian noise; the
student, a plain convolutional network, learns to give the same outputs. What neither has seen
sets them apart: a cell's score is their distance.

Both read one map a scan, (C, rows, columns): RGB features and depth samples of its cells.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from g2sf_lib.baselines.loop import build_seeded, train_epochs
from g2sf_lib.baselines.scans import Scans, Scorer
from g2sf_lib.config import ASTConfig
from g2sf_lib.memory import as_rows

POSITION_CHANNELS = 32
CLAMP = 1.9  # |log scale| of a coupling is at most this
LEAK = 0.2  # slope of the student's leaky ReLU


def position_encoding(rows: int, columns: int) -> Tensor:
    """Return (channels, rows, columns) sines and cosines: half of the channels tell the row."""
    num = POSITION_CHANNELS // 4
    frequency = 10_000.0 ** -(torch.arange(num) / num)
    row = frequency[:, None, None] * torch.arange(rows)[:, None].expand(rows, columns)
    column = frequency[:, None, None] * torch.arange(columns).expand(rows, columns)
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()])


class _Subnet(nn.Module):
    """Log scale and shift of a coupling: zero at the start, and on background (last channel)."""

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
    import FrEIA.framework as Ff  # takes a second that only those who use AST should wait
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
        layers = []
        for _ in range(2):
            layers += [nn.Conv2d(channels, channels, 3, padding=1)]
            layers += [nn.BatchNorm2d(channels), nn.LeakyReLU(LEAK)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class StudentTeacher(nn.Module):
    """Teacher, student, and the units of their inputs, maps (B, C, rows, columns).

    Background cells are zero after standardising, and the teacher is told which they are.

    Source: Rudolph et al., "Asymmetric Student-Teacher Networks for Industrial Anomaly
    Detection", WACV 2023. Ours: a coupling's scale and shift come from one network, whose
    second convolution is 1 x 1; the teacher's condition tells the foreground too; every
    channel is standardised.
    """

    def __init__(self, channels: int, grid: tuple[int, int], settings: ASTConfig):
        super().__init__()
        self.teacher = _flow(channels, grid, settings)
        width = settings.ast_student_channels
        self.student = nn.Sequential(
            nn.Conv2d(channels + POSITION_CHANNELS, width, 3, padding=1),
            nn.LeakyReLU(LEAK),
            *(_Residual(width) for _ in range(settings.ast_student_blocks)),
            nn.Conv2d(width, channels, 3, padding=1),
        )
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("position", position_encoding(*grid))

    def standardised(self, maps: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs, zero on background, and the foreground: (B, cells), now of their shape."""
        maps = maps.to(self.mean)
        is_inside = foreground.to(maps.device).view(len(maps), 1, *maps.shape[2:])
        scaled = (maps - self.mean[:, None, None]) / self.std[:, None, None]
        return torch.where(is_inside, scaled, 0.0), is_inside

    def teach(self, x: Tensor, is_inside: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        """Return the teacher's outputs, or inputs of outputs (`rev`), and log-determinants (B,)."""
        return self.teacher(x, c=[torch.cat([self._positions(x), is_inside.to(x)], 1)], rev=rev)

    def nll(self, x: Tensor, is_inside: Tensor) -> Tensor:
        """Return the negative log-likelihood, less log(2 pi) / 2, mean over cells and channels."""
        z, log_det = self.teach(x, is_inside)
        num = is_inside.sum() * x.shape[1]
        return (0.5 * (z * is_inside).square().sum() - log_det.sum()) / num

    def distance(self, x: Tensor, is_inside: Tensor) -> Tensor:
        """Return (n,) squared distances of both outputs on foreground cells, mean over channels."""
        with torch.no_grad():
            z, _ = self.teach(x, is_inside)
        imitated = self.student(torch.cat([x, self._positions(x)], dim=1))
        return (imitated - z).square().mean(1)[is_inside[:, 0]]

    def _positions(self, x: Tensor) -> Tensor:
        return self.position.expand(len(x), -1, -1, -1)


def _units(
    maps: Sequence[Tensor], foreground: Sequence[Tensor], num_depth: int
) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (C,) of channels, at least a tenth of its kind's mean deviation."""
    num, total, squares = 0, 0.0, 0.0
    for one, inside in zip(maps, foreground, strict=True):
        cells = one.cpu().flatten(1)[:, inside.cpu()].double()  # (C, n)
        num += cells.shape[1]
        total, squares = total + cells.sum(1), squares + cells.square().sum(1)
    mean = total / num
    std = (squares / num - mean.square()).clamp_min(0).sqrt()
    for kind in (std[:-num_depth], std[-num_depth:]):  # views
        kind.clamp_min_(0.1 * float(kind.mean()) if kind.any() else 1.0)
    return mean.float(), std.float()


class AST(Scorer):
    """The squared distance of student and teacher, mean over channels."""

    def fit(self, train: Scans, folder: Path | None = None, progress: bool = False) -> Self:
        """Train the teacher on normal scans, then the student; an epoch takes each scan once."""
        settings, seed = self.config.ast, self.config.seed
        maps, foreground = list(self.maps(train)), [p.foreground for p in train.patches]
        channels, *grid = maps[0].shape
        ast = build_seeded(lambda: StudentTeacher(channels, tuple(grid), settings), seed)
        ast.mean, ast.std = _units(maps, foreground, settings.ast_depth_px**2)
        self.network = ast.to(self.device).train()

        def train_one(name: str, loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
            module = getattr(ast, name)
            learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
            optimiser = torch.optim.Adam(learned, lr=settings.ast_learning_rate)

            def run_epoch(generator: torch.Generator) -> float:
                total, num = 0.0, 0
                order = torch.randperm(len(maps), generator=generator)
                for scans in order.split(settings.ast_batch_size):
                    inside = torch.stack([foreground[i] for i in scans]).to(self.device)
                    batch = torch.stack([maps[i].to(self.device).float() for i in scans])
                    loss = loss_of(*ast.standardised(batch, inside))
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    cells = int(inside.sum())
                    total, num = total + float(loss.detach()) * cells, num + cells
                return total / num

            place, epochs = folder and folder / f"{name}.safetensors", settings.ast_epochs
            train_epochs(module, optimiser, run_epoch, epochs, seed, place, f"AST {name}", progress)

        train_one("teacher", ast.nll)
        train_one("student", lambda x, is_inside: ast.distance(x, is_inside).mean())
        ast.eval()
        return self

    @torch.no_grad()
    def score_cells(self, scans: Scans) -> Tensor:
        """Return (n,) distances; one scan at a time, so none depends on its company."""
        net, pairs = self.network, zip(self.maps(scans), scans.patches, strict=True)
        given = (net.standardised(one[None], p.foreground[None]) for one, p in pairs)
        return torch.cat([net.distance(*each).cpu() for each in given])

    def maps(self, scans: Scans) -> Iterator[Tensor]:
        """Yield RGB features and depth of each scan, (D + px * px, rows, columns)."""
        depths = scans.depths(self.config.ast.ast_depth_px)
        for p, depth in zip(scans.patches, depths, strict=True):
            rgb = as_rows(scans.stored.standardiser(p.cells)["rgb"])[:].T
            one = rgb.new_zeros(len(rgb) + len(depth), len(p.foreground))
            depth = depth.to(rgb).flatten(1)[:, p.foreground]
            one[:, p.foreground] = torch.cat([rgb, depth])
            yield one.view(-1, *p.grid)

    def build(self, tensors: dict[str, Tensor]) -> StudentTeacher:
        """Return networks for maps of the shape that was stored."""
        grid = tuple(tensors["position"].shape[1:])
        return StudentTeacher(len(tensors["mean"]), grid, self.config.ast)

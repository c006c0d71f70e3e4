import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from skimage import data

from g2sf_lib.config import ConfigError, make_config
from g2sf_lib.features import rgb
from g2sf_lib.features.checkpoints import WeightsError
from g2sf_lib.features.rgb import RGBFeatures, load_model, packaged_weights

CONFIG = make_config().features
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def features():
    return RGBFeatures(CONFIG, CPU)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A small transformer with random weights, and a config that reads them from a file."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(model.state_dict(), path)
    config = CONFIG.replace(
        rgb_model="vit_tiny_patch16_224", rgb_weights=str(path), rgb_size=224, grid_size=28
    )
    return model.eval(), config


def blot(image, row, column, side=10):
    image = image.copy()
    half = side // 2
    image[row - half : row + half, column - half : column + half] = (200, 30, 30)
    return image


# --- the packaged weights ---


def test_packaged_weights_fill_every_tensor():
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights, expected = packaged_weights(model), model.state_dict()
    assert weights.keys() == expected.keys() and len(weights) == 296
    assert all(weights[key].shape == expected[key].shape for key in expected)


@pytest.mark.parametrize(
    ("picture", "allowed"),
    [("chelsea", {281, 282, 285}), ("coffee", {967})],  # tabby, tiger, Egyptian cat; espresso
)
def test_packaged_weights_know_what_they_see(picture, allowed):
    image = getattr(data, picture)()
    margin = (image.shape[1] - image.shape[0]) // 2
    image = image[:, margin : margin + image.shape[0]] if picture == "chelsea" else image
    model = load_model(CONFIG).eval()
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    x = torch.nn.functional.interpolate(x, (224, 224), mode="bicubic", antialias=True)
    cfg = model.pretrained_cfg
    assert cfg["mean"] == (0.5, 0.5, 0.5) and cfg["std"] == (0.5, 0.5, 0.5)
    with torch.no_grad():
        chance = model((x - 0.5) / 0.5).softmax(1)[0]
    assert int(chance.argmax()) in allowed
    assert chance[list(allowed)].sum() > 0.8


# --- features of a convolutional network ---


def test_shape_and_type(features, scan_rgb):
    feat = features([scan_rgb(seed=0), scan_rgb(size=100, seed=1)])
    assert feat.shape == (2, 784, 152) and feat.dtype == torch.float32
    assert torch.isfinite(feat).all() and feat.std() > 0.1


def test_features_are_local_means_of_strides_8_and_16(features, scan_rgb):
    image = scan_rgb(size=448)
    model = timm.create_model(
        "tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=(2, 3)
    ).eval()
    weights = packaged_weights(features.model)
    model.load_state_dict({key: weights[key] for key in model.state_dict()})
    x = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        stride8, stride16 = (level[0] for level in model(x))
    assert stride8.shape == (40, 56, 56) and stride16.shape == (112, 28, 28)
    feat = features([image])[0].reshape(28, 28, 152)

    def local_mean(level, row, column):
        return level[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].mean((1, 2))

    for row, column in [(0, 0), (0, 13), (27, 5), (11, 27), (9, 20)]:
        below = [(2 * row + i, 2 * column + j) for i in (0, 1) for j in (0, 1)]
        fine = torch.stack([local_mean(stride8, *at) for at in below]).mean(0)
        expected = torch.cat([fine, local_mean(stride16, row, column)])
        torch.testing.assert_close(feat[row, column], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", [(5, 17), (17, 4)])
def test_a_blot_changes_the_cell_where_it_is(features, scan_rgb, cell):
    row, column = (round((part + 0.5) * 256 / 28) for part in cell)
    plain = scan_rgb()
    before, after = (features([image])[0] for image in (plain, blot(plain, row, column)))
    change = (after - before).norm(dim=1).reshape(28, 28)
    assert divmod(int(change.argmax()), 28) == cell
    row, column = cell
    mirrored = [(row, 27 - column), (27 - row, column), (column, row), (27 - column, 27 - row)]
    assert all(change[other] < 0.1 * change[cell] for other in mirrored)


def test_another_network_with_its_own_normalisation(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "resnet.pth"
    torch.save({"state_dict": timm.create_model("resnet18", pretrained=False).state_dict()}, path)
    config = CONFIG.replace(rgb_model="resnet18", rgb_weights=str(path), rgb_size=64, grid_size=8)
    features = RGBFeatures(config, CPU)
    seen = []
    features.model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    grey = np.full((32, 48, 3), (124, 116, 104), np.uint8)  # 255 times ImageNet's mean, rounded
    feat = features([grey])
    assert feat.shape == (1, 64, 128 + 256)  # strides 8 and 16; the latter 4 x 4, repeated
    assert seen[0].shape == (1, 3, 64, 64) and seen[0].abs().max() < 0.02
    coarse = feat.reshape(8, 8, 384)[..., 128:]
    assert torch.equal(coarse[::2, ::2], coarse[1::2, 1::2])


# --- features of a transformer ---


def test_tokens_after_the_final_norm_are_repeated_on_the_grid(vit, scan_rgb):
    model, config = vit
    image = scan_rgb(size=224)
    feat = RGBFeatures(config, CPU)([image])
    x = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        last = model.forward_intermediates(
            x, indices=1, intermediates_only=True, norm=False, output_fmt="NLC"
        )
        tokens = model.norm(last[0])
    assert feat.shape == (1, 784, 192)
    cells = feat.reshape(14, 2, 14, 2, 192)
    for i in (0, 1):
        for j in (0, 1):
            torch.testing.assert_close(cells[:, i, :, j], tokens.reshape(14, 14, 192))


def test_position_embeddings_adapt_to_the_image_size(vit, scan_rgb):
    _, config = vit
    feat = RGBFeatures(config.replace(rgb_size=112, grid_size=14), CPU)([scan_rgb()])
    cells = feat.reshape(7, 2, 7, 2, 192)  # 7 x 7 tokens
    assert torch.equal(cells[:, 0, :, 0], cells[:, 1, :, 1])
    assert (cells[0, 0, 0, 0] - cells[3, 0, 3, 0]).norm() > 0.1


# --- what is refused ---


def test_an_unknown_model_is_refused():
    with pytest.raises(ConfigError, match="rgb_model is 'resnet18x'; expected a model of timm"):
        load_model(CONFIG.replace(rgb_model="resnet18x"))
    with pytest.raises(ConfigError, match="Invalid pretrained tag"):
        load_model(CONFIG.replace(rgb_model="resnet18.nothing"))


def test_a_model_without_usable_outputs_is_refused(monkeypatch):
    model = torch.nn.Linear(1, 1)
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    model.feature_info = [{"reduction": 4}, {"reduction": 32}]
    monkeypatch.setattr(rgb, "load_model", lambda config: model)
    with pytest.raises(ConfigError, match=r"strides \[4, 32\]; expected outputs of stride 8"):
        RGBFeatures(CONFIG, CPU)


def test_no_network_says_which_file_from_where_and_where_to(monkeypatch):
    create = timm.create_model

    def without_network(name, pretrained=False, **arguments):
        if pretrained:
            raise OSError("Name or service not known")
        return create(name, **arguments)

    monkeypatch.setattr(rgb.timm, "create_model", without_network)
    with pytest.raises(WeightsError) as caught:
        load_model(make_config("paper").features)
    text = str(caught.value)
    assert "vit_base_patch8_224.dino" in text and "Name or service not known" in text
    repository = "https://huggingface.co/timm/vit_base_patch8_224.dino"
    assert f"Fetch {repository}/resolve/main/model.safetensors" in text
    assert "set rgb_weights to its path" in text


def test_a_missing_file_says_where_to_get_it():
    with pytest.raises(
        WeightsError, match="'/no/such.pth', where there is no file. Fetch https://"
    ):
        load_model(CONFIG.replace(rgb_model="resnet18", rgb_weights="/no/such.pth"))


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    state = timm.create_model("resnet18", pretrained=False).state_dict()
    state["layer9.weight"] = state.pop("layer1.0.conv1.weight")
    torch.save(state, path)
    with pytest.raises(WeightsError, match="other.pth: does not fit rgb_model") as caught:
        load_model(CONFIG.replace(rgb_model="resnet18", rgb_weights=str(path)))
    assert "layer9.weight" in str(caught.value) and "layer1.0.conv1.weight" in str(caught.value)


def test_half_precision_stays_within_tolerance(vit, scan_rgb, monkeypatch):
    net, image = RGBFeatures(vit[1], CPU), scan_rgb(size=224)
    exact = net([image])
    monkeypatch.setattr(rgb, "half_precision", lambda at: torch.autocast("cpu", torch.bfloat16))
    rough = net([image])
    assert rough.dtype == torch.float32
    # bfloat16 has 8 bits, a GPU's float16 has 11
    assert 0 < ((rough - exact).norm() / exact.norm()).item() < 0.05


def test_tokens_coarser_than_the_grid_are_shared_by_squares_of_cells(vit, features):
    assert RGBFeatures(vit[1], CPU).shared == 2  # a token for 2 x 2 cells: see the test above
    assert RGBFeatures(vit[1].replace(grid_size=14), CPU).shared == 1
    assert RGBFeatures(vit[1].replace(grid_size=20), CPU).shared == 1  # 14 does not divide 20
    assert features.shared == 1


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_of_the_cpu(features, scan_rgb):
    here = features([scan_rgb()])
    there = RGBFeatures(CONFIG, torch.device("cuda"))([scan_rgb()])
    assert there.is_cuda and ((there.cpu() - here).norm() / here.norm()).item() < 0.01


# --- windows ---


def test_windows_by_hand():
    wanted = np.zeros((28, 28), bool)
    assert rgb.windows(wanted) == [(0, 28, 0, 28)]
    wanted[2, 3] = True
    assert rgb.windows(wanted) == [(0, 11, 0, 12)]  # eight cells around, cut at the edge
    wanted[25, 26] = True
    assert rgb.windows(wanted) == [(0, 11, 0, 12), (17, 28, 18, 28)]
    wanted[10, 10] = True  # its margin touches both
    assert len(rgb.windows(wanted)) == 1


def test_wanted_cells_are_described_as_in_the_whole_image(features):
    image = np.zeros((256, 256, 3), np.uint8)
    image[40:220, 40:220] = data.astronaut()[:180, :180]
    wanted = torch.zeros(28, 28, dtype=torch.bool)
    wanted[12:14, 9] = wanted[20, 21] = True
    wanted = wanted.view(-1)
    whole, part = features([image])[0][wanted], features([image], wanted)[0][wanted]
    error = (part - whole).norm(dim=1) / whole.norm(dim=1)
    assert 0 < error.mean() < 0.005 and error.max() < 0.03


def test_a_transformer_sees_the_whole_image_whatever_is_wanted(vit):
    _, config = vit
    tokens, image = RGBFeatures(config, CPU), data.astronaut()
    wanted = torch.zeros(784, dtype=torch.bool)
    wanted[5] = True
    assert torch.equal(tokens([image], wanted), tokens([image]))

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


def test_tokens_after_the_final_norm_are_repeated_on_the_grid(vit, scan_rgb):
    model, config = vit
    image = scan_rgb(size=224)
    net = RGBFeatures(config, CPU)
    assert net.shared == 2  # one token for 2 x 2 cells; 14 tokens do not divide 20 cells
    assert [RGBFeatures(config.replace(grid_size=n), CPU).shared for n in (14, 20)] == [1, 1]
    feat = net([image])
    wanted = torch.arange(784) == 5
    assert torch.equal(net([image], wanted), feat)  # a transformer sees the whole image
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


@pytest.mark.parametrize(
    ("name", "weights", "error", "message"),
    [
        ("resnet18x", None, ConfigError, "is 'resnet18x'; expected a model of timm"),
        ("resnet18.nothing", None, ConfigError, "Invalid pretrained tag"),
        ("resnet18", "/no/x.pth", WeightsError, "'/no/x.pth', where there is no file. Fetch http"),
    ],
)
def test_unknown_models_and_missing_files_are_refused(name, weights, error, message):
    with pytest.raises(error, match=message):
        load_model(CONFIG.replace(rgb_model=name, rgb_weights=weights))


def test_no_network_says_which_file_from_where(monkeypatch):
    def without_network(name, **arguments):
        raise OSError("Name or service not known")

    monkeypatch.setattr(rgb.timm, "create_model", without_network)
    url = "https://huggingface.co/timm/vit_base_patch8_224.dino/resolve/main/model.safetensors"
    with pytest.raises(WeightsError, match=f"Name or service not known.* Fetch {url}, "):
        load_model(make_config("paper").features)


def test_a_model_without_usable_outputs_is_refused(monkeypatch):
    model = torch.nn.Linear(1, 1)
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    model.feature_info = [{"reduction": 4}, {"reduction": 32}]
    monkeypatch.setattr(rgb, "load_model", lambda config: model)
    with pytest.raises(ConfigError, match=r"strides \[4, 32\]; expected outputs of stride 8"):
        RGBFeatures(CONFIG, CPU)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    state = timm.create_model("resnet18", pretrained=False).state_dict()
    state["layer9.weight"] = state.pop("layer1.0.conv1.weight")
    torch.save(state, path)
    with pytest.raises(WeightsError, match="other.pth: does not fit rgb_model") as caught:
        load_model(CONFIG.replace(rgb_model="resnet18", rgb_weights=str(path)))
    assert "layer9.weight" in str(caught.value) and "layer1.0.conv1.weight" in str(caught.value)


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_of_the_cpu(features, scan_rgb):
    here = features([scan_rgb()])
    there = RGBFeatures(CONFIG, torch.device("cuda"))([scan_rgb()])
    assert there.is_cuda and ((there.cpu() - here).norm() / here.norm()).item() < 0.01


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

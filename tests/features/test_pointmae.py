import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block as TimmBlock

from g2sf_lib.config import make_config
from g2sf_lib.datasets import ScanError
from g2sf_lib.features.checkpoints import WeightsError
from g2sf_lib.features.pointmae import PointMAE, interpolate, pointmae_patches

CONFIG = make_config("paper").features


def make_net(seed=0, num_groups=32, group_size=16):
    """Random weights, batch norms with statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    net = PointMAE(num_groups, group_size)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return net


@pytest.fixture(scope="module")
def net():
    return make_net()


@pytest.fixture(scope="module")
def cloud():
    return torch.rand(400, 3, generator=torch.Generator().manual_seed(1)) * 0.1


class Coordinates:
    """Stands in for the network: every point is a centre, its feature its coordinates."""

    num_groups = group_size = 1

    def __call__(self, points):
        return points.clone(), torch.arange(len(points))


def test_centres_are_farthest_points_from_point_0(net, cloud):
    feat, centre = net(cloud)
    assert feat.shape == (32, 1152) and feat.dtype == torch.float32
    assert not net.training and not feat.requires_grad
    expected, distance = [0], (cloud - cloud[0]).square().sum(1)
    for _ in range(31):
        expected.append(int(distance.argmax()))
        distance = torch.minimum(distance, (cloud - cloud[expected[-1]]).square().sum(1))
    assert centre.tolist() == expected
    # The order of the other points does not matter.
    order = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(399, 0, -1)])
    turned_feat, turned = net(cloud[order])
    assert torch.equal(order[turned], centre)
    torch.testing.assert_close(turned_feat, feat, atol=1e-5, rtol=1e-5)


def test_forward_agrees_with_another_assembly(net, cloud):
    # Groups by sorting all distances, layers of timm, weights by the checkpoint's names.
    feat, centre = net(cloud)
    state = net.state_dict()

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"].squeeze(-1), state[f"{name}.bias"])

    def normed(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        values = (state[f"{name}.{key}"] for key in keys)
        return F.batch_norm(x.flatten(0, 1), *values).reshape(x.shape)

    order = torch.cdist(cloud[centre].double(), cloud.double()).argsort(dim=1)[:, :16]
    groups = cloud[order] - cloud[centre][:, None]  # (32, 16, 3)
    x = linear(groups, "encoder.first_conv.0")
    x = linear(normed(x, "encoder.first_conv.1").relu(), "encoder.first_conv.3")
    x = torch.cat([x.max(1, keepdim=True).values.expand(-1, 16, -1), x], dim=2)
    x = linear(
        normed(linear(x, "encoder.second_conv.0"), "encoder.second_conv.1").relu(),
        "encoder.second_conv.3",
    )
    x = x.max(1).values[None]  # (1, 32, 384)
    position = linear(F.gelu(linear(cloud[centre], "pos_embed.0")), "pos_embed.2")
    outputs = []
    for number in range(12):
        # timm's own norm adds 1e-6 to the variance, the official network 1e-5.
        block = TimmBlock(384, 6, mlp_ratio=4, qkv_bias=False, norm_layer=torch.nn.LayerNorm)
        block.eval()
        prefix = f"blocks.blocks.{number}."
        block.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
        with torch.no_grad():
            x = block(x + position)
        if number in (3, 7, 11):
            outputs.append(F.layer_norm(x, (384,), state["norm.weight"], state["norm.bias"]))
    torch.testing.assert_close(feat, torch.cat(outputs, dim=2)[0], atol=1e-4, rtol=1e-4)


def test_interpolate_by_hand():
    centres = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 9, 0], [0, 0, 100]])
    feat = torch.tensor([[1.0], [2], [4], [1000]])
    # Squared distances of (1, 0, 0): 1, 4, 82.
    expected = (1 + 2 / 4 + 4 / 82) / (1 + 1 / 4 + 1 / 82)
    out = interpolate(torch.tensor([[1.0, 0, 0], [3, 0, 0]]), centres, feat)
    torch.testing.assert_close(out, torch.tensor([[expected], [2]]))
    for num in (1, 2):  # centres may be fewer than three
        out = interpolate(torch.rand(5, 3), torch.rand(num, 3), torch.ones(num, 2))
        torch.testing.assert_close(out, torch.ones(5, 2))


def test_an_official_checkpoint_is_read(tmp_path, net, cloud, pointmae_checkpoint):
    other = make_net(seed=5)
    assert (other(cloud)[0] - net(cloud)[0]).abs().max() > 0.1
    other.load_checkpoint(pointmae_checkpoint(tmp_path / "pretrain.pth", net))
    assert torch.equal(other(cloud)[0], net(cloud)[0])


def test_names_missing_and_unexpected_are_listed(tmp_path, net, pointmae_checkpoint):
    ours = "module.MAE_encoder."
    drop = [f"{ours}norm.bias", f"{ours}blocks.blocks.3.attn.proj.weight"]
    add = ("MAE_encoder.cls_token", "cls_head.0.weight", "MAE_encoder.pos_embed.0.bias")
    path = pointmae_checkpoint(tmp_path / "bad.pth", net, drop=drop, add=add)
    with pytest.raises(WeightsError) as caught:
        make_net().load_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: not Point-MAE's encoder; ") and "\n" not in text
    assert 'Missing key(s) in state_dict: "blocks.blocks.3.attn.proj.weight", "norm.bias"' in text
    assert 'Unexpected key(s) in state_dict: "cls_token", "cls_head.0.weight"' in text
    assert "size mismatch for pos_embed.0.bias" in text


@pytest.mark.parametrize("path", [None, "/no/such/pretrain.pth"])
def test_a_missing_checkpoint_says_which_from_where_and_where_to(path):
    with pytest.raises(WeightsError) as caught:
        make_net().load_checkpoint(path)
    text = str(caught.value)
    assert ("not set" if path is None else path) in text
    assert "https://github.com/Pang-Yatian/Point-MAE/releases/download/main/pretrain.pth" in text
    assert "set pcd_weights to its path" in text


def test_a_checkpoint_of_something_else_says_what_it_holds(tmp_path, net):
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(WeightsError, match="bare.pth: .*blocks.blocks.0.*; expected .*base_model"):
        make_net().load_checkpoint(tmp_path / "bare.pth")


def test_patches_are_pooled_as_published(scan_xyz):
    xyz = scan_xyz(size=224)
    feat, foreground = pointmae_patches(xyz, CONFIG, Coordinates())
    has_point = torch.from_numpy((xyz != 0).any(-1))
    points = torch.from_numpy(xyz)[has_point]
    laid = torch.zeros(1, 3, 224, 224)
    laid[0, :, has_point] = interpolate(points, points, points).T
    pooled = F.adaptive_avg_pool2d(F.avg_pool2d(laid, 3, stride=1), 56)[0].flatten(1).T
    assert feat.shape == (3136, 3) and foreground.shape == (3136,)
    torch.testing.assert_close(feat, pooled, atol=1e-6, rtol=1e-5)
    assert torch.equal(foreground, (pooled != 0).any(1))
    assert 0.2 < foreground.float().mean() < 0.8


def test_patches_of_the_network(scan_xyz, net):
    xyz = scan_xyz(size=112, radius=0.15)  # 224 px by repeating pixels: points that coincide
    config = CONFIG.replace(grid_size=14)
    feat, foreground = pointmae_patches(xyz, config, net)
    assert feat.shape == (196, 1152) and feat.dtype == torch.float32
    assert not feat[~foreground].any() and torch.isfinite(feat).all()
    again, _ = pointmae_patches(xyz, config, net)
    assert feat.numpy().tobytes() == again.numpy().tobytes()


def test_bad_clouds_are_refused_by_name(scan_xyz, net):
    few = np.zeros((224, 224, 3), np.float32)
    few[100, :31] = 0.5
    with pytest.raises(ScanError, match="test/cut/003: a cloud of 31 points"):
        pointmae_patches(few, CONFIG, net, name="test/cut/003")
    with pytest.raises(ScanError, match="empty: a cloud of 0 points"):
        pointmae_patches(np.zeros((64, 64, 3), np.float32), CONFIG, net, name="empty")
    xyz = scan_xyz(size=224)
    xyz[100, 100, 0] = np.nan
    with pytest.raises(ScanError, match="test/cut/004: points with NaN"):
        pointmae_patches(xyz, CONFIG, net, name="test/cut/004")


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_of_the_cpu(cloud):
    here, centre = make_net()(cloud)
    there, same_centre = make_net().cuda()(cloud)
    assert there.is_cuda and torch.equal(centre, same_centre.cpu())
    assert ((there.cpu() - here).norm() / here.norm()).item() < 0.01

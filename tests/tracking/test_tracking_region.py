import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from torchdfa.tracking.backbones import Trunk, efficientnet_lite0, vgg_m
from torchdfa.tracking.geometry import GeometryError, Grid, grids
from torchdfa.tracking.region import Normal, Region, View, look, view_of, whole_view


def receptive_centre(trunk, layer, cell, size=160):
    """Return the middle of the pixels that a cell of a map depends on, from the gradient."""
    trunk.network.float()
    image = torch.randn(1, 3, size, size).mul_(50).requires_grad_()
    trunk(image)[layer][0, :, cell, cell].sum().backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero()[:, 0]
    return (rows.min() + rows.max()).item() / 2 + 0.5


@pytest.mark.parametrize("build, layers, cells, size", [
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 5, 2, padding=1), nn.MaxPool2d(3, 2), nn.Conv2d(4, 4, 3, dilation=2)),
     ("0", "1", "2"), (9, 6, 4), 160),
    (efficientnet_lite0, ("stem", "block1", "block4"), (20, 12, 15), 240),
    (vgg_m, ("conv1", "conv3"), (10, 3), 187),
])  # fmt: skip
def test_cells_lie_where_their_receptive_fields_do(build, layers, cells, size):
    trunk = Trunk(build(), layers)
    for i, cell in enumerate(cells):
        grid = trunk.grids[i]
        assert receptive_centre(trunk, i, cell, size) == grid.stride * cell + grid.offset


def test_known_grids():
    assert Trunk(efficientnet_lite0(), ("block4", "block10")).grids == (Grid(8, 7.5), Grid(16, 15.5))
    # Symmetric padding of 1 keeps the first cell over the first pixel; an even pooling is as its size suggests.
    assert Grid().after(3, 2, 1) == Grid(2, 0.5) and Grid().after(2, 2, 0) == Grid(2, 1)


@pytest.mark.parametrize(
    "between", [nn.Tanh(), nn.ELU(), nn.GroupNorm(1, 4), torch.tanh, lambda x: x.sigmoid() * x, lambda x: F.silu(x) - x]
)
def test_what_leaves_every_cell_where_it_is(between):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.between, self.b = nn.Conv2d(3, 4, 3, 2), between, nn.Conv2d(4, 4, 3, 2)

        def forward(self, x):
            return self.b(self.between(self.a(x)))

    assert grids(fx.symbolic_trace(Net()))["b"] == Grid().after(3, 2, 0).after(3, 2, 0)


def test_maps_joined_along_a_side_are_refused():
    class Joins(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim, self.a = dim, nn.Conv2d(3, 3, 3)

        def forward(self, x):
            return self.a(torch.cat([x, x], self.dim))

    assert "cat" in grids(fx.symbolic_trace(Joins(1)))
    with pytest.raises(GeometryError, match="geometry can't be told"):
        grids(fx.symbolic_trace(Joins(2)))


def test_maps_that_lie_differently_are_refused():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3, 2, padding=1), nn.Conv2d(3, 3, 2, 2)

        def forward(self, x):
            return self.a(x) + self.b(x)

    with pytest.raises(GeometryError, match="lie differently"):
        grids(fx.symbolic_trace(Adds()))
    with pytest.raises(GeometryError, match="geometry that can't be told"):
        Trunk(nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1)), ("1",))


@pytest.mark.parametrize("box", [(10.0, 12.0, 24.0, 24.0), (3.25, 7.5, 30.5, 17.75)])
@pytest.mark.parametrize("scale", [1, 2])
def test_pooling_equals_cropping_and_resizing(box, scale):
    """With the image itself as the map, a pooled box is the crop of the image, resized."""
    image = F.avg_pool2d(torch.rand(1, 3, 98, 98), 3, 1)[..., :96, :96]
    bins = 12
    view = View(0, 0, 96, 96, 96 * scale, 96 * scale)
    maps = F.interpolate(image, scale_factor=scale, mode="nearest") if scale > 1 else image
    region = Region(view, [maps], (Grid(),))
    found = region.pool(torch.tensor([box]), bins).view(3, bins, bins)
    # The reference reads the same 2 × 2 points a bin from the image by grid_sample, whose half-pixel convention
    # (align_corners=False) is that of torch's and OpenCV's resize.
    x, y, w, h = box
    steps = (torch.arange(2 * bins) + 0.5) / (2 * bins)
    xs, ys = (x + w * steps) / 96 * 2 - 1, (y + h * steps) / 96 * 2 - 1
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], -1)[None]
    expected = F.avg_pool2d(F.grid_sample(maps, grid, align_corners=False), 2)[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_pooling_a_whole_number_of_pixels_equals_torchs_resize():
    image = torch.rand(1, 3, 64, 64)
    region = Region(View(0, 0, 64, 64, 64, 64), [image], (Grid(),))
    found = region.pool(torch.tensor([[8.0, 16, 32, 24]]), 8).view(3, 8, 8)
    # Bins of 4 × 3 pixels, two points along each side: a resize to 16 × 16, then the mean of 2 × 2.
    crop = image[:, :, 16:40, 8:40]
    expected = F.avg_pool2d(F.interpolate(crop, (16, 16), mode="bilinear", align_corners=False), 2)[0]
    torch.testing.assert_close(found[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("box", [(80.0, 90.0, 31.0, 22.0), (92.3, 81.8, 20.5, 33.0)])
def test_pooled_positions_are_those_of_the_frame(box):
    """A frame of coordinates through a trunk of averages: each bin's value is its place, whatever view and strides."""
    network = nn.Sequential(nn.Conv2d(3, 3, 3, 2, padding=1), nn.Conv2d(3, 3, 4, 2, padding=0)).requires_grad_(False)
    for layer in network:
        layer.weight.zero_()
        layer.bias.zero_()
        for c in range(3):
            layer.weight[c, c] = 1 / layer.weight[c, c].numel()
    trunk = Trunk(network, ("1",), (0.0, 0.0, 0.0), (1 / 255,) * 3)
    columns = (torch.arange(200) + 0.5).expand(200, 200)
    exact = torch.stack([columns, columns.t(), columns * 0])
    frame = exact.round().to(torch.uint8)  # to the even number: half a pixel off
    view = view_of(torch.tensor(box), 40, 1.8, 4)
    assert view.columns % 4 == 0 and view.columns / view.width == pytest.approx(40 / (box[2] * box[3]) ** 0.5, rel=0.03)
    picture = view.cut(frame, trunk.mean)
    # The same from the exact coordinates, which bytes can't hold.
    wide = F.interpolate(
        exact[None, :, view.top : view.top + view.height, view.left : view.left + view.width],
        (view.rows, view.columns), mode="bilinear",
    )  # fmt: skip
    assert (picture - wide).abs().max() < 0.51
    region = Region(view, trunk(wide), trunk.grids)
    found = region.pool(torch.tensor([box]), 3).view(3, 3, 3)
    x, y, w, h = box
    middles = (torch.arange(3) + 0.5) / 3
    torch.testing.assert_close(found[0], (x + w * middles).expand(3, 3), atol=2e-3, rtol=0)
    torch.testing.assert_close(found[1], (y + h * middles)[:, None].expand(3, 3), atol=2e-3, rtol=0)


def test_what_lies_outside_has_the_mean_colour(trunk):
    frame = torch.full((3, 40, 50), 200, dtype=torch.uint8)
    picture = View(-10, 30, 20, 20, 20, 20).cut(frame, (0.5, 0.25, 1.0))
    assert (picture[0, :, :10, 10:] == 200).all()
    for channel, value in enumerate((128, 64, 255)):
        assert (picture[0, channel, 10:] == value).all() and (picture[0, channel, :, :10] == value).all()
    assert (View(100, 100, 8, 8, 8, 8).cut(frame, (0.0, 0.0, 0.0)) == 0).all()


def test_views_are_limited_and_hold_the_box():
    box = torch.tensor([3000.0, 50, 10, 10])
    view = whole_view(box, (3840, 2160), 75, 16)
    assert view.columns * view.rows <= 1_600_000
    assert view.left <= 3000 and view.left + view.width >= 3010 and view.top <= 50
    small = whole_view(torch.tensor([10.0, 10, 20, 20]), (64, 48), 20, 16)
    assert (small.width, small.height) == (64, 48) and (small.left, small.top) == (0, 0)


def test_normal_brings_maps_to_one_scale(trunk):
    frame = torch.randint(0, 255, (3, 96, 96), dtype=torch.uint8)
    region = look(trunk, frame, View(0, 0, 96, 96, 96, 96))
    normal = Normal(region.maps)
    for m in normal(region.maps):
        live = m.std((0, 2, 3)) > 0.1
        torch.testing.assert_close(m.mean((0, 2, 3)), torch.zeros(m.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(m.std((0, 2, 3))[live], torch.ones(int(live.sum())), atol=1e-3, rtol=0)

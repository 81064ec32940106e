"""Check an installed wheel: it is whole, its native code is there and right, a network learns."""

import sys
from importlib.metadata import files, version
from importlib.resources import files as resources

import torch

import torchdfa as dfa
from torchdfa import ops

shipped = [str(f) for f in files("torchdfa") or ()]
assert version("torchdfa") == dfa.__version__
assert resources("torchdfa").joinpath("py.typed").is_file()
assert not [name for name in shipped if "csrc" in name or name.startswith("tests")], "sources or tests in the wheel"
assert any(name.endswith("bdfa-65nm.yaml") for name in shipped)

native = ops.path() != "torch"
assert native != ("--without-native" in sys.argv), f"the product takes the path {ops.path()}: {ops.why_not_native()}"

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 200))
dfa.convert(net, dfa.BDFA())
e = torch.randn(8, 200)
torch.testing.assert_close(net[2].feedback(e), e @ net[2].feedback.dense())
x, y = torch.randn(8, 16), torch.arange(8)
optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.5), []
for _ in range(30):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.5 * losses[0], losses
print(
    f"torchdfa {dfa.__version__}, torch {torch.__version__}, path {ops.path()}: loss {losses[0]:.2f}, {losses[-1]:.2f}"
)

"""Images a second of ``torchdfa train`` over a plain PyTorch loop (float32, contiguous), VGG-16, one core.

    python benchmarks/throughput.py [--images 1000] [--rounds 3]

Both train VGG-16-BN with SGD and momentum, batch 100, on the same random images, in turn; the figure is the ratio of
medians of CPU time.
The plain loop has its images as float tensors in memory, so that it is no straw man.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn import functional as F

from torchdfa.data import Dataset, ImageSet
from torchdfa.models import VGG16
from torchdfa.training import TrainConfig, fit

PROMISE = 1.9


def main() -> None:
    """Measure in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    train = ImageSet(images, torch.arange(options.images) % 10, tuple("0123456789"))
    plain, ours = [], []
    for _ in range(options.rounds):
        plain.append(options.images / plain_loop(train))
        ours.append(options.images / torchdfa_train(train))
    ratio = statistics.median(ours) / statistics.median(plain)
    print(
        f"VGG-16-BN, batch 100, one thread, {options.images} images an epoch, median of {options.rounds} second "
        "epochs, CPU time"
    )
    print(f"  plain PyTorch loop {statistics.median(plain):7.1f} images/s")
    print(f"  torchdfa train     {statistics.median(ours):7.1f} images/s   {ratio:.2f} ×   promised ≥ {PROMISE}")


def torchdfa_train(train: ImageSet) -> float:
    """Train two epochs with torchdfa; return the CPU seconds of the second, a short evaluation included."""
    ends: list[float] = []
    config = TrainConfig(model=VGG16(), epochs=2, lr=1e-3, clip=None)
    data = Dataset("random", train, train.take(range(10)))
    fit(config, dataset=data, progress=False, accelerator="cpu", on_epoch=lambda _: ends.append(time.process_time()))
    return ends[1] - ends[0]


def plain_loop(train: ImageSet) -> float:
    """Train two epochs as a PyTorch tutorial would; return the CPU seconds of the second."""
    torch.manual_seed(0)
    model = VGG16().build((3, 32, 32), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(train.images.float() / 255 - 0.5, train.labels), batch_size=100, shuffle=True
    )
    begin = 0.0
    for _ in range(2):
        begin = time.process_time()
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
    return time.process_time() - begin


if __name__ == "__main__":
    main()

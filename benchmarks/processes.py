"""Two processes against one: images a second in training, and bytes on the wire with and without feedback in them.

python benchmarks/processes.py                  two processes, quarter-width VGG-16, 32 × 32 pixels
unshare -n sh -c 'ip link set lo up; python benchmarks/processes.py'       the same, and no one else's bytes are counted

The peer is the same training step in one process on the whole batch, taken in turns with the two processes' in the same
run; one thread a process. "Apart" are two processes that share nothing, each on its half of the batch: what the machine
gives at most. Prints the median over the rounds and the range.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics as stats
import time
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing import spawn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import torchdfa as dfa
from torchdfa.distributed import share_feedback
from torchdfa.models import MLP, VGG16

RULES = {"BP": dfa.BP(), "DFA": dfa.DFA(), "BDFA": dfa.BDFA()}
NETWORKS = {"vgg16": (VGG16(width=0.25), (3, 32, 32)), "mlp": (MLP(hidden=(1000, 1000, 1000)), (1, 28, 28))}


def loopback() -> int:
    """Return the bytes that have gone over the loopback device."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split()[9])
    return 0


def timed(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> float:
    """Return the seconds of a training step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    started = 0.0
    for step in range(steps + 1):
        if step == 1:  # the first one makes the optimizer's state and the buckets
            started = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return (time.perf_counter() - started) / steps


def work(rank: int, port: int, options: argparse.Namespace, out: str) -> None:
    """Be one of two processes; the first one also trains alone, while the other waits."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    network, shape = NETWORKS[options.network]
    torch.manual_seed(0)
    x, y = torch.randn(options.batch, *shape), torch.arange(options.batch) % 10
    rows = []
    for name, rule in RULES.items():

        def build(rule: dfa.Rule = rule) -> torch.nn.Module:
            torch.manual_seed(0)
            return dfa.convert(network.build(shape, 10), rule, example=x[:1])

        single, both, plain, own = build(), build(), build(), build()
        share_feedback(both)
        wrapped, resent = DistributedDataParallel(both), DistributedDataParallel(plain)
        gradients = 4 * sum(p.numel() for p in both.parameters() if p.requires_grad)
        times, wire = [], {"shared": 0.0, "sent": 0.0}
        for _ in range(options.rounds):
            alone = timed(single, x, y, options.steps) if rank == 0 else 0.0
            distributed.barrier()
            together = timed(wrapped, x[rank::2], y[rank::2], options.steps)
            distributed.barrier()
            times.append((alone, together, timed(own, x[rank::2], y[rank::2], options.steps)))
        for kind, model in (("shared", wrapped), ("sent", resent)):
            timed(model, x[rank::2][:4], y[rank::2][:4], 2)
            distributed.barrier()
            before = loopback()
            timed(model, x[rank::2][:4], y[rank::2][:4], 4)
            distributed.barrier()
            wire[kind] = (loopback() - before) / 5
        ratios = [a / b for a, b, _ in times] if rank == 0 else [1.0]
        rows.append(
            {
                "rule": name,
                "one_ms": 1e3 * stats.median(a for a, _, _ in times),
                "two_ms": 1e3 * stats.median(b for _, b, _ in times),
                "speedup": stats.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "apart": stats.median(a / c for a, _, c in times),
                "gradient_bytes": gradients,
                "wire_bytes": wire["shared"],
                "wire_bytes_without_share_feedback": wire["sent"],
            }
        )
    if rank == 0:
        Path(out).write_text(json.dumps(rows))
    distributed.destroy_process_group()


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="vgg16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="Also write the figures here.")
    options = parser.parse_args()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    out = f"/tmp/torchdfa-processes-{os.getpid()}.json"
    spawn(work, (port, options, out), nprocs=2)
    rows = json.loads(Path(out).read_text())
    Path(out).unlink()
    print(f"{options.network}, batch {options.batch}, torch {torch.__version__}, one thread a process")
    print(
        "rule   1 process  2 processes  speed-up (range)     apart  bytes a step: gradients, on the wire, feedback sent"
    )
    for r in rows:
        print(
            f"{r['rule']:5}  {r['one_ms']:6.0f} ms  {r['two_ms']:8.0f} ms  {r['speedup']:.2f} ({r['lowest']:.2f} to "
            f"{r['highest']:.2f})  {r['apart']:.2f}  {r['gradient_bytes']:12,}  {r['wire_bytes']:12,.0f}  "
            f"{r['wire_bytes_without_share_feedback']:12,.0f}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

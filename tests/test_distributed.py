"""Two processes under DistributedDataParallel do what one does on the joined batch, for every rule."""

import torch
from torch import distributed, nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

import torchdfa as dfa
from cases import MLP, NETS, RULES, same, squared
from torchdfa.distributed import share_feedback

LEARNING = {i: r for i, r in RULES.items() if not isinstance(r, dfa.Frozen)}


def converted(rule, seed):
    torch.manual_seed(seed)
    return dfa.convert(MLP().double(), rule)


def work(rank, init, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    x = torch.load(f"{folder}/x.pt")
    results = {}
    for name, rule in LEARNING.items():
        # Weights, and with them feedback of matched size or of products, start apart until DDP makes them one.
        model = converted(rule, seed=rank)
        wrapped = DistributedDataParallel(model)
        for _ in range(2):  # the second step has DDP's buckets rebuilt
            model.zero_grad()
            # halves of the mean over the joined batch, times the two that DDP divides by
            squared_half(wrapped(x[4 * rank : 4 * rank + 4]), rank).backward()
        results[name] = {n: p.grad for n, p in model.named_parameters()}, dict(model.state_dict())
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def squared_half(y, rank):
    targets = torch.linspace(-1, 1, 2 * y.numel(), dtype=y.dtype).view(8, -1)[4 * rank : 4 * rank + 4]
    return (y - targets).square().mean()


def test_two_processes_equal_one(tmp_path):
    x = NETS["mlp"].x(8).double()
    torch.save(x, tmp_path / "x.pt")
    spawn(work, (f"file://{tmp_path}/rendezvous", str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, rule in LEARNING.items():
        model = converted(rule, seed=0)
        squared(model(x)).backward()
        for grads, state in (results[name] for results in ranks):
            same(state, dict(model.state_dict()), rtol=0, atol=0)
            same(grads, {n: p.grad for n, p in model.named_parameters()})
        if not isinstance(rule, dfa.BP):
            assert any(".feedback." in key for key in ranks[0][name][1])


def test_feedback_that_the_mirror_moves_goes_on_being_sent():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    dfa.convert(net, {"2": dfa.DFA(), "4": dfa.WeightMirror()})
    assert share_feedback(net) == ["2.feedback.weight"]
    layer = dfa.convert(nn.Sequential(nn.Linear(2, 3), nn.RNN(3, 4)), dfa.HybridDFA())
    names = share_feedback(layer)
    assert names and len(names) == len(set(names))


def test_fixed_magnitudes_are_not_sent_again():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    names = share_feedback(dfa.convert(net, dfa.SignSymmetry(magnitude="fixed")))
    assert "2.feedback.magnitudes.fixed" in names and set(names) == {n for n, _ in net.named_buffers()}

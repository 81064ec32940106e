"""Training under torchrun: what several processes learn, how they stop, go on and share."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

import torchdfa as dfa
from torchdfa.distributed import share_feedback
from torchdfa.models import MLP
from torchdfa.training import ProcessError, TrainConfig, TrainingError, fit
from torchdfa.training.checkpoint import list_checkpoints
from torchdfa.training.processes import alone_in, draw_seed
from torchdfa.training.run import Run
from torchdfa.training.sealed import read_sealed

CONFIG = TrainConfig(
    train_size=187,
    epochs=2,
    batch_size=50,
    model=MLP(hidden=(24, 24), dropout=0.3),
    rule=dfa.BDFA(),
    precision="32-true",
    lr=0.02,
    clip=5.0,
    seed=3,
)
PLAIN = replace(CONFIG, model=MLP(hidden=(24, 24)))
OPTIONS = {"progress": False, "accelerator": "cpu"}


class Stop(Exception):
    pass


def stopped(config, out, steps, **options):
    """Train until some steps of the second epoch are done, and break off there, as a machine does that is lost."""
    epoch = Run.epoch

    def broken(self, stop):
        for one in epoch(self, stop):
            yield one
            if self.place.epoch == 1 and self.place.step == steps:
                raise Stop

    Run.epoch = broken
    try:
        fit(config, out, checkpoint_steps=1, **OPTIONS, **options)
    except Stop:
        return
    finally:
        Run.epoch = epoch
    raise AssertionError("it was not stopped")


def work(rank, size, port, folder):
    """Be a process that torchrun has started."""
    torch.set_num_threads(1)
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": 0}
    settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "x"}
    os.environ |= {name: str(value) for name, value in settings.items()}
    folder = Path(folder)
    found = {}

    def train(name, config, **options):
        result = fit(config, folder / name, **OPTIONS, **options)
        if result.model is not None and options.get("strategy") != "fsdp":
            found[name] = {n: v.clone() for n, v in result.model.state_dict().items()}
        found[f"{name} history"] = [(r.train_loss, r.train_top1, r.test_top1) for r in result.history]

    train("whole", CONFIG)
    stopped(CONFIG, folder / "parts", 2)
    found["left"] = [p.name for p in list_checkpoints(folder / "parts")]
    distributed.barrier()
    train("parts", CONFIG, resume=True)
    train("plain", PLAIN)
    train("sharded", PLAIN, strategy="fsdp")
    # What one process left goes on here, divided; what is left here, divided, goes on in one process.
    train("from-one", PLAIN, resume=True, strategy="fsdp")
    stopped(PLAIN, folder / "to-one", 2, strategy="fsdp")
    found["place"] = read_sealed(list_checkpoints(folder / "to-one")[-1])["state"]["place"] if rank == 0 else None
    # The first process can't read its folder: all of them stop.
    if rank == 0:
        for path in list_checkpoints(folder / "broken"):
            path.write_bytes(b"damaged")
    distributed.barrier()
    for name, resume in (("broken", True), ("plain", False)):
        try:
            fit(PLAIN, folder / name, resume=resume, **OPTIONS)
        except (ProcessError, ValueError, TrainingError) as error:
            found[f"{name} stopped"] = f"{type(error).__name__}: {error}"
    # Feedback that starts apart is made equal once, and not sent again.
    torch.manual_seed(rank)
    model = dfa.convert(
        torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)), dfa.DFA(seed=rank)
    )
    found["shared"] = share_feedback(model)
    found["feedback"] = model[2].feedback.dense().clone()
    wrapped = DistributedDataParallel(model)
    model[2].feedback.get_buffer(found["shared"][0].rpartition(".")[2]).add_(rank)
    wrapped(torch.ones(2, 4)).sum().backward()
    found["feedback later"] = model[2].feedback.dense().clone()
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module", params=[2, *([4] if os.environ.get("TORCHDFA_FAULTS") else [])])
def ranks(request, tmp_path_factory):
    """What each of several processes found, and their folder."""
    folder = tmp_path_factory.mktemp("many")
    stopped(PLAIN, folder / "from-one", 1)
    stopped(PLAIN, folder / "broken", 1)
    spawn(work, (request.param, free_port(), str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)], folder


@pytest.fixture(scope="module")
def alone():
    return fit(PLAIN, **OPTIONS)


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def near(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5)


def test_processes_hold_the_same_weights_and_feedback(ranks):
    results, _ = ranks
    first = results[0]
    for other in results[1:]:
        for name in ("whole", "plain"):
            assert all(torch.equal(v, other[name][n]) for n, v in first[name].items())
            assert any(".feedback." in n for n in first[name])


def test_they_learn_what_one_process_does(ranks, alone):
    results, folder = ranks
    near(weights(folder / "plain"), alone.model.state_dict())
    history = [(r.train_loss, r.train_top1, r.test_top1) for r in alone.history]
    for name in ("plain", "sharded", "from-one"):
        assert results[0][f"{name} history"] == [pytest.approx(row, abs=1e-3) for row in history]


def test_divided_parameters_learn_the_same(ranks, alone):
    near(weights(ranks[1] / "sharded"), alone.model.state_dict())


def test_a_run_with_dropout_goes_on_bit_for_bit_on_every_process(ranks):
    """The second process's dropout goes on, too, though only the first one writes checkpoints."""
    results, folder = ranks
    assert results[0]["left"]
    if len(results) == 2:
        files = [folder / name / "model.safetensors" for name in ("parts", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
    # DDP's first step has other buckets than later ones, and three sums or more depend on their order.
    near(weights(folder / "parts"), weights(folder / "whole"))
    for whole, parts in zip(results[0]["whole history"], results[0]["parts history"], strict=True):
        assert parts == pytest.approx(whole, rel=1e-9 if len(results) == 2 else 1e-5)


def test_checkpoints_go_on_with_another_number_of_processes(ranks, alone):
    _, folder = ranks
    near(weights(folder / "from-one"), alone.model.state_dict())
    result = fit(PLAIN, folder / "to-one", resume=True, **OPTIONS)
    near(result.model.state_dict(), alone.model.state_dict())
    assert result.history[1].train_loss == pytest.approx(alone.history[1].train_loss, abs=1e-4)


def test_sums_in_a_checkpoint_are_of_all_processes(ranks):
    place = ranks[0][0]["place"]
    assert (place["epoch"], place["step"], place["seen"]) == (1, 2, 100)


def test_what_the_first_process_can_not_use_stops_all(ranks):
    results, _ = ranks
    for name, kind, text in (
        ("broken", "CheckpointError", "can't resume"),
        ("plain", "TrainingError", f"{ranks[1] / 'plain'} holds a run already"),
    ):
        assert results[0][f"{name} stopped"].startswith(f"{kind}: {text}")
        assert all(f"ProcessError: the first process stopped: {text}" in r[f"{name} stopped"] for r in results[1:])


def test_feedback_is_shared_once_and_not_sent_again(ranks):
    results, _ = ranks
    for rank, found in enumerate(results):
        assert found["shared"] and torch.equal(found["feedback"], results[0]["feedback"])
        assert torch.equal(found["feedback later"], results[0]["feedback later"]) == (rank == 0)


def test_seeds_of_dropout_differ_between_processes_and_steps():
    seeds = {draw_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 3 * 50 * 4 and all(0 <= s < 2**63 for s in seeds)


def test_two_runs_on_one_folder(tmp_path):
    with alone_in(tmp_path), pytest.raises(ProcessError, match="another process trains in"):
        fit(PLAIN, tmp_path, **OPTIONS)
    fit(replace(PLAIN, epochs=1), tmp_path, **OPTIONS)


@pytest.mark.parametrize("settings", [{"alignment": 1}, {"refresh": 1}, {"rule": dfa.WeightMirror()}], ids=str)
def test_what_needs_whole_layers_is_refused_where_they_are_divided(settings):
    with pytest.raises(TrainingError, match="fsdp"):
        Run(replace(PLAIN, **settings), None, None, True)  # type: ignore[arg-type]

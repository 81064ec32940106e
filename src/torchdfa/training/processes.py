"""Several processes on one or more machines: how they are started, what each of them holds, how they share it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from filelock import FileLock, Timeout
from torch import Tensor, distributed, nn

from torchdfa.training.sealed import seal, unseal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_fabric import Fabric

Strategy = Literal["auto", "ddp", "fsdp"]
# Seconds for which a restarted job waits until the process that it replaces has let go of the run's folder.
_PATIENCE = 60.0


class ProcessError(RuntimeError):
    """Processes can't work together; the message says why."""


def under_torchrun() -> bool:
    """Tell whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Tell whether this is the process that writes, before Fabric is there to say so."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((rank for rank in ranks if rank is not None), 0)) == 0


def make_fabric(accelerator: str, devices: int | str, precision: Any, strategy: Strategy) -> Fabric:
    """Return Fabric for this process; under torchrun for all that torchrun has started, on all machines.

    Raises:
        ValueError: The accelerator is not one of this machine's.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    nodes = 1
    if under_torchrun():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    chosen: Any = strategy
    if strategy == "auto":
        # torchrun has a group of processes also where it has started a single one.
        chosen = "ddp" if under_torchrun() else "auto"
    elif strategy == "fsdp":
        size = int(devices) * nodes
        chosen = ModelParallelStrategy(_sharded, data_parallel_size=size, tensor_parallel_size=1)
    try:
        return Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, precision=precision, strategy=chosen)
    except RuntimeError as error:
        raise ValueError(f"accelerator={accelerator!r} can't be used here; give 'cpu', or 'auto': {error}") from error


def _sharded(network: nn.Module, mesh: Any) -> nn.Module:
    """Divide every layer's parameters among the processes (FSDP2); the layer is gathered when it is at work."""
    from torch.distributed.fsdp import fully_shard

    for module in list(network.modules()):
        if module is not network and any(True for _ in module.parameters(recurse=False)):
            fully_shard(module, mesh=mesh["data_parallel"])
    fully_shard(network, mesh=mesh["data_parallel"])
    return network


def is_sharded(network: nn.Module) -> bool:
    """Tell whether the network's parameters are divided among the processes."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in network.parameters())


@contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Keep a second run off a folder while the context lasts; the system drops the lock with the process.

    Raises:
        ProcessError: Another process trains in it.
    """
    with ExitStack() as stack:
        if folder is not None and is_first():
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(FileLock(folder / ".lock", timeout=_PATIENCE if under_torchrun() else 0))
            except Timeout:
                raise ProcessError(
                    f"another process trains in {folder}. Wait for it, or choose another --out."
                ) from None
        yield


def draw_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of what is random in one process's step, such as dropout: a function of the place alone."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def sums(values: Sequence[float], device: torch.device) -> list[float]:
    """Add up each value over all processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return total.tolist()


def from_first(fabric: Fabric, state: Mapping[str, Any] | None, problem: Exception | None) -> Any:
    """Hand the first process's state to all others, which may not see its folder.

    Args:
        fabric: Launched.
        state: In the first process, what was read; None for nothing.
        problem: In the first process, why it could not be read; it is raised once the others know.

    Raises:
        ProcessError: In the other processes: the first one could not read it.
    """
    if fabric.world_size > 1:
        data = b""
        if fabric.is_global_zero:
            data = seal({"state": state, "problem": None if problem is None else str(problem)})
        size = torch.tensor([len(data)], device=fabric.device)
        distributed.broadcast(size, 0)
        content = torch.frombuffer(bytearray(data or bytes(int(size))), dtype=torch.uint8).to(fabric.device)
        distributed.broadcast(content, 0)
        if not fabric.is_global_zero:
            received = unseal(content.cpu().numpy().tobytes())
            if received["problem"] is not None:
                raise ProcessError(f"the first process stopped: {received['problem']}")
            state = received["state"]
    if problem is not None:
        raise problem
    return state


def all_rows(state: Any, rows: int, fabric: Fabric) -> Any:
    """Return a recurrent state for all rows of a batch, of which each process has every ``world_size``-th.

    Args:
        state: Tensors (layers, N, H) in tuples, this process's N of the rows; or None.
        rows: Of the whole batch.
        fabric: Launched.
    """
    if state is None or fabric.world_size == 1:
        return state
    if isinstance(state, tuple):
        return tuple(all_rows(part, rows, fabric) for part in state)
    whole = state.new_zeros(state.shape[0], rows, *state.shape[2:])
    whole[:, fabric.global_rank :: fabric.world_size] = state
    distributed.all_reduce(whole)
    return whole


def own_rows(state: Any, fabric: Fabric) -> Any:
    """Return this process's rows of what :func:`all_rows` gave, perhaps to another number of processes."""
    if state is None:
        return None
    if isinstance(state, tuple):
        return tuple(own_rows(part, fabric) for part in state)
    return state[:, fabric.global_rank :: fabric.world_size].contiguous()


# Whole state, whether divided among processes or not, in one form: so any number of processes can go on from it.


def model_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the network's whole state, to be called in every process; empty but in the first if it is divided."""
    if not is_sharded(network):
        return network.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state: Any = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return dict(state)


def load_model_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a whole state, which every process has."""
    if not is_sharded(network):
        network.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(network, dict(state), options=StateDictOptions(full_state_dict=True))


def optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's whole state as ``optimizer.state_dict()`` has it, parameters by number."""
    if not is_sharded(network):
        return optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: Any = get_optimizer_state_dict(network, optimizer, options=options)
    if not found:
        return {}
    numbers = {name: i for i, name in enumerate(n for group in found["param_groups"] for n in group["params"])}
    groups = [{**group, "params": [numbers[n] for n in group["params"]]} for group in found["param_groups"]]
    return {"state": {numbers[n]: dict(s) for n, s in found["state"].items()}, "param_groups": groups}


def load_optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load what :func:`optimizer_state` gave, in every process."""
    if not is_sharded(network):
        optimizer.load_state_dict(dict(state))
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    by_parameter = {id(p): n for n, p in network.named_parameters()}
    names = [by_parameter[id(p)] for group in optimizer.param_groups for p in group["params"]]
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    plain: Any = {"state": {names[i]: s for i, s in state["state"].items()}, "param_groups": groups}
    set_optimizer_state_dict(network, optimizer, plain, options=StateDictOptions(full_state_dict=True))

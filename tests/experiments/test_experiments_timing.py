import time

import pytest
import torch

from torchdfa.experiments.timing import interleaved, training_step


def test_candidates_take_turns():
    calls = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, budget=0.0, least=4)
    assert calls == list("aaabbbccc") + list("abc") + list("bca") + list("cab") + list("abc")
    assert list(times) == ["a", "b", "c"]


def test_medians_of_cpu_time(monkeypatch):
    clock = iter([0.0, 1.0, 1.0, 101.0, 101.0, 104.0])
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    assert interleaved({"a": lambda: None}, budget=0.0, least=3) == {"a": 3.0}


def test_goes_on_until_the_budget_is_spent():
    calls = []
    begin = time.perf_counter()
    interleaved({"a": lambda: calls.append(time.sleep(0.005))}, budget=0.1, least=1)
    assert 0.1 <= time.perf_counter() - begin < 5 and len(calls) > 3


@pytest.mark.parametrize("bf16", [False, True])
def test_a_training_step_learns_what_is_not_frozen(bf16):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    model[1].requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    training_step(model, torch.randn(8, 4), torch.arange(8) % 3, lr=0.1, bf16=bf16)()
    assert {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])} == {"0.weight", "0.bias"}

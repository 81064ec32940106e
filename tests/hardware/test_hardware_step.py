"""The cost of a training step, against counts by hand and PyTorch's own counter."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import torchdfa as dfa
from torchdfa.hardware import chips, load_chip, step
from torchdfa.hardware.cacti import sram_picojoules
from torchdfa.hardware.calls import calls
from torchdfa.hardware.phases import dram_bytes
from torchdfa.hardware.schedule import Task, finish_times, period
from torchdfa.hardware.step import _tasks
from torchdfa.models import ResNet

UNIT = {"scale": "unit"}
LFSR = dfa.BDFA(storage="seeded", generator="lfsr", **UNIT)


def head(*widths):
    layers = []
    for below, above in pairwise(widths):
        layers += [nn.Linear(below, above), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convnet(groups=1):
    return nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, groups=groups), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(108, 16), nn.ReLU(), nn.Linear(16, 10)),
    )


NETS = {"head": (lambda: head(24, 16, 12, 5), (8, 24)), "conv": (convnet, (8, 2, 8, 8))}
RULES = {"BP": dfa.BP(), "FA": dfa.FA(**UNIT), "DFA": dfa.DFA(**UNIT), "CDFA": dfa.CDFA(**UNIT)}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("net", NETS)
def test_macs_are_those_that_pytorch_counts(net, rule):
    build, shape = NETS[net]
    x = torch.randn(shape)
    model = build()
    cost = step(model, rule, x)
    dfa.convert(model, rule, example=x[:1])
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    assert 2 * cost.total("macs", ["forward", "error", "gradient"]) == counter.get_total_flops()


MODULAR = {
    "DFA": dfa.DFA(),
    "ModuleDFA": dfa.ModuleDFA(),
    "HybridDFA": dfa.HybridDFA(),
    "in groups": dfa.HybridDFA(groups=2),
    "binary": dfa.ModuleDFA(binary=True),
    "sparse": dfa.HybridDFA(density=0.25),
    "sparse, binary": dfa.HybridDFA(density=0.25, binary=True),
}


def modules():
    return nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(192, 5)),
    )


@pytest.mark.parametrize("rule", MODULAR.values(), ids=MODULAR.keys())
@pytest.mark.parametrize("build", [modules, lambda: ResNet().build((2, 8, 8), 5)], ids=["runs", "resnet"])
def test_products_of_errors_are_those_of_costs(build, rule):
    x = torch.zeros(4, 2, 8, 8)
    cost = step(build(), rule, x)
    products = dfa.costs(dfa.convert(build(), rule, example=x), x).products
    assert cost.total("macs", ["error"]) + cost.total("adds", ["error"]) == products
    assert any(c.direct for c in cost.costs)


def test_convolutional_feedback_by_hand():
    x = torch.zeros(4, 2, 8, 8)
    cost = step(modules(), dfa.HybridDFA(binary=True), x)
    by = {(c.layer, c.phase): c for c in cost.costs}
    first = by["2", "error"]  # from the output of its own module: 8 channels, 3 x 3 taps, 8 x 8 positions
    assert first.direct and first.adds == 4 * 8 * 8 * 8 * 8 * 9
    assert first.feedback_bytes == 8 * 8 * 9 / 8
    assert first.cycles == -(-4 * 8 * 8 // 16) * -(-8 * 9 // 16) * 8
    assert not by["5", "error"].direct and by["7", "error"].direct


def test_sparse_feedback_costs_the_entries_that_it_keeps():
    net, x = head(24, 16, 16, 16, 8), torch.zeros(8, 24)

    def direct(**settings):
        return [c for c in step(net, dfa.ModuleDFA(**settings), x).costs if c.direct]

    for dense, sparse in zip(direct(), direct(density=0.25), strict=True):
        assert sparse.unit == "mac" and 4 * sparse.feedback_bytes == dense.feedback_bytes > 0
        assert 4 * sparse.macs == dense.macs
    for dense, sparse in zip(direct(binary=True), direct(binary=True, density=0.25), strict=True):
        assert sparse.unit == "direct" and 4 * sparse.feedback_bytes == dense.feedback_bytes > 0
        assert 4 * sparse.adds == dense.adds


def test_the_array_reads_each_operand_once_for_each_pass_over_the_other():
    def read(net, x):
        cost = step(net, None, x).costs[0]
        return (cost.sram_bytes - cost.dram_bytes) / 2 - cost.macs / inputs

    inputs = 4096  # one sample: each weight is read once, though 15 of the array's 16 columns have no work
    assert read(nn.Linear(4096, 4096), torch.zeros(1, 4096)) == 4096 * 4096 + 4096 * (4096 // 16)
    inputs = 40
    assert read(nn.Linear(40, 5), torch.zeros(33, 40)) == 40 * 5 * 3 + 33 * 40
    inputs = 9  # depthwise: a row of the array for each of the groups in turn
    assert read(nn.Conv2d(6, 6, 3, groups=6), torch.zeros(2, 6, 10, 10)) == 6 * (9 * 8 + 2 * 64 * 9)


@pytest.mark.parametrize(("classes", "times"), [(10, 1), (16, 1), (17, 48), (40, 48)])
def test_a_lane_reads_its_errors_again_for_each_feature_where_its_registers_hold_only_some(classes, times):
    cost = step(head(24, 48, classes), LFSR, torch.zeros(32, 24))
    error = next(c for c in cost.costs if c.direct)
    assert error.sram_bytes - error.dram_bytes == 2 * 32 * classes * times + 2 * 32 * 48


def test_a_position_reads_its_taps_again_for_each_feature():
    error = {c.layer: c for c in step(modules(), dfa.HybridDFA(binary=True), torch.zeros(4, 2, 8, 8)).costs if c.direct}
    positions, taps, features = 4 * 8 * 8, 8 * 9, 8
    signs = error["2"].feedback_bytes * positions / 16
    read = error["2"].sram_bytes - error["2"].dram_bytes - signs
    assert read == 2 * positions * taps * features + 2 * positions * features


def test_an_error_inside_a_module_waits_for_the_modules_output():
    """Between modules by back-propagation: the lower module's direct error comes after the upper one's errors."""
    x = torch.zeros(4, 2, 8, 8)
    layers, sent = calls(dfa.convert(modules(), dfa.HybridDFA(), example=x), x)
    cost = step(modules(), dfa.HybridDFA(), x)
    tasks, _ = _tasks(list(cost.costs), layers, sent)
    after = {t.name: t.after for t in tasks}
    assert after["error 2"] == ("error 5",)
    assert after["error 7"] == ("error 10",)
    layers, sent = calls(dfa.convert(modules(), dfa.DFA(), example=x), x)
    tasks, _ = _tasks(list(step(modules(), dfa.DFA(), x).costs), layers, sent)
    assert {t.name: t.after for t in tasks}["error 2"] == ("forward 10",)


def test_a_layer_called_twice_is_updated_once():
    shared = nn.Linear(8, 8)
    cost = step(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 3)), None, torch.zeros(4, 8))
    assert [(c.layer, c.phase) for c in cost.costs if c.layer.startswith("0")] == [
        *(("0", p) for p in ("forward", "gradient", "update")),
        *(("0 (2)", p) for p in ("forward", "error", "gradient")),
    ]
    assert cost.total("macs", ["forward"]) == 2 * 4 * 8 * 8 + 4 * 8 * 3


def test_groups_by_hand():
    """PyTorch counts the backward pass of grouped convolutions as if they had one group."""
    cost = step(convnet(groups=4), dfa.BP(), torch.zeros(8, 2, 8, 8))
    macs = {c.phase: c.macs for c in cost.costs if c.layer == "2"}
    outputs = 8 * 3 * 3 * 12
    assert macs == {phase: outputs * 8 // 4 * 9 for phase in ("forward", "error", "gradient")} | {
        "update": 2 * 12 * 2 * 9
    }


def test_a_head_by_hand():
    x = torch.zeros(8, 24)
    cost = step(head(24, 16, 12, 5), LFSR, x)
    by = {(c.layer, c.phase): c for c in cost.costs}
    assert by["0", "forward"].macs == 8 * 24 * 16
    assert by["2", "error"].adds == 8 * 5 * 16
    assert by["2", "error"].generated_bits == 5 * 16  # one pass: 16 lanes share them
    assert by["2", "error"].dram_bytes == by["2", "error"].feedback_bytes == 0
    assert ("0", "error") not in by
    # All activations fit on chip: weights alone come from DRAM.
    assert by["0", "forward"].dram_bytes == 2 * 24 * 16
    assert by["0", "update"].dram_bytes == 4 * 2 * 24 * 16
    chip = load_chip("bdfa-65nm")
    assert by["0", "forward"].compute_pj == pytest.approx(8 * 24 * 16 * chip.pj["mac"])
    assert by["0", "forward"].dram_pj == pytest.approx([2 * 24 * 16 * 8 * pj for pj in (4, 20, 40)])
    assert by["2", "error"].cycles == 16


def test_the_total_says_how_many_macs_are_the_updates():
    text = str(step(nn.Linear(24, 16), None, torch.zeros(8, 24)))
    assert f"MACs: of the total {2 * 24 * 16} are multiplications of the update" in text


def test_where_binary_feedback_comes_from():
    x = torch.zeros(8, 24)
    stored = step(head(24, 16, 5), dfa.BDFA(**UNIT), x)
    assert stored.total("feedback_bytes") == 5 * 16 / 8
    assert step(head(24, 16, 5), LFSR, x, stored=True).total("feedback_bytes") == 5 * 16 / 8
    assert step(head(24, 16, 5), dfa.DFA(**UNIT), x).total("feedback_bytes") == 2 * 5 * 16
    assert step(head(24, 16, 5), dfa.FA(**UNIT), x).total("feedback_bytes") == 2 * 5 * 16


def test_without_a_direct_core_signs_go_through_the_array():
    cost = step(head(24, 16, 5), LFSR, torch.zeros(8, 24), chip="bp-65nm")
    assert cost.total("adds") == 0
    assert cost.total("macs", ["error"]) == 8 * 16 * 5


def test_frozen_layers_have_neither_gradient_nor_error():
    model = head(24, 16, 12, 5)
    model[0].requires_grad_(False)
    phases = {(c.layer, c.phase) for c in step(model, None, torch.zeros(8, 24)).costs}
    assert phases == {("0", "forward")} | {(n, p) for n in "24" for p in ("forward", "gradient", "update")} | {
        ("4", "error")
    }


def test_the_model_stays_as_it_is():
    model = head(24, 16, 5).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    step(model, dfa.BDFA(), torch.zeros(8, 24))
    assert model.training and model.state_dict().keys() == before.keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_direct_errors_wait_for_no_layer_above():
    """Deep and narrow: back-propagation's chain keeps the array busy for longer than it has work under DFA."""
    model, x = head(*[64] * 6, 10), torch.zeros(64, 64)
    bp, direct = step(model, dfa.BP(), x), step(model, LFSR, x)
    assert direct.pipelined < bp.pipelined <= bp.period
    assert direct.period < bp.period
    assert "× as fast" in str(direct)


@pytest.mark.parametrize(
    ("a", "b", "out", "result", "expected"),
    [
        (10, 1000, 5, 0, 1015),  # one fits
        (250, 1000, 5, 0, 1255),  # the result fits: each operand comes once
        (1000, 1000, 0, 50, 2000),
        (1000, 1000, 7, 400, 4007),  # four pieces of the result: each operand comes twice
        (150, 1000, 5, 10**6, 2155),  # two pieces of the smaller operand: the other comes twice
        (1000, 150, 5, 10**6, 2155),
    ],
)
def test_dram_bytes_by_hand(a, b, out, result, expected):
    assert dram_bytes(a, b, out, result, 100) == expected


def test_a_schedule_by_hand():
    tasks = [Task("a", "x", 3), Task("b", "y", 2, ("a",)), Task("c", "x", 4, ("a",)), Task("d", "y", 1, ("c", "b"))]
    assert finish_times(tasks) == {"a": 3, "b": 5, "c": 7, "d": 8}
    with pytest.raises(ValueError, match="never end"):
        finish_times([Task("a", "x", 1, ("b",)), Task("b", "x", 1, ("a",))])
    # Two units, each 3 a step, that overlap between steps; and that don't, where a step waits for the last one's end.
    step_of = [Task("p", "x", 3), Task("q", "y", 3, ("p",))]
    assert period(step_of, {}) == 3
    assert period(step_of, {"p": ["q"]}) == 6


def test_the_period_is_that_of_a_long_run():
    """A unit that works ahead while it waits has to do all of a step's work in the long run."""
    tasks = [Task("0", "y", 2), Task("1", "x", 8), Task("2", "y", 9, ("0", "1"))]
    assert period(tasks, {}) == 11
    assert period(tasks, {"0": ["2"], "1": ["2"]}) == 17
    # What little is worked ahead lasts for many steps.
    assert period([Task("0", "y", 0.01), *tasks[1:]], {}) == pytest.approx(9.01)


def random_step(seed):
    rng = np.random.default_rng(seed)
    names = [str(i) for i in range(rng.integers(1, 8))]
    chosen = {n: tuple(m for m in names if rng.random() < 0.35) for n in names}
    tasks = [
        Task(n, "xyz"[rng.integers(3)], float(rng.integers(0, 9)), tuple(m for m in chosen[n] if m < n)) for n in names
    ]
    return tasks, {n: [m for m in chosen[n] if m >= n] for n in names}


@pytest.mark.parametrize("seed", range(30))
def test_no_period_is_below_the_busiest_unit_s_work(seed):
    tasks, repeats = random_step(seed)
    assert period(tasks, repeats) >= max(sum(t.cycles for t in tasks if t.unit == u) for u in "xyz")


@pytest.mark.parametrize("seed", range(30))
def test_a_unit_takes_what_is_ready_first(seed):
    """Against the definition, task by task: of all that may start, the earliest, then the one given first."""
    tasks, _ = random_step(seed)
    tasks = [
        replace(t, name=f"{n}/{t.name}", after=tuple(f"{n}/{a}" for a in t.after)) for n in range(4) for t in tasks
    ]
    ends, free, left = {}, dict.fromkeys("xyz", 0.0), list(tasks)
    while left:
        ready = [t for t in left if all(a in ends for a in t.after)]
        starts = [max([free[t.unit], *(ends[a] for a in t.after)]) for t in ready]
        task = ready[starts.index(min(starts))]
        ends[task.name] = free[task.unit] = min(starts) + task.cycles
        left.remove(task)
    assert finish_times(tasks) == ends


def test_chips_are_read_and_errors_say_what_is_wrong(tmp_path):
    assert {"bdfa-65nm", "bp-65nm", "edge-45nm"} <= set(chips())
    for name in chips():
        assert load_chip(name).sram_pj > 0
    with pytest.raises(ValueError, match="one of bdfa-65nm"):
        load_chip("none")
    (tmp_path / "mine.yaml").write_text("base: edge-45nm\nclock_mhz: 400\n")
    assert load_chip(tmp_path / "mine.yaml").megahertz == 400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clock: 400", "'clock' is unknown, expected about, nanometres, clock_mhz"),
        ("direct: {terms: 16, lane: 4}", "direct.lane is unknown, expected terms, lanes"),
        ("mac: {rows: 16.9}", "mac.rows=16.9, expected a whole number"),
        ("mac: 16", "mac=16, expected rows, columns"),
        ("direct: {lanes: 0}", "direct.lanes=0, expected more than 0"),
        ("sram: {kib: '256'}", "sram.kib='256', expected a number"),
        ("nanometres: 7", "no memory figures for 7 nm, there are those of 45, 65, 90 nm: give sram.pj_per_byte"),
        ("sram: {kib: 2048}", "from 4 to 1024 KiB: give sram.pj_per_byte"),
        ("clock_mhz: -5", "clock_mhz=-5, expected more than 0"),
        ("dram: {pj_per_bit: [4, 20]}", "expected three numbers: low, middle, high"),
        ("dram: {pj_per_bit: [40, 20, 4]}", "expected low, middle, high: none below the one before"),
        ("about: 3", "about=3, expected text"),
    ],
)
def test_a_chip_that_is_wrong_says_where(text, said, tmp_path):
    (tmp_path / "bad.yaml").write_text(f"base: edge-45nm\n{text}\n")
    with pytest.raises(ValueError, match=re.escape(said)):
        load_chip(tmp_path / "bad.yaml")


def test_a_chip_says_only_what_is_not_as_in_its_base(tmp_path):
    path = tmp_path / "edge-45nm.yaml"
    path.write_text("base: edge-45nm\nmac: {rows: 4}\nsram: {pj_per_byte: 0}\n")
    chip, base = load_chip(path), load_chip("edge-45nm")
    assert (chip.rows, chip.columns, chip.sram_pj, chip.sram_bytes) == (4, base.columns, 0, base.sram_bytes)
    assert chip.name.startswith("edge-45nm-") and base.name == "edge-45nm"
    path.write_text("about: nothing else\n")
    with pytest.raises(ValueError, match="'nanometres' is missing"):
        load_chip(path)


def test_time_follows_the_clock(tmp_path):
    path = tmp_path / "fast.yaml"
    path.write_text("base: bdfa-65nm\nclock_mhz: 400\n")
    slow, fast = (str(step(head(24, 16, 5), None, torch.zeros(8, 24), chip=c)) for c in ("bdfa-65nm", path))
    ms = [float(re.search(r"; (.*) ms at", text)[1]) for text in (slow, fast)]
    assert ms[0] == pytest.approx(2 * ms[1], rel=0.01)


def test_memories_lie_between_their_neighbours():
    assert sram_picojoules(8, 65) < sram_picojoules(12, 65) < sram_picojoules(16, 65)
    assert sram_picojoules(64, 45) < sram_picojoules(64, 65)
    with pytest.raises(ValueError, match="no memory figures for 7 nm"):
        sram_picojoules(8, 7)
    with pytest.raises(ValueError, match="go from 4 to 1024"):
        sram_picojoules(2, 65)


def test_modules_with_weights_that_are_not_counted_are_named():
    net = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0), nn.Linear(16, 4))
    cost = step(net, None, torch.zeros(2, 4, 16))
    [note] = cost.notes
    assert "0.self_attn (MultiheadAttention), 0.self_attn.out_proj" in note and note in str(cost)
    assert "linear1" not in note and "norm1" not in note
    net = nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.Flatten(), nn.Linear(108, 4))
    assert step(net, None, torch.zeros(2, 2, 4, 4)).notes == ("Not counted: 0 (ConvTranspose2d).",)
    assert not step(convnet(), dfa.KolenPollack(), torch.zeros(8, 2, 8, 8)).notes


@pytest.mark.parametrize("direct", [False, True])
def test_feedback_that_learns_has_a_gradient_and_an_update(direct):
    x, fixed = torch.zeros(8, 24), dfa.DFA(**UNIT) if direct else dfa.FA(**UNIT)
    cost, before = step(head(24, 16, 12, 5), dfa.KolenPollack(direct=direct), x), step(head(24, 16, 12, 5), fixed, x)
    learnt = {(c.layer, c.phase): c for c in cost.costs if "feedback" in c.layer}
    sizes = {"2": 16 * 5 if direct else 16 * 12, "4": 12 * 5}
    assert {k: c.macs for k, c in learnt.items()} == {
        (f"{n}.feedback", phase): size * times
        for n, size in sizes.items()
        for phase, times in (("gradient", 8), ("update", 2))
    }
    assert cost.total("dram_bytes") - before.total("dram_bytes") == 8 * sum(sizes.values())
    assert cost.period > before.period and cost.pipelined >= before.pipelined


def test_an_error_waits_for_the_feedback_s_update():
    x, rule = torch.zeros(8, 24), dfa.KolenPollack()
    layers, sent = calls(dfa.convert(head(24, 16, 5), rule, example=x), x)
    tasks, repeats = _tasks(list(step(head(24, 16, 5), rule, x).costs), layers, sent)
    assert repeats["error 2"] == ["update 2.feedback"]
    assert {t.name: t.after for t in tasks}["update 2.feedback"] == ("gradient 2.feedback",)


def test_what_the_weight_mirror_leaves_out_is_said():
    assert "mirror phase" in step(head(24, 16, 5), dfa.WeightMirror(), torch.zeros(8, 24)).notes[0]


@pytest.mark.parametrize("rule", [None, LFSR])
@pytest.mark.parametrize(("shape", "said"), [((0, 24), "at least one sample"), ((8, 23), "of shape (8, 23)")])
def test_a_batch_that_does_not_fit_is_refused(rule, shape, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        step(head(24, 16, 5), rule, torch.zeros(shape))


def test_a_network_without_layers_is_refused():
    with pytest.raises(ValueError, match="no Linear or convolution"):
        step(nn.Sequential(nn.ReLU()), None, torch.zeros(2, 3))

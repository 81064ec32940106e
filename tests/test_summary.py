import pytest
import torch

import torchdfa as dfa
from cases import NETS, RULES, fresh, pairs
from torchdfa.feedback import Feedback


@pairs
def test_the_table_agrees_with_the_model(rule, net):
    model = fresh(net, rule)
    table = dfa.summary(model)
    own = [
        n
        for n, m in model.named_modules()
        if not isinstance(m, Feedback)
        and (next(m.parameters(recurse=False), None) is not None or "feedback" in m._modules)
    ]
    assert [row.layer for row in table.rows] == own
    for row in table.rows:
        layer = model.get_submodule(row.layer)
        feedback = layer._modules.get("feedback")
        assert row.kind == type(layer).__name__
        assert row.rule == (type(rule).__name__ if isinstance(layer, rule.chooses) or feedback is not None else "BP")
        if feedback is None:
            assert (row.feedback, row.scale, row.nbytes, row.nbytes_float32) == (None, None, 0, 0)
        else:
            assert row.nbytes == feedback.nbytes
            assert row.nbytes_float32 == 4 * torch.Size(row.feedback).numel() == feedback.nbytes_float32
            assert row.scale > 0
    everything = [m for m in model.modules() if isinstance(m, Feedback)]
    assert table.nbytes == sum(m.nbytes for m in everything)
    assert table.nbytes_float32 == sum(m.nbytes_float32 for m in everything)
    lines = str(table).splitlines()
    assert len(lines) == len(own) + 2
    assert lines[-1].split() == ["total", f"{table.nbytes:,}", f"{table.nbytes_float32:,}"]


def test_shapes_and_scale():
    rows = {row.layer: row for row in dfa.summary(fresh(NETS["conv"], dfa.BDFA(scale="unit"))).rows}
    assert rows["features.0"].feedback is None
    assert rows["features.3"].feedback == (4, 4 * 7 * 7)
    assert rows["features.3"].scale == 1
    assert rows["classifier.0"].feedback == (4, 6)
    fa = {row.layer: row for row in dfa.summary(fresh(NETS["conv"], RULES["FA-random"])).rows}
    assert fa["features.3"].feedback == (6, 4, 3, 3)


def test_binary_feedback_takes_a_thirty_second():
    wide = torch.nn.Sequential(torch.nn.Linear(4, 3200), torch.nn.ReLU(), torch.nn.Linear(3200, 10))
    table = dfa.summary(dfa.convert(wide, dfa.BDFA()))
    assert table.nbytes / table.nbytes_float32 == pytest.approx(1 / 32, rel=1e-3)
    dfa.revert(wide)
    assert dfa.summary(dfa.convert(wide, dfa.BDFA(storage="seeded"))).nbytes == 12

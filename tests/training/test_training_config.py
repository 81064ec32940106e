import dataclasses
import json
import math

import pytest

import torchdfa as dfa
from torchdfa.models import MLP, VGG16, NoklandConv
from torchdfa.training import TrainConfig, differences, to_dict


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("epochs", 0, "1 or more"),
        ("batch_size", 0, "1 or more"),
        ("validation", -1, "0 or more"),
        ("weight_decay", -1e-9, "0 or more"),
        ("weight_decay", math.nan, "0 or more"),
        ("momentum", -0.1, "0 or more"),
        ("alignment", -1, "0 or more"),
        ("mirror_rate", 0.0, "more than 0, and 1 or less"),
        ("mirror_rate", 1.5, "more than 0, and 1 or less"),
        ("lr", 0.0, "a positive number"),
        ("lr", math.inf, "a positive number"),
        ("lr", math.nan, "a positive number"),
        ("head_lr", -1.0, "0 or more"),
        ("clip", 0.0, "a positive number or none"),
        ("clip", math.nan, "a positive number or none"),
        ("train_size", 0, "1 or more, or none"),
        ("optimizer", "lion", "sgd.*rmsprop.*adam"),
        ("schedule", "linear", "onecycle.*cosine.*step.*constant"),
        ("precision", "16-mixed", "auto.*32-true.*bf16-mixed.*64-true"),
        ("channels_last", "yes", "true, false or 'auto'"),
        ("model", "MLP", "a network"),
        ("rule", "DFA", "a rule"),
        ("rule", {"features.*": dfa.BP(), "classifier.*": "DFA"}, "a rule"),
    ],
)
def test_a_wrong_setting_is_named(field, value, expected):
    with pytest.raises(ValueError, match=f"^TrainConfig: {field}=.*expected .*{expected}") as error:
        TrainConfig(**{field: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("rule", [dfa.KolenPollack(), dfa.WeightMirror(direct=True)], ids=["KolenPollack", "mirror"])
def test_feedback_that_learns_is_not_refreshed(rule):
    name = type(rule).__name__
    for rules in (rule, {"features.*": dfa.BP(), "classifier.*": rule}):
        assert TrainConfig(rule=rules).refresh == 0
        with pytest.raises(
            ValueError, match=f"^TrainConfig: refresh=2, expected 0 with the rule {name}, whose feedback learns"
        ):
            TrainConfig(rule=rules, refresh=2)


def test_defaults_are_valid_and_frozen():
    config = TrainConfig()
    assert config == TrainConfig() and config.rule == dfa.BP()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0  # type: ignore[misc]


def test_to_dict_is_plain():
    config = TrainConfig(model=VGG16(width=0.5), rule={"classifier.*": dfa.CBDFA(init="product", scale=2.0)}, clip=1.0)
    plain = to_dict(config)
    assert json.loads(json.dumps(plain)) == plain
    assert set(plain) == {f.name for f in dataclasses.fields(TrainConfig)}
    assert plain["model"]["class_path"] == "torchdfa.models.VGG16"
    assert plain["model"]["init_args"] == {"width": 0.5, "head": [512, 512], "head_norm": False, "head_dropout": 0.0}
    assert plain["rule"]["classifier.*"]["class_path"] == "torchdfa.rules.CBDFA"
    assert plain["rule"]["classifier.*"]["init_args"]["scale"] == 2.0
    assert plain["clip"] == 1.0 and plain["train_size"] is None


def test_differences_name_nested_settings():
    here = to_dict(TrainConfig(model=MLP(hidden=(3,)), rule=dfa.BDFA(init="random"), lr=0.1))
    there = to_dict(TrainConfig(model=MLP(hidden=(4,)), rule=dfa.BDFA(init="product"), lr=0.2))
    assert differences(here, here) == []
    assert differences(here, there) == [
        "lr: 0.1, 0.2",
        "model.init_args.hidden: [3], [4]",
        "rule.init_args.init: 'random', 'product'",
    ]
    other = differences(here, to_dict(TrainConfig(model=NoklandConv(), rule={"classifier.*": dfa.DFA()})))
    assert any(d.startswith("model.class_path: 'torchdfa.models.MLP', ") for d in other)
    assert any(d.startswith("rule.classifier.*: None, {") for d in other)
    assert differences({"a": 1}, {}) == ["a: 1, None"] and differences({}, {"a": {"b": 1}}) == ["a: None, {'b': 1}"]

import csv
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import torchdfa as dfa
from torchdfa import cli
from torchdfa.experiments import METHODS, CompareConfig
from torchdfa.models import MLP, VGG16, SmallConv
from torchdfa.training import TrainConfig, to_dict

TRAIN = [
    "train",
    "--model",
    "MLP",
    "--model.hidden",
    "[16]",
    "--train-size",
    "200",
    "--epochs",
    "1",
    "--tensorboard",
    "false",
]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def parsed(monkeypatch):
    """Return the configuration that fit or compare would have been given."""

    def parse(*arguments):
        found = []
        module = {"train": "torchdfa.training.fit", "compare": "torchdfa.experiments.compare"}[arguments[0]]

        def note(config, *rest, **options):
            found.append((config, rest, options))
            raise ValueError("noted")

        with monkeypatch.context() as patch:
            patch.setattr(module, note)
            assert cli.main(arguments) == 2
        return found[0]

    return parse


def options_of(kind, *more):
    return {f"--{f.name}" for f in dataclasses.fields(kind)} | {f"--{name}" for name in more}


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], {"train", "compare", "--version", "--help", "torchdfa train --resume runs/cdfa"}),
        (
            ["train"],
            options_of(
                TrainConfig,
                "config",
                "print_config",
                "out",
                "resume",
                "keep",
                "checkpoint_steps",
                "tensorboard",
                "accelerator",
                "devices",
            ),
        ),
        (["compare"], options_of(CompareConfig, "config", "print_config", "out")),
    ],
)
def test_help_names_every_option(call, arguments, expected):
    status, out, err = call(*arguments, "--help")
    assert status == 0 and err == ""
    assert {name for name in expected if name not in out} == set()


def test_help_of_compare_names_every_method(call):
    text = re.sub(r"\s+", " ", call("compare", "--help")[1])
    assert f"methods: {', '.join(METHODS)}" in text


def test_every_option_is_explained(call):
    for command, kind in (("train", TrainConfig), ("compare", CompareConfig)):
        text = re.sub(r"\s+", " ", call(command, "--help")[1])
        for field in dataclasses.fields(kind):
            # After the option's name and its values comes a sentence, not at once the type.
            assert re.search(rf"--{field.name} \S+ (?!\(type)[A-Z0-9a-z\"]", text), field.name


@pytest.mark.parametrize("module", [False, True])
def test_version(call, module):
    if module:
        done = subprocess.run([sys.executable, "-m", "torchdfa", "--version"], capture_output=True, text=True)
        status, out = done.returncode, done.stdout
    else:
        status, out, _ = call("--version")
    assert (status, out.strip()) == (0, f"torchdfa {dfa.__version__}")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], {}),
        (["--rule", "CBDFA", "--rule.init", "product"], {"rule": dfa.CBDFA(init="product")}),
        (["--rule=torchdfa.CBDFA", "--rule.scale=2.5"], {"rule": dfa.CBDFA(scale=2.5)}),
        (["--model", "VGG16", "--model.width", "0.25"], {"model": VGG16(width=0.25)}),
        (["--model=MLP", "--model.input-dropout=0.1"], {"model": MLP(input_dropout=0.1)}),
        # The head of the default network, SmallConv, is another one.
        (["--model", "VGG16"], {"model": VGG16(head=(512, 512))}),
        (["--model.head_norm", "true"], {"model": SmallConv(head_norm=True)}),
        (["--train-size", "100", "--batch_size=7"], {"train_size": 100, "batch_size": 7}),
        (["--data", "fashion-mnist", "--data-root=/a-b/c"], {"data": "fashion-mnist", "data_root": "/a-b/c"}),
        (["--channels-last", "false", "--clip", "3"], {"channels_last": False, "clip": 3.0}),
        (["--rule", '{"a.*": {"class_path": "BDFA", "init_args": {"seed": 1}}}'], {"rule": {"a.*": dfa.BDFA(seed=1)}}),
    ],
)  # fmt: skip
def test_options_make_the_configuration(parsed, arguments, expected):
    config, (out,), options = parsed("train", *arguments)
    assert config == TrainConfig(**expected)
    assert re.fullmatch(r"runs/train-[\w-]+-\d{8}-\d{6}", str(out))
    assert options == {
        "resume": False, "keep": 2, "checkpoint_steps": None, "tensorboard": True, "accelerator": "auto", "devices": 1,
        "strategy": "auto",
    }  # fmt: skip


def test_options_of_compare(parsed):
    config, (out,), _ = parsed(
        "compare",
        "--methods",
        '["BP", "CBDFA (9)"]',
        "--lrs",
        "[0.1]",
        "--model",
        "MLP",
        "--jobs",
        "1",
        "--out",
        "here",
    )
    assert config == CompareConfig(methods=("BP", "CBDFA (9)"), lrs=(0.1,), model=MLP(), jobs=1) and out == Path("here")
    assert parsed("compare")[0] == CompareConfig()


@pytest.mark.parametrize("command, kind", [("train", TrainConfig), ("compare", CompareConfig)])
def test_print_config_can_be_read_back(call, parsed, tmp_path, command, kind):
    status, out, _ = call(command, "--epochs", "3", "--model", "MLP", "--model.hidden", "[5]", "--print-config")
    assert status == 0
    assert {f.name for f in dataclasses.fields(kind)} <= set(yaml.safe_load(out))
    (tmp_path / "own-name.yaml").write_text(out)
    assert parsed(command, "--config", "own-name.yaml")[0] == kind(epochs=3, model=MLP(hidden=(5,)))


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(
            model=VGG16(width=0.5, head_norm=True), rule=dfa.CBDFA(init="product", scale=0.5, trunk="chain"), clip=1.0
        ),
        TrainConfig(rule={"features.*": dfa.BP(), "classifier.*": dfa.BDFA(storage="seeded")}, channels_last=False),
        TrainConfig(
            rule={"classifier.*": dfa.Frozen()}, train_size=9, data_root="/x", optimizer="adam", schedule="step"
        ),
    ],
)
def test_config_json_is_a_config(parsed, tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert parsed("train", "--config", "config.json")[0] == config
    assert parsed("train", "--config=config.json", "--seed", "7")[0] == dataclasses.replace(config, seed=7)


def test_a_misspelt_rule_or_network_is_told_what_there_is(call):
    for option, wrong, right in [("--rule", "NoSuch", "BDFA, BP, CBDFA"), ("--model", "VGG", "GPT, MLP, NoklandConv")]:
        code, _, error = call("train", option, wrong)
        assert code == 2
        assert f"{option} {wrong}: expected one of {right}" in error


def test_yaml_with_a_rule_a_pattern(call, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model:\n  class_path: SmallConv\n  init_args: {channels: [4], head: [8]}\n"
        "rule:\n  features.*: {class_path: BP}\n  classifier.*: {class_path: BDFA, init_args: {seed: 3}}\n"
        "epochs: 1\ntrain_size: 100\n"
    )
    status, out, err = call("train", "--config", "run.yaml", "--out", "run", "--tensorboard", "false")
    assert status == 0, err
    assert "epoch 1/1: train " in out and "written to run: " in out
    names = {name for name in load_file("run/model.safetensors") if "feedback" in name}
    assert names and all(name.startswith("classifier.") for name in names)


def test_train_writes_a_run_and_resumes_it(call):
    status, out, err = call(*TRAIN, "--out", "run", "--keep", "1")
    assert status == 0, err
    assert sorted(n for n in os.listdir("run") if n != ".lock") == [
        "checkpoint-00000002.ckpt",
        "config.json",
        "metrics.csv",
        "model.safetensors",
    ]
    before = Path("run/model.safetensors").read_bytes()
    status, _, err = call(*TRAIN, "--out", "run")
    assert status == 2 and "holds a run already" in err and "--resume run" in err
    for form in (["--resume", "run"], ["--resume=run"]):
        status, out, err = call("train", *form, "--tensorboard", "false")
        assert status == 0 and "epoch 1/1" in out, err
    assert Path("run/model.safetensors").read_bytes() == before


def test_tensorboard_is_on_by_default(call):
    assert call(*TRAIN[:-2], "--out", "run")[0] == 0
    assert len([name for name in os.listdir("run") if name.startswith("events.")]) == 1


@pytest.mark.parametrize(
    "given, named",
    [
        (["--lr", "0.5"], "lr: 0.5, 0.05"),
        (["--rule", "DFA"], "rule.class_path: 'torchdfa.rules.DFA', 'torchdfa.rules.BP'"),
        (["--model.hidden", "[17]"], "model.init_args.hidden: [17], [16]"),
        (["--model", "SmallConv"], "model.class_path: 'torchdfa.models.SmallConv', 'torchdfa.models.MLP'"),
    ],
)
def test_resume_with_other_settings_is_refused(call, given, named):
    assert call(*TRAIN, "--out", "run")[0] == 0
    status, _, err = call("train", "--resume", "run", *given)
    assert status == 2 and named in err and "Traceback" not in err


@pytest.mark.parametrize("arguments, expected", [
    ([], "train,compare"),
    (["fly"], "'train', 'compare'"),
    (["train", "--fly", "3"], "unrecognized arguments: --fly"),
    (["train", "--epochs", "many"], "int"),
    (["train", "--epochs", "0"], "epochs=0, expected 1 or more"),
    (["train", "--optimizer", "lion"], "rmsprop"),
    (["train", "--rule", "Magic"], "Magic"),
    (["train", "--rule", "CBDFA", "--rule.magic", "1"], "'magic' is not accepted"),
    (["train", "--rule", "CBDFA", "--rule.init", "magic"], "product"),
    (["train", "--rule", "CBDFA", "--rule.init", "product", "--rule.storage", "seeded"], "Use storage='packed'"),
    (["train", "--model", "Magic"], "Magic"),
    (["train", "--model", "VGG16"], "VGG16 takes images of 32 × 32 and larger, got 8 × 8"),
    (["train", "--data", "magic"], "'magic'; expected one of digits, cifar10"),
    (["train", "--train-size", "99999"], "99999"),
    (["train", "--rule", '{"magic.*": {"class_path": "DFA"}}'], "magic.*"),
    (["train", "--rule", "Frozen", "--model", "MLP"], "every layer is frozen"),
    (["train", "--resume", "nowhere"], "nowhere/config.json is not there"),
    (["train", "--resume"], "resume"),
    (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
    (["train", "--out", "a-file/run"], "a-file"),
    (["train", "--keep", "0"], "keep=0"),
    (["train", "--lr", "1e30", "--schedule", "constant"], "training has diverged"),
    (["compare", "--methods", '["Magic"]'], "methods=('Magic',), expected one or more of 'BP'"),
    (["compare", "--lrs", "[0]"], "positive learning rates"),
    (["compare", "--data", "magic"], "'magic'; expected one of digits"),
    (["compare", "--epochs", "0"], "epochs=0, expected 1 or more"),
    (["compare", "--model", "VGG16"], "VGG16 takes images of 32 × 32"),
    (["compare", "--model", "MLP"], "'Conv-only' leaves nothing to learn in MLP("),
])  # fmt: skip
def test_mistakes_are_explained(call, arguments, expected):
    Path("a-file").touch()
    status, _, err = call(*arguments)
    assert status == 2 and expected in err and "Traceback" not in err
    assert "error: " in err


@pytest.mark.parametrize("command, settings, expected", [
    ("train", {"epochs": None}, "epochs is null, expected int"),
    ("train", {"rule": None}, "rule is null"),
    ("train", {"model": {"class_path": "MLP", "init_args": {"norm": None}}}, "model.norm is null, expected bool"),
    ("train", {"rule": {"*": {"class_path": "BDFA", "init_args": {"center": None}}}}, "rule['*'].center is null"),
    ("compare", {"lrs": None}, "lrs is null, expected tuple[float, ...]"),
    ("track-bench", {"tracker": {"crop": None}}, "tracker.crop is null, expected int"),
])  # fmt: skip
def test_null_is_no_setting(call, tmp_path, command, settings, expected):
    (tmp_path / "run.json").write_text(json.dumps(settings))
    status, _, err = call(command, "--config", str(tmp_path / "run.json"))
    assert status == 2 and f"error: {expected}" in err and "Traceback" not in err


def test_null_is_a_setting_where_it_means_something(parsed, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"clip": None, "train_size": None}))
    assert parsed("train", "--config", str(tmp_path / "run.json"))[0] == TrainConfig(clip=None)


@pytest.mark.parametrize("missing", ["jsonargparse", "sklearn.datasets"])
def test_a_missing_package_says_what_to_install(call, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    status, _, err = call("train")
    assert status == 2 and missing in err and re.search(r"pip install ['\"]torchdfa\[train\]['\"]", err)


def test_help_does_not_wait_for_the_compiler():
    """It takes as long to import as all of torch, and comes along with torchvision."""
    code = "import sys, torchdfa.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print({'torch._dynamo', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("set()\n"), done.stderr or done.stdout


def test_a_missing_package_of_the_accelerator_is_of_its_extra():
    code = "import sys; sys.modules['amaranth'] = None; from torchdfa.cli import main; sys.exit(main(['hardware']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'torchdfa[hardware]'" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said(call, tmp_path):
    status, _, err = call("train", "--accelerator", "cuda", "--out", str(tmp_path / "run"))
    assert status == 2 and "accelerator='cuda' can't be used here" in err and "Traceback" not in err


def test_a_broken_torchdfa_is_not_called_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdfa.experiments", None)
    with pytest.raises(ModuleNotFoundError, match="torchdfa"):
        cli.main(["train"])


def test_compare_end_to_end(call, monkeypatch):
    module = importlib.import_module("torchdfa.experiments.compare")
    monkeypatch.setattr(module, "_TIMING_SECONDS", 0.05)
    status, out, err = call(
        "compare", "--methods", '["BP", "BDFA"]', "--lrs", "[0.01, 0.1]", "--seeds", "1", "--epochs", "2",
        "--jobs", "1", "--train-size", "200", "--model", "MLP", "--model.hidden", "[16, 16]", "--out", "runs/c",
    )  # fmt: skip
    assert status == 0, err
    assert "BDFA" in out and "written to runs/c: summary.md, curves.png, results.csv" in out
    shown = sorted(name for name in os.listdir("runs/c") if not name.startswith("."))
    assert shown == ["curves.png", "results.csv", "summary.md"]
    with open("runs/c/results.csv") as file:
        found = [(r["method"], r["phase"], r["epoch"], r["problem"]) for r in csv.DictReader(file)]
    assert {row[:2] for row in found} == {(m, p) for m in ("BP", "BDFA") for p in ("search", "final")}
    assert found[-2:] == [("BDFA", "final", e, "") for e in "12"]


def test_compare_says_how_to_go_on(call, monkeypatch):
    def interrupted(config, out):
        raise KeyboardInterrupt

    monkeypatch.setattr("torchdfa.experiments.compare", interrupted)
    status, _, err = call("compare", "--out", "there")
    assert status == 130 and "--out there" in err and "finished runs are kept" in err


@pytest.mark.parametrize("option", ["--conf", "--confi=evil.yaml", "--res"])
def test_options_have_no_abbreviations(call, option):
    """A file given as ``--conf`` would not be looked through for classes of others."""
    status, _, err = call("train", option, *([] if "=" in option else ["evil.yaml"]))
    assert status == 2 and "unrecognized arguments" in err


@pytest.mark.skipif(
    not Path(os.environ.get("TORCHDFA_DATA", "/nowhere"), "cifar-10-batches-bin").is_dir(),
    reason="the folder that TORCHDFA_DATA names holds no cifar-10-batches-bin",
)
def test_trains_a_vgg_on_real_images(call):
    status, out, err = call(
        "train", "--data", "cifar10", "--train-size", "100", "--validation", "20", "--epochs", "1",
        "--model", "VGG16", "--model.width", "0.05", "--rule", "CBDFA", "--rule.init", "product", "--batch-size", "40",
        "--out", "run",
    )  # fmt: skip
    assert status == 0 and "test " in out, err

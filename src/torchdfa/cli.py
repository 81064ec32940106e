"""The command line: ``torchdfa train``, ``compare``, ``reproduce``, ``track``; options are data classes."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torchdfa

if TYPE_CHECKING:
    from torchdfa.experiments import CompareConfig, ReproduceConfig
    from torchdfa.ops.bench import BenchConfig
    from torchdfa.training import TrainConfig

_TRAIN = "Train one network by one rule."
_COMPARE = (
    "Train the same network by several methods, each at the best of a few learning rates, and write a table, curves "
    "and a CSV. Without options: handwritten digits, five methods, three seeds, in a minute or two."
)
_COMPARE_EPILOG = """example:
  torchdfa compare --data cifar10 --methods '["BP", "DFA", "CBDFA (9)"]' --lrs '[0.01, 0.03]'
"""
_PRINT = "Print the configuration, as --config reads it, and exit."
_REPRODUCE = (
    "Run an experiment of the papers, every method tuned alike, and write its page. Runs that are finished are not run "
    "again, one that was interrupted goes on, several processes may share the work."
)
_BENCH = (
    "Measure this machine: which path the binary product takes, and its speed over torch.mm. The environment variable "
    "TORCHDFA_OPS chooses another path: avx512, avx2, neon, portable, or torch for none."
)
_HARDWARE = "The accelerator: verify, synthesise, measure and report it; torchdfa hardware --help lists the commands."
_EPILOG = """examples:
  torchdfa compare
  torchdfa compare --data cifar10 --train-size 5000
  torchdfa reproduce table1 --scale small
  torchdfa train --rule CBDFA --rule.init product --lr 0.02
  torchdfa train --data cifar10 --model VGG16 --model.width 0.25 --rule CDFA --out runs/cdfa
  torchdfa train --data tiny-shakespeare --model GPT --rule HybridDFA --optimizer adam --lr 2e-3
  torchdfa train --resume runs/cdfa
  torchdfa bench ops
  torchdfa track video.mp4 --box 159,82,56,65 --out results
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["hardware"]:
            from torchdfa.hardware.commands import main as hardware

            return hardware([_underscored(a) for a in given[1:]])
        return _run([_underscored(a) for a in given])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("torchdfa"):
            raise
        if given[:1] == ["hardware"]:
            extra = "hardware"
        else:
            extra = "track" if error.name in ("cv2", "av") else "train"
        return _fail(
            f"the package {error.name} is missing. Install what the command line needs: pip install 'torchdfa[{extra}]'"
        )


def _run(arguments: list[str]) -> int:
    from jsonargparse import ArgumentParser as Parser
    from jsonargparse import set_parsing_settings

    from torchdfa.arguments import demand_set, formatter
    from torchdfa.experiments import EXPERIMENTS, METHODS, CellError, CompareConfig, ReproduceConfig
    from torchdfa.language import LanguageModel
    from torchdfa.models import Network
    from torchdfa.ops.bench import BenchConfig
    from torchdfa.rules import Rule
    from torchdfa.tracking.commands import add_commands
    from torchdfa.tracking.display import NoDisplayError
    from torchdfa.training import Interrupted, ProcessError, TrainConfig, TrainingError, to_dict

    # Whole names alone: what is looked for in the arguments below must not be there by an abbreviation.
    ArgumentParser = functools.partial(Parser, allow_abbrev=False)
    set_parsing_settings(subclasses_enabled=[Rule, Network, LanguageModel])
    parser = ArgumentParser(
        prog="torchdfa",
        description="Train networks by sending the output error directly to each layer. Words in options may be joined "
        "by - or by _.",
        epilog=_EPILOG,
        formatter_class=formatter(),
        version=torchdfa.__version__,
    )
    commands = parser.add_subcommands(dest="command")

    train = ArgumentParser(description=_TRAIN, print_config=None)
    train.add_argument("--config", action="config", help="Read options from a YAML or JSON file.")
    train.add_class_arguments(TrainConfig)
    train.add_argument("--out", type=str | None, help="Folder of the run. By default a dated one in runs/.")
    train.add_argument("--resume", type=str | None, help="Go on with the run in this folder, with its own settings.")
    train.add_argument("--keep", type=int, default=2, help="Checkpoints to keep.")
    train.add_argument("--checkpoint_steps", type=int | None, help="Also write a checkpoint after every so many steps.")
    train.add_argument("--tensorboard", type=bool, default=True, help="Write TensorBoard events.")
    train.add_argument("--accelerator", type=str, default="auto", help="auto, cpu, cuda or mps.")
    train.add_argument("--devices", type=int, default=1, help="Processes on this machine; torchrun has its own count.")
    train.add_argument(
        "--strategy",
        type=Literal["auto", "ddp", "fsdp"],
        default="auto",
        help="Of several processes: each holds the network (ddp, the default), or a share of it (fsdp).",
    )
    train.add_argument("--print_config", action="store_true", help=_PRINT)
    commands.add_subcommand("train", train, help=_TRAIN)

    known = textwrap.fill("methods: " + ", ".join(METHODS), 78, subsequent_indent="  ")
    compare = ArgumentParser(description=_COMPARE, epilog=f"{_COMPARE_EPILOG}\n{known}", print_config=None)
    compare.add_argument("--config", action="config", help="Read options from a YAML or JSON file.")
    compare.add_class_arguments(CompareConfig)
    compare.add_argument(
        "--out",
        type=str | None,
        help="Folder of the results; runs finished in it are not run again. By default a dated one in runs/.",
    )
    compare.add_argument("--print_config", action="store_true", help=_PRINT)
    commands.add_subcommand("compare", compare, help=_COMPARE)

    reproduce = ArgumentParser(description=_REPRODUCE, print_config=None)
    about = "; ".join(f"{e.name}: {e.title.partition(': ')[2] or e.title}" for e in EXPERIMENTS.values())
    reproduce.add_argument("experiment", type=Literal[tuple(EXPERIMENTS)], help=f"What to reproduce. {about}.")
    reproduce.add_argument("--config", action="config", help="Read options from a YAML or JSON file.")
    reproduce.add_class_arguments(ReproduceConfig)
    reproduce.add_argument(
        "--out",
        type=str | None,
        help="Folder of the results; runs finished in it are not run again. By default runs/EXPERIMENT-DATA-SCALE.",
    )
    reproduce.add_argument("--report", action="store_true", help="Run nothing; make the page from what is there.")
    reproduce.add_argument("--print_config", action="store_true", help=_PRINT)
    commands.add_subcommand("reproduce", reproduce, help=_REPRODUCE)

    bench = ArgumentParser(description=_BENCH, print_config=None)
    bench.add_argument("what", type=Literal["ops"], help="What to measure: the binary product.")
    bench.add_class_arguments(BenchConfig)
    bench.add_argument("--print_config", action="store_true", help=_PRINT)
    commands.add_subcommand("bench", bench, help=_BENCH)
    commands.add_subcommand("hardware", ArgumentParser(description=_HARDWARE), help=_HARDWARE)
    tracking = add_commands(commands, ArgumentParser)

    if len(arguments) > 1 and arguments[0] == "train":
        arguments = ["train", *_with_stored_config(arguments[1:])]
    for path in _option(arguments, "--config"):
        _demand_known_classes(Path(path), arguments[0])
    public = {name: getattr(torchdfa, name) for name in torchdfa.__all__ if name != "Rule"}
    rules = [name for name, value in public.items() if isinstance(value, type) and issubclass(value, Rule)]
    models = [kind.__name__ for base in (Network, LanguageModel) for kind in base.__subclasses__()]
    for option, names in {"--rule": rules, "--model": models}.items():
        _demand_known(arguments, option, names)
    # What is not given is left to the data classes: with defaults, a network that is given by name would take over
    # the default network's settings of the same names.
    parsed = parser.parse_args(arguments, defaults=False)
    command = parsed.command
    kind, run, its_parser = {
        "train": (TrainConfig, _train, train),
        "compare": (CompareConfig, _compare, compare),
        "reproduce": (ReproduceConfig, _reproduce, reproduce),
        "bench": (BenchConfig, _bench, bench),
        **tracking,
    }[command]
    defaults = its_parser.get_defaults().as_dict()
    try:
        demand_set(kind, parsed[command].as_dict())
        options = {**defaults, **parser.instantiate(parsed)[command].as_dict()}
        given = {f.name: options.pop(f.name) for f in dataclasses.fields(kind) if f.name in parsed[command]}
        options = {name: value for name, value in options.items() if name not in kind.__dataclass_fields__}
        config = kind(**given)
        if options.pop("print_config"):
            print(json.dumps(to_dict(config), indent=2, ensure_ascii=False))
            return 0
        options.pop("config", None)
        return run(config, options)
    except Interrupted as stop:
        print(f"\ntorchdfa: {stop}.", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return 130
    except (
        TrainingError,
        ProcessError,
        CellError,
        NoDisplayError,
        ValueError,
        OSError,
    ) as error:
        return _fail(str(error), command)
    except ImportError as error:
        if isinstance(error.__cause__, ImportError):  # of an optional package, and says how to install it
            return _fail(str(error), command)
        raise


def _train(config: TrainConfig, options: dict[str, Any]) -> int:
    from torch import distributed

    from torchdfa.training import Interrupted, TrainingError, describe, fit
    from torchdfa.training.processes import under_torchrun

    resume, folder = options.pop("resume"), options.pop("out")
    if under_torchrun() and not (folder or resume):
        raise ValueError("under torchrun all processes need the same folder, also when they start again: give --out.")
    out = Path(folder or resume or _dated("train", config.data))
    try:
        # torchrun starts a job again with the same command: it goes on with what is there.
        result = fit(config, out, resume=resume is not None or under_torchrun(), **options)
    except Interrupted as stop:
        raise Interrupted(f"{stop}. Go on with: torchdfa train --resume {out}") from None
    except OSError as error:
        if not (out / "config.json").is_file():
            raise
        text = f"{error}. What was done until the last checkpoint is kept; go on with: torchdfa train --resume {out}"
        raise TrainingError(text) from error
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        print(describe(result.history[-1], config))
        print(f"written to {out}: model.safetensors, metrics.csv, config.json")
    return 0


def _compare(config: CompareConfig, options: dict[str, Any]) -> int:
    from torchdfa.experiments import compare
    from torchdfa.experiments.report import show

    out = Path(options.pop("out") or _dated("compare", config.data))
    try:
        scores = compare(config, out)
    except KeyboardInterrupt:
        print(
            f"\ntorchdfa: stopped. Run the same command with --out {out} to go on; finished runs are kept.",
            file=sys.stderr,
        )
        raise
    show(scores)
    print(f"written to {out}: summary.md, curves.png, results.csv")
    return 0


def _reproduce(config: ReproduceConfig, options: dict[str, Any]) -> int:
    from torchdfa.experiments import EXPERIMENTS, reproduce, write_page

    experiment = EXPERIMENTS[options["experiment"]]
    out = Path(options.pop("out") or f"runs/{experiment.name}-{experiment.data_of(config)}-{config.scale}")
    if not options["report"]:
        try:
            reproduce(experiment, config, out)
        except KeyboardInterrupt:
            print(f"\ntorchdfa: stopped. Run the same command to go on; what is done is in {out}.", file=sys.stderr)
            raise
    written = [path.name for path in write_page(experiment, out)]
    print(f"written to {out}: {', '.join(written)}, results.csv")
    return 0


def _bench(config: BenchConfig, options: dict[str, Any]) -> int:
    from torchdfa.ops.bench import show

    show(config)
    return 0


def _with_stored_config(arguments: list[str]) -> list[str]:
    """Put the configuration of a run that is resumed before the options, so that what is given otherwise shows."""
    for folder in _option(arguments, "--resume"):
        stored = Path(folder) / "config.json"
        if not stored.is_file():
            raise SystemExit(_fail(f"can't resume: {stored} is not there. Give the folder of a run.", "train"))
        return ["--config", str(stored), *arguments]
    return arguments


def _option(arguments: list[str], option: str) -> list[str]:
    """Return the values that an option is given."""
    found = []
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, value = argument.partition("=")
        if name == option:
            found.append(value if equals else following)
    return found


def _demand_known(arguments: list[str], option: str, names: Sequence[str]) -> None:
    """Refuse a plain word that is none of the names: the parser's own message lists none of them."""
    for value in _option(arguments, option):
        if value.isidentifier() and value not in names:
            text = f"{option} {value}: expected one of {', '.join(sorted(names))}; or package.module.Class of your own."
            raise SystemExit(_fail(text, arguments[0]))


def _demand_known_classes(path: Path, command: str) -> None:
    """Refuse a configuration file that names classes outside of torchdfa: to look for one runs its module's code.

    Whoever trusts a file's own classes says so, in the environment variable TORCHDFA_TRUST.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError:
        return  # the parser says what is wrong
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SystemExit(_fail(f"{path} is neither YAML nor JSON: {error}", command)) from None
    trusted = {"torchdfa", *os.environ.get("TORCHDFA_TRUST", "").split(",")}
    for name in _named_classes(content):
        if not re.fullmatch(r"\w+(\.\w+)*", name) or ("." in name and name.partition(".")[0] not in trusted):
            text = f"{path} names the class {name[:200]!r}, expected one of torchdfa's. If you trust the file and the "
            text += "package it names, set TORCHDFA_TRUST to the package's name."
            raise SystemExit(_fail(text, command))


def _named_classes(content: Any) -> Iterator[str]:
    """Yield all that a configuration file names as a rule, a network or a class, at any depth."""
    todo = [(content, False)]
    seen: set[int] = set()
    while todo:
        value, named = todo.pop()
        if isinstance(value, str) and named:
            yield value
        if not isinstance(value, (dict, list)) or id(value) in seen:
            continue  # YAML's anchors can make a value part of itself
        seen.add(id(value))
        if isinstance(value, list):
            todo += [(part, named) for part in value]
            continue
        for key, part in value.items():
            is_class = key in ("class_path", "rule", "model") or str(key).endswith((".class_path", ".rule", ".model"))
            # Below init_args are settings; a dict of rules has patterns as its keys.
            todo.append((part, key != "init_args" and (is_class or (named and "class_path" not in value))))


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


def _dated(command: str, data: str) -> str:
    name = Path(data.removeprefix("folder:")).name
    return f"runs/{command}-{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _fail(text: str, command: str = "") -> int:
    print(f"torchdfa {command}".strip() + f": error: {text}", file=sys.stderr)
    return 2

"""What a training run is made of, as data: its configuration names everything that its result depends on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torchdfa.baselines import KolenPollack, WeightMirror
from torchdfa.data import TEXTS
from torchdfa.language import LanguageModel
from torchdfa.models import Network, SmallConv
from torchdfa.rules import BP, Rule
from torchdfa.settings import demand, one_of, positive
from torchdfa.training.schedule import SCHEDULES, Schedule

Optimizer = Literal["sgd", "rmsprop", "adam"]
Loss = Literal["cross_entropy", "binary"]
Precision = Literal["auto", "32-true", "bf16-mixed", "64-true"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a training run.

    Args:
        data: digits, cifar10, cifar100, tiny-imagenet100-32, mnist, fashion-mnist, or the path of an image folder; or a
            text, wikitext-2 or tiny-shakespeare.
        data_root: Folder of all data. By default the environment variable TORCHDFA_DATA, then a cache folder.
        train_size: Use a class-balanced, seeded subset of this many training images, or a text's first tokens; all of
            them by default.
        validation: Hold out this many of these training images, and score those after every epoch instead of the test
            images, which are then scored once, at the end. Of a text: this many tokens of its own validation part.
        augment: Random flips and 4-pixel crops of the training images.
        vocabulary: Keep this many of a text's most frequent tokens, the others becoming <unk>; all by default.
        sequence: Tokens of a text that a step sees in each of ``batch_size`` streams. A recurrent model's streams go on
            from step to step, its state with them; others see windows of the text, drawn anew every epoch.
        model: The network; for a text a language model, GPT or RecurrentLM.
        rule: The rule that it learns by, or a rule a pattern of module names.
        loss: "cross_entropy": softmax over the classes. "binary": a logistic unit a class and the sum of their binary
            cross-entropies (Nøkland 2016). The error at the logits is p - y in both.
        refresh: Make the feedback anew, product feedback from the weights of that time, after every so many epochs; 0:
            never. Not for KolenPollack and WeightMirror, whose feedback would lose what it has learned.
        mirror_rate: Share of its feedback that :class:`torchdfa.WeightMirror` learns anew before every step, as
            :func:`torchdfa.mirror` does with the step's inputs.
        epochs: Passes over the training images or text.
        batch_size: Images, or streams of a text, a step, over all processes together.
        optimizer: SGD with momentum, RMSprop or Adam.
        lr: Peak learning rate.
        head_lr: Learning rate of the fully connected head, relative to that of the trunk; 0 freezes the head.
        momentum: Of SGD.
        weight_decay: L2 penalty on all parameters.
        schedule: Course of the learning rate over the steps.
        clip: Largest norm of the whole gradient; longer ones are shortened to it; none: no limit. Without one,
            direct feedback diverges in wide networks at learning rates that back-propagation bears.
        seed: Of initial weights, data order, augmentation, dropout, subset and split. A rule's own seed is apart.
        precision: "auto" is bf16-mixed where the processor has bf16 arithmetic and the network convolutions, else
            32-true.
        channels_last: Keep images and convolutions in the channels-last layout; "auto": where there are convolutions.
        alignment: Log the angles between the rule's gradient and the true one after every so many epochs; 0: never.
        score_every: Score after every so many epochs, and after the last.
    """

    data: str = "digits"
    data_root: str | None = None
    train_size: int | None = None
    validation: int = 0
    augment: bool = False
    vocabulary: int | None = None
    sequence: int = 64
    model: Network | LanguageModel = field(default_factory=SmallConv)
    rule: Rule | dict[str, Rule] = field(default_factory=BP)
    loss: Loss = "cross_entropy"
    refresh: int = 0
    mirror_rate: float = 0.1
    epochs: int = 20
    batch_size: int = 100
    optimizer: Optimizer = "sgd"
    lr: float = 0.05
    head_lr: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "onecycle"
    clip: float | None = 10.0
    seed: int = 0
    precision: Precision = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    alignment: int = 0
    score_every: int = 1

    def __post_init__(self) -> None:
        demand(
            self,
            train_size=(self.train_size is None or self.train_size >= 1, "1 or more, or none"),
            validation=(self.validation >= 0, "0 or more"),
            vocabulary=(self.vocabulary is None or self.vocabulary >= 2, "2 or more, or none"),
            sequence=(self.sequence >= 1, "1 or more"),
            rule=(all(isinstance(r, Rule) for r in self.rules), "a rule, as torchdfa.DFA(), or a dict of them"),
            loss=one_of(self.loss, get_args(Loss)),
            refresh=(self.refresh >= 0, "0 or more"),
            mirror_rate=(0 < self.mirror_rate <= 1, "more than 0, and 1 or less"),
            epochs=(self.epochs >= 1, "1 or more"),
            batch_size=(self.batch_size >= 1, "1 or more"),
            optimizer=one_of(self.optimizer, get_args(Optimizer)),
            lr=positive(self.lr),
            head_lr=(0 <= self.head_lr < math.inf, "0 or more"),
            momentum=(self.momentum >= 0, "0 or more"),
            weight_decay=(self.weight_decay >= 0, "0 or more"),
            schedule=one_of(self.schedule, SCHEDULES),
            clip=(self.clip is None or self.clip > 0, "a positive number or none"),
            precision=one_of(self.precision, get_args(Precision)),
            channels_last=(self.channels_last in (True, False, "auto"), "true, false or 'auto'"),
            alignment=(self.alignment >= 0, "0 or more"),
            score_every=(self.score_every >= 1, "1 or more"),
        )
        if self.data in TEXTS:
            kind = f"a language model for the text {self.data}, as torchdfa.language.GPT()"
            demand(self, model=(isinstance(self.model, LanguageModel), kind))
            assert isinstance(self.model, LanguageModel)
            longest = self.model.longest
            demand(
                self,
                sequence=(longest is None or self.sequence <= longest, f"{longest} or less"),
                loss=(self.loss == "cross_entropy", f"'cross_entropy' for the text {self.data}"),
                augment=(not self.augment, f"false for the text {self.data}"),
            )
        else:
            demand(self, model=(isinstance(self.model, Network), "a network, as torchdfa.models.MLP()"))
        learns = next((type(r).__name__ for r in self.rules if isinstance(r, (KolenPollack, WeightMirror))), None)
        again = f"0 with the rule {learns}, whose feedback learns and would have to begin again"
        demand(self, refresh=(learns is None or not self.refresh, again))

    @property
    def rules(self) -> list[Rule]:
        """All rules of the run: one, or one a pattern."""
        return list(self.rule.values()) if isinstance(self.rule, dict) else [self.rule]


def each_rule(rule: Rule | dict[str, Rule], change: Callable[[Rule], Rule]) -> Rule | dict[str, Rule]:
    """Return a rule, or a dict of them, with a change made to each."""
    return {pattern: change(part) for pattern, part in rule.items()} if isinstance(rule, dict) else change(rule)


def to_dict(value: Any) -> Any:
    """Turn a configuration into plain data, in the form that ``torchdfa train --config`` reads."""
    if isinstance(value, (Rule, Network, LanguageModel)):
        kind = type(value)
        arguments = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_dict(part) for key, part in value.items()}
    return [to_dict(part) for part in value] if isinstance(value, tuple) else value


def differences(here: Any, there: Any, name: str = "") -> list[str]:
    """List the settings in which two plain configurations differ, as ``name: here, there``."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        keys = sorted({*here, *there})
        return [d for key in keys for d in differences(here.get(key), there.get(key), f"{name}.{key}".lstrip("."))]
    return [] if here == there else [f"{name}: {here!r}, {there!r}"]

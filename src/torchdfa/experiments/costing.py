"""What a run's error propagation costs beside back-propagation's, from its settings alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import torchdfa
from torchdfa.data.text import VOCABULARIES
from torchdfa.language import LanguageModel
from torchdfa.rules import BP, FeedbackRule, Rule
from torchdfa.training import TrainConfig
from torchdfa.training.config import each_rule

# Shape of an image and number of classes.
_IMAGES = {
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "tiny-imagenet100-32": ((3, 32, 32), 100),
}


def share_of_products(config: TrainConfig) -> float:
    """Return the multiply-adds of error propagation under a run's rule over those of back-propagation.

    No data is loaded: sizes are those of the sets by name.
    """
    if isinstance(config.rule, BP):
        return 1.0
    rule: Any = each_rule(config.rule, _plain)
    with torch.random.fork_rng(()):
        if isinstance(config.model, LanguageModel):
            tokens = VOCABULARIES[config.data]
            network = config.model.build(min(tokens, config.vocabulary or tokens))
            example, output = torch.zeros(1, config.sequence, dtype=torch.int64), 0 if config.model.stateful else None
        else:
            shape, classes = _IMAGES[config.data]
            network, example, output = config.model.build(shape, classes), torch.zeros(1, *shape), None
    found = torchdfa.costs(torchdfa.convert(network, rule, example=example, output=output), example)
    return found.products / found.bp_products


def _plain(rule: Rule) -> Rule:
    """Spare the composition of feedback, on whose entries no cost depends."""
    return replace(rule, init="random", scale="unit") if isinstance(rule, FeedbackRule) else rule

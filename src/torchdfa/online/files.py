"""An online head as a file: safetensors, its layers, settings and rule in the metadata. No pickles."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torchdfa
from torchdfa.convert import conversion_of, is_converted
from torchdfa.files import write_atomically
from torchdfa.hooks import cut_of
from torchdfa.online.head import OnlineHead
from torchdfa.online.layers import build, describe
from torchdfa.rules import Rule

FORMAT = 1
# Types of momentum by their names in a file; one that is not there has the weights' type.
_TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64, "float16": torch.float16}


def save_head(head: OnlineHead, path: Path) -> None:
    """Write a head; see :meth:`OnlineHead.save`. The file appears whole or not at all."""
    from safetensors.torch import save

    converted = is_converted(head.net)
    if not converted and any(cut_of(layer) for layer in head.layers):
        raise ValueError(
            "save: the feedback belongs to the network around this head; save that one's state_dict, and the head's."
        )
    weights = head.class_weights
    settings = {
        "lr": head.lr,
        "momentum": head.momentum,
        "weight_decay": head.weight_decay,
        "clip": head.clip,
        "class_weights": None if weights is None else weights.tolist(),
    }
    if head.momentum_dtype is not None:
        settings["momentum_dtype"] = next(name for name, kind in _TYPES.items() if kind is head.momentum_dtype)
    about = {
        "format": FORMAT,
        "version": torchdfa.__version__,
        "net": describe(head.net),
        "rules": {n: _rule_data(r) for n, r in conversion_of(head.net).rules.items()} if converted else None,
        "settings": settings,
    }
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in head.state_dict().items()}
    data = save(tensors, {"torchdfa.OnlineHead": json.dumps(about)})
    write_atomically(path, lambda file: file.write(data))


def load_head(path: Path, rule: Rule | Mapping[str, Rule] | None) -> OnlineHead:
    """Read a head; see :meth:`OnlineHead.load`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["torchdfa.OnlineHead"])
            state = {name: file.get_tensor(name) for name in file.keys()}
        if not isinstance(about, dict) or not isinstance(about.get("format"), int):
            raise ValueError("its description is none")
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no head that OnlineHead.save wrote, which are safetensors files: {type(error).__name__}: "
            f"{error}."
        ) from error
    if about["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {about['format']} (torchdfa {about.get('version')}); this is torchdfa "
            f"{torchdfa.__version__}, which reads format {FORMAT}."
        )
    try:
        if rule is None and about["rules"] is not None:
            rule = {name: _read_rule(path, data) for name, data in about["rules"].items()}
        net = _built(about["net"], state)
        settings = dict(about["settings"])
        if "momentum_dtype" in settings:
            settings["momentum_dtype"] = _TYPES[settings["momentum_dtype"]]
        head = OnlineHead(net, rule=rule, **settings)
        head.load_state_dict(state)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        # RuntimeError: torch's of weights that don't fit, and Python's of nesting without end.
        raise ValueError(f"{path} describes no head ({type(error).__name__}: {error}).") from error
    return head


def _built(description: Any, state: Mapping[str, torch.Tensor]) -> nn.Sequential:
    """Build the network, its weights yet to be read, in memory taken only if the file has weights of these shapes."""
    with torch.device("meta"):
        net = build(description)
    if not isinstance(net, nn.Sequential):
        raise ValueError("its network is no sequence of layers")
    for name, parameter in net.named_parameters():
        if not parameter.numel():
            raise ValueError(f"{name} of shape {tuple(parameter.shape)} is empty")
        found = state.get(f"net.{name}")
        if found is None or found.shape != parameter.shape:
            shape = None if found is None else tuple(found.shape)
            raise ValueError(f"{name} of shape {tuple(parameter.shape)}, while its weights have {shape}")
    weight = next((t for name, t in state.items() if name.startswith("net.") and name.endswith("weight")), None)
    if weight is None:
        raise ValueError("its network has no weights")
    if not weight.is_floating_point():
        raise ValueError(f"weights of type {weight.dtype}")
    net.to_empty(device="cpu").to(weight.dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            # Not what the memory held: feedback made from a product is refused where that is zero.
            parameter.fill_(1 / parameter.shape[-1])
    return net


def _rule_data(rule: Rule) -> dict[str, Any]:
    return {"rule": type(rule).__name__, **{f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)}}


def _read_rule(path: Path, data: Mapping[str, Any]) -> Rule:
    settings = dict(data)
    name = settings.pop("rule")
    kind = getattr(torchdfa, name) if name in torchdfa.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, Rule)):
        raise ValueError(
            f"{path} was trained by the rule {name!r}, which is none of torchdfa's: pass it as load(path, rule=...)."
        )
    return kind(**settings)

"""What must be known of a model before it is cut, and the two ways of finding it out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from torchdfa.structure.base import CONVOLUTIONS, CUTTABLE, LAYERS, RECURRENT, Arguments, Structure, call, undisturbed
from torchdfa.structure.follow import Paths
from torchdfa.structure.outputs import NotATensorError, Output, PartName, describe, join, pick, put, split
from torchdfa.structure.parts import Part, find_parts
from torchdfa.structure.run import inputs_of, run_structure
from torchdfa.structure.trace import UntraceableError, trace_structure

__all__ = [
    "CONVOLUTIONS",
    "CUTTABLE",
    "LAYERS",
    "RECURRENT",
    "Arguments",
    "NotATensorError",
    "Output",
    "Part",
    "PartName",
    "Paths",
    "Structure",
    "call",
    "describe",
    "find_parts",
    "inputs_of",
    "join",
    "pick",
    "put",
    "read_structure",
    "split",
    "undisturbed",
]


def read_structure(
    model: nn.Module,
    output: Output,
    example: Any | None,
    *,
    local: bool = False,
    also: Collection[str] = (),
) -> Structure:
    """Read the structure of ``model`` by tracing it and, where an example is given, by running it as well.

    Args:
        model: Any module; it is left as it was.
        output: The scope's output, as in :func:`torchdfa.convert`.
        example: A tensor, a tuple of arguments, or a dict of keyword arguments.
        local: Leave out what concerns the scope's output, which may then be anything.
        also: Names of other modules whose inputs are to be cut; an example shows their shapes.

    Raises:
        ValueError: Neither way works, or the named output is not there.
    """
    try:
        with undisturbed(model):
            traced = trace_structure(model, output, local=local)
    except UntraceableError as error:
        reason = f"its forward can't be traced ({error})"
        if example is None:
            raise ValueError(
                f"cannot read the order of the layers of {type(model).__name__}: {reason}. Pass example=x, an input "
                "like the ones you train on."
            ) from error
        end = output if isinstance(output, str) and output in dict(model.named_modules()) else ""
        traced = Structure((), frozenset(), frozenset(), end, None, chain_end=reason)
    return traced if example is None else run_structure(model, output, example, traced, local=local, also=also)

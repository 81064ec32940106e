"""Read a model's structure without an input, by symbolic tracing (torch.fx)."""

from __future__ import annotations

import operator
from dataclasses import is_dataclass, replace
from typing import Any

from torch import fx, nn

from torchdfa.structure.base import CUTTABLE, LAYERS, Structure
from torchdfa.structure.outputs import Output, PartName, behind_softmax, not_a_tensor, pick

# What may stand between two Linear layers without changing which weights their product multiplies (eq. 7 of Han & Yoo
# 2019): activations, norms and dropout act entry by entry, or rescale, and eq. 7 ignores both; a reshape between equal
# widths moves nothing.
SQUASHES = frozenset(
    "relu relu_ relu6 tanh tanh_ sigmoid sigmoid_ softmax log_softmax softmin gelu silu elu elu_ selu celu leaky_relu "
    "leaky_relu_ softplus softsign logsigmoid hardtanh hardsigmoid hardswish mish prelu threshold tanhshrink".split()
)
MOVES = frozenset(
    "dropout alpha_dropout batch_norm layer_norm rms_norm flatten view reshape contiguous clone float double to "
    "type_as".split()
)
SQUASHING_MODULES = tuple(
    kind
    for kind in vars(nn.modules.activation).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind not in (nn.Module, nn.MultiheadAttention, nn.GLU)
)
MOVING_MODULES = (
    *(nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm, nn.SyncBatchNorm),
    *(nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.Identity, nn.Flatten),
)


class UntraceableError(Exception):
    """A model's forward can't be run on stand-ins for tensors; the message says why."""


def trace_structure(model: nn.Module, output: Output, *, local: bool = False) -> Structure:
    """Return the structure of ``model``; shapes stay unknown. Arguments are those of ``read_structure``.

    Raises:
        ValueError: The output is no tensor, or is the result of a softmax that does not follow a Linear layer.
        UntraceableError: The forward can't be traced.
    """
    reader = Reader(model, trace(model))
    return reader.layers() if local else reader.layers_to(output)


class _Tracer(fx.Tracer):
    """Layers of classes derived from torch's are calls in a graph, as torch's own are, whatever their forward does."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LAYERS) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph:
    """Return a model's graph, or raise UntraceableError."""
    try:
        return _Tracer().trace(model)
    except Exception as error:  # a trace runs the model's own code, which may raise anything
        raise UntraceableError(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error


class Reader:
    """A traced graph, and what each of its calls is in the model."""

    def __init__(self, model: nn.Module, graph: fx.Graph):
        self.model, self.graph = model, graph
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.names = {id(module): name for name, module in model.named_modules()}  # one name for a module used twice
        self.calls: dict[str, int] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self.calls[self.name(node)] = self.calls.get(self.name(node), 0) + 1

    def name(self, node: fx.Node) -> str:
        """Return the name of the module that a node calls."""
        return self.names[id(self.modules[str(node.target)])]

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def call(self, node: fx.Node) -> str:
        """Return the name of the function or method that a node calls; "" for others."""
        if node.op == "call_method":
            return str(node.target)
        return getattr(node.target, "__name__", "") if node.op == "call_function" else ""

    def described(self, node: fx.Node) -> str:
        """Say what a node is, where it stands in the way."""
        module = self.module(node)
        return f"{node.name!r} lies between" if module is None else f"{self.name(node)!r} is a {type(module).__name__}"

    def layers(self) -> Structure:
        """Return the order of the layers, and which of them depend on others."""
        learned, layered = self.learned(), self.learned(LAYERS)
        order: list[str] = []
        fed: set[str] = set()
        above: set[str] = set()
        for node in self.graph.nodes:
            if isinstance(self.module(node), LAYERS):
                name = self.name(node)
                order += [name] if name not in order else []
                fed |= {name} if any(parent in learned for parent in node.all_input_nodes) else set()
                above |= {name} if any(parent in layered for parent in node.all_input_nodes) else set()
        return Structure(tuple(order), frozenset(fed), frozenset(), "", None, above=frozenset(above))

    def layers_to(self, output: Output) -> Structure:
        """Return the whole structure, seen from the scope's output."""
        if isinstance(output, tuple):
            return self.layers().joined({part: self.layers_to_part(part) for part in output})
        end_node = self.end(output)
        chain, chain_end, squash = self.chain(end_node)
        end = output if isinstance(output, str) and output in self.modules else ""
        made_by = self.name(end_node) if end_node.op == "call_module" else ""
        if output is not None and not end and self.calls.get(made_by) == 1:
            end = made_by  # before the model makes a loss of it
        if output is None and squash:
            # The papers' error is the one at the last layer's sums (p - y), not behind its softmax or sigmoid.
            last = next(
                (n for n in reversed(self.graph.nodes) if chain and self.module(n) is self.modules[chain[0]]), None
            )
            if last is not None and self.calls[chain[0]] == 1:
                end, end_node = chain[0], last
            elif "softmax" in squash:
                raise ValueError(behind_softmax())
        return self.seen_from(end_node, chain, chain_end, end)

    def layers_to_part(self, part: PartName) -> Structure:
        """Return the whole structure, seen from one of several parts of what the model returns."""
        node = self.returned(part)
        chain, chain_end, _ = self.chain(node)
        return self.seen_from(node, chain, chain_end, "")

    def seen_from(self, node: fx.Node, chain: list[str], chain_end: str, end: str) -> Structure:
        """Return the whole structure, seen from a node at which a chain of Linear layers ends."""
        leading = frozenset(self.name(n) for n in self.ancestors(node) if isinstance(self.module(n), LAYERS))
        errors = self.modules[chain[0]].out_features if chain else None
        assert errors is None or isinstance(errors, int)
        return replace(
            self.layers(),
            leading=leading,
            end=end,
            errors=errors,
            chain=tuple(chain),
            chain_end=chain_end,
            astray=self.below_selections(node),
        )

    def below_selections(self, node: fx.Node) -> dict[str, str]:
        """Return the layers below a selection of rows by a tensor on the way to a node, and what to say of them."""
        found: dict[str, str] = {}
        for n in self.ancestors(node):
            if self.call(n) == "getitem" and isinstance(n.args[1], fx.Node):
                why = f"{n.name!r} above it selects rows, which may move samples. Pass example=x, which tells"
                found |= {self.name(m): why for m in self.ancestors(n) if isinstance(self.module(m), LAYERS)}
        return found

    def end(self, output: PartName | None) -> fx.Node:
        """Return the node whose value is the scope's output."""
        if isinstance(output, str) and output in self.modules:
            inside = [n for n in self.graph.nodes if output in n.meta.get("nn_module_stack", ()) or n.target == output]
            if not inside:
                raise ValueError(f"the forward never calls {output!r}, which output= names.")
            return inside[-1]
        return self.returned(output)

    def returned(self, part: PartName | None) -> fx.Node:
        """Return the node whose value is a part of what the model returns."""
        (value,) = next(n for n in self.graph.nodes if n.op == "output").args
        if isinstance(value, fx.Node) and (is_dataclass(value.target) or hasattr(value.target, "_fields")):
            value = value.target(*value.args, **value.kwargs)  # type: ignore[operator]
        if part is not None and isinstance(value, fx.Node):
            raise UntraceableError(f"{value.name!r} makes what {part!r} is a part of")
        value = value if part is None else pick(value, part)
        if not isinstance(value, fx.Node):
            raise not_a_tensor(value)
        return value

    def chain(self, node: fx.Node) -> tuple[list[str], str, str]:
        """Walk back from the output: the Linear layers met, last first; why it ended; the squashing met before any."""
        chain: list[str] = []
        squash = ""
        while node.op != "placeholder":
            module = self.module(node)
            if isinstance(module, nn.Linear):
                name = self.name(node)
                if not plain(module):
                    return chain, f"{name!r} is a {type(module).__name__}, with a forward of its own", squash
                if self.calls[name] > 1:
                    return chain, f"{name!r} is called {self.calls[name]} times", squash
                if chain and self.modules[chain[-1]].in_features != module.out_features:
                    wide = self.modules[chain[-1]].in_features
                    return (
                        chain,
                        f"{name!r} puts out {module.out_features} and {chain[-1]!r} takes {wide} features",
                        squash,
                    )
                chain.append(name)
            elif (operation := self.passing(node)) is None:
                return chain, self.described(node), squash
            elif operation and not chain:
                squash = operation
            tensors = self.tensors(node)
            if len(tensors) != 1:
                return chain, f"{node.name!r} has {len(tensors)} inputs", squash
            node = tensors[0]
        return chain, "the chain ends at the model's input", squash

    def passing(self, node: fx.Node) -> str | None:
        """Return None for an operation that a product can't pass, its name if it squashes, "" if it only moves."""
        module = self.module(node)
        if isinstance(module, SQUASHING_MODULES):
            return type(module).__name__.lower()
        if isinstance(module, MOVING_MODULES):
            return ""
        name = self.call(node)
        if name and len(self.tensors(node)) == 1:
            return name if name in SQUASHES else "" if name in MOVES else None
        return None

    def tensors(self, node: fx.Node) -> list[fx.Node]:
        """Return the inputs of an operation that carry data: no weights, no sizes as in ``x.view(x.size(0), -1)``."""
        return [p for p in node.all_input_nodes if p.op != "get_attr" and not is_size(p)]

    def constant(self, value: Any) -> Any:
        """Return a value in the graph that is made of parameters, buffers and numbers alone; None for others."""
        if not isinstance(value, fx.Node):
            return value
        if any(node.op not in ("get_attr", "call_method", "call_function") for node in self.ancestors(value)):
            return None
        if value.op == "get_attr":
            return operator.attrgetter(str(value.target))(self.model)
        arguments = fx.map_arg(value.args, self.constant)
        keywords = fx.map_arg(value.kwargs, self.constant)
        if value.op == "call_method":
            return getattr(arguments[0], str(value.target))(*arguments[1:], **keywords)
        return value.target(*arguments, **keywords)  # type: ignore[operator]

    def learned(self, kinds: tuple[type[nn.Module], ...] = ()) -> set[fx.Node]:
        """Return the nodes whose value depends on a parameter, or, if kinds are given, on a module of these kinds."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            module = self.module(node)
            if kinds:
                owns = module is not None and any(isinstance(m, kinds) for m in module.modules())
            else:
                owns = module is not None and any(True for _ in module.parameters())
            if node.op == "get_attr" and not kinds:
                owns = isinstance(operator.attrgetter(str(node.target))(self.model), nn.Parameter)
            if owns or any(parent in found for parent in node.all_input_nodes):
                found.add(node)
        return found

    @staticmethod
    def ancestors(node: fx.Node) -> set[fx.Node]:
        """Return the nodes that a node's value is made of, itself included."""
        found, waiting = {node}, [node]
        while waiting:
            new = [p for p in waiting.pop().all_input_nodes if p not in found]
            found.update(new)
            waiting += new
        return found


def plain(layer: nn.Module) -> bool:
    """Tell whether a layer computes what torch's class of it does, and so with its weight as it is."""
    return any(type(layer).forward is kind.forward for kind in CUTTABLE)


def is_size(value: Any) -> bool:
    """Tell whether a value in a graph is a tensor's size, a part of it, or the number of its dimensions."""
    if not isinstance(value, fx.Node):
        return False
    if value.op == "call_method":
        return value.target in ("size", "dim")
    if value.op == "call_function" and value.target is getattr:
        return not {"shape", "ndim"}.isdisjoint(value.args)
    return value.op == "call_function" and value.target is operator.getitem and is_size(value.args[0])

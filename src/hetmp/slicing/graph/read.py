"""``read_graph``: trace -> probe -> nodes with their rules."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from hetmp.core.errors import HetmpError
from hetmp.ops import (
    Call,
    Ref,
    Rule,
    Value,
    Whole,
    draws,
    known_layers,
    mapped,
    references,
    rule_for,
)
from hetmp.slicing.graph.confirmation import confirm
from hetmp.slicing.graph.graph import TRAINING, ModelGraph, Node, Trace, place
from hetmp.slicing.graph.guess import guess_input
from hetmp.slicing.graph.inplace import changed, check_memory
from hetmp.slicing.graph.inputs import Example, read_inputs
from hetmp.slicing.graph.lines import users_line
from hetmp.slicing.graph.meta_run import attribute, modes_kept
from hetmp.slicing.graph.module_calls import CallLog, CallReader
from hetmp.slicing.graph.parametrized import as_computing, norms_of_old
from hetmp.slicing.graph.scope import PLAIN
from hetmp.slicing.graph.shapes import Probed, probe, probe_unseen
from hetmp.slicing.graph.skeleton import skeleton_of
from hetmp.slicing.graph.subclasses import as_bases
from hetmp.slicing.graph.tracing import trace_modes
from hetmp.slicing.graph.users_hooks import check_hooks, hooked_paths

_WHOLE = Whole()


def read_graph(
    module: nn.Module,
    example_input: object = None,
    device: torch.device | str = "cpu",
) -> ModelGraph:
    """Read *module*'s operations; the module is left as it was.

    Shapes are found without computing. Only a leaf that looks at values is run, on made-up ones.

    Args:
        module: on any device, the meta device included.
        example_input: the arguments of a call: a tensor of a batch's shape and dtype, a tuple of
            arguments, or a dict of them by name (tensors' values are not looked at). Without
            it, the sizes that slicing depends on are derived from the layers, if possible.
        device: where this rank will compute, for a module that decides by it.

    Raises:
        HetmpError: torch.fx cannot trace the module, neighbouring layers disagree on their
            channels, or an example is needed.
    """
    check_kind(module)
    if isinstance(module, known_layers()):
        raise HetmpError(
            f"a single {type(module).__name__} cannot be sliced: put it into an nn.Sequential"
        )
    check_hooks(module)
    skeleton = skeleton_of(module)
    as_bases(skeleton)
    as_computing(skeleton)
    _check_hooks_of_old(skeleton)
    inputs, tensors = read_inputs(skeleton, example_input)
    example = Example(tensors, not tensors, torch.device(device))
    if example.guessed:
        example = replace(example, tensors=guess_input(skeleton, inputs.names[0]))
    graphs, calls, dims_matter = trace_modes(skeleton, inputs, example)
    # Most modules run the same operations in all modes: one graph, which is read once.
    read = {graph: _read(skeleton, graph, log, tensors) for graph, log in calls.items()}
    modes = {mode: read[graph] for mode, graph in graphs.items()}
    training = modes[TRAINING]
    first = next(iter(training.entries), None)
    dims = None if first is None else _dims(training, first, dims_matter or bool(tensors))
    constants = {
        path: value
        for trace in modes.values()
        for path in trace.attributes.values()
        if isinstance(value := attribute(skeleton, path), Tensor) and not value.is_meta
    }
    example = replace(example, tensors={name: _on_meta(x) for name, x in example.tensors.items()})
    graph = ModelGraph(
        skeleton,
        modes,
        inputs,
        constants,
        _aliases(skeleton),
        dims,
        example,
        _held(skeleton),
        hooked_paths(module),
    )
    if next(graph.mixing(), None) is None:
        raise HetmpError(
            f"{type(skeleton).__name__} has no convolution or linear layer: nothing can be sliced"
        )
    _check_hooked(graph, module)
    return graph


def check_kind(module: nn.Module) -> None:
    """Refuse what is not a module as its class wrote it.

    Raises:
        HetmpError: saying what to give instead.
    """
    if not isinstance(module, nn.Module):
        raise HetmpError(f"only an nn.Module can be sliced, got a {type(module).__name__}")
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise HetmpError(
            f"{kind} is made by torch.jit, which leaves no code to read: slice the module that it "
            "was made of"
        )
    if hasattr(module, "_orig_mod"):
        raise HetmpError(
            f"{kind} is compiled: slice the module itself, and compile nothing of it; its "
            "operations run between exchanges"
        )
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise HetmpError(f"{kind} spreads a module over devices by itself: slice its .module")


def _on_meta(x: Tensor) -> Tensor:
    return x.detach().to("meta").requires_grad_(x.requires_grad)


def _check_hooked(graph: ModelGraph, module: nn.Module) -> None:
    """Refuse hooks of the user's that cannot see whole values on slices."""
    for path in filter(None, graph.hooked):
        part = module.get_submodule(path)
        backward = bool(part._backward_hooks or part._backward_pre_hooks)
        reason = graph.why_no_hook(path, backward=backward)
        if reason is not None:
            raise HetmpError(
                f"the hooks of {place(path, part)} would not run on slices as they do now, remove "
                f"them first: {reason}"
            )


def _check_hooks_of_old(skeleton: nn.Module) -> None:
    """Refuse weight norm of old where no layer that computes its weight took its place."""
    for path, layer in skeleton.named_modules():
        if norms_of_old(layer):
            raise HetmpError(
                f"layer {place(path, layer)} cannot be sliced: its old weight_norm is a hook, "
                "which would not run on slices: use torch.nn.utils.parametrizations.weight_norm"
            )


def _aliases(skeleton: nn.Module) -> dict[str, str]:
    """Return the first name of every parameter, buffer and module that has a second one."""
    aliases: dict[str, str] = {}
    for named in (skeleton.named_modules, skeleton.named_parameters, skeleton.named_buffers):
        first: dict[int, str] = {}
        for name, item in named(remove_duplicate=False):
            if first.setdefault(id(item), name) != name:
                aliases[name] = first[id(item)]
    return aliases


def _held(skeleton: nn.Module) -> dict[bool, frozenset[str]]:
    """Return the parts that ``train`` leaves in the other mode, by the mode that it sets."""
    held: dict[bool, frozenset[str]] = {}
    with modes_kept(skeleton):
        for training in (True, False):
            skeleton.train(training)
            parts = skeleton.named_modules()
            held[training] = frozenset(p for p, part in parts if part.training != training)
    return held


def _read(
    skeleton: nn.Module, graph: fx.Graph, log: CallLog, examples: Mapping[str, Tensor]
) -> Trace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probed = _probe(skeleton, graph, examples)
    values = probed.values
    check_memory(graph, skeleton, values)
    entries: dict[str, str] = {}
    attributes: dict[str, str] = {}
    nodes: list[Node] = []
    current: dict[str, str] = {}  # of a value that was changed in place: what it is now
    result: object = None

    def named(item: object) -> object:
        if not isinstance(item, fx.Node):
            return item
        if _is_named_tuple(item):
            kind: Any = item.target
            return kind(*mapped(item.args, named), **mapped(item.kwargs, named))
        return Ref(current.get(item.name, item.name))

    calls, changes = CallReader(log, graph), dict[str, str]()
    for node in graph.nodes:
        calls.before(node, named)
        if node.op == "placeholder":
            entries[node.name] = str(node.target)
        elif node.op == "get_attr":
            attributes[node.name] = str(node.target)
        elif node.op == "output":
            result = mapped(node.args[0], named)
        elif not _is_named_tuple(node):
            nodes.append(_node(skeleton, node, named, values))
            source = changed(node, skeleton, values)
            if source is not None:
                changes[node.name] = same = current.get(source.name, source.name)
                current.update({old: node.name for old, new in current.items() if new == same})
                current[same] = node.name
        calls.after(node, named, current)
    every, nodes = nodes, _live(nodes, result)
    nodes, values = _with_demanded_sizes(nodes, values)
    for operation in nodes:
        _check_channels(operation)
    batch = None
    if probed.takes_apart:
        entry = values[next(iter(entries))]
        batch = entry.shape[0]
        if not examples:
            raise HetmpError(
                f"{type(skeleton).__name__} takes its batch apart, so it can be read for one "
                "number of images only: give slice_model an example_input with that many"
            )
    live = {node.name: node for node in nodes}
    # What draws random numbers, or has no rule, would not run as it does where nothing needs it.
    dropped = {
        node.name: list(node.call.values)
        for node in every
        if node.name not in live and not isinstance(node.rule, Whole)
    }
    scopes = {node.name: node.scope for node in nodes}
    read = calls.calls(list(live), scopes, values, [*entries, *attributes], dropped)
    whole = tuple(live.get(node.name, node) for node in every)
    return Trace(entries, attributes, tuple(nodes), result, values, batch, read, changes, whole)


def _is_named_tuple(node: fx.Node) -> bool:
    """Return whether a node only puts values together, as a tuple does."""
    return isinstance(node.target, type) and hasattr(node.target, "_fields")


def _node(skeleton: nn.Module, node: fx.Node, named: Any, values: Mapping[str, Value]) -> Node:
    target: Any = node.target
    path = str(target) if node.op == "call_module" else ""
    if node.op == "call_module":
        target = skeleton.get_submodule(path)
    elif stack := node.meta.get("nn_module_stack"):
        path = str(list(stack.values())[-1][0])
    args, kwargs = mapped(node.args, named), mapped(node.kwargs, named)
    operands = {name: values[name] for name in references((args, kwargs))}
    call = Call(target, args, kwargs, operands, values[node.name])
    rule, reason = rule_for(target), None
    if call.operands and rule is None:
        reason = "hetmp has no rule for it"
    elif call.operands and rule is not None:
        reason = rule.unfit(call) or _unlike(call, rule)
    elif draws(call):
        reason = "it draws random numbers"
    chosen = _WHOLE if rule is None or reason is not None else rule
    line = users_line(node.stack_trace or "")
    return Node(node.name, path, call, chosen, reason, line, node.meta.get("scope", PLAIN))


def _unlike(call: Call, rule: Rule) -> str | None:
    """Return why a layer's call is not the one that its rule expects, or None."""
    if call.layer is None or rule.several:
        return None
    if len(call.values) != 1 or len(call.args) + len(call.kwargs) != 1:
        return "it is called with more than one tensor"
    parts = [part for part in call.layer.modules() if part is not call.layer]
    if not rule.mixes and any(part._parameters or part._buffers for part in parts):
        return "it contains layers with parameters or buffers"
    return None


def _live(nodes: Sequence[Node], result: object) -> list[Node]:
    """Return the nodes without unused functions and methods; layers stay, for their state."""
    wanted = set(references(result))
    live: list[Node] = []
    for node in reversed(nodes):
        if node.name in wanted or node.call.layer is not None or node.call.target is confirm:
            live.append(node)
            wanted.update(node.call.values)
    return live[::-1]


# --- sizes --------------------------------------------------------------------------------------


def _probe(skeleton: nn.Module, graph: fx.Graph, examples: Mapping[str, Tensor]) -> Probed:
    if examples:
        return probe(skeleton, graph, examples)
    entry = next(str(node.target) for node in graph.nodes if node.op == "placeholder")
    dims, channels = _asked(skeleton, graph)
    called = (str(node.target) for node in graph.nodes if node.op == "call_module")
    dtypes = (p.dtype for path in called for p in skeleton.get_submodule(path).parameters())
    dtype = next(dtypes, torch.get_default_dtype())
    return probe_unseen(skeleton, graph, entry, dims or 4, channels, dtype)


def _asked(skeleton: nn.Module, graph: fx.Graph) -> tuple[int | None, int | None]:
    """Return (dimensions, channels) of a batch that the first layers demand, None where unknown."""
    dims = channels = None
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        layer = skeleton.get_submodule(str(node.target))
        rule = rule_for(layer)
        if rule is None or not rule.keeps_dims:
            break
        dims = rule.input_dims(layer) if dims is None else dims
        channels = rule.input_channels(layer) if channels is None else channels
        if rule.mixes:
            return dims or 2, channels  # a linear layer in front takes (n, features)
    return dims, channels


def _dims(trace: Trace, entry: str, matter: bool) -> int | None:
    """Return the dimensions of a batch; None if the first layers take any number of them.

    *matter* says that the module's own code may depend on them.
    """
    if matter:
        return trace.values[entry].dims
    for node in trace.nodes:
        layer = node.call.layer
        if layer is None:
            continue
        if node.rule.input_dims(layer) is not None or node.rule.mixes:
            return trace.values[entry].dims
        if not node.rule.keeps_dims or node.reason is not None:
            return None
    return trace.values[entry].dims


def _with_demanded_sizes(
    nodes: Sequence[Node], values: Mapping[str, Value]
) -> tuple[list[Node], dict[str, Value]]:
    """Fill in sizes backwards: a linear layer tells the length of the axis before it."""
    known = dict(values)
    for node in reversed(nodes):
        if len(node.call.operands) != 1 or not node.call.result.is_tensor or node.reason:
            continue
        (name,) = node.call.operands
        value, result = known[name], known[node.name]
        if not value.is_tensor or not value.dims:
            continue
        layer = node.call.layer
        axis = 1 if layer is None else node.rule.channel_axis(layer, value.dims)
        wanted = None if layer is None else node.rule.input_channels(layer)
        same = values[name].sizes == values[node.name].sizes
        if wanted is None and not node.rule.mixes and same:
            wanted = result.shape[axis] if axis < result.dims else None
        if wanted is not None and axis < value.dims and value.shape[axis] is None:
            sizes = tuple((*s[:axis], wanted, *s[axis + 1 :]) for s in value.sizes)
            known[name] = replace(value, sizes=sizes)
    sized = [
        replace(
            node,
            call=replace(
                node.call,
                values={name: known[name] for name in node.call.values},
                result=known[node.name],
            ),
        )
        for node in nodes
    ]
    return sized, known


def _check_channels(node: Node) -> None:
    layer = node.call.layer
    if layer is None or node.reason is not None or not node.call.operand.is_tensor:
        return
    shape = node.call.operand.shape
    wanted = node.rule.input_channels(layer)
    axis = node.rule.channel_axis(layer, len(shape))
    dims = node.rule.input_dims(layer)
    if dims is not None and len(shape) != dims:
        raise HetmpError(
            f"layer {node.place} takes batches of {dims} dimensions, got {len(shape)}: give "
            "the batch axis, also for one sample"
        )
    if wanted is not None and (axis >= len(shape) or shape[axis] not in (None, wanted)):
        raise HetmpError(
            f"layer {node.place} takes {wanted} channels, but the layer before it gives "
            f"{shape[axis] if axis < len(shape) else 'none'}"
        )

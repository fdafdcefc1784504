"""torch.fx on a module in all of its modes."""

import copy
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, fx, nn

from hetmp.core.errors import HetmpError
from hetmp.ops import generator_states, generators_kept
from hetmp.slicing.graph.functional import as_layers
from hetmp.slicing.graph.graph import MODES, Mode, place
from hetmp.slicing.graph.inputs import Example, Inputs
from hetmp.slicing.graph.lines import users_line
from hetmp.slicing.graph.meta_run import attribute, modes_kept
from hetmp.slicing.graph.module_calls import CallLog
from hetmp.slicing.graph.proxies import holds_stand_in, instances
from hetmp.slicing.graph.recorded_calls import (
    recorded_autograd,
    recorded_creation,
    recorded_limits,
)
from hetmp.slicing.graph.scope import PLAIN, ScopeReader
from hetmp.slicing.graph.skeleton import check_buffers
from hetmp.slicing.graph.tracer import Tracer


def trace_modes(
    skeleton: nn.Module, inputs: Inputs, example: Example
) -> tuple[dict[Mode, fx.Graph], dict[fx.Graph, CallLog], bool]:
    """Trace the module in all modes; one object for those that are alike.

    Returns:
        the graphs, the calls of parts in each, and whether one of them depends on the number of
        dimensions.

    Raises:
        HetmpError: torch.fx cannot trace the module, the message names the line; or the example
            does not fit it.
    """
    start, drawn = generator_states(), False
    tensors = _names(skeleton)
    graphs: dict[Mode, fx.Graph] = {}
    calls: dict[fx.Graph, CallLog] = {}
    scopes = ScopeReader()
    asked = dims_matter = False
    try:
        with ExitStack() as stack:
            stack.enter_context(generators_kept())
            stack.enter_context(modes_kept(skeleton))
            stack.enter_context(instances())
            stack.enter_context(recorded_creation())
            stack.enter_context(recorded_autograd())
            stack.enter_context(recorded_limits())
            stack.enter_context(scopes.watching())
            for mode in MODES:
                if mode.grad or asked:
                    tracer = Tracer(inputs, example, scopes)
                    with stand_ins_dropped(skeleton):
                        graphs[mode] = tracer.trace_mode(skeleton, mode)
                        calls[graphs[mode]] = tracer.calls
                        _check_buffers(skeleton, tensors)
                    asked |= tracer.asked_for_grad
                    dims_matter |= tracer.dims_matter
            drawn = start != generator_states()
    except HetmpError:
        raise
    except Exception as error:
        line = users_line("".join(traceback.format_tb(error.__traceback__)))
        raise HetmpError(
            f"torch.fx cannot trace {inputs.title}{', at ' if line else ''}{line}: "
            f"{str(error).split('. ')[0]}. " + _remedy(skeleton, error, not example.guessed)
        ) from error
    if drawn:
        raise HetmpError(
            f"{inputs.title} draws random numbers that depend on no activation: they would be "
            "drawn only once, when the module is read; draw them with torch.rand_like or in an "
            "activation's shape, or mark the module that draws them with hetmp.leaf(module)"
        )
    as_layers(skeleton, list(graphs.values()))
    first: dict[tuple[str, ...], fx.Graph] = {}
    for mode, graph in graphs.items():
        graphs[mode] = same = first.setdefault(tuple(_written(graph, skeleton)), graph)
        if same is not graph:
            calls[same].compare(calls.pop(graph), same, graph)
    for mode in MODES:
        graphs.setdefault(mode, graphs[Mode(mode.training, grad=True)])
    return graphs, calls, dims_matter


def _remedy(skeleton: nn.Module, error: Exception, by_example: bool) -> str:
    """Return advice on *error*, which was raised while *skeleton* was traced."""
    names = {id(part): path for path, part in skeleton.named_modules() if path}
    at = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in names:
            at = f", {place(names[id(part)], part)},"
    sizes = "" if by_example else "Code that depends on a size needs an example_input. "
    return (
        f"{sizes}Code that depends on an activation's values cannot be sliced: mark its "
        f"module{at} with hetmp.leaf(module) to keep it whole"
    )


@contextmanager
def stand_ins_dropped(skeleton: nn.Module) -> Iterator[None]:
    """Restore, on leaving, the attributes that hold stand-ins: they are of one trace alone."""
    before = {
        part: {
            name: (value, copy.copy(value) if type(value) in (list, dict) else None)
            for name, value in vars(part).items()
        }
        for part in skeleton.modules()
    }
    yield
    for part, attributes in before.items():
        for name, value in list(vars(part).items()):
            if not holds_stand_in(value):
                continue
            if name not in attributes:
                del vars(part)[name]
                continue
            whole, items = attributes[name]
            vars(part)[name] = whole
            if items is not None:
                whole.clear()
                whole.extend(items) if type(whole) is list else whole.update(items)


def _names(skeleton: nn.Module) -> set[str]:
    """Return the names of the parameters and buffers."""
    named = (skeleton.named_parameters, skeleton.named_buffers)
    return {name for tensors in named for name, _ in tensors(remove_duplicate=False)}


def _check_buffers(skeleton: nn.Module, names: set[str]) -> None:
    for name in sorted(_names(skeleton) - names):
        raise HetmpError(
            f"{name!r} is registered while the module runs: run it once before it is sliced, so "
            "that all of its parameters and buffers are there"
        )
    check_buffers(skeleton)


def _written(graph: fx.Graph, skeleton: nn.Module) -> list[str]:
    """Write a graph as text to compare: values by position, constants by content."""
    places = {node: f"%{place}" for place, node in enumerate(graph.nodes)}
    lines = []
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "get_attr" and isinstance(constant := attribute(skeleton, target), Tensor):
            target = target if constant.is_meta else f"{constant.dtype} {constant.tolist()}"
        arguments = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
        lines.append(f"{node.op} {target} {arguments} {node.meta.get('scope', PLAIN)}")
    return lines

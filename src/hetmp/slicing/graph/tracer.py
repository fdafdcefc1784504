"""torch.fx's tracer with stand-ins that know their values: ``Tracer``."""

import functools
import operator
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, Target

from hetmp.core.errors import HetmpError
from hetmp.ops import generators_kept, known_layers, mapped, rule_for
from hetmp.slicing.graph.confirmation import DEVICES, confirm, is_size
from hetmp.slicing.graph.gradients import BACKWARD, requires_grad
from hetmp.slicing.graph.graph import Mode, place
from hetmp.slicing.graph.inplace import Changing
from hetmp.slicing.graph.inputs import Example, Inputs, proxied
from hetmp.slicing.graph.items import count_items
from hetmp.slicing.graph.leaf import is_leaf
from hetmp.slicing.graph.lines import at_line, is_library, is_users, users_frame, users_line
from hetmp.slicing.graph.meta_run import (
    attribute,
    on_meta,
    run_layer,
    run_method,
    without_data,
)
from hetmp.slicing.graph.module_calls import CALLS, CallLog
from hetmp.slicing.graph.proxies import (
    KnownProxy,
    Proxy,
    TensorProxy,
    known,
    no_instances,
)
from hetmp.slicing.graph.scope import ScopeReader
from hetmp.slicing.graph.shapes import misfit
from hetmp.slicing.graph.skeleton import check_buffers
from hetmp.slicing.graph.subclasses import is_unfolded
from hetmp.slicing.graph.texts import Texts


class Tracer(fx.Tracer):
    """Keeps layers with a rule whole, and runs each recorded node on an example if any."""

    proxy_buffer_attributes = True  # what is computed from a buffer belongs to the graph

    def __init__(self, inputs: Inputs, example: Example, scopes: ScopeReader) -> None:
        super().__init__()
        self._inputs, self._example, self._scopes = inputs, example, scopes
        self._running = False
        self._confirmed: set[fx.Node] = set()
        self._asked: dict[tuple[int, int], list[tuple[fx.Node, fx.Node]]] = {}
        self._failed: str | None = None
        self.texts, self.calls = Texts(), CallLog()
        self.device = example.device
        self.asked_for_grad = self.dims_matter = False
        self.trace_asserts = not example.tensors

    def trace_mode(self, skeleton: nn.Module, mode: Mode) -> fx.Graph:
        """Trace *skeleton*'s operations as it is called in *mode*."""
        skeleton.train(mode.training)
        self._scopes.begin(grad=mode.grad)
        with torch.set_grad_enabled(mode.grad), self._questions():
            graph = self.trace(skeleton)
        if self._failed is not None:
            raise HetmpError(
                f"{self._inputs.title} goes on after an operation that fails{self._failed}: "
                "whether it fails may depend on sizes, so ask for them instead, or mark the module "
                "that does it with hetmp.leaf(module)"
            )
        self._confirm_texts(graph)
        if self._example.guessed:
            _check_sizes(graph, self._inputs.title)
        return graph

    def _confirm_texts(self, graph: fx.Graph) -> None:
        """Confirm the sizes that became text, each where it is known."""
        for size, line in self.texts.decisive():
            if size.node in self._confirmed:
                continue
            self._confirmed.add(size.node)
            with graph.inserting_after(size.node):
                arguments = (size, size.answer, line, True)
                made = super().create_proxy("call_function", confirm, arguments, {})
            for key in ("scope", CALLS):
                made.node.meta[key] = size.node.meta[key]

    def checkpoint(self) -> AbstractContextManager[None]:
        """Number the operations inside as those of one gradient checkpoint."""
        return self._scopes.checkpoint()

    @contextmanager
    def _questions(self) -> Iterator[None]:
        """Notice what the module asks of torch's settings, which differ from call to call."""
        originals = {name: getattr(torch, name) for name in _SETTINGS}

        def noticed(original: Callable[..., object]) -> Callable[..., object]:
            @functools.wraps(original)
            def ask(*args: object, **kwargs: object) -> object:
                answer = original(*args, **kwargs)
                if self._running or is_library(sys._getframe(1)):
                    return answer
                if original is is_grad_enabled:
                    self.asked_for_grad = True
                else:
                    self._confirm(original, args, kwargs, answer)
                return answer

            return ask

        is_grad_enabled = originals["is_grad_enabled"]
        try:
            for name, original in originals.items():
                setattr(torch, name, noticed(original))
            yield
        finally:
            for name, original in originals.items():
                setattr(torch, name, original)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def create_node(
        self,
        kind: str,
        target: Target,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
        name: str | None = None,
        type_expr: object = None,
    ) -> fx.Node:
        """Record a node with the user's line, which errors name.

        torch.fx's own ``record_stack_traces`` formats the whole stack: a fifth of reading a module.
        """
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        node.stack_trace = users_frame()
        node.meta["scope"], node.meta[CALLS] = self._scopes.scope, self.calls.open
        return node

    def create_arg(self, a: object) -> Any:
        if isinstance(a, torch.Generator):
            raise HetmpError(
                f"{self._inputs.title} draws from a generator of its own{_here()}: its numbers "
                "would depend on how many ranks there are; draw from torch's own generator, or "
                "mark the module that draws with hetmp.leaf(module)"
            )
        count_items(a)
        # Some stand-ins look like tensors, which torch.fx would take for constants.
        if isinstance(a, fx.Proxy):
            return self._own_node(a)
        made = super().create_arg(a)
        if isinstance(a, Tensor) and a.is_meta and str(made).startswith(_CONSTANT):
            raise HetmpError(
                f"{self._inputs.title} computes with parameters{_here()} that it takes from "
                "parameters(), state_dict() or the like: take them as attributes, as in "
                "self.conv.weight, or mark the module that does it with hetmp.leaf(module)"
            )
        return made

    def _own_node(self, proxy: fx.Proxy) -> fx.Node:
        """Return the node of a stand-in, which must be of this trace."""
        if proxy.node.graph is not self.graph:
            raise HetmpError(
                f"{self._inputs.title} keeps a value from call to call and takes it up again"
                f"{_here()}: what a call leaves behind, in an attribute, a global or a cache of "
                "calls, is not read; compute it anew, keep it in a buffer from the start, or mark "
                "the module that does it with hetmp.leaf(module)"
            )
        return proxy.node

    def attribute(self, path: str) -> Any:
        """Return the attribute at *path* itself, for which the module would get a stand-in."""
        running, self._running = self._running, True
        try:
            return attribute(self.root, path)
        finally:
            self._running = running

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any
    ) -> Any:
        if target in BACKWARD:
            name = target if isinstance(target, str) else f"torch.autograd.{target.__name__}"
            raise HetmpError(
                f"{self._inputs.title} calls {name}{_here()}, in its forward: gradients are not "
                "known while it is read; mark the module that does it with hetmp.leaf(module)"
            )
        if kind == "call_module":
            self._check_nested(target)
        if target is torch._assert:
            self.texts.forget((args, kwargs))
        if target in _OF_MEMORY and args and isinstance(args[0], TensorProxy):
            args[0].keep_order()
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **named)
        if not self._example.tensors or target is confirm:
            return proxy
        own_args, own_kwargs = _values((args, kwargs), target)
        operands = _tensors((own_args, own_kwargs))
        versions = [tensor._version for tensor in operands]
        try:
            value = self._run(kind, target, own_args, own_kwargs)
        except Exception as error:
            self._failed = _here()
            raise misfit(self._example.tensors, error) from error
        changed = [x for x, before in zip(operands, versions, strict=True) if x._version != before]
        if changed and kind == "call_function" and is_users(target):
            value = self._changing(proxy.node, own_args, changed, value)
        return known(proxy.node, self, value)

    def _changing(self, node: fx.Node, args: Any, changed: list[Tensor], value: object) -> Tensor:
        """Make a user's function that changes its first argument one that returns it, too."""
        first = args[0] if args else None
        if any(x is not first for x in changed) or (value is not None and value is not first):
            raise HetmpError(
                f"{node.name!r}{at_line(node.stack_trace)} changes an argument in place and "
                "returns something else: this cannot be sliced; return the changed tensor alone"
            )
        assert callable(node.target)
        node.target = Changing(node.target)
        return changed[0]

    def confirm(self, proxy: KnownProxy, call: tuple[int, int] | None = None) -> None:
        """Record that the module depends on *proxy*'s value, as the *call* of a frame asks."""
        if proxy.node in self._confirmed:
            return
        self._confirmed.add(proxy.node)
        node = self._confirmation(proxy, proxy.answer)
        if call is not None:
            self._asked.setdefault(call, []).append((proxy.node, node))

    def confirm_attribute(self, proxy: KnownProxy, name: str, value: object) -> None:
        """Record that the module depends on *value*, an attribute of *proxy*'s."""
        if not is_library(sys._getframe(2)):
            self._confirm(getattr, (proxy, name), {}, value)

    def _confirm(self, function: Any, args: Any, kwargs: Any, value: object) -> None:
        """Record a question and that the module depends on its answer, *value*."""
        asked = super().create_proxy("call_function", function, args, kwargs)
        self._confirmation(asked, value)

    def _confirmation(self, proxy: fx.Proxy, value: object) -> fx.Node:
        line = users_line("".join(traceback.format_stack()))
        arguments = (proxy, value, line, is_size(proxy.node))
        made = self.create_proxy("call_function", confirm, arguments, {})
        node: fx.Node = made.node
        return node

    def requires_grad(self, proxy: KnownProxy) -> bool:
        """Return whether *proxy*'s gradient is computed, which differs between the modes."""
        self.asked_for_grad = True
        wanted = proxy.value.is_floating_point() and requires_grad(
            proxy.node, self.attribute, self._example.tensors
        )
        self._confirm(getattr, (proxy, "requires_grad"), {}, wanted)
        return wanted

    def forget(self, call: tuple[int, int]) -> None:
        """Undo ``confirm`` for a *call* that used no value: it is recorded with its stand-ins."""
        for node, confirming in self._asked.pop(call, ()):
            self._confirmed.discard(node)
            self.graph.erase_node(confirming)

    def _run(self, kind: str, target: Any, args: Any, kwargs: Any) -> object:
        """Run a node on the meta device and return its value."""
        self._running = True
        # What a module kept as one draws, it draws again whenever it runs.
        generators = generators_kept() if _is_users(kind, target, self.root) else nullcontext()
        try:
            with generators, without_data(), no_instances():
                if kind == "placeholder":
                    return torch.empty_like(self._example.tensors[target], device="meta")
                if kind == "get_attr":
                    return on_meta(attribute(self.root, target))
                if kind == "call_module":
                    return run_layer(self.root.get_submodule(target), args, kwargs)
                if kind == "call_method":
                    return run_method(target, args, kwargs)
                if target is getattr and args[1] in DEVICES:
                    return args[1] == f"is_{self.device.type}"
                return target(*args, **kwargs)
        finally:
            self._running = False

    def _check_nested(self, path: str) -> None:
        """Refuse running statistics inside two checkpoints, each of which updates them."""
        layer = self.attribute(path)
        if self._scopes.is_nested and layer.training and next(layer.buffers(), None) is not None:
            raise HetmpError(
                f"{place(path, layer)} is in a gradient checkpoint inside another{_here()}, and "
                "each updates its statistics once more; only the outer one is read: call one alone"
            )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> object:
        if self._running:
            return forward(*args, **kwargs)
        path, scope = self.path_of_module(m), self._scopes.scope
        with self.calls.call(path, scope, args, kwargs) as record:
            result = super().call_module(m, forward, args, kwargs)
            record.give(result)
        return result

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, Any]) -> object:
        if self._running:
            return attr_val
        if isinstance(attr_val, fx.Proxy):
            check_buffers(self.root)
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_leaf(m) or rule_for(m) is not None:
            return True
        if isinstance(m, known_layers()):
            return not is_unfolded(m)
        return super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., object], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., object], list[object]]:
        def proxy(name: str) -> object:
            return self.create_proxy("placeholder", name, (), {})

        args, kwargs = proxied(self._inputs, proxy)

        def forward(*args: object) -> object:  # torch.fx looks at a function's own attributes
            return root_fn(*args, **kwargs)

        return forward, [self.root, *args]


def _values(structure: object, target: object) -> Any:
    """Return arguments for *target* with stand-ins replaced by their values."""
    compared = target in (operator.eq, operator.ne)  # a device with one that the module names

    def value(item: object) -> object:
        if not isinstance(item, KnownProxy):
            return on_meta(item)
        return item.answer if compared else item.value

    return mapped(structure, value)


def _is_users(kind: str, target: Any, root: nn.Module) -> bool:
    """Return whether a call runs code that is the user's own."""
    if kind == "call_module":
        return rule_for(root.get_submodule(target)) is None
    return kind == "call_function" and is_users(target)


def _tensors(structure: object) -> list[Tensor]:
    tensors: dict[int, Tensor] = {}

    def note(item: object) -> object:
        if isinstance(item, Tensor):
            tensors[id(item)] = item
        return item

    mapped(structure, note)
    return list(tensors.values())


def _here() -> str:
    """Return where the user's code is, for a message."""
    return at_line(users_frame())


_OF_MEMORY = ("as_strided", "stride", torch.as_strided)
"""Methods and functions to which the order of a tensor's memory matters."""

_CONSTANT = "_tensor_constant"
"""What torch.fx calls the tensors that no attribute holds."""

_SETTINGS = (
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "is_autocast_enabled",
    "is_autocast_cpu_enabled",
    "get_autocast_dtype",
    "get_autocast_gpu_dtype",
    "get_autocast_cpu_dtype",
)
"""Questions to torch whose answers a module may branch on."""


def _check_sizes(graph: fx.Graph, title: str) -> None:
    """Refuse a module that depends on a size, where the sizes are only guessed."""
    for node in graph.nodes:
        if node.target is confirm and node.args[3]:
            at = f" at {node.args[2]}" if node.args[2] else ""
            raise HetmpError(
                f"{title} depends on a size{at}. Code that depends on a size needs an "
                "example_input: give slice_model one"
            )

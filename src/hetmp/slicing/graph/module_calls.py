"""The calls of a module's parts while it is read: arguments, results, and what runs inside.

torch.fx keeps operations only. A hook on a part sees what the part is given and what it returns.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from hetmp.ops import Value, references
from hetmp.slicing.graph.items import ItemsList, ItemsTuple, ShapeProxy
from hetmp.slicing.graph.scope import Scope

CALLS = "calls"
"""In the meta of a node: the numbers of the calls that it runs inside of."""

REPLACED = "replaced by"
"""In the meta of a node that was taken out of the graph: the node in its place."""

_FIXED = (bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device,
          torch.memory_format, type(None))  # fmt: skip
"""The types of arguments that are what they are when the module is read."""


@dataclass(frozen=True)
class ModuleCall:
    """One call of a part of the module.

    Attributes:
        path: the part's place in the module.
        args, kwargs: as the module gives them, with a ``Ref`` for every value.
        result: what the part returns, likewise.
        nodes: the names of the operations inside, which run in a row.
        unused: those among them that only the result needs, and nothing takes of that.
        changed: arguments that are changed in place inside -> what they are afterwards.
        scope: what the module sets around the call.
        reason: why no hook can see it as torch's would, or None.
        doubled: whether a value stands twice among its arguments or in its result.
    """

    path: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    result: object
    nodes: tuple[str, ...]
    unused: frozenset[str]
    changed: Mapping[str, str]
    scope: Scope
    reason: str | None
    doubled: bool


@dataclass
class CallRecord:
    """A call as it was traced, with torch.fx's nodes in the place of values.

    Attributes:
        reason: why its arguments or its result cannot be followed, or None.
    """

    path: str
    scope: Scope
    args: Any = ()
    kwargs: Any = field(default_factory=dict)
    result: Any = None
    reason: str | None = None

    def take(self, args: object, kwargs: object) -> None:
        """Note what the part is called with."""
        try:
            self.args, self.kwargs = _plain(args), _plain(kwargs)
        except _NotFollowedError as kind:
            self.reason = f"it is called with a {kind}, in which hetmp does not look for tensors"

    def give(self, result: object) -> None:
        """Note what the part returns."""
        try:
            self.result = _plain(result)
        except _NotFollowedError as kind:
            self.reason = f"it returns a {kind}, in which hetmp does not look for tensors"


class CallLog:
    """The calls of one trace, in the order in which they begin."""

    def __init__(self) -> None:
        self.records: list[CallRecord] = []
        self.open: tuple[int, ...] = ()

    @contextmanager
    def call(self, path: str, scope: Scope, args: object, kwargs: object) -> Iterator[CallRecord]:
        """Record a call; the nodes that are made inside belong to it."""
        record = CallRecord(path, scope)
        record.take(args, kwargs)
        before, self.open = self.open, (*self.open, len(self.records))
        self.records.append(record)
        try:
            yield record
        finally:
            self.open = before

    def compare(self, other: "CallLog", graph: fx.Graph, others: fx.Graph) -> None:
        """Note which parts are called otherwise in a mode that runs the same operations."""
        own, foreign = _described(self, graph), _described(other, others)
        for path in own.keys() | foreign.keys():
            if own.get(path) != foreign.get(path):
                self.records.append(CallRecord(path, Scope()))
                for record in self.records:
                    if record.path == path:
                        record.reason = "it is called otherwise in evaluation than in training"


class CallReader:
    """Turns the records of a trace into calls, while its nodes are read in order."""

    def __init__(self, log: CallLog, graph: fx.Graph) -> None:
        self._records = log.records
        self._inside: list[list[fx.Node]] = [[] for _ in log.records]
        for node in graph.nodes:
            for number in node.meta.get(CALLS, ()):
                self._inside[number].append(node)
        self._begins: dict[fx.Node, list[int]] = {}
        self._ends: dict[fx.Node, list[int]] = {}
        for number, nodes in enumerate(self._inside):
            if nodes:
                self._begins.setdefault(nodes[0], []).append(number)
                self._ends.setdefault(nodes[-1], []).append(number)
        self._read: dict[int, ModuleCall] = {}

    def before(self, node: fx.Node, named: Callable[[object], object]) -> None:
        """Read the arguments of the calls that begin with *node*, as they are named then."""
        for number in self._begins.get(node, ()):
            record = self._records[number]
            args, kwargs = (rebuilt(part, _now(named)) for part in (record.args, record.kwargs))
            self._read[number] = ModuleCall(
                path=record.path,
                args=args,
                kwargs=kwargs,
                result=None,
                nodes=(),
                unused=frozenset(),
                changed={},
                scope=record.scope,
                reason=record.reason,
                doubled=False,
            )

    def after(
        self, node: fx.Node, named: Callable[[object], object], current: Mapping[str, str]
    ) -> None:
        """Read the results of the calls that end with *node*; *current* is as in ``_read``."""
        for number in self._ends.get(node, ()):
            call = self._read[number]
            changed = {
                name: current[name]
                for name in references((call.args, call.kwargs))
                if name in current
            }
            result = rebuilt(self._records[number].result, _now(named))
            self._read[number] = replace(call, result=result, changed=changed)

    def calls(
        self, nodes: Sequence[str], scopes: Mapping[str, Scope], values: Mapping[str, Value],
        outside: Sequence[str],
        dropped: Mapping[str, Sequence[str]],
    ) -> tuple[ModuleCall, ...]:  # fmt: skip
        """Return the calls, in the order in which they begin.

        Args:
            nodes: the names of the operations that the trace has, in order.
            scopes: what the module sets around each.
            values: the facts known about every value.
            outside: the names of the values that no operation makes.
            dropped: operations that nothing needs, by name -> the values that each takes.
        """
        places = {name: place for place, name in enumerate(nodes)}
        read = []
        for number, record in enumerate(self._records):
            call = self._read.get(number)
            if call is None:
                read.append(_without_nodes(record))
                continue
            call = replace(call, nodes=tuple(node.name for node in self._inside[number]))
            call = replace(call, unused=_unused(call, dropped))
            reason = call.reason or _why_not(call, places, scopes, values, {*outside})
            read.append(replace(call, reason=reason, doubled=_is_doubled(call, values)))
        return tuple(read)


def rebuilt(structure: object, change: Callable[[object], object]) -> Any:
    """Replace every item of *structure* by ``change(item)``; the containers keep their types."""
    if isinstance(structure, tuple) and not isinstance(structure, torch.Size):
        items = [rebuilt(item, change) for item in structure]
        return type(structure)(*items) if hasattr(structure, "_fields") else tuple(items)
    if isinstance(structure, list):
        return [rebuilt(item, change) for item in structure]
    if isinstance(structure, dict):
        pairs = ((name, rebuilt(item, change)) for name, item in structure.items())
        return OrderedDict(pairs) if isinstance(structure, OrderedDict) else dict(pairs)
    return change(structure)


class _NotFollowedError(Exception):
    """A value of a type in which tensors are not looked for."""


def _plain(item: Any) -> object:
    """Return a structure with nodes in the place of stand-ins."""
    kind = type(item)
    if issubclass(kind, fx.Proxy):
        return item.node
    # Whoever iterates over these depends on their number of items: look past that.
    if kind in (tuple, ItemsTuple, ShapeProxy):
        return tuple(_plain(part) for part in tuple.__iter__(item))
    if kind in (list, ItemsList):
        return [_plain(part) for part in list.__iter__(item)]
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        named: Any = kind
        return named(*(_plain(part) for part in item))
    if kind in (dict, OrderedDict):
        return kind((name, _plain(part)) for name, part in item.items())
    if kind in _FIXED:
        return item
    raise _NotFollowedError(kind.__name__)


def _now(named: Callable[[object], object]) -> Callable[[object], object]:
    """Let *named* get what stands in the graph now for a node that was replaced."""

    def name(item: object) -> object:
        while isinstance(item, fx.Node) and REPLACED in item.meta:
            item = item.meta[REPLACED]
        return named(item)

    return name


def _unused(call: ModuleCall, dropped: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Return the operations inside of a *call* that were dropped, and that its result needs."""
    unused: set[str] = set()
    ahead = [name for name in references(call.result) if name in dropped]
    while ahead:
        name = ahead.pop()
        if name in call.nodes and name not in unused:
            unused.add(name)
            ahead += [taken for taken in dropped[name] if taken in dropped]
    return frozenset(unused)


def _without_nodes(record: CallRecord) -> ModuleCall:
    reason = record.reason or "it hands on what it is given and does nothing itself"
    return ModuleCall(
        path=record.path,
        args=(),
        kwargs={},
        result=None,
        nodes=(),
        unused=frozenset(),
        changed={},
        scope=record.scope,
        reason=reason,
        doubled=False,
    )


def _why_not(
    call: ModuleCall,
    places: Mapping[str, int],
    scopes: Mapping[str, Scope],
    values: Mapping[str, Value],
    outside: set[str],
) -> str | None:
    """Return why hooks on the part of a *call* cannot see whole values, or None."""
    if call.scope.checkpoint is not None:
        return "it runs inside a gradient checkpoint: put the hook on the part around that"
    inside = [name for name in call.nodes if name in places]
    if not inside:
        return "nothing takes what it computes"
    numbers = [places[name] for name in inside]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return "what it computes is not computed in a row"
    for word, structure in (("is given", (call.args, call.kwargs)), ("returns", call.result)):
        for name in references(structure):
            if name not in places and name not in outside | call.unused:
                return f"it {word} a value that nothing takes"
            if values[name].holds_tensors and not values[name].is_tensor:
                return f"it {word} several values that are one to torch.fx: take them apart before"
    for name in references(call.result):
        if values[name].is_tensor and name not in call.nodes:
            return "it returns a tensor that it does not compute itself"
    if call.scope.grad is False and any(scopes[name].grad is not False for name in inside):
        return "it switches gradients on inside torch.no_grad: put the hook on a part inside"
    return None


def _is_doubled(call: ModuleCall, values: Mapping[str, Value]) -> bool:
    for structure in ((call.args, call.kwargs), call.result):
        names = [n for n in references(structure) if n in values and values[n].is_tensor]
        if len(set(names)) < len(names):
            return True
    return False


def _described(log: CallLog, graph: fx.Graph) -> dict[str, list[str]]:
    """Write down every part's calls, values by position."""
    places = {node: f"%{place}" for place, node in enumerate(graph.nodes)}
    inside: dict[int, list[str]] = {}
    for node in graph.nodes:
        for number in node.meta.get(CALLS, ()):
            inside.setdefault(number, []).append(places[node])

    @_now
    def placed(item: object) -> object:
        return places.get(item, "gone") if isinstance(item, fx.Node) else item

    described: dict[str, list[str]] = {}
    for number, record in enumerate(log.records):
        parts = [rebuilt(x, placed) for x in (record.args, record.kwargs, record.result)]
        text = f"{parts} {inside.get(number)} {record.reason}"
        described.setdefault(record.path, []).append(text)
    return described

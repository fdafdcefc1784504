"""Calling a part of a sliced model with whole values, so that torch runs its hooks.

Whole values with whole gradients are between ``leave``, which takes an average over the ranks of
what comes back, and ``BackwardSum``, which sums over them. A hooked call passes both twice: its
arguments on their way in, its results on their way out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hetmp.cluster import Group
from hetmp.core.errors import HetmpError
from hetmp.core.state import Sliced
from hetmp.exchange import BackwardSum, leave, plain_tensors, users_tensors
from hetmp.ops import Ref
from hetmp.slicing.graph import rebuilt
from hetmp.slicing.hooks.registration import shown
from hetmp.slicing.schedule import HookedStep


def run_hooked(
    step: HookedStep,
    part: nn.Module,
    group: Group,
    entry: BackwardSum,
    values: Mapping[str, Any],
    seen: dict[str, Tensor],
    run_inside: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Call *part* with whole values and return its results, by name. Collective.

    Args:
        step: what it is called with, and what runs inside.
        part: whose hooks run.
        group: the ranks.
        entry: sums gradients over the ranks.
        values: the values so far, by name.
        seen: tensors that hooks have seen and that are written to later; these are added.
        run_inside: runs the steps inside on values, to which it adds theirs.

    Raises:
        HetmpError: a hook gives what cannot stand for what it was given.
    """
    whole = {name: leave(group, values[source]) for name, source in step.entering.items()}
    exported: dict[str, Any] = {}
    left: dict[str, Tensor] = {}
    counted: list[tuple[Tensor, int]] = _versions(whole.values())

    def filled(structure: object, tensors: Mapping[str, Any], others: Mapping[str, Any]) -> Any:
        def value(item: object) -> object:
            if not isinstance(item, Ref):
                return item
            return tensors[item.name] if item.name in tensors else others[item.name]

        return rebuilt(structure, value)

    def inside(*args: Any, **kwargs: Any) -> Any:
        with plain_tensors():
            return called(args, kwargs)

    def called(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal counted
        _check_unchanged(counted, step.title)
        came = _Taken(step, values, whole)
        came.match(step.args, args, "argument")
        came.match(step.kwargs, kwargs, "argument")
        seen.update((name, came.tensors[name]) for name in step.kept if name in came.tensors)
        inner = {name: value for name, value in values.items() if name in step.sources}
        inner |= zip(came.tensors, entry(*came.tensors.values()), strict=True)
        with shown(part, local=True), _forward_of(part, before):
            run_inside(inner)
        counted = _versions(whole.values())
        exported.update((name, inner[name]) for name in step.exports)
        left.update((name, leave(group, inner[of])) for name, of in step.leaving.items())
        return filled(step.result, left, {**values, **inner})

    args, kwargs = (filled(each, whole, values) for each in (step.args, step.kwargs))
    before = vars(part).get("forward")
    # Hooks are the user's code: there a cut parameter stands for the whole one.
    with shown(part, local=False), _forward_of(part, inside), users_tensors():
        result = part(*args, **kwargs)
    _check_unchanged(counted, step.title)
    went = _Taken(step, {**values, **exported}, left)
    went.match(step.result, result, "result")
    seen.update((name, went.tensors[name]) for name in step.kept if name in went.tensors)
    return {**exported, **dict(zip(went.tensors, entry(*went.tensors.values()), strict=True))}


class _Taken:
    """The tensors that hooks leave among a call's arguments, or in its result.

    Args:
        step: of the call.
        values: the other values, by name.
        shown: the tensors as the hooks were given them.

    Attributes:
        tensors: by name.
    """

    def __init__(
        self, step: HookedStep, values: Mapping[str, Any], shown: Mapping[str, Tensor]
    ) -> None:
        self._step, self._values, self._shown = step, values, shown
        self.tensors: dict[str, Tensor] = {}

    def match(self, wanted: Any, actual: Any, where: str) -> None:
        """Find the tensors of *actual*, which has to be made as *wanted* is.

        Raises:
            HetmpError: it is not.
        """
        if isinstance(wanted, Ref) and wanted.name in self._step.cuts:
            self._tensor(wanted.name, actual, where)
        elif isinstance(wanted, Ref):
            known = self._values.get(wanted.name, actual)
            if isinstance(actual, Tensor) or not (actual is known or actual == known):
                raise self._refusal(where, actual, repr(known))
        elif isinstance(wanted, tuple | list):
            if not isinstance(actual, tuple | list) or len(actual) != len(wanted):
                raise self._refusal(where, actual, f"{len(wanted)} values")
            for number, (item, other) in enumerate(zip(wanted, actual, strict=True)):
                self.match(item, other, f"{where} {number}")
        elif isinstance(wanted, Mapping):
            if not isinstance(actual, Mapping) or set(actual) != set(wanted):
                raise self._refusal(
                    where, actual, ", ".join(map(repr, wanted)) or "nothing by name"
                )
            for name, item in wanted.items():
                self.match(item, actual[name], f"{where} {name!r}")
        elif isinstance(actual, Tensor) or not (actual is wanted or actual == wanted):
            raise self._refusal(where, actual, repr(wanted))

    def _tensor(self, name: str, actual: Any, where: str) -> None:
        if not isinstance(actual, Tensor):
            raise self._refusal(where, actual, "a tensor")
        if self.tensors.setdefault(name, actual) is not actual:
            raise HetmpError(
                f"a hook on {self._step.title} gives two tensors for one that stands in two "
                f"places, the second in {where}: return the same tensor in both"
            )
        before = self._shown[name]
        if name in self._step.fixed and actual is not before and actual._base is not before:
            raise HetmpError(
                f"a hook on {self._step.title} gives another tensor for {where}, which is worked "
                "on in place: what else takes it would not see that; use inplace=False there"
            )
        cut = self._step.cuts[name]
        if isinstance(cut, Sliced):
            axis, total = cut.axis, cut.layout.total
            if not -actual.dim() <= axis < actual.dim() or actual.shape[axis] != total:
                raise HetmpError(
                    f"a hook on {self._step.title} gives shape {tuple(actual.shape)} for {where}, "
                    f"whose axis {axis} is cut and has to stay {total} long: return a tensor of "
                    "that length"
                )

    def _refusal(self, where: str, actual: Any, wanted: str) -> HetmpError:
        return HetmpError(
            f"a hook on {self._step.title} gives {_described(actual)} for {where}, where the "
            f"module was read with {wanted}: hooks of a sliced model may replace tensors, and "
            "nothing else"
        )


def _described(actual: Any) -> str:
    if isinstance(actual, Tensor):
        return "a tensor"
    if isinstance(actual, tuple | list):
        return f"{len(actual)} values"
    if isinstance(actual, Mapping):
        return f"{', '.join(map(repr, actual)) or 'nothing'} by name"
    return repr(actual)


@contextmanager
def _forward_of(part: nn.Module, forward: Any) -> Iterator[None]:
    """Let *part* run *forward* in the place of its own; its class's if that is None."""
    own = vars(part)
    before = own.pop("forward", None)
    if forward is not None:
        own["forward"] = forward
    try:
        yield
    finally:
        own.pop("forward", None)
        if before is not None:
            own["forward"] = before


def _versions(tensors: Any) -> list[tuple[Tensor, int]]:
    """Return how often each tensor was changed in place; inference tensors do not count that."""
    return [(x, x._version) for x in tensors if not x.is_inference()]


def _check_unchanged(counted: Sequence[tuple[Tensor, int]], title: str) -> None:
    """Refuse what hooks changed in place: whoever else takes the value would not see it."""
    if any(x._version != version for x, version in counted):
        raise HetmpError(
            f"a hook on {title} changes an argument in place, which others take, too: return "
            "the changed value from a forward-pre hook"
        )

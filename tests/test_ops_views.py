"""A rule says of every operator whose result may be memory of its operand that it is.

Work in place on such a result changes the operand, too; a view that is not declared would be
sliced into other numbers without a word.
"""

import operator
import types
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cases import axes, elementwise, products, reductions, shapes, unpooling
from hetmp import ops

TABLES = {
    table.__name__.rpartition(".")[2]: table.CASES
    for table in (axes, products, reductions, shapes, unpooling)
}


def tensors(structure) -> Iterable[Tensor]:
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, tuple | list):
        for item in structure:
            yield from tensors(item)


def memory(structure) -> set[int]:
    """The addresses of what tensors lie in; an empty one lies nowhere."""
    return {x.untyped_storage().data_ptr() for x in tensors(structure) if x.numel()} - {0}


def called(function) -> object:
    """The function, or the name of the method, that hetmp finds in a module which calls it."""
    name = function.__name__
    if name == "__get__":
        return getattr
    if name == "positive":
        return operator.pos  # what ``+x`` arrives as here
    if name.startswith("__"):
        return getattr(operator, name.strip("_"), name)
    of_tensors = isinstance(function, types.MethodDescriptorType) or hasattr(Tensor, name)
    if of_tensors and getattr(torch, name, None) is not function:
        return name
    return function


class Sharing(TorchFunctionMode):
    """Collects the calls whose results lie in memory of an operand, though nothing says so."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.undeclared = 0, set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        before = memory([*args, *kwargs.values()])
        result = function(*args, **kwargs)
        name = function.__name__
        in_place = (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
        if not in_place and not name.startswith("__i"):
            self.calls += 1
            operands = len(list(tensors([*args, *kwargs.values()])))
            if before & memory(result) and not ops.shares_memory(called(function), operands):
                self.undeclared.add(name)
        return result


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_and_methods(table, dtype):
    for case in TABLES[table].values():
        takes = 2 if case.work.__code__.co_argcount == 2 else 1
        operands = [torch.rand(3, c, *case.shape[2:], dtype=dtype) for c in case.channels[:takes]]
        with Sharing() as sharing:
            case.work(*operands)
        assert sharing.calls and not sharing.undeclared


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elementwise_functions_and_methods(dtype):
    for name, work in elementwise.WORKS.items():
        with Sharing() as sharing:
            work(torch.rand(3, 5, 4, 6, dtype=dtype), torch.rand(3, 5, 4, 6, dtype=dtype))
        assert not sharing.undeclared, name


WAYS = (
    (),
    (4,),
    (4, 4),
    (2, 4),
    (2,),
    (1, 4),
    (4, 4, 1),
    (1, (4,)),
    ((2, 2),),
    (1, 1),
    (3, 1),
    ((4, 4), (2, 2)),
)
"""Arguments that some layer is made with."""


def runs_of(kind: type[nn.Module]) -> Iterable[tuple[Tensor, object]]:
    """(input, output) of a layer, in both modes, however it can be made and fed."""
    for arguments in WAYS:
        try:
            layer = kind(*arguments)
        except (TypeError, ValueError, AssertionError, RuntimeError):
            continue
        if getattr(layer, "inplace", False):
            continue
        for size in ((2, 4), (2, 4, 4), (2, 4, 4, 4), (2, 4, 4, 4, 4), (2, 16, 4), (2, 4, 9)):
            x = torch.rand(size)
            for mode in (True, False):
                try:
                    result = layer.train(mode)(x)
                except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
                    continue
                yield x, result


SEVERAL = {kind for rule in ops._RULES if rule.several for kind in rule.layers}
"""Layers that take several tensors; their functions are in the tables."""


@pytest.mark.parametrize("kind", [k for k in ops.LAYERS if k not in SEVERAL])
def test_layers(kind):
    runs = list(runs_of(kind))
    assert runs, f"no way was found to run a {kind.__name__}"
    shares = any(memory(x) & memory(result) for x, result in runs)
    declared = any(kind.__name__ in rule.views for rule in ops._RULES if kind in rule.layers)
    assert declared or not shares


def test_a_subclass_is_a_view_as_its_base_is():
    class Mine(nn.Flatten):
        pass

    assert ops.shares_memory(Mine()) and not ops.shares_memory(nn.ReLU())


def test_a_view_without_a_rule_is_known_by_its_name():
    assert ops.shares_memory(torch.swapdims) and ops.shares_memory("diagonal")
    assert not ops.shares_memory(torch.clone)


def test_what_has_no_rule_is_known_by_the_name_of_what_has_one():
    """``torch.dropout`` is computed whole: alike on all ranks, and perhaps on the same memory."""
    value = ops.Value(((2, 3),))
    call = ops.Call(torch.dropout, (ops.Ref("x"), 0.5, True), {}, {"x": value}, value)
    assert ops.rule_for(torch.dropout) is None
    assert ops.draws(call) and ops.shares_memory(torch.dropout)
    assert ops.initial_value(nn.SyncBatchNorm(3), "running_var") == 1.0

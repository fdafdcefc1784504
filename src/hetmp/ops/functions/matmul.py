"""Products of activations: matrices, batches of them and ``einsum``.

A product is linear in each operand. Cut along an axis that the result keeps, it gives slices;
cut along an axis that is summed over, summands.
"""

import operator
from collections.abc import Hashable

import torch

from hetmp.cluster import Group
from hetmp.core.state import PARTIAL, L, States
from hetmp.ops.call import Call, Flow, Function, OperatorRun
from hetmp.ops.labelled import Labelled, Labels, from_right, tensor_names
from hetmp.ops.rule import Rule


class MatrixProduct(Rule):
    """(..., i, k) @ (..., k, j): rows, columns or a batch axis give slices, k gives summands."""

    functions = (operator.matmul, torch.matmul, torch.bmm, torch.mm, torch.mv)
    methods = ("matmul", "bmm", "mm", "mv")

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        names = tensor_names(call, *(*call.args, *call.kwargs.values())[:2])
        if names is None:
            return None
        left, right, result = _matrices(*(call.values[name].dims for name in names))
        labelled = Labelled(list(zip(names, (left, right), strict=True)), result, sums=("k",))
        return labelled.flow(call, states)


def _matrices(left: int, right: int) -> tuple[Labels, Labels, Labels]:
    """Return the labels of two operands of *left* and *right* dimensions, and of the product."""
    batch: Labels = from_right(max(left, right, 2) - 2)
    rows: Labels = ["i"] if left > 1 else []
    columns: Labels = ["j"] if right > 1 else []

    def stacked(dims: int) -> Labels:
        return batch[len(batch) - max(0, dims - 2) :]

    return (
        [*stacked(left), *rows, "k"],
        [*stacked(right), "k", *columns],
        [*batch, *rows, *columns],
    )


class AddedProduct(Rule):
    """``baddbmm``: a batch of products, and a tensor added to them."""

    functions = (torch.baddbmm,)
    methods = ("baddbmm",)

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        operands = (call.argument(i, name) for i, name in enumerate(("input", "batch1", "batch2")))
        names = tensor_names(call, *operands)
        if names is None:
            return None
        added = list("nij")[3 - call.values[names[0]].dims :]
        labels = [added, "nik", "nkj"]
        labelled = Labelled(list(zip(names, labels, strict=True)), "nij", sums=("k",))
        return labelled.flow(call, states)

    def function(self, run: OperatorRun, group: Group) -> Function:
        if run.target != PARTIAL or group.rank == 0:
            return super().function(run, group)
        # Only one rank adds the input. On the others its gradient is zero.
        return lambda *args, **kwargs: run.call.invoke(args, {**kwargs, "beta": 0})


class Einsum(Rule):
    """Products of any number of tensors, summed over the letters that the result lacks."""

    functions = (torch.einsum,)
    views_of_one = ("einsum",)  # it may only permute axes

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        equation, *operands = call.args
        if len(operands) == 1 and isinstance(operands[0], tuple | list):
            operands = list(operands[0])
        names = tensor_names(call, *operands)
        if names is None or not isinstance(equation, str):
            return None
        *labels, result = _read(equation, [call.values[name].dims for name in names])
        sums = {label for letters in labels for label in letters} - set(result)
        return Labelled(list(zip(names, labels, strict=True)), result, sums).flow(call, states)


def _read(equation: str, dims: list[int]) -> list[Labels]:
    """Return the labels of every operand, of *dims* dimensions each, and those of the result."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    letters = inputs.replace(",", "").replace(".", "")
    rest = [dim - len(term.replace("...", "")) for term, dim in zip(terms, dims, strict=True)]
    if not arrow:
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        output = ("..." if "..." in inputs else "") + "".join(once)

    def labels(term: str, hidden: int) -> Labels:
        before, dots, behind = term.partition("...")
        between: list[Hashable] = from_right(hidden) if dots else []
        return [*before, *between, *behind]

    longest = max((n for term, n in zip(terms, rest, strict=True) if "..." in term), default=0)
    return [*map(labels, terms, rest), labels(output, longest)]

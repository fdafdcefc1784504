"""The ranks meet at the start of a forward pass: one message of a few numbers from each.

Ranks whose passes part ways would read another step's memory, or wait for each other for ever.
So they compare before the first exchange, in every pass, what must be alike: the model and its
mode, the sizes and kinds of its inputs. What else they have to tell each other travels along: the
key of the pass's random numbers, and which slots of shared memory can be used again.
"""

import copy
import itertools
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hetmp.cluster import AgreedError, AgreedFailure, Group
from hetmp.cluster.machine import device_name
from hetmp.core.errors import BAD_INPUT, describe, exit_code
from hetmp.exchange import free_slots, take_back
from hetmp.slicing.graph import Mode
from hetmp.slicing.rows import Input, Rows, held, whole_shape
from hetmp.slicing.same_batch import FIRST, compare_numbers, is_due

_PRECISIONS = (None, torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""The dtypes that autocast may cast to."""

_ALIKE = 8
"""How many of the numbers of a rank must be those of rank 0."""

_FAILED, _MODEL, _MODE, _INPUTS, _AUTOCAST, _PROGRAM, _DRAWS, _PASSES, _KEY, _GENERATOR = range(10)
"""The places of a rank's numbers; behind them are its ``free_slots``."""

_PACKED = struct.Struct("=10q")

_COPY = 2**32
"""A copy's number is that of its model, and this many times the number of the copy."""

_COMPARED = "passes whose exchanges are compared"
"""The place in a group's cache of how many such passes are ahead, of whichever model."""


@dataclass(slots=True)
class Pass:
    """A forward pass as one rank begins it.

    Attributes:
        training, grad: the mode of the model, as in ``Mode``.
        inputs: by name; none where the rank refuses the pass.
        error: why the rank refuses it, or None.
        program: a number for what is going to run, the same on all ranks.
        key: for random numbers, drawn on this rank; None where none are needed.
    """

    training: bool
    grad: bool
    inputs: Mapping[str, Input]
    error: Exception | None
    program: int
    key: int | None

    @property
    def device(self) -> torch.device:
        """Where the first input lies: where the pass is computed."""
        return next((held(x).device for x in self.inputs.values()), torch.device("cpu"))


class Meeting:
    """The ranks' meeting at the start of each forward pass of a model.

    Making one is collective.

    Args:
        group: the ranks.
        wire: of the model's tuning; with one, ranks may compute in different dtypes.
    """

    def __init__(self, group: Group, wire: str | None) -> None:
        self.group, self._wire = group, wire
        self._passes = {True: 0, False: 0}
        self._inputs: tuple[object, int] = (), 0
        self._model = 0
        self._copies = itertools.count(1)
        if group.size > 1:
            self._model = group.cache["models"] = group.cache.get("models", 0) + 1

    def __deepcopy__(self, memo: dict[int, Any]) -> "Meeting":
        copied = copy.copy(self)
        memo[id(self)] = copied
        copied._passes = dict(self._passes)
        # Counted for each model apart: a copy on one rank alone leaves other models' numbers alike.
        copied._model = self._model % _COPY + _COPY * next(self._copies)
        return copied

    def hold(self, own: Pass) -> tuple[int, bool]:
        """Compare this rank's pass with those of the others. Collective.

        The numbers of whole inputs are compared, too, in the first passes of a mode, training or
        evaluation, and in one of ``EVERY`` later ones; of ``Rows`` each rank has others. The
        exchanges so far are compared before the first passes and those that follow the first one
        of a model in a mode.

        Returns:
            The key of rank 0, and whether the ranks draw unlike numbers from one seed; (0, False)
            where no random numbers are needed.

        Raises:
            AgreedError: a rank refuses the pass, or runs another one than rank 0.
        """
        group, number = self.group, self._passes[own.training]
        # Whether to compare must not depend on the model: here a rank may still have another one.
        ahead: int = group.cache.get(_COMPARED, FIRST)
        if ahead or group.recorder.comparing:
            group.compare_exchanges(each=False)
        slots = free_slots(group)
        packed = _PACKED.pack(*self._numbers(own, number)) + slots
        everyones = group.allgather(np.frombuffer(packed, dtype=np.int64), "the start of a pass")
        if slots:
            take_back(group, everyones[:, _PACKED.size // 8 :])
        alike = everyones[:, :_ALIKE]
        if own.error is not None or (alike != alike[0]).any():
            self._refuse(own, everyones)
        # All ranks have come to this pass together, and its number is the same on all.
        whole = [x for x in own.inputs.values() if isinstance(x, Tensor)]
        if whole and is_due(number):
            # With a wire, a rank's inputs may be in 16 bits.
            rounding = 1e-4 if self._wire is None else 1e-2
            place = self._place(everyones, 0)
            compare_numbers(group, whole, place, rounding)
        group.cache[_COMPARED] = max(0, ahead - 1)
        if number == 0:
            group.compare_each()
            group.cache[_COMPARED] = FIRST - 1
        self._passes[own.training] += 1
        if own.key is None:
            return 0, False
        generators = everyones[:, _GENERATOR]
        return int(everyones[0, _KEY]), bool((generators != generators[0]).any())

    def _numbers(self, own: Pass, number: int) -> tuple[int, ...]:
        """Return what this rank tells the others: see ``_FAILED`` and the like."""
        device = own.device
        return (
            0 if own.error is None else exit_code(own.error),
            self._model,
            2 * own.training + own.grad,
            self._mark(own.inputs),
            self._autocast(device),
            own.program,
            own.key is not None,
            number,
            own.key or 0,
            0 if own.key is None else zlib.crc32(generator_name(device).encode()),
        )

    def _mark(self, inputs: Mapping[str, Input]) -> int:
        """Return a number for the kinds and sizes of the inputs."""
        key = [
            (whole_shape(x), held(x).dtype, held(x).requires_grad, isinstance(x, Rows))
            for x in inputs.values()
        ]
        if key != self._inputs[0]:  # mostly they are those of the pass before
            self._inputs = key, zlib.crc32(self._described(inputs).encode())
        return self._inputs[1]

    def _described(self, inputs: Mapping[str, Input]) -> str:
        """Return what must be alike of every input: JSON of [name, rows, shape, dtype, gradient].

        The shape is that of the whole batch.
        """
        return json.dumps(
            [
                (
                    name,
                    isinstance(x, Rows),
                    whole_shape(x),
                    self._dtype(held(x)),
                    held(x).requires_grad,
                )
                for name, x in inputs.items()
            ]
        )

    def _dtype(self, x: Tensor) -> str:
        return "float" if self._wire and x.is_floating_point() else str(x.dtype)

    def _autocast(self, device: torch.device) -> int:
        if self._wire is not None or not torch.is_autocast_enabled(device.type):
            return 0
        dtype = torch.get_autocast_dtype(device.type)
        return _PRECISIONS.index(dtype) if dtype in _PRECISIONS else len(_PRECISIONS)

    def _refuse(self, own: Pass, everyones: npt.NDArray[np.int64]) -> NoReturn:
        """Refuse the pass, as every rank does now, with one message. Collective."""
        failed = everyones[:, _FAILED]
        if failed.any():
            first = int(failed.nonzero()[0][0])
            text = self.group.broadcast_text(describe(own.error) if own.error else "", first)
            kind = AgreedError if failed[first] == BAD_INPUT else AgreedFailure
            raise kind(text if failed.all() else f"rank {first}: {text}") from own.error
        alike = everyones[:, :_ALIKE]
        rank = int((alike != alike[0]).any(axis=1).argmax())
        theirs, rank_0s = alike[rank].tolist(), alike[0].tolist()
        column = int((alike[rank] != alike[0]).argmax())
        if column == _INPUTS:
            what = self._other_inputs(own, rank)
        else:
            what = _OTHERS[column](rank, theirs[column], rank_0s[column])
        raise AgreedError(f"{self._place(everyones, rank)}: {what}")

    def _place(self, everyones: npt.NDArray[np.int64], rank: int) -> str:
        """Name the pass of rank 0, and that of *rank* if it is another one."""
        passes = everyones[:, _PASSES] + 1
        word = "training" if everyones[0, _MODE] // 2 else "evaluation"
        other = f" (rank {rank}: {passes[rank]})" if passes[rank] != passes[0] else ""
        return f"forward pass {passes[0]} in {word}{other}"

    def _other_inputs(self, own: Pass, rank: int) -> str:
        """Say which input of a rank is unlike rank 0's. Collective."""
        text = self._described(own.inputs)
        theirs, rank_0s = (json.loads(self.group.broadcast_text(text, r)) for r in (rank, 0))
        pair = next(pair for pair in zip(theirs, rank_0s, strict=True) if pair[0] != pair[1])
        (name, rows, shape, dtype, _), (_, rows_0, shape_0, dtype_0, _) = pair
        what = "a batch" if len(theirs) == 1 else f"{name!r}"
        if rows != rows_0:
            with_rows, whole = (rank, 0) if rows else (0, rank)
            return (
                f"rank {with_rows} has rows of {what}, rank {whole} {what} whole: give hetmp.Rows "
                "on all ranks or on none"
            )
        if rows and shape != shape_0:
            return (
                f"rank {rank} has rows of {what} of shape {tuple(shape)}, rank 0 of shape "
                f"{tuple(shape_0)}: give every rank its rows of the same batch"
            )
        if shape != shape_0:
            return (
                f"rank {rank} has {what} of shape {tuple(shape)}, rank 0 of shape "
                f"{tuple(shape_0)}: give every rank the same whole batch in the same order "
                "(shuffle with the same seed on all ranks)"
            )
        if dtype != dtype_0:
            return (
                f"rank {rank} has {what} of {dtype}, rank 0 of {dtype_0}: give all ranks the same "
                "dtype, or slice the model with Tuning(wire='float32') to exchange in that"
            )
        return (
            f"the input requires a gradient on only one of the ranks 0 and {rank}: set "
            "requires_grad to the same on all ranks"
        )


def generator_name(device: torch.device) -> str:
    """Return which numbers torch draws on *device* from one seed: a GPU's kind, or the CPU's."""
    return device_name(device) if device.type == "cuda" else "cpu"


def _other_model(rank: int, theirs: int, rank_0s: int) -> str:
    return (
        f"rank {rank} calls {_model_name(theirs)} of its ranks, rank 0 {_model_name(rank_0s)}, in "
        "the order in which they were sliced and copied: call the models in the same order on all "
        "ranks"
    )


def _model_name(number: int) -> str:
    copied, model = divmod(number, _COPY)
    return f"copy {copied} of model {model}" if copied else f"model {model}"


def _other_mode(rank: int, theirs: int, rank_0s: int) -> str:
    words = [str(Mode(bool(code // 2), bool(code % 2))) for code in (theirs, rank_0s)]
    return (
        f"rank {rank} runs the model in {words[0]}, rank 0 in {words[1]}: call train(), eval() "
        "and torch.no_grad() alike on all ranks"
    )


def _other_autocast(rank: int, theirs: int, rank_0s: int) -> str:
    names = [_precision_name(code) for code in (theirs, rank_0s)]
    return (
        f"rank {rank} is under autocast {names[0]}, rank 0 under {names[1]}: use the same on all "
        "ranks, or slice the model with Tuning(wire='float32') to exchange in that"
    )


def _precision_name(code: int) -> str:
    if code == len(_PRECISIONS):
        return "another dtype"
    return str(_PRECISIONS[code] or "none").removeprefix("torch.")


def _other_program(rank: int, *_: int) -> str:
    return (
        f"rank {rank} has other hooks or attributes set on the model than rank 0: set the same on "
        "all ranks"
    )


def _other_draws(rank: int, theirs: int, _: int) -> str:
    with_draws, without = (rank, 0) if theirs else (0, rank)
    return (
        f"rank {with_draws} draws random numbers in this pass, rank {without} does not: put each "
        "layer of the model into the same mode on all ranks"
    )


def _other_pass(rank: int, theirs: int, rank_0s: int) -> str:
    return (
        f"rank {rank} has called its model {theirs} times in this mode, rank 0 {rank_0s} times: "
        "call the same one of several copies of a model on all ranks"
    )


_OTHERS: Mapping[int, Callable[[int, int, int], str]] = {
    _MODEL: _other_model,
    _MODE: _other_mode,
    _AUTOCAST: _other_autocast,
    _PROGRAM: _other_program,
    _DRAWS: _other_draws,
    _PASSES: _other_pass,
}

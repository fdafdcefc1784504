"""One forward pass: the steps of a program, each with the values that the others made."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from hetmp.core.batch_layout import arrived, images_now
from hetmp.core.state import Sliced, is_batch
from hetmp.exchange import Carriage, Exchange, alias, leave, plain_tensors, tidy
from hetmp.ops import Postponed, Seeds, add_bias, filled
from hetmp.slicing.graph import PLAIN
from hetmp.slicing.hooks import run_hooked
from hetmp.slicing.orders import GradientCheckpoint, Order, Recomputed, Section
from hetmp.slicing.recompute import LayersBefore, closed
from hetmp.slicing.rows import Rows
from hetmp.slicing.runtime import Runtime
from hetmp.slicing.schedule import BiasStep, CallStep, ExchangeStep, HookedStep, WriteStep

_CHANNELS_LAST = (0, 2, 3, 1)
"""The dimensions of (n, c, h, w) as they lie in memory."""


class Forward:
    """The state of one forward pass while its program runs.

    Args:
        model: the user's layers with this rank's share of them.
        runtime: of the model.
        mode: which program runs.
        values: the inputs and attributes, by name; results are added.
        entered: the replicated parameters, by name.
        seeds: of the random numbers of this pass; None if none are drawn.
    """

    def __init__(
        self,
        model: nn.Module,
        runtime: Runtime,
        mode: int,
        values: dict[str, Any],
        entered: Mapping[str, Tensor],
        seeds: Seeds | None,
    ) -> None:
        self.model, self.runtime, self.mode = model, runtime, mode
        self.values, self.entered, self.seeds = values, entered, seeds
        self.watch = runtime.watch
        self.postponed: dict[str, tuple[Postponed, int]] = {}
        # By name of a gathered value that is gathered again, what does so from its share.
        self.gathers: dict[str, Callable[[Tensor], Tensor]] = {}
        # By step, buffers in the place of a layer's own.
        self.buffers: Mapping[str, Mapping[str, Tensor]] = {}
        # By name, what hooks have seen of values that are changed in place later.
        self.seen: dict[str, Tensor] = {}

    def run(self, sections: Sequence[Section]) -> None:
        """Run every step; ``values`` then holds the values that the program returns."""
        if self.watch is not None:
            self.watch.began()
        self._run_all(sections)

    def _run_all(self, sections: Sequence[Section]) -> None:
        for part in sections:
            if isinstance(part, Order):
                self._run(part)
            elif isinstance(part, Recomputed):
                self._run_recomputed(part)
            else:
                self._run_checkpoint(part)

    def _run(self, order: Order) -> None:
        """Run one step, under what the module sets around it."""
        step, scope = order.step, order.step.scope
        with nullcontext() if scope is PLAIN else scope.entered():
            if isinstance(step, HookedStep):
                value = self._run_hooked(order, step)
                self.values.update(value)
            else:
                self.values[step.name] = value = self._step(order)
        if self.watch is not None:
            self.watch.made(step, value)
        for name in order.freed:
            self.values.pop(name, None)

    def _run_hooked(self, order: Order, step: HookedStep) -> dict[str, Any]:
        """Call a part with whole values, for its hooks; return its results, by name. Collective."""
        runtime, part = self.runtime, self.model.get_submodule(step.path)

        def run_inside(values: dict[str, Any]) -> None:
            inner = Forward(self.model, runtime, self.mode, values, self.entered, self.seeds)
            inner.watch, inner.seen = self.watch, self.seen
            inner._run_all(order.inside)

        entry = runtime.hook_entry(step.path)
        return run_hooked(step, part, runtime.group, entry, self.values, self.seen, run_inside)

    def _run_checkpoint(self, part: GradientCheckpoint) -> None:
        """Run steps whose values the backward pass computes again. Collective, as that is too."""
        runs, images = 0, images_now()

        def run(*values: Any) -> tuple[Any, ...]:
            with arrived(images):  # in the backward pass another batch may be under way
                return run_orders(*values)

        def run_orders(*values: Any) -> tuple[Any, ...]:
            nonlocal runs
            named = dict(zip(part.sources, values, strict=True))
            inner = Forward(self.model, self.runtime, self.mode, named, self.entered, self.seeds)
            if runs:  # in the backward pass
                inner.watch = None
                if self.seeds is not None:
                    self.runtime.set_key(self.model, self.seeds.key)
            runs += 1
            for order in part.orders:
                inner._run(order)
            return tuple(inner.values[name] for name in part.results)

        for order in part.orders:
            for name in order.entered.values():
                self.entered[name]  # outside of what is computed again
        # A rank with few channels saves fewer tensors, but all must run the same exchanges again.
        with set_checkpoint_early_stop(False):
            results = checkpoint(
                run, *(self.values[name] for name in part.sources), use_reentrant=False
            )
        self.values.update(zip(part.results, results, strict=True))
        for name in part.freed:
            self.values.pop(name, None)

    def _run_recomputed(self, part: Recomputed) -> None:
        """Run a layer's segment, which the backward pass computes again. Collective, as that is."""
        for order in part.orders:
            for name in order.entered.values():
                self.entered[name]  # outside of what is computed again
        if not torch.is_grad_enabled():
            self._run_all(part.orders)
            return
        keeps = {name: self.values[name] for name in part.sources}
        first = {name: self.values[name] for name in part.gathered}
        wanted = {name: value.requires_grad for name, value in first.items()}
        gathers = {name: self.gathers[name] for name in part.gathered}
        own = {order.step.name for order in part.orders} & self.postponed.keys()
        postponed = {name: self.postponed.pop(name) for name in own}
        once_more = {name: (p.once_more(), number) for name, (p, number) in postponed.items()}
        for name in part.freed:
            self.values.pop(name, None)
        before, images, runs = LayersBefore(part.layer, self._layers(part.orders)), images_now(), 0

        def run(*values: Any) -> tuple[Any, ...]:
            nonlocal runs
            runs += 1
            inner = Forward(self.model, self.runtime, self.mode, {}, self.entered, self.seeds)
            inner.values.update(zip(part.sources, values, strict=True))
            if runs == 1:
                inner.values.update(first)
                first.clear()
                inner.watch, inner.postponed, inner.seen = self.watch, postponed, self.seen
                inner._run_all(part.orders)
                return closed(tuple(inner.values[name] for name in part.results))
            # In the backward pass, where another batch may be under way.
            with plain_tensors(), arrived(images), before.restored() as inner.buffers:
                inner.watch = None
                inner.postponed = {n: (p.once_more(), at) for n, (p, at) in once_more.items()}
                for name, share in part.gathered.items():
                    again = alias(gathers[name](inner.values[share].detach()))
                    inner.values[name] = again.requires_grad_(wanted[name])
                if self.seeds is not None:
                    self.runtime.set_key(self.model, self.seeds.key)
                inner._run_all(part.orders)
                return closed(tuple(inner.values[name] for name in part.results))

        # A rank with few channels saves fewer tensors, but all must run the same exchanges again.
        with set_checkpoint_early_stop(False):
            results = checkpoint(run, *keeps.values(), use_reentrant=False)
        before.ran()
        self.values.update(zip(part.results, results, strict=True))

    def _layers(self, orders: Sequence[Order]) -> dict[str, nn.Module]:
        """Return the layers that steps call, by name."""
        calls = [order.step for order in orders if isinstance(order.step, CallStep)]
        callees = {step.name: self.runtime.callee(self.model, self.mode, step) for step in calls}
        return {name: layer for name, layer in callees.items() if isinstance(layer, nn.Module)}

    def _step(self, order: Order) -> Any:
        step = order.step
        if isinstance(step, ExchangeStep):
            return self._exchange(order, step)
        if isinstance(step, WriteStep):
            return self._write(step)
        if isinstance(step, BiasStep):
            bias = self.entered.get(step.parameter)
            if bias is None:
                bias = self.model.get_parameter(step.parameter)
            return add_bias(self.values[step.sources[0]], bias, step.axis)
        assert isinstance(step, CallStep)
        return self._call(order, step)

    def _write(self, step: WriteStep) -> Tensor:
        """Write a value into what hooks saw of it, and go on from there. Collective backward."""
        whole = leave(self.runtime.group, self.values[step.sources[0]])
        for name in step.seen:
            if self.seen[name] is not whole:
                self.seen[name].copy_(whole)
        (value,) = self.runtime.hook_entry(step.path)(whole)
        return value

    def _exchange(self, order: Order, step: ExchangeStep) -> Any:
        """Exchange a value; while it travels, the parameters of its takers enter autograd."""
        runtime, x = self.runtime, self.values[step.sources[0]]
        if isinstance(x, Rows):  # which the user has cut
            return x.mine
        exchange, tuning = runtime.exchange(self.mode, step), runtime.tuning
        order_in_memory = self._memory_order(x, order)
        how = Carriage(tuning.shared_memory, order.borrowed, order_in_memory, tuning.rounded)
        if order.gathers_again:
            self.gathers[step.name] = _again(exchange, how)
        choices = [runtime.backward[taker.node.path] for taker in order.takers]
        regathers = "regather" in choices and "keep" not in choices
        postpones = (tuning.overlap or regathers) and torch.is_grad_enabled()
        if (
            not (postpones and order.takers)
            or runtime.group.size == 1
            or torch.is_autocast_enabled(x.device.type)
            or tuning.wire is not None  # some rank may be under autocast, and all do alike
        ):
            return exchange(x, how)
        takers: Any = [
            (taker.node.rule, runtime.callee(self.model, self.mode, taker))
            for taker in order.takers
        ]
        regather = _again(exchange, how) if regathers else None
        watch = self.watch
        around = None if watch is None else lambda number: watch.parameters(order.takers[number])
        keeping = {i for i, choice in enumerate(choices) if choice == "recompute"}
        postponed = Postponed(takers, regather, keeping, around)
        under_way = exchange.start(x, how)
        postponed.enter(x)
        self.postponed.update(
            {taker.name: (postponed, number) for number, taker in enumerate(order.takers)}
        )
        return under_way.wait()

    def _memory_order(self, x: Tensor, order: Order) -> tuple[int, ...] | None:
        """Return the best memory order of a gathered value for its first taker."""
        if not (self.runtime.tuning.channels_last and order.takers and x.dim() == 4):
            return None
        best = order.takers[0]
        together = best.node.rule.channels_last(best.run.whole_layer, x.shape)
        return _CHANNELS_LAST if together else None

    def _call(self, order: Order, step: CallStep) -> Any:
        seeds = self.runtime.seeds_now(self.model, self.mode, order)

        def fill(name: str) -> Any:
            value = self.values[step.inputs[name]]
            # torch draws in the order of memory, which differs with the number of ranks.
            return value.contiguous() if seeds and isinstance(value, Tensor) else value

        args, kwargs = filled(step.node.call.args, fill), filled(step.node.call.kwargs, fill)
        if step.name in self.postponed:
            postponed, number = self.postponed.pop(step.name)
            return postponed.run(number, args[0])
        callee = self.runtime.callee(self.model, self.mode, step)
        if order.statistics is not None:
            order.statistics.check(step.node.place, callee, _whole_batch(args[0], step))
        if self.runtime.tuning.channels_last and step.takes_filters and args[0].dim() == 4:
            together = step.node.rule.channels_last(step.run.whole_layer, args[0].shape)
            memory = torch.channels_last if together else torch.contiguous_format
            args = (args[0].contiguous(memory_format=memory), *args[1:])
        with self._seed(order, callee, args) if seeds else nullcontext():
            own = {name: self.entered[whole] for name, whole in order.entered.items()}
            own |= self.buffers.get(step.name, {})
            if own and isinstance(callee, nn.Module):
                return functional_call(callee, own, args, kwargs, tie_weights=False)
            return callee(*args, **kwargs)

    def _seed(
        self, order: Order, callee: Callable[..., Any], args: tuple[Any, ...]
    ) -> AbstractContextManager[None]:
        """Seed a step's random numbers, the same on all ranks."""
        assert self.seeds is not None
        device = next((arg.device for arg in args if isinstance(arg, Tensor)), torch.device("cpu"))
        return self.seeds.seeded(order.step.name, device, callee, order.own)


def _whole_batch(x: Tensor, step: CallStep) -> torch.Size:
    """Return the shape of a step's input with all images of the batch."""
    shape = list(x.shape)
    if is_batch(step.before):
        assert isinstance(step.before, Sliced)
        shape[step.before.axis] = step.before.layout.total
    return torch.Size(shape)


def _again(exchange: Exchange, how: Carriage) -> Callable[[Tensor], Tensor]:
    how = exchange.of_batch(how)

    def regather(x: Tensor) -> Tensor:
        if exchange.group.size == 1:
            return x
        tidy(exchange.group)
        return exchange.move(x, how, blocking=True).wait()

    return regather

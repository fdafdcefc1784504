"""The parts of a sliced model besides the user's layers: programs, exchanges, keys."""

import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from hetmp.cluster import Group
from hetmp.core.errors import HetmpError
from hetmp.core.partition import Layout
from hetmp.core.state import State
from hetmp.exchange import BackwardSum, Exchange, ParameterEntry
from hetmp.ops import Seeds, keyed_dropouts
from hetmp.slicing.block import Part
from hetmp.slicing.graph import HOOKS, Mode, ModelGraph
from hetmp.slicing.hooks import HookedParts, schedule_hooked
from hetmp.slicing.meeting import Meeting, Pass
from hetmp.slicing.needed_rows import Need, checked, needed
from hetmp.slicing.orders import Order, Running, made_ready, step_key
from hetmp.slicing.picture import html_of, table_of
from hetmp.slicing.plan import Plan
from hetmp.slicing.rows import Input, Rows, whole_shape
from hetmp.slicing.schedule import CallStep, ExchangeStep, Schedule
from hetmp.slicing.segments import segments
from hetmp.slicing.shares import SameDraws
from hetmp.slicing.table import Table
from hetmp.slicing.tuning import Tuning
from hetmp.slicing.verification import NOT_ASKED
from hetmp.slicing.watch import Watch

_HOOKED_KEPT = 8
"""For how many sets of hooked parts the programs are kept."""


class Runtime(nn.Module):
    """The parts of a sliced model besides the user's layers.

    Attributes:
        group, graph, plan, schedule, table: see their classes.
        watch: the observer of steps on this rank, or None.
        same_draws: what compares the ranks' shares in the first pass, or None.
        verification: whether what was read of the module was held against the module.
        attribute_mark: of what attributes set since slicing made of the programs, the same on
            ranks that run the same.
        backward: what the backward pass has of each layer, by its path: see ``LayerPlan``.
        exchanges: the exchanges between layers, in order; each has its counters.
        repeated: layers that run again in another way, and functions with a state of their own,
            by the name of the step.
        input_entry, parameter_entry: the exchanges at the entry, which sum gradients.
        hook_entries: those around the parts that have had hooks.
        hooked_parts: the parts that may have hooks, None before there are layers.
        logs_new: whether exchanges that are made during a pass log their moves from the first on.
    """

    def __init__(
        self,
        graph: ModelGraph,
        plan: Plan,
        schedule: Schedule,
        table: Table,
        group: Group,
        tuning: Tuning,
    ) -> None:
        super().__init__()
        self.group, self.plan, self.table = group, plan, table
        self._tuning = tuning
        self.backward = plan.backward_by_layer(tuning.regather)
        self.watch: Watch | None = None
        self.verification = NOT_ASKED
        self.attribute_mark = 0
        self.logs_new = False
        self.dims, self.inputs = graph.dims, graph.inputs
        steps = [
            (mode, step)
            for mode, program in enumerate(schedule.programs)
            for step in program.steps
            if isinstance(step, ExchangeStep)
        ]
        self._titles = {
            step.name: f"the output of {step.title}"
            for step in schedule.steps
            if isinstance(step, CallStep)
        }
        self.exchanges = nn.ModuleList()
        self._number: dict[tuple[int, str, State[Layout]], int] = {}
        for mode, step in steps:
            self._add_exchange(mode, step)
        self.hook_entries = nn.ModuleDict()
        self.hooked_parts: HookedParts | None = None
        self._hooked: dict[tuple[str, ...], list[Running]] = {}
        self._equipped: set[tuple[str, ...]] = set()
        self.repeated = nn.ModuleDict()
        self.functions: dict[str, Callable[..., Any]] = {}
        self.input_entry = BackwardSum(group, tuning.wire, "the inputs' gradients")
        self.parameter_entry = ParameterEntry(
            group, tuning.wire, "the replicated parameters' gradients"
        )
        self.take(graph, schedule)
        self.meeting = Meeting(group, tuning.wire)
        self.same_draws: SameDraws | None = None

    def take(self, graph: ModelGraph, schedule: Schedule) -> None:
        """Run *schedule*, that of *graph*, from now on; every value lies as in the one before."""
        self.graph, self.schedule = graph, schedule
        self._hooked.clear()
        self._equipped.clear()
        if self.hooked_parts is not None:
            self.hooked_parts.take(graph)
        self._batch = next((t.batch for t in graph.traces if t.batch is not None), None)
        self._running = self._ready(schedule)
        self._programs = schedule.numbers
        for key in self.functions:
            if key in self.repeated:
                del self.repeated[key]
        self.functions.clear()
        for mode, program in enumerate(schedule.programs):
            for step in program.steps:
                if isinstance(step, CallStep) and step.run.layer is None:
                    self._add_function(mode, step)

    @property
    def tuning(self) -> Tuning:
        """How the work is done; may be set between steps, alike on all ranks.

        Raises:
            HetmpError: set to another ``wire``, which the exchanges were made for.
        """
        return self._tuning

    @tuning.setter
    def tuning(self, tuning: Tuning) -> None:
        if tuning.wire != self._tuning.wire:
            raise HetmpError(
                f"the model was sliced with wire={self._tuning.wire!r} and cannot change it to "
                f"{tuning.wire!r}: slice the module again with that tuning"
            )
        self._tuning = tuning
        self.backward = self.plan.backward_by_layer(tuning.regather)
        self._running = self._ready(self.schedule)
        self._hooked.clear()

    def _ready(self, schedule: Schedule) -> list[Running]:
        """Return the programs of *schedule*, ready to run."""
        ready = []
        for program, trace in zip(schedule.programs, self.graph.traces, strict=True):
            own = [s for s in segments(program, trace, self.backward) if s.reason is None]
            ready.append(made_ready(program, self.graph, self.table, own))
        return ready

    def __repr__(self) -> str:
        """Show who shares the model and how each mixing layer is cut."""
        return "\n".join(["; ".join(self._words()), table_of(self.plan)])

    def _repr_html_(self) -> str:
        return html_of(self.plan, self._words()[1:], self.group.rank)

    def _words(self) -> list[str]:
        words = [f"rank {self.group.rank} of {self.group.size}", str(self.verification)]
        chosen, usual = asdict(self.tuning), asdict(Tuning())
        changed = [f"{name}={value!r}" for name, value in chosen.items() if value != usual[name]]
        return words + [f"tuning {', '.join(changed)}"] * bool(changed)

    def mode(self, training: bool) -> int:
        """Return the index of the program that runs now, in training mode or not."""
        return self._programs[Mode(training, torch.is_grad_enabled())]

    @property
    def hooked(self) -> tuple[str, ...]:
        """The paths of the parts that have hooks now, which see whole values."""
        return () if self.hooked_parts is None else self.hooked_parts.now()

    def running(self, mode: int) -> Running:
        """Return the program of a mode, with the hooks that there are now. Not collective.

        Raises:
            HetmpError: a part has hooks that it cannot have.
        """
        return self._with_hooks(self.hooked)[mode]

    def hook_entry(self, path: str) -> BackwardSum:
        """Return the exchange that sums gradients around a part with hooks."""
        entry = self.hook_entries[_entry_key(path)]
        assert isinstance(entry, BackwardSum)
        return entry

    def _with_hooks(self, paths: tuple[str, ...]) -> list[Running]:
        """Return the programs with hooks on the parts at *paths*."""
        if not paths:
            return self._running
        if paths not in self._hooked:
            if len(self._hooked) == _HOOKED_KEPT:
                del self._hooked[next(iter(self._hooked))]
            schedule = schedule_hooked(self.graph, self.plan, self.schedule, paths)
            self._hooked[paths] = self._ready(schedule)
        return self._hooked[paths]

    def _add_functions(self, paths: tuple[str, ...]) -> None:
        """Add the functions of what only hooks on the parts at *paths* look at."""
        if paths in self._equipped:
            return
        for mode, running in enumerate(self._with_hooks(paths)):
            for step in running.program.flat:
                if isinstance(step, CallStep) and step.run.layer is None:
                    self._add_function(mode, step)

    def _equip(self, paths: tuple[str, ...]) -> None:
        """Add the exchanges that hooks on the parts at *paths* need.

        The ranks have agreed on *paths*, so all of them have their exchanges in one order.
        """
        if paths in self._equipped:
            return
        self._equipped.add(paths)
        for mode, running in enumerate(self._with_hooks(paths)):
            for step in running.program.flat:
                if isinstance(step, ExchangeStep):
                    self._add_exchange(mode, step)
        for path in paths:
            title = f"the gradients around {path!r}, which has hooks"
            if _entry_key(path) not in self.hook_entries:
                entry = BackwardSum(self.group, self.tuning.wire, title)
                self.hook_entries[_entry_key(path)] = entry
                if self.logs_new:
                    entry.backward_counter.log = []

    def _add_function(self, mode: int, step: CallStep) -> None:
        """Add what a step calls that calls no layer, unless it is there."""
        key = step_key(mode, step)
        if key not in self.functions:
            run = replace(step.run, wire=self.tuning.wire)
            self.functions[key] = function = step.node.rule.function(run, self.group)
            if isinstance(function, nn.Module):  # which moves, and is in a mode, with the model
                self.repeated[key] = function

    def _add_exchange(self, mode: int, step: ExchangeStep) -> None:
        """Add the exchange of a step, unless there is one of that value to that state."""
        (source,) = step.sources
        if (mode, source, step.after) not in self._number:
            self._number[mode, source, step.after] = len(self.exchanges)
            exchange = self._made(step)
            self.exchanges.append(exchange)
            if self.logs_new:
                exchange.forward_counter.log, exchange.backward_counter.log = [], []

    def _made(self, step: ExchangeStep) -> Exchange:
        (source,) = step.sources
        title = self._titles.get(source, source)
        return Exchange(self.group, step.before, step.after, self.tuning.wire, title)

    def replicated(self, mode: int) -> tuple[tuple[str, ...], ...]:
        """Return the names of a program's parameters that every rank holds whole, in bundles."""
        return self._running[mode].replicated

    def sum_later(self) -> AbstractContextManager[None]:
        """Let backward passes in here leave the gradients of replicated parameters unsummed.

        For gradients of several batches before a step: the first backward pass outside sums them
        together with its own, in one go. Until then they are this rank's summands, which an
        optimizer refuses. Gradients that ``torch.autograd.grad`` returns in here are summands, too.
        Not collective.
        """
        return self.parameter_entry.sum_later()

    def callee(self, model: nn.Module, mode: int, step: CallStep) -> Callable[..., Any]:
        """Return the layer of *model*, or the function, that a step calls.

        *mode* is the index of the program that the *step* belongs to.
        """
        name = step_key(mode, step)
        if name in self.repeated:
            return self.repeated[name]
        if name in self.functions:
            return self.functions[name]
        return model.get_submodule(step.node.path)

    def exchange(self, mode: int, step: ExchangeStep) -> Exchange:
        """Return the exchange that a step runs, or one like it where no pass has run the step."""
        number = self._number.get((mode, step.sources[0], step.after))
        if number is None:  # it is only shown, perhaps on this rank alone: keep nothing of it
            return self._made(step)
        exchange = self.exchanges[number]
        assert isinstance(exchange, Exchange)
        return exchange

    def program_mark(self, hooked: tuple[str, ...]) -> int:
        """Return a number for what was set on the model: it must be the same on all ranks.

        *hooked* are the paths of the parts with hooks; the rest are attributes.
        """
        return self.attribute_mark ^ zlib.crc32("\n".join(hooked).encode())

    def start(
        self, model: Part, mode: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Input], Seeds | None, Running]:
        """Begin a forward pass: check it on this rank, and against the other ranks. Collective.

        Args:
            model: the user's layers with this rank's share of them.
            mode: the index of the program that is going to run.
            args, kwargs: what the model is called with.

        Returns:
            The inputs by name, the seeds of the pass's random numbers, None if it has none, and
            the program with the hooks that there are.

        Raises:
            HetmpError: see ``SlicedModel.forward``.
        """
        inputs: dict[str, Input] = {}
        error: Exception | None = None
        running, mark = self._running[mode], 0
        hooked: tuple[str, ...] = ()
        try:
            if model.home is not None:
                model.home.check_layers()
            hooked = self.hooked
            running, mark = self._with_hooks(hooked)[mode], self.program_mark(hooked)
            self._add_functions(hooked)
            inputs = self._rows_checked(model, mode, running, self.inputs.bind(args, kwargs))
            self._check(inputs)
            self._check_modes(model)
        except Exception as caught:
            if self.group.size == 1:
                raise
            error = caught  # the others must hear of it, or they would wait for this rank
        key, before = self._draw_key(model, mode)
        unlike = False
        if self.group.size > 1:
            grad = torch.is_grad_enabled()
            own = Pass(model.training, grad, inputs, error, mark, key)
            agreed, unlike = self.meeting.hold(own)
            key = None if key is None else agreed
        self._equip(hooked)
        if key is None:
            return inputs, None, running
        self.set_key(model, key)
        return inputs, Seeds(key, unlike or self.tuning.wire is not None, before), running

    @property
    def need(self) -> Need:
        """Which images of its inputs the model needs, in the mode and with the hooks of now.

        Raises:
            HetmpError: a part has hooks that it cannot have.
        """
        mode = self.mode(self.training)
        return self._need(mode, self.running(mode))

    def _need(self, mode: int, running: Running) -> Need:
        return needed(running.program, self.graph.traces[mode])

    def rows(self, n: int) -> slice:
        """Return which rows of a batch of *n* images this rank needs. Not collective.

        Where all inputs are taken by scheme ``batch``, they are this rank's share, perhaps none;
        else all. Inputs without an axis of images do not count. It holds for the mode that the
        model is in, with its hooks of now: a hook that sees an input needs all of it. Give the
        model these rows as ``hetmp.Rows``.

        Raises:
            HetmpError: a part has hooks that it cannot have.
        """
        return self.need.rows(n, self.group.rank)

    def _rows_checked(
        self, model: Part, mode: int, running: Running, inputs: dict[str, Input]
    ) -> dict[str, Input]:
        """Refuse rows of a batch that are not those which this rank needs."""
        if not any(isinstance(x, Rows) for x in inputs.values()):
            return inputs
        if any(vars(model)[kind] for kind in HOOKS):
            raise HetmpError(
                "hooks on the model itself see whole inputs, and hetmp.Rows are a rank's rows of "
                "one: put the hooks on its parts, or give whole batches"
            )
        return checked(inputs, self._need(mode, running), self.group.rank)

    def _check(self, inputs: Mapping[str, Input]) -> None:
        """Refuse inputs that do not fit the model."""
        for shape in [whole_shape(x) for x in inputs.values()][:1]:
            if self._batch is not None and shape[0] != self._batch:
                raise HetmpError(
                    f"the module takes its batch apart, and was sliced for {self._batch} images, "
                    f"got {shape[0]}: give batches of that many, or slice it with another "
                    "example_input"
                )
            if self.dims is not None and len(shape) != self.dims:
                raise HetmpError(
                    f"the model takes batches of {self.dims} dimensions, got shape "
                    f"{shape}: give the batch axis also for one sample, or an "
                    "example_input to slice_model"
                )

    def hold_modes(self, model: nn.Module, training: bool) -> None:
        """Put the parts of *model* that the module's own ``train`` holds into the other mode."""
        held = self.graph.held[training]
        for path, module in model.named_modules(remove_duplicate=False):
            if path in held:
                module.training = not training
        for mode, program in enumerate(self.schedule.programs):
            for step in program.steps:
                if not isinstance(step, CallStep) or step.node.path not in held:
                    continue
                callee = self.callee(model, mode, step)
                if step.run.layer is not None and not any(step.run.layer.children()):
                    assert isinstance(callee, nn.Module)
                    callee.train(not training)

    def _check_modes(self, model: nn.Module) -> None:
        """Refuse a part in another mode than the model, where the modes' programs differ."""
        if self.schedule.training is self.schedule.evaluation:
            return
        held = self.graph.held[model.training]
        for path, module in model.named_modules():
            own = path == "hetmp" or path.startswith("hetmp.")
            if (
                not own
                and (module.training == model.training) == (path in held)
                # A norm that sums over the ranks holds the exchange, and is a layer all the same.
                and not all(isinstance(child, Exchange) for child in module.children())
            ):
                raise HetmpError(
                    f"{path!r} is in {_word(module.training)} mode and the model in "
                    f"{_word(model.training)} mode, and the modes run different operations: set "
                    "the mode of both, with model.train() or model.eval()"
                )

    def exchange_seconds(self, model: nn.Module) -> dict[str, float]:
        """Return the seconds of every exchange so far on this rank, by its name and direction.

        The names are alike on all ranks. There are more of them once new hooks have run.
        """
        seconds = {}
        for path, module in model.named_modules():
            if isinstance(module, Exchange):
                seconds[f"{path} forward"] = module.forward_counter.seconds
            if isinstance(module, Exchange | BackwardSum):
                seconds[f"{path} backward"] = module.backward_counter.seconds
        return seconds

    def seeds_now(self, model: nn.Module, mode: int, order: Order) -> bool:
        """Return whether a step may draw random numbers in *model* as it stands."""
        if not order.seeded or model.training or order.own:
            return order.seeded
        assert isinstance(order.step, CallStep)
        callee = self.callee(model, mode, order.step)
        # In evaluation mode torch's own layers draw nothing, but for those that were set to train.
        return not isinstance(callee, nn.Module) or any(p.training for p in callee.modules())

    def _draw_key(self, model: nn.Module, mode: int) -> tuple[int | None, Tensor | None]:
        """Draw a key for a pass's random numbers on this rank; None where none are needed.

        With it comes the state of the generator before, where the key may be taken back: in
        evaluation mode, see ``Seeds.close``.
        """
        active = any(dropout.active for dropout in keyed_dropouts(model))
        seeded = any(self.seeds_now(model, mode, order) for order in self._running[mode].orders)
        if not seeded and not active:
            return None, None
        before = None if model.training or active else torch.get_rng_state()
        return int(torch.randint(0, 2**63 - 1, (1,))), before

    def set_key(self, model: nn.Module, key: int) -> None:
        """Give the layers of *model* that draw masks the *key* of a pass."""
        for number, dropout in enumerate(keyed_dropouts(model)):
            dropout.mask.key, dropout.mask.number = key, number


def _entry_key(path: str) -> str:
    """Return a name for a hooked part that no attribute of a module has."""
    return f"at {path}".replace(".", ":")


def _word(training: bool) -> str:
    return "training" if training else "evaluation"

"""Hooks on the parts of a sliced model see whole values and whole gradients, exactly torch's.

A log of what every hook sees is held against plain torch's, in float64. Every rank has a loss of
its own: whole gradients are those of the mean of the ranks' losses.
"""

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hetmp
from helpers.comparison import (
    Differences,
    batch,
    leaves,
    make_plan,
    mean_loss,
    rank_loss,
    seeded,
    sgd,
    world_size,
)
from helpers.works import works
from hetmp.core.errors import HetmpError
from hetmp.run.metrics import StepClock
from hetmp.slicing.recording import Recorder, layer_times

pytestmark = pytest.mark.mpi

IMAGES = (2, 3, 6, 6)

FORWARD, BEFORE = "register_forward_hook", "register_forward_pre_hook"
BACKWARD, BACKWARD_BEFORE = "register_full_backward_hook", "register_full_backward_pre_hook"


class Block(nn.Module):
    """A residual block, which takes an argument by name."""

    def __init__(self, channels: int, inplace: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(channels), nn.ReLU(inplace=inplace)

    def forward(self, x, scale=1.0):
        return x + self.act(self.norm(self.conv(x))) * scale


class Network(nn.Module):
    """A block that runs twice, blocks inside of another, and a head."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3)
        self.block = Block(5, inplace)
        self.stage = nn.Sequential(
            nn.ReLU(inplace=inplace), Block(5, inplace), nn.Conv2d(5, 7, 3), nn.GELU()
        )
        self.flatten, self.head = nn.Flatten(), nn.Linear(28, 3)

    def forward(self, x):
        x = self.block(self.stem(x), scale=0.5)
        return self.head(self.flatten(self.stage(self.block(x))))


PARTS = {
    "blocks": ("block", "stage", "stage.1"),
    "layers": ("stem", "block.conv", "block.norm", "stage.2", "stage.3", "flatten", "head"),
}


def lazy(module: nn.Module, schemes=("filters",)) -> hetmp.Plan:
    """A plan of unequal shares in which a rank has nothing, where there is more than one."""
    return make_plan(module, [2.0, 0.0, 1.0, 3.0, 1.0][: world_size()], schemes)


class Hooked:
    """A sliced model beside the unsliced one; what their hooks see is logged, in order."""

    def __init__(self, module: nn.Module, plan=None, **options) -> None:
        self.reference = copy.deepcopy(module)
        plan = lazy(module) if plan is None else plan
        self.model = hetmp.slice_model(module, plan, verify=False, **options)
        self.rank, self.ranks = self.model.hetmp.group.rank, self.model.hetmp.group.size
        self.differences = Differences(self.model, self.reference)
        self.optimizers = [sgd(self.model.parameters()), sgd(self.reference.parameters())]
        self.logs: tuple[list, list] = [], []
        self.steps = 0

    def register(self, path: str, register: str, hook, **options) -> list:
        """Register ``hook(log, module, ...)`` on both; return the handles."""
        handles = []
        for model, log in zip((self.model, self.reference), self.logs, strict=True):
            part = model.get_submodule(path)

            def run(*seen, log=log, **named):
                return hook(log, *seen, **named)

            handles.append(getattr(part, register)(run, **options))
        return handles

    def log(self, path: str, register: str, **options) -> list:
        """Register a hook that only logs what it sees."""

        def note(log, module, *seen):
            log.append((f"{register} on {path}", [x.detach().clone() for x in _tensors(seen)]))

        return self.register(path, register, note, **options)

    def step(self, loss=None) -> None:
        """Train both for a step; *loss* adds to each rank's, from (log, output, rank)."""
        x, mine = (batch(IMAGES, self.steps).requires_grad_() for _ in range(2))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        for log in self.logs:
            log.clear()
        expected, outputs = leaves(self.reference(x)), leaves(self.model(mine))
        wanted = sum(mean_loss(each, self.ranks, self.steps) for each in expected)
        own = sum(rank_loss(each, self.rank, self.steps) for each in outputs)
        if loss is not None:
            wanted = wanted + sum(loss(self.logs[1], r) for r in range(self.ranks)) / self.ranks
            own = own + loss(self.logs[0], self.rank)
        wanted.backward()
        own.backward()
        self.differences.note_gradients()
        when = f"step {self.steps}"
        for number, (output, other) in enumerate(zip(outputs, expected, strict=True)):
            self.differences.compare(f"{when}, output {number}", output, other)
        self.compare_logs(when)
        self.differences.compare(f"{when}, gradient of the input", mine.grad, x.grad)
        self.differences.compare_gradients(when)
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1

    def compare_logs(self, when: str = "") -> None:
        """What all hooks saw."""
        differs = self.differences.found
        titles = [[title for title, _ in log] for log in self.logs]
        if titles[0] != titles[1]:
            differs.append(f"{when}: the hooks ran as {titles[0]}, not {titles[1]}")
            return
        for (title, mine), (_, wanted) in zip(*self.logs, strict=True):
            if len(mine) != len(wanted):
                differs.append(f"{when}, {title}: {len(mine)} values, not {len(wanted)}")
                continue
            for number, (value, other) in enumerate(zip(mine, wanted, strict=True)):
                self.differences.compare(f"{when}, {title}, value {number}", value, other)

    def finish(self) -> None:
        """Compare weights and buffers, and fail with what differed."""
        self.differences.compare_state()
        self.differences.assert_none()


def _tensors(seen) -> list[Tensor]:
    if isinstance(seen, Tensor):
        return [seen]
    if isinstance(seen, dict):
        return _tensors(tuple(seen.values()))
    if isinstance(seen, tuple | list):
        return [tensor for item in seen for tensor in _tensors(item)]
    return []


@works("`register_forward_hook` and its kin on a block or a layer")
@pytest.mark.every_size
@pytest.mark.parametrize("schemes", [("filters",), ("inputs", "whole", "filters")], ids="-".join)
@pytest.mark.parametrize("parts", PARTS)
def test_all_kinds_of_hooks(parts, schemes):
    """They see whole values, in torch's order; the network stays the same."""
    module = seeded(Network)
    pair = Hooked(module, lazy(module, schemes))
    for path in PARTS[parts]:
        for register in (FORWARD, BEFORE, BACKWARD, BACKWARD_BEFORE):
            pair.log(path, register)
        pair.log(path, FORWARD, with_kwargs=True, prepend=True)
    pair.step()
    pair.step()
    assert pair.logs[0]
    pair.finish()


def test_hooks_in_evaluation():
    pair = Hooked(seeded(Network))
    for path in (*PARTS["blocks"], "head"):
        pair.log(path, FORWARD)
        pair.log(path, BACKWARD)
    pair.reference.eval(), pair.model.eval()
    pair.step()
    with torch.no_grad():
        pair.differences.compare(
            "no_grad", pair.model(batch(IMAGES)), pair.reference(batch(IMAGES))
        )
    pair.compare_logs("no_grad")
    with torch.inference_mode():
        pair.model(batch(IMAGES)), pair.reference(batch(IMAGES))
    pair.compare_logs("inference mode")
    pair.finish()


@pytest.mark.parametrize("parts", PARTS)
def test_work_in_place(parts):
    """A hook sees what became of an argument that the part changes, as in torch."""
    pair = Hooked(seeded(lambda: Network(inplace=True)))
    for path in (*PARTS[parts], "block.act", "stage.0"):
        pair.log(path, BEFORE)
        pair.log(path, FORWARD)
    pair.step()
    pair.step()
    pair.finish()


@works("hooks that return another output, input or gradient")
@pytest.mark.parametrize("path", ["block", "stage.1", "stem", "stage.2", "stage.3", "head"])
def test_returned_values(path):
    """They take the place of the module's own."""
    pair = Hooked(seeded(Network), lazy(seeded(Network), ("filters", "inputs")))
    pair.register(path, FORWARD, lambda log, part, args, output: output * 2 + 1)
    pair.register(path, FORWARD, lambda log, part, args, output: output.sin())
    pair.register(path, FORWARD, lambda log, part, args, output: output.mul_(1.1))
    pair.register(path, BEFORE, lambda log, part, args: (args[0] * 1.5,))
    pair.register(path, BACKWARD, lambda log, part, into, out: (into[0] * 3,))
    pair.register(path, BACKWARD_BEFORE, lambda log, part, out: (out[0] / 2,))
    pair.log(path, FORWARD)
    pair.step()
    pair.finish()


def test_arguments_by_name():
    pair = Hooked(seeded(Network))

    def before(log, part, args, kwargs):
        log.append((str(kwargs), []))
        return (args[0] + 1,), kwargs

    pair.register("block", BEFORE, before, with_kwargs=True)
    pair.step()
    assert [title for title, _ in pair.logs[0]] == ["{'scale': 0.5}", "{}"]
    pair.finish()


@works("a loss on what a hook keeps")
@pytest.mark.every_size
def test_a_loss_on_kept_values():
    """As feature matching has it: each rank's own loss of outputs and inputs that hooks keep."""
    pair = Hooked(seeded(lambda: Network(inplace=True)))
    for path in ("block", "stage.1.conv", "stage.0"):

        def keep(log, part, args, output, path=path):
            log.append((path, [output]))
            log.append((f"into {path}", [args[0]]))

        pair.register(path, FORWARD, keep)

    def loss(log, rank):
        return sum(rank_loss(kept, rank, 7) for _, (kept,) in log)

    pair.step(loss)
    pair.step(loss)
    pair.finish()


@works("removing a hook, and adding one between steps")
def test_handles():
    pair = Hooked(seeded(Network))
    plain = str(pair.model)
    pair.step()
    once = pair.log("stage", FORWARD)
    twice = pair.log("stage", BACKWARD)
    pair.step()
    assert len(pair.logs[0]) == 2
    for handle in once:
        handle.remove()
    pair.step()
    assert len(pair.logs[0]) == 1
    assert "hooks" in str(pair.model)
    for handle in twice:
        handle.remove()
    pair.step()
    assert not pair.logs[0]
    assert str(pair.model) == plain
    pair.log("head", BEFORE)
    pair.step()
    pair.finish()


def test_a_hook_that_raises():
    """The others that are always called run, and the model goes on working."""
    pair = Hooked(seeded(Network))
    pair.log("block", FORWARD, always_call=True)

    def fail(log, part, args):
        raise RuntimeError("enough")

    for handle in pair.register("block.norm", BEFORE, fail):
        with handle:  # removed on leaving
            for model in (pair.model, pair.reference):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    if handle.id in model.block.norm._forward_pre_hooks:
                        with pytest.raises(RuntimeError, match="enough"):
                            model(batch(IMAGES))
    pair.step()
    pair.finish()


@works("`hetmp.local_hook`")
@pytest.mark.every_size
def test_local_hooks():
    """They see this rank's slice, also of a layer that others see whole."""
    module = seeded(Network)
    plan = lazy(module)
    pair = Hooked(module, plan)
    seen = []
    for path in ("stem", "block.norm", "block.act"):
        part = pair.model.get_submodule(path)
        part.register_forward_hook(hetmp.local_hook(lambda part, x, y: seen.append(y.shape[1])))
    pair.step()
    mine = plan.layer("stem").counts[pair.rank]
    assert seen == [mine] * 5
    for path in ("stem", "block.act"):
        pair.log(path, FORWARD)
    pair.step()
    assert seen == [mine] * 10
    assert len(pair.logs[0]) == 3
    pair.finish()


def test_a_layer_without_parameters_that_runs_twice():
    """Each of its runs may be cut in another way; its hooks see both."""

    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3)
            self.act = nn.SiLU()

        def forward(self, x):
            return self.act(self.second(self.act(self.first(x)))).mean((2, 3))

    pair = Hooked(seeded(Again))
    local = []
    pair.model.act.register_full_backward_hook(
        hetmp.local_hook(lambda part, into, out: local.append(out[0].shape[1]))
    )
    pair.step()
    assert len(local) == 2
    for register in (FORWARD, BACKWARD):
        pair.log("act", register)
    pair.step()
    assert len(local) == 4
    assert len(pair.logs[0]) == 4
    pair.finish()


class Structured(nn.Module):
    """Parts that take and give tuples, dicts and sizes, and keep a value for another part."""

    class Splitting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)

        def forward(self, x, mask=None):
            y = self.conv(x)
            first, second = y.chunk(2, 1)
            self.kept = second.tanh()
            return OrderedDict(first=first, parts=[second, (first + second, x.shape[2])])

    class Joining(nn.Module):
        def forward(self, parts, splitting, *, size):
            first, (second, (third, height)) = parts["first"], parts["parts"]
            return torch.cat([first, second, third, splitting], 1) * height / size

    def __init__(self) -> None:
        super().__init__()
        self.split, self.join = Structured.Splitting(), Structured.Joining()
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x):
        parts = self.split(x, mask=None)
        return self.head(self.join(parts, self.split.kept, size=x.shape[3]))


@works("hooks on a block with structured arguments or results")
def test_structures():
    """Values that a part leaves for another, past its result, come through as well."""
    pair = Hooked(seeded(Structured), example_input=batch(IMAGES))
    pair.log("split", BACKWARD_BEFORE)  # torch finds no tensors in dicts
    for path in ("split", "join"):
        pair.log(path, FORWARD, with_kwargs=True)
        pair.log(path, BEFORE, with_kwargs=True)

    def change(log, part, args, output):
        assert isinstance(output, OrderedDict)
        return OrderedDict(first=output["first"] * 2, parts=output["parts"])

    pair.register("split", FORWARD, change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pair.step()
        pair.step()
    pair.finish()


class Sequences(nn.Module):
    """Layers that return more than what is taken of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.recurrent = nn.Conv2d(3, 4, 3), nn.LSTM(4, 3, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        y = self.stem(x).flatten(2).transpose(1, 2)
        return self.recurrent(y + self.attention(y, y, y)[0])[0].mean(1)


def test_results_that_nothing_takes():
    """Hooks see them, and a loss may."""
    weights = [2.0, 0.0, 1.0, 3.0, 1.0][: world_size()]
    pair = Hooked(seeded(Sequences), weights, example_input=batch(IMAGES))
    pair.log("recurrent", BACKWARD_BEFORE)
    for path in ("recurrent", "attention"):
        pair.log(path, FORWARD)
        pair.register(
            path, FORWARD, lambda log, part, args, output: log.append(("", [_tensors(output)[1]]))
        )

    def loss(log, rank):
        return sum(rank_loss(kept[0], rank, 7) for title, kept in log if not title)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pair.step(loss)
        pair.step(loss)
    with pytest.raises(HetmpError, match=r"'attention' .* one value twice"):
        pair.model.attention.register_full_backward_hook(print)
    pair.finish()


@pytest.mark.parametrize("tuning", [{"regather": True}, {"overlap": False, "shared_memory": False}])
def test_tunings(tuning):
    pair = Hooked(seeded(Network), tuning=hetmp.Tuning(**tuning))
    for path in ("block", "stage.2"):
        pair.log(path, FORWARD)
        pair.log(path, BACKWARD)
    pair.step()
    pair.finish()


class Checkpointed(nn.Module):
    """A block that computes a part of itself again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 5, 3), Block(5, inplace=False)
        self.block = nn.Module()
        self.outer = Checkpointed.Outer()

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Sequential(nn.Conv2d(5, 4, 1), nn.Tanh()), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.last(checkpoint(self.inner, x, use_reentrant=False))

    def forward(self, x):
        return self.outer(self.inner(self.stem(x)))


def test_a_checkpoint_inside_a_part():
    pair = Hooked(seeded(Checkpointed), example_input=batch(IMAGES))
    pair.log("outer", FORWARD)
    pair.log("outer", BACKWARD)
    pair.step()
    with pytest.raises(HetmpError, match=r"'outer.inner' .* inside a gradient checkpoint"):
        pair.model.outer.inner.register_forward_hook(print)
    with pytest.raises(HetmpError, match=r"'block' .* never calls it"):
        pair.model.block.register_forward_hook(print)
    pair.step()
    pair.finish()


@works("hooks that a module has before it is sliced")
def test_hooks_from_before():
    """They are taken over; their handles remove them from both."""
    module, seen = seeded(Network), []
    plain = hetmp.slice_model(copy.deepcopy(module), lazy(module))(batch(IMAGES))
    expected = copy.deepcopy(module)
    for net in (module, expected):
        net.stage.register_forward_hook(lambda part, args, output: output * 2)
        net.block.conv.register_forward_pre_hook(lambda part, args: (args[0] + 1,))
    handles = [
        module.register_forward_hook(lambda part, args, output: seen.append("model")),
        module.block.register_forward_hook(
            lambda part, args, kwargs, output: seen.append(kwargs), with_kwargs=True
        ),
    ]
    model = hetmp.slice_model(module, lazy(module))  # verified: without the hooks
    assert not seen
    torch.testing.assert_close(model(batch(IMAGES)), expected(batch(IMAGES)), rtol=0, atol=1e-12)
    assert seen == [{"scale": 0.5}, {}, "model"]
    assert not torch.allclose(plain, model(batch(IMAGES)))
    for handle in handles:
        handle.remove()
    seen.clear()
    model(batch(IMAGES))
    assert not seen


@works("`copy.deepcopy` of a model with hooks")
def test_copies():
    """They have their own hooks, as in torch."""
    model = hetmp.slice_model(seeded(Network), lazy(seeded(Network)), verify=False)
    handle = model.stage.register_forward_hook(lambda part, args, output: output * 2)
    model.stem.register_forward_hook(hetmp.local_hook(lambda part, args, output: output + 1))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        torch.testing.assert_close(twin(batch(IMAGES)), model(batch(IMAGES)), rtol=0, atol=1e-12)
        handle.remove()
        assert model.hetmp.hooked == ()
        assert twin.hetmp.hooked == ("stage",)
        assert not torch.allclose(twin(batch(IMAGES)), model(batch(IMAGES)))


def test_averaged_models():
    """torch's averages copy the model with its hooks."""
    model = hetmp.slice_model(seeded(Network), lazy(seeded(Network)), verify=False)
    seen = []
    model.stage.register_forward_hook(lambda part, args, output: seen.append(output.shape))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    with torch.no_grad():
        averaged(batch(IMAGES))
    assert seen == [(2, 7, 2, 2)]


def test_the_mark_of_hooked_parts():
    """Ranks can compare it: exchanges part ways where it differs."""
    model = hetmp.slice_model(seeded(Network), lazy(seeded(Network)), verify=False)
    runtime = model.hetmp
    marks = [runtime.program_mark(runtime.hooked)]
    local = model.stem.register_forward_hook(hetmp.local_hook(print))
    marks.append(runtime.program_mark(runtime.hooked))
    handle = model.stem.register_forward_hook(print)
    marks.append(runtime.program_mark(runtime.hooked))
    handle.remove(), local.remove()
    marks.append(runtime.program_mark(runtime.hooked))
    assert marks[0] == marks[1] == marks[3] != marks[2]


def test_shown_on_one_rank_and_timed():
    """Showing makes nothing on one rank alone; exchanges of hooks are timed from the first."""
    model = hetmp.slice_model(seeded(Network), lazy(seeded(Network)), verify=False)
    clock, recorder = StepClock(model), Recorder(model, torch.device("cpu"))
    before, places = model.hetmp.exchange_seconds(model), recorder.places
    model.stage.register_forward_hook(lambda part, args, output: output * 2)
    if model.hetmp.group.rank == 0:
        assert "hooks see whole values" in repr(model)
    assert model.hetmp.exchange_seconds(model).keys() == before.keys()
    recordings = []
    for _ in range(2):
        clock.start()
        with recorder.step(recordings):
            model(batch(IMAGES)).sum().backward()
        clock.stop()
    after = model.hetmp.exchange_seconds(model)
    assert len(after) > len(before)
    assert recorder.places[: len(places)] == places
    assert len(recorder.places) > len(places)
    met = [[meeting.place for meeting in one.meetings] for one in recordings]
    assert sorted(met[0]) == sorted(met[1])
    if world_size() > 1:
        assert max(met[0]) >= len(places)
    layer_times(model.hetmp.group, recorder, recordings)


@pytest.mark.mpi(min_size=2)
def test_hooks_see_parameters_as_the_user_does():
    """A value of a cut parameter is that of the whole one, or is refused: never the slice's."""
    module = seeded(Network)
    wanted = float(module.block.conv.weight.detach().norm())
    model = hetmp.slice_model(module, lazy(module), verify=False)
    seen = []

    def look(part, *_):
        weight = part.conv.weight.detach()
        with pytest.raises(HetmpError, match=r"hetmp.norm\(p\) is that of the whole"):
            weight.norm()
        seen.append(float(hetmp.norm(weight)))

    model.block.register_forward_hook(look)
    model.block.register_forward_pre_hook(look)
    model(batch(IMAGES))
    assert seen == pytest.approx([wanted] * 4, rel=1e-12)


def test_hooks_of_a_module_that_is_read_again():
    """What parts can have is asked of the module as it was read last."""
    model = hetmp.slice_model(seeded(Network), lazy(seeded(Network)), verify=False)
    runtime = model.hetmp
    parts = runtime.hooked_parts
    model.stage.register_forward_hook(print)
    graph = copy.copy(runtime.graph)
    object.__setattr__(graph, "why_no_hook", lambda path, backward=False: "of the new reading")
    parts.take(graph)
    for ask in (parts.now, lambda: model.block.register_forward_hook(print)):
        with pytest.raises(HetmpError, match=r"no hook can be put on .*: of the new reading"):
            ask()
    parts.take(runtime.graph)
    assert parts.now() == ("stage",)


# --- what is refused ----------------------------------------------------------------------------


class Odd(nn.Module):
    """Parts that no hook can see as torch's would."""

    class Handing(nn.Module):
        def forward(self, x):
            return x

    class Paired(nn.Module):
        def forward(self, x, y):
            return x * y

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.handing, self.paired = Odd.Handing(), Odd.Paired()
        self.whole = hetmp.leaf(nn.Sequential(nn.Conv2d(4, 3, 1), nn.Tanh()))

    def forward(self, x):
        x = self.handing(self.conv(x))
        return self.whole(self.paired(x, x))


REFUSED = [
    ("unused", FORWARD, r"'unused' \(ReLU\).*: the model never calls it"),
    ("handing", FORWARD, "it hands on what it is given"),
    ("paired", BACKWARD, "one value twice"),
    ("whole.0", FORWARD, "inside 'whole', which is kept as one: put the hook on that"),
    ("conv", "register_backward_hook", "use register_full_backward_hook"),
    ("", "register_backward_hook", "use register_full_backward_hook"),
    ("whole", "register_backward_hook", "use register_full_backward_hook"),
]


@works("hooks that cannot be right")
def test_what_is_refused_when_it_is_registered():
    """Nothing stays of a refused hook; before slicing it is refused then."""
    model = hetmp.slice_model(seeded(Odd), [1] * world_size(), example_input=batch(IMAGES))
    for path, register, message in REFUSED:
        with pytest.raises(HetmpError, match=message):
            getattr(model.get_submodule(path), register)(print)
        module = seeded(Odd)
        getattr(module.get_submodule(path), register)(print)
        with pytest.raises(HetmpError, match=message):
            hetmp.slice_model(module, [1] * world_size(), example_input=batch(IMAGES))
    with pytest.raises(HetmpError, match=r"'paired' .*no slice of its own"):
        model.paired.register_forward_hook(hetmp.local_hook(print))
    model.paired.register_forward_hook(lambda part, args, output: output * 0)
    assert model.hetmp.hooked == ("paired",)
    expected = seeded(Odd).whole(torch.zeros(2, 4, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(model(batch(IMAGES)), expected, rtol=0, atol=1e-12)


def _added(args) -> None:
    args[0].add_(1)


@pytest.mark.parametrize(
    ("register", "hook", "message"),
    [
        (BEFORE, lambda part, args: _added(args), "changes an argument in place"),
        (FORWARD, lambda part, args, y: _added(args), "changes an argument in place"),
        (FORWARD, lambda part, args, y: (y, y), "gives .* for result, where .* a tensor"),
        (FORWARD, lambda part, args, y: y[:, 1:], r"axis 1 is cut and has to stay 5 long"),
        (BEFORE, lambda part, args: (*args, 1), "gives .* for argument, where .* 1 values"),
    ],
)
def test_what_is_refused_when_it_runs(register, hook, message):
    """The next pass is right again."""
    model = hetmp.slice_model(seeded(Network), lazy(seeded(Network)), verify=False)
    handle = getattr(model.block, register)(hook)
    with pytest.raises(HetmpError, match=message):
        model(batch(IMAGES))
    handle.remove()
    torch.testing.assert_close(
        model(batch(IMAGES)), seeded(Network)(batch(IMAGES)), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("register", "hook"),
    [(BEFORE, lambda part, args: (args[0] * 2,)), (FORWARD, lambda part, args, output: output * 2)],
    ids=[BEFORE, FORWARD],
)
def test_replacing_what_is_worked_on_in_place(register, hook):
    """What else takes the value would be another one in torch."""
    module = seeded(lambda: Network(inplace=True))
    model = hetmp.slice_model(module, lazy(module), verify=False)
    getattr(model.block.act, register)(hook)
    with pytest.raises(HetmpError, match=r"'block.act' .* in place: .* use inplace=False"):
        model(batch(IMAGES))

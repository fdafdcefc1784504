"""What the backward pass has of a layer, as the plan says: kept, gathered again, computed again.

Each network is trained beside the unsliced one, in float64. What is kept is counted where autograd
saves it.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hetmp
from cases.branches import IMAGES, Everything
from helpers.comparison import (
    batch,
    compare_training,
    make_plan,
    mean_loss,
    pick,
    pick_weights,
    plan_on_images,
    rank_loss,
    seeded,
    world_size,
)
from helpers.running import TRAIN, hetmp_run
from hetmp.exchange.arena import Arena
from hetmp.slicing import layer_segments, plan_from_weights, read_graph
from hetmp.slicing.scheduler import schedule_model

CHOICES = (
    ("regather",),
    ("regather", "keep", None),
    ("recompute",),
    ("recompute", "keep"),
    ("regather", "recompute", None, "recompute"),
)
SCHEMES = (
    ("filters",),
    ("batch", "filters"),
    ("filters", "inputs", "whole"),
    ("inputs", "filters"),
)


class Residual(nn.Module):
    """One value is taken by two convolutions, and a layer may have fewer channels than ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (8, 6, 6, 6, 2))
        self.first, self.second = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.shortcut, self.narrow = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
        self.head = nn.Linear(2, 5)
        self.norms[1].momentum = None  # a mean over all batches, which counts them

    def forward(self, x):
        y = self.norms[0](self.stem(x)).relu_()
        z = F.relu(self.norms[1](self.first(y)), inplace=True)
        z = self.norms[2](self.second(z))
        z += self.norms[3](self.shortcut(y))
        z = F.max_pool2d(z.relu_(), 2)
        z = self.norms[4](self.narrow(z)).sigmoid()
        return self.head(z.mean((2, 3)))


def choose(plan, choices):
    """The plan with *choices* repeated over its layers."""
    names = [layer.name for layer in plan.layers]
    return plan.with_backward({name: choices[i % len(choices)] for i, name in enumerate(names)})


@pytest.mark.mpi
@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no overlap"])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_a_network_trains_alike_whatever_is_gathered_again(choices, number, overlap):
    module = seeded(Residual)
    plan = make_plan(module, pick_weights(number), pick(SCHEMES, number))
    tuning = hetmp.Tuning(overlap=overlap, regather=bool(number % 2))
    compare_training(module, choose(plan, choices), (4, 3, 6, 6), steps=3, tuning=tuning)


@pytest.mark.mpi
@pytest.mark.parametrize("number", range(3))
def test_branches_joins_and_shared_layers_computed_again(number):
    module = seeded(Everything)
    plan = plan_on_images(module, pick_weights(number), number, IMAGES)
    compare_training(module, recompute_all(module, plan, IMAGES), IMAGES)


def recompute_all(module, plan, shape):
    """The plan with every layer computed again that can be."""
    graph = read_graph(module, torch.empty(*shape, dtype=torch.float64))
    own = layer_segments(graph, schedule_model(graph, plan), plan)
    can = {name for name, calls in own.items() if all(call.reason is None for call in calls)}
    assert can
    return plan.with_backward(dict.fromkeys(can, "recompute"))


@pytest.mark.mpi
def test_layers_that_are_partly_or_wholly_frozen():
    module = seeded(Residual)
    module.stem.requires_grad_(False)
    module.first.weight.requires_grad_(False)
    module.second.bias.requires_grad_(False)
    plan = choose(make_plan(module, pick_weights(1)), ("recompute",))
    for input_gradient in (True, False):
        compare_training(module, plan, (4, 3, 6, 6), input_gradient=input_gradient)


def gradients(model, passes, evaluation=False):
    """Every gradient of this rank after *passes*, a function of the model."""
    model.train(not evaluation)
    model.zero_grad()
    torch.manual_seed(7)
    passes(model)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare_with_keep(module, plan, passes, tuning=None, rtol=1e-11, **more):
    """Gradients and buffers are those of the same plan that keeps everything."""
    models = [
        hetmp.slice_model(copy.deepcopy(module), each, tuning=tuning, verify=False)
        for each in (plan.with_backward({"*": "keep"}), plan)
    ]
    expected, actual = (gradients(model, passes, **more) for model in models)
    assert expected.keys() == actual.keys()
    assert expected
    for name, gradient in expected.items():
        assert torch.allclose(actual[name], gradient, rtol=rtol, atol=1e-12), name
    buffers = [dict(model.named_buffers()) for model in models]
    assert all(torch.equal(buffers[1][name], value) for name, value in buffers[0].items())


class Random(nn.Module):
    """Whatever draws: layers, functions, and an activation that every rank computes whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.channels, self.drop, self.act = nn.Dropout2d(0.3), nn.Dropout(0.4), nn.RReLU()
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        y = self.act(self.drop(self.a(x)))
        y = F.dropout(self.channels(self.b(y)), 0.2, self.training)
        return self.head(y.mean((2, 3)))


@pytest.mark.mpi
@pytest.mark.parametrize("schemes", [("filters",), ("batch", "filters")], ids=str)
def test_random_numbers_are_drawn_again_alike(schemes):
    """With another pass between forward and backward, which has a key of its own."""
    module = seeded(Random)
    plan = choose(make_plan(module, pick_weights(0), schemes), ("recompute",))

    def passes(model):
        first, second = model(batch((4, 3, 6, 6))), model(batch((4, 3, 6, 6), 1))
        first.square().sum().backward()
        second.square().sum().backward()

    compare_with_keep(module, plan, passes)


@pytest.mark.mpi
@pytest.mark.parametrize("schemes", [("filters",), ("batch",), ("inputs", "filters")], ids=str)
def test_other_ways_back(schemes):
    """A kept graph, batches of other sizes, a checkpoint around it all, gradients of some only."""
    module = seeded(Residual)
    plan = choose(make_plan(module, pick_weights(2), schemes), ("recompute",))

    def passes(model):
        small, large = model(batch((3, 3, 6, 6))), model(batch((5, 3, 6, 6), 1))
        small.square().sum().backward(retain_graph=True)
        large.sum().backward()
        small.sum().backward()
        checkpoint(model, batch((2, 3, 6, 6), 2), use_reentrant=False).sum().backward()
        last = [model.get_parameter("head.weight"), model.get_parameter("first.weight")]
        own = torch.autograd.grad(model(batch((4, 3, 6, 6))).sum(), last)
        for parameter, gradient in zip(last, own, strict=True):
            parameter.grad += gradient

    compare_with_keep(module, plan, passes)


@pytest.mark.mpi
def test_evaluation_with_and_without_gradients():
    module = seeded(Residual)
    plan = choose(make_plan(module, pick_weights(0)), ("recompute", "regather"))
    compare_with_keep(
        module, plan, lambda model: model(batch((4, 3, 6, 6))).sum().backward(), evaluation=True
    )
    model = hetmp.slice_model(module, plan, verify=False)
    with torch.no_grad():
        assert torch.allclose(model.eval()(batch((4, 3, 6, 6))), module.eval()(batch((4, 3, 6, 6))))


@pytest.mark.mpi
def test_under_autocast():
    torch.manual_seed(0)
    module = Residual()
    plan = choose(make_plan(module, pick_weights(1)), ("recompute",))

    def passes(model):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch((4, 3, 6, 6), dtype=torch.float32)).square().sum()
        loss.backward()  # outside, as is usual

    compare_with_keep(module, plan, passes, rtol=1e-5)


@pytest.mark.mpi
def test_hooks_see_every_value_once():
    module = seeded(Residual)
    plan = choose(make_plan(module, pick_weights(0)), ("recompute",))
    model, reference = hetmp.slice_model(module, plan, verify=False), copy.deepcopy(module)
    calls: dict[str, list[str]] = {"sliced": [], "whole": []}
    for kind, each in (("sliced", model), ("whole", reference)):
        for path in ("first", "norms.4", "shortcut"):
            part, log = each.get_submodule(path), calls[kind]
            part.register_forward_hook(lambda *_, path=path, log=log: log.append(path))
            part.register_full_backward_hook(lambda *_, path=path, log=log: log.append(path))
    rank, x = model.hetmp.group.rank, batch((4, 3, 6, 6))
    rank_loss(model(x), rank).backward()
    mean_loss(reference(x), world_size()).backward()
    assert calls["sliced"] == calls["whole"]
    assert torch.allclose(
        hetmp.whole(model.get_parameter("first.weight").grad), reference.first.weight.grad
    )


@pytest.mark.mpi
def test_local_hooks_run_again_with_their_layer():
    model = hetmp.slice_model(
        seeded(Residual), pick_weights(0), backward={"first": "recompute"}, verify=False
    )
    seen: list[tuple[str, int]] = []
    for path in ("first", "second"):
        model.get_submodule(path).register_forward_hook(
            hetmp.local_hook(lambda part, x, y, path=path: seen.append((path, y.shape[1])))
        )
    model(batch((4, 3, 6, 6))).sum().backward()
    counts = {x.name: x.counts[model.hetmp.group.rank] for x in model.hetmp.plan.layers}
    assert seen == [(path, counts[path]) for path in ("first", "second", "first")]


def test_the_choices_are_shown_with_the_plan():
    model = hetmp.slice_model(
        seeded(Residual), [1], backward={"*": "regather", "first": "recompute"}, verify=False
    )
    head, *rows = (line.split() for line in str(model.hetmp).splitlines()[1:])
    assert head[-1] == "backward"
    shown = {row[0]: row[-1] for row in rows}
    assert shown["first"] == "recompute"
    assert shown["stem"] == shown["head"] == "regather"
    assert "Conv2d, filters, 6 channels, backward recompute" in model.hetmp._repr_html_()
    plain = hetmp.slice_model(seeded(Residual), [1], verify=False)
    assert "backward" not in str(plain.hetmp)


def test_the_program_recomputes_the_layers_that_it_is_told_to(tmp_path):
    flags = ("--weights", "5,0,2", "--steps", 3)
    results = []
    for name, more in (("kept", ()), ("again", ("--recompute", "features.*,classifier.fc"))):
        done = hetmp_run(*TRAIN, *flags, "--out", tmp_path / name, *more, ranks=3)
        assert done.returncode == 0, done.stderr
        results.append(next(x for x in done.stdout.splitlines() if "test accuracy after" in x))
        choices = {x.backward for x in hetmp.Plan.load(tmp_path / name / "plan.json").layers}
        assert choices == ({"recompute"} if more else {None})
    assert results[0] == results[1]
    wrong = hetmp_run(*TRAIN, *flags, "--recompute", "feature.*", ranks=3)
    assert wrong.returncode != 0
    assert "hetmp: error: unknown layer 'feature.*'" in wrong.stderr


def saved_by(module, plan, tuning=None):
    """Bytes that a forward pass keeps for the backward pass on this rank, each memory once."""
    model = hetmp.slice_model(module, plan, tuning=tuning, verify=False)
    sizes: dict[int, int] = {}

    def pack(x):
        storage = x.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return x

    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = model(batch((4, 3, 6, 6)))
    output.sum().backward()
    return sum(size for pointer, size in sizes.items() if pointer not in own)


@pytest.mark.mpi(min_size=2)
def test_an_input_of_two_layers_is_kept_if_one_of_them_keeps_it():
    module = seeded(Residual)
    plan = make_plan(module, pick_weights(0))
    kept = saved_by(module, plan)
    one = saved_by(module, plan.with_backward({"first": "regather"}))
    both = saved_by(module, plan.with_backward({"first": "regather", "shortcut": "regather"}))
    whole = 4 * 8 * 6 * 6 * 8  # its share of that is kept in any case, by the activation
    takes = any(plan.layer(n).counts[hetmp.Group().rank] for n in ("first", "shortcut"))
    assert one == kept
    assert both == kept - whole * takes


@pytest.mark.mpi(min_size=2)
def test_a_layers_own_choice_counts_before_the_runs():
    module = seeded(Residual)
    plan = make_plan(module, pick_weights(0))
    regather = hetmp.Tuning(regather=True)
    kept = plan.with_backward({"*": "keep"})
    assert saved_by(module, kept, regather) == saved_by(module, plan)
    chosen = plan.with_backward({"*": "regather"})
    assert saved_by(module, chosen) == saved_by(module, plan, regather)
    takes = any(layer.counts[hetmp.Group().rank] for layer in plan.layers[1:])
    assert (saved_by(module, chosen) < saved_by(module, plan)) == takes


class Chain(nn.Sequential):
    """Two convolutions and a linear layer, each with what lies behind it."""

    def __init__(self) -> None:
        parts = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
        parts += [nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU(), nn.MaxPool2d(2)]
        super().__init__(*parts, nn.Flatten(), nn.Linear(54, 5), nn.Tanh())


@pytest.mark.mpi
@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no overlap"])
def test_of_a_recomputed_layer_its_share_of_the_input_is_kept_and_nothing_else(overlap):
    module, group = seeded(Chain), hetmp.Group()
    plan = make_plan(module, pick_weights(1))
    tuning = hetmp.Tuning(overlap=overlap)
    again = saved_by(module, plan.with_backward({"*": "recompute"}), tuning)
    first, second, _ = (layer.counts[group.rank] for layer in plan.layers)
    numbers = 4 * (3 * 6 * 6 + first * 6 * 6 + second * 3 * 3) + 4 * 5 * (group.size == 1)
    assert again <= 8 * (numbers + 4 * 5)  # the whole output may be saved by what gathers it
    kept = saved_by(module, plan, tuning)
    regathered = saved_by(module, plan.with_backward({"*": "regather"}), tuning)
    assert again < kept or not (first or second)
    assert again < regathered or not (first or second)


@pytest.mark.mpi(min_size=2)
def test_memory_that_ranks_share_is_free_between_forward_and_backward():
    module = seeded(Chain)
    plan = make_plan(module, pick_weights(1)).with_backward({"*": "recompute"})
    model = hetmp.slice_model(module, plan, verify=False)
    arena = Arena.of(model.hetmp.group)
    if arena is None:
        pytest.skip("the ranks share no memory")
    before = arena.in_use
    output = model(batch((4, 3, 6, 6)))
    assert arena.in_use == before
    output.sum().backward()
    assert arena.in_use == before


# --- which steps are repeated


def titles(steps):
    """The names of steps for the reader; an exchange by its states."""
    return [getattr(x, "title", None) or f"{x.before} -> {x.after}" for x in steps]


def test_the_steps_that_are_repeated_are_named_for_every_layer():
    graph = read_graph(Residual())
    plan = plan_from_weights(graph, (2, 1))
    own = layer_segments(graph, schedule_model(graph, plan), plan)
    assert list(own) == [layer.name for layer in plan.layers]
    repeated = {name: titles(call.steps) for name, (call,) in own.items()}
    assert repeated["stem"] == ["stem", "norms.0", "relu_"]
    assert repeated["first"] == ["first", "norms.1", "relu"]
    assert repeated["shortcut"] == ["shortcut", "norms.3"]  # then a value of others is changed
    assert repeated["narrow"] == ["narrow", "norms.4", "sigmoid", "mean"]
    assert [len(own[name][0].gathers) for name in ("stem", "first", "second")] == [0, 0, 1]
    (second,) = own["second"]
    assert second.sources == (second.gathers[0].sources[0],)


def test_an_input_of_two_layers_is_gathered_again_where_none_keeps_it():
    graph = read_graph(Residual())
    plan = plan_from_weights(graph, (2, 1))
    schedule = schedule_model(graph, plan)
    for other, gathers in (("keep", 0), (None, 0), ("regather", 1), ("recompute", 1)):
        own = layer_segments(graph, schedule, plan.with_backward({"shortcut": other}))
        assert len(own["first"][0].gathers) == gathers
    assert len(layer_segments(graph, schedule, plan, regather=True)["first"][0].gathers) == 1


def test_code_of_the_users_is_not_run_twice():
    class Own(nn.Module):
        def forward(self, x):
            return x * 2

    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), hetmp.leaf(Own()), nn.Conv2d(8, 4, 1))
    graph = read_graph(module)
    plan = plan_from_weights(graph, (2, 1))
    own = layer_segments(graph, schedule_model(graph, plan), plan)
    assert titles(own["0"][0].steps) == ["0", "1"]


# --- what cannot be computed again exactly


class Checkpointed(nn.Sequential):
    def forward(self, x):
        return self[1](checkpoint(self[0], x, use_reentrant=False))


class SavedElsewhere(nn.Sequential):
    def forward(self, x):
        with torch.autograd.graph.save_on_cpu():
            y = self[0](x)
        return self[1](y)


class InPlace(nn.Sequential):
    def forward(self, x):
        x = x * 2
        y = self[0](x)
        return self[1](y) + x.mul_(3)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Checkpointed, "it is in a gradient checkpoint of the module's own, which computes it"),
        (SavedElsewhere, "the module has hooks on what it saves"),
        (InPlace, "'mul_' changes what it takes in place"),
    ],
)
def test_a_layer_that_cannot_be_computed_again_is_refused(kind, reason):
    module = kind(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    module[0].requires_grad_(False)  # or torch refuses the work in place, too
    plan = plan_from_weights(read_graph(module), [1])
    with pytest.raises(hetmp.HetmpError, match=f"layer '0' cannot be recomputed: {reason}"):
        hetmp.slice_model(module, plan.with_backward({"0": "recompute"}))
    hetmp.slice_model(module, plan.with_backward({"0": "regather", "1": "recompute"}))


@pytest.mark.mpi
@pytest.mark.parametrize("change", ["a step", "the mode", "statistics"])
def test_what_changes_between_forward_and_backward_is_refused(change):
    module = seeded(Residual)
    plan = choose(make_plan(module, pick_weights(0)), ("recompute",))
    model = hetmp.slice_model(module, plan, verify=False)
    model.eval() if change == "statistics" else model.train()
    output = model(batch((4, 3, 6, 6)))
    if change == "the mode":
        model.eval()
    elif change == "statistics":
        model.get_buffer("norms.4.running_mean").zero_()
    else:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
    with pytest.raises(hetmp.HetmpError, match=r"call backward\(\) before anything is changed"):
        output.sum().backward()

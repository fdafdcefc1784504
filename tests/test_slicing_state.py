"""What a rank holds, where it comes from and how it is put together again."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import (
    WEIGHTS,
    Differences,
    batch,
    make_plan,
    mean_loss,
    pick_weights,
    rank_loss,
    seeded,
    sgd,
    world_size,
)
from helpers.works import works
from hetmp.exchange import share_of

pytestmark = pytest.mark.mpi

IMAGES = (4, 3, 6, 6)

SCHEMES = [("filters",), ("inputs",), ("filters", "whole", "inputs")]


def small() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(
                nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 5, 2), nn.PReLU(5)
            ),
            flatten=nn.Flatten(),
            head=nn.Sequential(nn.Dropout(0.1), nn.Linear(45, 4)),
        )
    )


def equal_states(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in b
    )


# --- merging ------------------------------------------------------------------------------------


@works("`merge_model`")
@pytest.mark.parametrize("schemes", SCHEMES)
@pytest.mark.parametrize("kind", ["70:25:5", "one zero", "all on last"])
def test_merging_gives_back_what_was_sliced(kind, schemes):
    """Bit by bit, in the user's order, on every rank or on one."""
    module = seeded(small)
    model = hetmp.slice_model(module, make_plan(module, WEIGHTS[kind](world_size()), schemes))
    expected = module.state_dict()
    rank, ranks = model.hetmp.group.rank, model.hetmp.group.size
    merged = {root: hetmp.merge_model(model, root=root) for root in (None, 0, ranks - 1)}
    for root, state in merged.items():
        if root in (None, rank):
            assert equal_states(state, expected)
            assert all(not tensor.requires_grad for tensor in state.values())
        else:
            assert state == {}
    names = [name for name, _ in module.named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == list(expected)
    strict = seeded(small, seed=1)
    strict.load_state_dict(merged[None], strict=True)


@pytest.mark.parametrize("schemes", SCHEMES)
def test_what_was_merged_is_a_copy(schemes):
    module = seeded(small)
    model = hetmp.slice_model(module, make_plan(module, [1] * world_size(), schemes))
    for tensor in hetmp.merge_model(model).values():
        tensor.zero_()
    merged = hetmp.merge_model(model)
    assert equal_states(merged, module.state_dict())


@pytest.mark.parametrize("root", [-1, 99])
def test_a_root_that_is_no_rank_is_refused(root):
    model = hetmp.slice_model(seeded(small), [1] * world_size())
    with pytest.raises(hetmp.HetmpError, match=f"root {root} is not a rank: give one from 0"):
        hetmp.merge_model(model, root=root)


class Odd(nn.Module):
    """Buffers that are saved or not, and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor([3, 4]))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.unused = nn.Parameter(torch.randn(3))
        self.conv = nn.Conv2d(3, 7, 3)
        self.register_parameter("none", None)
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        return self.conv(x)


def test_what_no_layer_runs_stays_whole():
    module = Odd()
    model = hetmp.slice_model(module, pick_weights(0))
    expected = hetmp.merge_model(model)
    first = hetmp.merge_model(hetmp.slice_model(module, [1] * world_size()))
    model(batch(IMAGES, dtype=torch.float32)).sum().backward()
    assert list(model.state_dict()) == list(module.state_dict())
    assert [name for name, _ in model.named_buffers()] == ["count", "scratch"]
    assert equal_states(expected, first)
    assert model.unused.grad is None
    assert model.conv.weight.grad is not None


# --- where the values come from -----------------------------------------------------------------


def test_the_users_module_is_left_as_it_was():
    module = seeded(small)
    module.features[0].weight.requires_grad_(False)
    module.head.eval()
    before = copy.deepcopy(module.state_dict())
    flags = [(layer.training, type(layer)) for layer in module.modules()]
    tensors = [*module.parameters(), *module.buffers()]
    storage = [tensor.data_ptr() for tensor in tensors]
    model = hetmp.slice_model(module, pick_weights(1))
    optimizer = sgd(model.parameters())
    rank_loss(model(batch(IMAGES)), model.hetmp.group.rank).backward()
    optimizer.step()
    assert equal_states(module.state_dict(), before)
    assert [(layer.training, type(layer)) for layer in module.modules()] == flags
    assert [x.data_ptr() for x in (*module.parameters(), *module.buffers())] == storage
    assert all(parameter.grad is None for parameter in module.parameters())
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == [
        "features.0.weight"
    ]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "features.0.weight"
    ]
    assert not model.head.training
    assert model.features.training


@pytest.mark.parametrize("schemes", SCHEMES)
def test_an_unseeded_modules_values_are_rank_0s(schemes):
    group = hetmp.Group()
    module = seeded(small, seed=group.rank)
    module.features[1].running_mean.add_(group.rank)
    model = hetmp.slice_model(module, make_plan(module, pick_weights(2), schemes))
    merged = hetmp.merge_model(model)
    expected = seeded(small, seed=0).state_dict()
    for name, mine in model.state_dict().items():
        share = share_of(expected[name], model.hetmp.table[name].state, group.rank)
        assert torch.equal(mine, share)
    assert equal_states(merged, expected)


@pytest.mark.parametrize("schemes", SCHEMES)
def test_a_module_without_values_is_filled_slice_by_slice(schemes):
    """By a function that sees whole shapes, with values that no rank count changes."""
    from mpi4py import MPI

    def init(name, shape, generator):
        asked.append((name, tuple(shape)))
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    with torch.device("meta"):
        module = small().double()
    group, asked = hetmp.Group(), []
    torch.manual_seed(3 + group.rank)  # rank 0's seed is what counts
    model = hetmp.slice_model(module, make_plan(module, pick_weights(3), schemes), init=init)
    torch.manual_seed(3)
    alone = hetmp.slice_model(module, [1], MPI.COMM_SELF, init=init)
    merged = hetmp.merge_model(model)
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    assert asked == shapes * 2
    assert equal_states(merged, alone.state_dict())
    assert len({float(tensor.flatten()[0]) for tensor in merged.values()}) > len(shapes)
    assert torch.equal(merged["features.1.running_var"], torch.ones(7, dtype=torch.float64))
    assert torch.equal(merged["features.1.running_mean"], torch.zeros(7, dtype=torch.float64))
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    torch.manual_seed(4)
    other = hetmp.merge_model(hetmp.slice_model(module, [1] * group.size, init=init))
    assert not torch.equal(other["head.1.weight"], merged["head.1.weight"])


# --- what a rank holds --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WEIGHTS)
def test_each_rank_holds_its_share_and_no_more(kind):
    """The counts of the plan, exactly; over the ranks, the whole."""
    module = seeded(small)
    model = hetmp.slice_model(module, WEIGHTS[kind](world_size()))
    group, plan = model.hetmp.group, model.hetmp.plan
    held = {name: p.numel() for name, p in model.named_parameters()}
    first, second, last = (layer.counts[group.rank] for layer in plan.layers)
    assert held == {
        "features.0.weight": first * 27,
        "features.0.bias": first,
        "features.1.weight": first,
        "features.1.bias": first,
        "features.3.weight": second * 28,
        "features.3.bias": second,
        "features.4.weight": second,
        "head.1.weight": last * 45,
        "head.1.bias": last,
    }
    rank_loss(model(batch(IMAGES)), group.rank).backward()
    gradients = sum(p.grad.numel() for p in model.parameters())
    sums = group.allgather(torch.tensor([sum(held.values()), gradients]).numpy()).sum(axis=0)
    whole = sum(parameter.numel() for parameter in module.parameters())
    assert list(sums) == [whole, whole]
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.buffers()
    }
    floats = 8 * 2 * first  # the running mean and variance
    assert sum(storages.values()) == floats + 8  # and the number of batches


def test_inputs_slices_the_input_channels():
    module = seeded(small)
    weights = WEIGHTS["70:25:5"](world_size())
    model = hetmp.slice_model(module, make_plan(module, weights, ("filters", "inputs", "whole")))
    rank = model.hetmp.group.rank
    first, second, _ = (layer.counts[rank] for layer in model.hetmp.plan.layers)
    weight = model.get_parameter("features.3.weight")
    assert weight.shape == (5, first, 2, 2)
    assert model.get_parameter("features.3.bias").numel() in (second, 5)
    assert model.get_parameter("head.1.weight").shape == (4, 45)


# --- copies -------------------------------------------------------------------------------------


@works("`copy.deepcopy`, `AveragedModel`")
@pytest.mark.parametrize("schemes", SCHEMES)
def test_a_deep_copy_trains_on_its_own(schemes):
    module = seeded(small).eval()
    model = hetmp.slice_model(module, make_plan(module, pick_weights(4), schemes))
    reference = copy.deepcopy(module)
    averaged = copy.deepcopy(model)
    optimizer, other = sgd(averaged.parameters()), sgd(reference.parameters())
    group = model.hetmp.group
    for step in range(2):
        x = batch(IMAGES, step)
        other.zero_grad()
        optimizer.zero_grad()
        mean_loss(reference(x), group.size, step).backward()
        rank_loss(averaged(x), group.rank, step).backward()
        optimizer.step()
        other.step()
    differences = Differences(averaged, reference)
    differences.note_gradients()
    differences.compare_gradients("the copy")
    differences.compare_state()
    unchanged = hetmp.merge_model(model)
    output = model(batch(IMAGES))
    differences.assert_none()
    assert equal_states(unchanged, module.state_dict())
    torch.testing.assert_close(output, module(batch(IMAGES)), rtol=1e-10, atol=1e-12)
    assert averaged.hetmp.group is model.hetmp.group
    assert all(parameter.grad is None for parameter in model.parameters())


@works("`copy.deepcopy`, `AveragedModel`")
def test_an_averaged_model():
    module = seeded(small).eval()
    model = hetmp.slice_model(module, pick_weights(5))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    output = averaged(batch(IMAGES))
    torch.testing.assert_close(output, module(batch(IMAGES)), rtol=1e-10, atol=1e-12)


@works("`load_state_dict` of this slicing's state")
def test_a_state_dict_loads_into_a_model_sliced_alike():
    module, plan = seeded(small), pick_weights(6)
    model = hetmp.slice_model(module, plan)
    other = hetmp.slice_model(seeded(small, seed=1), plan)
    other.load_state_dict(model.state_dict(), strict=True)
    assert equal_states(hetmp.merge_model(other), module.state_dict())


# --- what it shows ------------------------------------------------------------------------------


def test_printing_shows_layers_states_and_exchanges_in_order():
    ranks = world_size()
    module = seeded(small)
    plan = make_plan(module, [1] * (ranks - 1) + [2], ("filters", "inputs", "filters"))
    lines = repr(hetmp.slice_model(module, plan)).splitlines()
    first = "/".join(map(str, plan.layers[0].counts))
    second = "/".join(map(str, plan.layers[1].counts))
    flat = "/".join(str(9 * count) for count in plan.layers[1].counts)
    wanted = [
        ("rank", f"of {ranks}"),
        ("features.0", "Conv2d(3, 7", "filters", f"full -> sliced {first}"),
        ("features.1", "BatchNorm2d(7", f"sliced {first}"),
        ("features.2", "ReLU()", f"sliced {first}"),
        ("features.3", "Conv2d(7, 5", "inputs", f"sliced {first} -> partial"),
        ("Reduce_scatter", "Allgatherv", f"partial -> sliced {second}"),
        ("features.3", "add bias"),
        ("features.4", "PReLU", f"sliced {second}"),
        ("flatten", "Flatten", f"sliced {second} -> sliced {flat}"),
        ("head.0", "Dropout", "p=0.1"),
        ("Allgatherv", "Reduce_scatter", f"sliced {flat} -> full"),
        ("head.1", "Linear", "45", "filters", "full -> sliced"),
        ("Allgatherv", "Reduce_scatter", "-> full"),
    ]
    assert len(lines) == len(wanted)
    for line, parts in zip(lines, wanted, strict=True):
        assert all(part in line for part in parts), (line, parts)


def test_exchanges_are_counted():
    """A step of training calls every exchange once forward and once backward."""
    model = hetmp.slice_model(seeded(small), [1] * world_size())
    rank_loss(model(batch(IMAGES).requires_grad_()), model.hetmp.group.rank).backward()
    calls = 1 if model.hetmp.group.size > 1 else 0
    counters = [(e.forward_counter, e.backward_counter) for e in model.hetmp.exchanges]
    assert [(a.calls, b.calls) for a, b in counters] == [(calls, calls)] * 3
    assert model.hetmp.input_entry.backward_counter.calls == calls

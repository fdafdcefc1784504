"""What a sliced model's ``load_state_dict`` takes: its own slices, or a whole network's state."""

import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import batch, make_plan, pick_weights, seeded, world_size
from helpers.works import works

pytestmark = pytest.mark.mpi

SCHEMES = [("filters",), ("inputs",), ("filters", "whole", "inputs")]

IMAGES = (4, 3, 6, 6)


def small() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 7, 3),
            norm=nn.BatchNorm2d(7),
            body=nn.Sequential(nn.ReLU(), nn.Conv2d(7, 5, 2), nn.PReLU(5), nn.Flatten()),
            head=nn.Linear(45, 4),
        )
    )


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.middle = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 6, 3, padding=1)
        self.last.weight = self.middle.weight

    def forward(self, x):
        return self.last(self.middle(self.first(x)).relu())


def one_zero(schemes=("filters",)) -> tuple[nn.Module, hetmp.SlicedModel]:
    """A module and its slices; on three ranks one of them has none."""
    module = seeded(small)
    weights = [3.0, 0.0, 2.0, 1.0, 1.0][: world_size()]
    return module, hetmp.slice_model(module, make_plan(module, weights, schemes))


def trained(seed: int = 1) -> nn.Module:
    """Another network of the kind, whose running statistics are not those of the start."""
    module = seeded(small, seed)
    module(batch(IMAGES, seed))
    return module


def assert_holds(model: hetmp.SlicedModel, module: nn.Module) -> None:
    """The model is the module: what it holds, bit by bit, and what it computes. Collective."""
    merged, expected = hetmp.merge_model(model), module.state_dict()
    output, wanted = model.eval()(batch(IMAGES)), copy.deepcopy(module).eval()(batch(IMAGES))
    assert list(merged) == list(expected)
    assert [n for n, tensor in expected.items() if not torch.equal(merged[n], tensor)] == []
    torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-12)


# --- whole, or this slicing's own ---------------------------------------------------------------


@works("`load_state_dict` of a whole state")
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("schemes", SCHEMES)
def test_a_whole_state_is_cut_by_each_rank(schemes, assign):
    _, model = one_zero(schemes)
    source = trained()
    state = source.state_dict()
    held = {name: (p.shape, p.requires_grad) for name, p in model.named_parameters()}
    result = model.load_state_dict(state, assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert {n: (p.shape, p.requires_grad) for n, p in model.named_parameters()} == held
    assert_holds(model, source)
    # No rank keeps a whole tensor alive for the sake of its slice.
    for name, parameter in model.named_parameters():
        if parameter.shape != model.hetmp.table[name].shape:
            assert parameter.untyped_storage().nbytes() == 8 * parameter.numel()
    if model.conv.weight.shape != state["conv.weight"].shape:
        with torch.no_grad():
            model.conv.weight.zero_()
        assert torch.equal(state["conv.weight"], trained().state_dict()["conv.weight"])


@works("`state_dict`", "`load_state_dict` of this slicing's state")
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("schemes", SCHEMES)
def test_this_slicings_own_state_is_taken_as_it_is(schemes, assign):
    source, model = one_zero(schemes)
    own = copy.deepcopy(model.state_dict())
    assert list(own) == list(source.state_dict())
    assert list(own) == list(model.hetmp.table)
    model.load_state_dict(trained().state_dict())
    result = model.load_state_dict(own, assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_holds(model, source)


def test_a_loaded_state_is_trained_on():
    _, model = one_zero()
    reference = trained()
    model.load_state_dict(reference.state_dict())
    for network in (model, reference):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for step in range(2):
            optimizer.zero_grad()
            network.train()(batch(IMAGES, step)).square().mean().backward()
            optimizer.step()
    merged = hetmp.merge_model(model)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-10, atol=1e-12)


def test_assigned_values_keep_their_dtype():
    _, model = one_zero()
    source = trained().float()
    model.load_state_dict(source.state_dict(), assign=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    merged = hetmp.merge_model(model)
    assert all(torch.equal(merged[name], t) for name, t in source.state_dict().items())


@works("`load_state_dict` of a whole state")
def test_names_that_do_not_fit_are_told_as_torch_tells_them():
    module, model = one_zero()
    state = trained().state_dict()
    del state["head.bias"], state["norm.running_mean"]
    state["extra.weight"] = torch.ones(2)
    said = []
    for network in (module, model):
        with pytest.raises(RuntimeError) as error:
            network.load_state_dict(state)
        said.append(str(error.value).partition("\n")[2])
    assert said[0] == said[1] and "extra.weight" in said[0]
    mine = model.load_state_dict(state, strict=False)
    assert mine == module.load_state_dict(state, strict=False)
    assert mine.missing_keys == ["norm.running_mean", "head.bias"]
    assert_holds(model, module)
    with pytest.raises(TypeError, match="dict-like"):
        model.load_state_dict([1, 2])


@works("`load_state_dict` of a whole state")
@pytest.mark.parametrize("strict", [False, True])
def test_another_shape_is_refused_in_terms_of_whole_shapes(strict):
    """Also where it is this rank's slice by chance: a state is whole or it is not."""
    module, model = one_zero()
    state = trained().state_dict()
    local = model.head.weight.shape
    state["head.weight"] = torch.zeros(local if local[0] not in (0, 4) else (9, 45))
    came = state["head.weight"].shape
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state, strict=strict)
    with pytest.raises(RuntimeError) as expected:
        module.load_state_dict(state, strict=strict)
    (line,) = str(error.value).splitlines()[1:]
    wanted = str(expected.value).splitlines()[1].removesuffix(".")
    assert line.startswith(wanted) and str(came) in line
    assert line.endswith((f", of which this rank holds {local}.", f"{torch.Size([4, 45])}."))


def test_a_rank_that_holds_all_or_nothing_takes_both_kinds():
    """There the whole is the slice, or every slice is empty."""
    ranks = world_size()
    module = seeded(small)
    model = hetmp.slice_model(module, [0.0] * (ranks - 1) + [1.0])
    own = copy.deepcopy(model.state_dict())
    source = trained()
    model.load_state_dict(source.state_dict())
    assert_holds(model, source)
    model.load_state_dict(own)
    assert_holds(model, module)


def test_tied_tensors():
    module = seeded(Tied)
    source = seeded(Tied, 1)
    model = hetmp.slice_model(module, pick_weights(3))
    model.load_state_dict(source.state_dict())
    assert model.last.weight is model.middle.weight
    assert_holds(model, source)
    with pytest.raises(hetmp.HetmpError, match=r"two tensors of 'middle.weight' and 'last.weight'"):
        model.load_state_dict(source.state_dict(), assign=True)
    assert model.last.weight is model.middle.weight


def test_a_part_of_another_module_takes_a_whole_state():
    """The average of a sliced model loads the average of an unsliced one."""
    _, model = one_zero()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    source = torch.optim.swa_utils.AveragedModel(trained())
    source.n_averaged += 3
    averaged.load_state_dict(source.state_dict())
    assert averaged.n_averaged == 3
    assert_holds(averaged.module, source.module)


# --- names and files of wrappers ----------------------------------------------------------------


def renamed(prefix: str) -> Callable[[dict], dict]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


class Lightning(nn.Module):
    """A module around the network, with a loss that has a tensor of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(4))


WRAPPED = {
    "DataParallel": lambda module: nn.ModuleDict({"module": module}).state_dict(),
    "torch.compile": lambda module: renamed("_orig_mod.")(module.state_dict()),
    "several, nested": lambda module: nn.ModuleDict(
        {"module": nn.ModuleDict({"_orig_mod": module})}
    ).state_dict(),
    "a name of their own": lambda module: renamed("backbone.")(module.state_dict()),
    "compiled in part": lambda module: {
        name.replace("body.", "body._orig_mod."): tensor
        for name, tensor in module.state_dict().items()
    },
    "a file of a script": lambda module: {"epoch": 3, "state_dict": module.state_dict()},
    "a file of Lightning": lambda module: {
        "epoch": 3,
        "state_dict": renamed("model.")(module.state_dict()),
        "optimizer_states": [{}],
    },
    "the same twice": lambda module: {"model": {"state_dict": module.state_dict()}},
}


@works("`load_state_dict` of a wrapped model's state")
@pytest.mark.parametrize("own", [False, True], ids=["whole", "slices"])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_what_wrappers_put_before_the_names_is_taken_off(wrapper, own):
    module, model = one_zero()
    source = model if own else trained()
    state = copy.deepcopy(WRAPPED[wrapper](source))
    if own:
        model.load_state_dict(trained().state_dict())
    result = model.load_state_dict(state)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_holds(model, module if own else source)


@works("`load_state_dict` of a wrapped model's state")
def test_what_is_not_the_models_is_unexpected():
    _, model = one_zero()
    source = trained()
    state = Lightning(source).state_dict()
    with pytest.raises(
        RuntimeError, match=r'Unexpected key\(s\) in state_dict: "criterion.weight"'
    ):
        model.load_state_dict(state)
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == [] and result.unexpected_keys == ["criterion.weight"]
    assert_holds(model, source)


def test_no_prefix_is_taken_off_where_two_fit_or_few_names_do():
    _, model = one_zero()
    before = hetmp.merge_model(model)
    whole = trained().state_dict()
    twins = renamed("student.")(whole) | renamed("teacher.")(whole)
    few = {"other.head.weight": whole["head.weight"]}
    for state in (twins, few):
        result = model.load_state_dict(state, strict=False)
        assert result.unexpected_keys == list(state)
    after = hetmp.merge_model(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_version_of_a_layers_entries_stays_with_them():
    """A norm asks it: torch before 0.4.1 had no count of batches."""
    _, model = one_zero()
    state = nn.DataParallel(trained()).state_dict()
    del state["module.norm.num_batches_tracked"]
    with pytest.raises(RuntimeError, match=r"Missing key.*norm\.num_batches_tracked"):
        model.load_state_dict(state)
    del state._metadata
    model.load_state_dict(state)

"""The parameters of a sliced model in their user's hands: beside plain torch, or refused."""

import copy
import io
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim.optimizer import register_optimizer_step_pre_hook

import hetmp
from helpers.comparison import TOLERANCE, WEIGHTS, Differences, batch, make_plan, seeded, world_size
from helpers.works import works
from hetmp.cluster import AgreedError, Group
from hetmp.core.state import PARTIAL
from hetmp.slicing.shares import CutParameter, CutTensor

pytestmark = pytest.mark.mpi

KINDS = ("equal", "70:25:5", "one zero", "root zero", "all on last")
SEVERAL = pytest.mark.mpi(min_size=2)
SHAPE = (4, 3, 6, 6)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 7, 3),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.Conv2d(7, 5, 4),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


def pair(kind="70:25:5", schemes=("filters", "inputs", "whole"), build=network):
    """A sliced model and the module it was made of."""
    module = seeded(build)
    plan = make_plan(module, WEIGHTS[kind](world_size()), schemes)
    return hetmp.slice_model(module, plan, verify=False), module


def trained_alike(model, reference, penalty, wanted, steps=4):
    """Both trained with a penalty on a parameter: weights and losses are equal."""
    differences = Differences(model, reference)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.5) for m in (model, reference)]
    for step in range(steps):
        x = batch(SHAPE, step)
        losses = []
        for net, optimizer, extra in zip(
            (model, reference), optimizers, (penalty, wanted), strict=True
        ):
            optimizer.zero_grad()
            losses.append(net(x).square().mean() + 0.1 * sum(map(extra, net.parameters())))
            losses[-1].backward()
        differences.note_gradients()
        differences.compare(f"loss {step}", losses[0].detach(), losses[1].detach())
        differences.compare_gradients(f"step {step}")
        for optimizer in optimizers:
            optimizer.step()
    differences.compare_state()
    differences.assert_none()


# --- new values ---------------------------------------------------------------------------------


def start(layer):
    """Values of every kind, drawn one after the other."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        layer.bias.data.uniform_(-1, 1)
    elif isinstance(layer, nn.Linear):
        nn.init.orthogonal_(layer.weight)
        layer.bias.data = torch.from_numpy(np.random.rand(3))  # noqa: NPY002 - as users do
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.trunc_normal_(layer.weight, std=random.random())
        layer.running_mean.normal_()


@works("model.apply(function that draws values)")
@pytest.mark.parametrize("kind", KINDS)
def test_new_values_are_those_of_the_whole_module(kind):
    model, module = pair(kind)
    held = dict(model.named_parameters())
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(7)
    assert hetmp.init_(model, start) is model
    drawn = torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(7)
    module.apply(start)
    merged = hetmp.merge_model(model)
    for name, wanted in module.state_dict().items():
        assert torch.equal(merged[name], wanted), name
    assert all(held[name] is parameter for name, parameter in model.named_parameters())
    assert torch.equal(drawn[0], torch.rand(3))
    assert drawn[1:] == (np.random.rand(), random.random())  # noqa: NPY002


@SEVERAL
def test_generators_that_differed_are_left_alone_by_new_values():
    model, module = pair()
    rank = model.hetmp.group.rank
    torch.manual_seed(rank)
    hetmp.init_(model, start)
    if rank:
        after = torch.rand(3)
        torch.manual_seed(rank)
        assert torch.equal(after, torch.rand(3))
    torch.manual_seed(0)
    merged = hetmp.merge_model(model)
    nn.init.kaiming_normal_(module[0].weight, mode="fan_out")
    assert torch.equal(merged["0.weight"], module[0].weight)  # from rank 0's


def replace(layer):
    if isinstance(layer, nn.Linear):
        layer.weight = nn.Parameter(torch.ones(3, 5, dtype=torch.float64))


def freeze(layer):
    for parameter in layer.parameters(recurse=False):
        parameter.requires_grad_(False)


def loosen(layer):
    if isinstance(layer, nn.BatchNorm2d):
        layer.momentum = 0.5


def fail(layer):
    raise RuntimeError("no values today")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (replace, "changed '5.weight'"),
        (freeze, "changed requires_grad of '0.weight'"),
        (loosen, "changed 'momentum' of '1'"),
        (fail, "no values today"),
    ],
)
def test_functions_that_change_other_things_than_values_are_refused(function, words):
    model, module = pair()
    with pytest.raises(AgreedError, match=words):
        hetmp.init_(model, function)
    merged = hetmp.merge_model(model)
    assert all(torch.equal(merged[name], value) for name, value in module.state_dict().items())
    with pytest.raises(hetmp.HetmpError, match="got Sequential"):
        hetmp.init_(module, start)


def draw_alike(model):
    """As every rank would by itself; the first numbers of the slices are the same."""
    for parameter in model.parameters():
        plain = parameter.data.as_subclass(torch.Tensor)
        generator = torch.Generator().manual_seed(0)
        plain.copy_(torch.randn(plain.shape, generator=generator, dtype=plain.dtype))


@SEVERAL
@pytest.mark.parametrize("schemes", [("filters",), ("inputs",)])
def test_shares_that_were_drawn_alike_are_refused_in_the_first_pass(schemes):
    model, _ = pair("equal", schemes)
    draw_alike(model)
    for _ in range(2):
        with pytest.raises(AgreedError, match=r"ranks 0 and 1 hold the same numbers of '0.weight'"):
            model(batch(SHAPE))


def equal_filters(layer):
    if isinstance(layer, nn.Conv2d):
        layer.weight.data[1:] = layer.weight.data[:1]


@pytest.mark.parametrize("way", ["init_", "load", "state", "refused before"])
def test_values_for_whole_tensors_may_repeat_themselves(way, tmp_path):
    model, module = pair("equal", ("filters",))
    module.apply(equal_filters)
    if way == "load":
        file = Group().broadcast_text(str(tmp_path / "equal.h5"))
        hetmp.save(file, hetmp.slice_model(module, [1] * world_size(), verify=False))
        hetmp.load(file, model)
    elif way == "state":
        model.load_state_dict(module.state_dict())
    else:
        if way == "refused before" and world_size() > 1:
            draw_alike(model)
            with pytest.raises(AgreedError, match="the same numbers"):
                model(batch(SHAPE))
            model.load_state_dict(module.state_dict())
        hetmp.init_(model, equal_filters)
    x = batch(SHAPE)
    assert torch.allclose(model(x), module(x), rtol=0, atol=TOLERANCE)


@SEVERAL
def test_what_a_state_leaves_out_is_not_trusted():
    model, module = pair("equal", ("filters",))
    draw_alike(model)
    state = {name: value for name, value in module.state_dict().items() if name != "0.weight"}
    nn.ModuleDict({"inner": model}).load_state_dict(
        {f"inner.{name}": value for name, value in state.items()}, strict=False
    )
    with pytest.raises(AgreedError, match=r"the same numbers of '0.weight'"):
        model(batch(SHAPE))


class Constant(nn.Conv2d):
    """A convolution with a start of its own."""

    def reset_parameters(self):
        nn.init.constant_(self.weight, 0.5)
        nn.init.normal_(self.bias)


def computed():
    return nn.Sequential(
        Constant(3, 7, 3),
        nn.ReLU(),
        parametrizations.weight_norm(nn.Conv2d(7, 5, 2)),
        nn.utils.weight_norm(nn.Conv2d(5, 4, 3)),
        nn.Flatten(),
    )


def reset(layer):
    """By the user's classes; weight norm computes the weights anew, and the draws are lost."""
    if isinstance(layer, Constant):
        layer.reset_parameters()
    elif isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_new_values_by_the_users_own_classes():
    model, module = pair("equal", ("filters",), computed)
    torch.manual_seed(7)
    hetmp.init_(model, reset)
    torch.manual_seed(7)
    module.apply(reset)
    merged = hetmp.merge_model(model)
    for name, wanted in module.state_dict().items():
        assert torch.equal(merged[name], wanted), name


def test_parameters_assigned_through_a_module_around_the_model_are_shares():
    model, module = pair("equal", ("filters",))
    cut = [is_cut(p) for p in model.parameters()]
    outer = nn.ModuleDict({"inner": model})
    state = {f"inner.{name}": value for name, value in module.state_dict().items()}
    outer.load_state_dict(state, assign=True)
    assert [is_cut(p) for p in model.parameters()] == cut
    assert torch.equal(hetmp.whole(model.get_parameter("0.weight")), module[0].weight)


@SEVERAL
def test_a_module_that_repeats_itself_may():
    module = seeded(network)
    with torch.no_grad():
        module[0].weight.copy_(module[0].weight[:1].expand_as(module[0].weight))
        module[3].weight.fill_(0.5)
    model = hetmp.slice_model(module, [1] * world_size())
    x = batch(SHAPE)
    assert torch.allclose(model(x), module(x), rtol=0, atol=TOLERANCE)


# --- whole values ---------------------------------------------------------------------------------


def norms(parameter):
    return torch.linalg.vector_norm(parameter)


@works("a penalty on norms of parameters")
@pytest.mark.parametrize("ord", [1, 2, 3, 1.5, math.inf])
@pytest.mark.parametrize("kind", ["equal", "one zero", "all on last"])
def test_penalties_on_norms(kind, ord):
    trained_alike(
        *pair(kind),
        lambda p: hetmp.norm(p, ord),
        lambda p: torch.linalg.vector_norm(p, ord),
    )


def orthogonality(weight):
    if weight.dim() < 2:
        return weight.sum()
    rows = weight.flatten(1)
    return (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype)).norm()


@works("a penalty on whole parameters (orthogonality, spectra)")
@pytest.mark.parametrize("kind", KINDS)
def test_penalties_on_whole_parameters(kind):
    trained_alike(*pair(kind), lambda p: orthogonality(hetmp.whole(p)), orthogonality)


def per_filter(p):
    """What stays within a filter."""
    if p.dim() != 4:
        return 3 * p.abs().sum()
    centred = p - p.mean((1, 2, 3), keepdim=True)
    rows = centred.view(p.shape[0], -1)
    return rows.norm(dim=1).sum() + F.normalize(rows, dim=1).square().cumsum(1).sum() / 7


@works("a penalty on sums over parameters (L1, squared L2), or on each filter")
@pytest.mark.parametrize("kind", ["equal", "one zero"])
def test_penalties_on_sums_and_on_filters(kind):
    model, module = pair(kind, ("filters",))
    differences = Differences(model, module)
    differences.note_gradients()
    x = batch(SHAPE)
    for net in (model, module):
        loss = net(x).square().mean() + sum(map(per_filter, net.parameters())) / 10
        (loss + 0.1 * sum(p.square().sum() for p in net.parameters())).backward()
    differences.note_gradients()
    differences.compare_gradients("penalties")
    differences.assert_none()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_values_of_parameters_and_gradients(kind):
    model, module = pair(kind)
    for net in (model, module):
        net(batch(SHAPE)).square().mean().backward()
    for (name, own), wanted in zip(model.named_parameters(), module.parameters(), strict=True):
        assert torch.equal(hetmp.whole(own), wanted), name
        assert torch.equal(hetmp.whole(own.data * 2, of=own), wanted * 2), name
        if is_cut(own):  # it knows by itself what it is a share of
            assert torch.equal(hetmp.whole(own.data * 2), wanted * 2), name
            assert torch.equal(hetmp.whole(own.grad), hetmp.whole(own.grad, of=own)), name
        gathered = hetmp.whole(own.grad, of=own)
        assert torch.allclose(gathered, wanted.grad, rtol=1e-9, atol=1e-12), name
        assert torch.allclose(hetmp.norm(own.grad, of=own), wanted.grad.norm()), name
        plain = torch.full_like(own, 2.0)  # as an optimizer's state is
        assert torch.equal(hetmp.whole(plain, of=own), torch.full_like(wanted, 2.0)), name


def is_cut(parameter):
    return isinstance(parameter, CutParameter)


def test_whole_values_are_refused_of_strange_tensors():
    model, module = pair("equal")
    for function in (hetmp.whole, hetmp.norm, hetmp.randn_like):
        with pytest.raises(hetmp.HetmpError, match="takes a parameter of a sliced model"):
            function(module[0].weight)
    own = next(model.parameters())
    with pytest.raises(hetmp.HetmpError, match=r"in the shape of this rank's share of '0.weight'"):
        hetmp.whole(torch.ones(2, 2), of=own)
    with pytest.raises(hetmp.HetmpError, match="ord is above 0"):
        hetmp.norm(own, -1)
    if is_cut(own):
        with pytest.raises(hetmp.HetmpError, match="in the order of the parameter's"):
            hetmp.whole(own.view(-1))


@SEVERAL
def test_the_value_of_a_sum_over_a_share_is_refused():
    """It is a part; what is learned beside it would get the gradient of a part."""
    model, _ = pair("equal", ("filters",))
    x, weight = batch(SHAPE), model.get_parameter("0.weight")
    learned = torch.ones((), dtype=torch.float64, requires_grad=True)
    for read in (
        lambda: weight.square().sum().item(),
        lambda: float(weight.abs().sum()),
        lambda: f"{model(x).mean() + weight.square().sum():.3f}",
        lambda: model(x).mean() * (1 + weight.square().sum()),
        lambda: weight.square().sum() / model(x).mean(),
        lambda: learned.exp() * weight.square().sum(),
        lambda: (weight * learned).square().sum(),
        lambda: weight.data.sub_(weight.data.sum()),
    ):
        with pytest.raises(hetmp.HetmpError, match="'"):
            read()
    assert f"{0.1 * model(x).mean():.3f}"


@works("noise on weights or gradients")
@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_that_of_whole_tensors(kind):
    model, module = pair(kind)
    for name, rank in (("equal", 0), ("unlike", model.hetmp.group.rank)):
        torch.manual_seed(3 + rank)
        with torch.no_grad():
            for own in model.parameters():
                own.add_(hetmp.randn_like(own)).add_(hetmp.rand_like(own), alpha=0.5)
        after = torch.rand(2)
        torch.manual_seed(3)
        with torch.no_grad():
            for wanted in module.parameters():
                noise = torch.randn_like(wanted)
                wanted.add_(noise).add_(torch.rand_like(wanted), alpha=0.5)
        merged = hetmp.merge_model(model)
        for key, wanted in module.named_parameters():
            assert torch.equal(merged[key], wanted), (name, key)
        if rank:
            torch.manual_seed(3 + rank)
        assert torch.equal(after, torch.rand(2)), name


# --- what is refused, and what is not ------------------------------------------------------------


def held(model):
    """What this rank holds, as plain copies."""
    return [p.detach().clone().as_subclass(torch.Tensor) for p in model.parameters()]


REFUSED = {
    "normal_": (lambda p: p.data.normal_(), "hetmp.init_"),
    "uniform_": (lambda p: p.detach().uniform_(), "hetmp.init_"),
    "kaiming_normal_": (nn.init.kaiming_normal_, "hetmp.init_"),
    "xavier_uniform_": (nn.init.xavier_uniform_, "hetmp.init_"),
    "trunc_normal_": (nn.init.trunc_normal_, "hetmp.init_"),
    "orthogonal_": (nn.init.orthogonal_, "hetmp.init_"),
    "dirac_": (nn.init.dirac_, "whole tensor"),
    "randn_like": (torch.randn_like, "hetmp.randn_like"),
    "rand_like of a gradient": (lambda p: torch.rand_like(p.grad), "hetmp.randn_like"),
    "noise in zeros": (lambda p: torch.zeros_like(p).normal_(), "hetmp.init_"),
    "dropout": (F.dropout, "hetmp.randn_like"),
    "norm": (lambda p: p.norm(), r"hetmp.norm\(p\)"),
    "torch.norm": (torch.norm, r"hetmp.norm\(p\)"),
    "linalg.norm": (torch.linalg.norm, r"hetmp.norm\(p\)"),
    "vector_norm": (torch.linalg.vector_norm, r"hetmp.norm\(p\)"),
    "norm of filters": (lambda p: p.norm(dim=0), r"hetmp.norm\(p\)"),
    "root of a sum": (lambda p: p.square().sum().sqrt(), "hetmp.norm"),
    "norm of a gradient": (lambda p: p.grad.data.norm(2), "hetmp.clip_grad_norm_"),
    "clip_grad_norm_": (lambda p: nn.utils.clip_grad_norm_([p], 1.0), "hetmp.clip_grad_norm_"),
    "mean": (lambda p: p.abs().mean(), "hetmp.whole"),
    "std": (lambda p: p.std(), "hetmp.whole"),
    "max": (lambda p: p.max(), "hetmp.whole"),
    "any": (lambda p: p.isnan().any(), "hetmp.whole"),
    "matmul": (lambda p: p.flatten(1) @ p.flatten(1).T, "hetmp.whole"),
    "einsum": (lambda p: torch.einsum("oihw,pihw->op", p, p), "hetmp.whole"),
    "svdvals": (lambda p: torch.linalg.svdvals(p.flatten(1)), "hetmp.whole"),
    "conv2d": (lambda p: F.conv2d(torch.ones(1, 3, 4, 4).double(), p), "hetmp.whole"),
    "normalize": (lambda p: F.normalize(p, dim=0), "hetmp.whole"),
    "softmax": (lambda p: p.softmax(0), "hetmp.whole"),
    "cumsum": (lambda p: p.cumsum(0), "hetmp.whole"),
    "sort": (lambda p: p.sort(0), "hetmp.whole"),
    "a filter": (lambda p: p[0], "hetmp.whole"),
    "a filter assigned": (lambda p: p.data.__setitem__(0, 0), "hetmp.whole"),
    "mse_loss": (lambda p: F.mse_loss(p, p.detach()), "hetmp.whole"),
    "norm of a vector of all": (
        lambda p: nn.utils.parameters_to_vector([p, p]).norm(),
        r"hetmp.norm\(p\)",
    ),
    "GradScaler": (lambda p: unscaled(p), "hetmp.optim.GradScaler"),
}


def unscaled(parameter):
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(1))
    scaler.unscale_(torch.optim.SGD([parameter], lr=0.1))


@works(
    "torch.nn.init on a parameter",
    "torch.nn.utils.clip_grad_norm_",
    "a norm, mean, maximum, product or spectrum of a parameter or gradient",
)
@SEVERAL
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("kind", ["equal", "one zero"])
def test_what_cannot_be_right_on_a_share_is_refused(name, kind):
    function, remedy = REFUSED[name]
    model, _ = pair(kind, ("filters",))
    model(batch(SHAPE)).sum().backward()
    weight = model.get_parameter("0.weight")
    before = held(model)
    if weight.numel() == 0 and function.__module__ == "torch.nn.init":
        return  # torch leaves what has no elements
    refused = pytest.raises(hetmp.HetmpError, match=rf"'0.weight'.*{remedy}")
    with torch.set_grad_enabled(not name.endswith("_")), refused:
        function(weight)
    if name != "dirac_":  # which begins with zeros
        assert all(map(torch.equal, held(model), before))


FOLLOWED = {
    "arithmetic": (lambda p: 1 - p * p / 2 + 2**p, "sliced"),
    "clone": (lambda p: p.clone(), "sliced"),
    "data": (lambda p: p.data, "sliced"),
    "gradient": (lambda p: p.grad, "sliced"),
    "casts": (lambda p: p.float().double().cpu(), "sliced"),
    "mean of a filter": (lambda p: p.mean((1, 2, 3)), "sliced"),
    "largest of a filter": (lambda p: p.amax((1, 2, 3)), "sliced"),
    "input channel": (lambda p: p[:, 0], "sliced"),
    "permuted": (lambda p: p.permute(1, 0, 2, 3), "sliced"),
    "rows": (lambda p: p.view(p.shape[0], -1), "sliced"),
    "rows times a vector": (lambda p: p.flatten(1) @ torch.ones(27).double(), "sliced"),
    "where": (lambda p: torch.where(p > 0, p, 0.1 * p), "sliced"),
    "sum": (lambda p: p.sum(), "partial"),
    "sum of absolutes": (lambda p: 0.1 * p.abs().sum() / 3, "partial"),
    "squares": (lambda p: F.mse_loss(p, torch.zeros_like(p), reduction="sum"), "partial"),
    "autograd.grad": (lambda p: torch.autograd.grad(p.square().sum(), p)[0], "sliced"),
}


@SEVERAL
@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("kind", ["equal", "one zero"])
def test_what_is_right_on_a_share_is_followed(name, kind):
    """What it gives on the ranks, put together, is what the whole parameter gives."""
    function, state = FOLLOWED[name]
    model, module = pair(kind, ("filters",))
    for net in (model, module):
        net(batch(SHAPE)).sum().backward()
    own, wanted = function(model.get_parameter("0.weight")), function(module[0].weight)
    assert isinstance(own, CutTensor)
    group, share = model.hetmp.group, own.hetmp_share
    assert str(share.state).startswith(state)
    if share.state == PARTIAL:
        plain = own.detach().as_subclass(torch.Tensor)
        whole = torch.from_numpy(group.allgather(plain.numpy())).sum(0).reshape(wanted.shape)
    else:
        whole = hetmp.whole(own)
    assert whole.shape == wanted.shape
    assert torch.allclose(whole, wanted.detach(), rtol=1e-9, atol=1e-11)


def test_copies_files_and_casts_of_a_sliced_model():
    model, module = pair("equal", ("filters",))
    x = batch(SHAPE)
    copied = copy.deepcopy(model)
    cut = [is_cut(p) for p in model.parameters()]
    assert [is_cut(p) for p in copied.parameters()] == cut
    assert any(cut) == (world_size() > 1)
    assert torch.equal(hetmp.whole(next(copied.parameters())), module[0].weight)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    assert {type(value) for value in stored.values()} == {torch.Tensor}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(stored)
    assert torch.equal(model(x), copied(x))
    held = list(model.parameters())
    model.float().double()
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    assert [is_cut(p) for p in averaged.module.parameters()] == cut
    for mine, other in zip(model.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    assert "CutParameter" in repr(held[0]) or not cut[0]


def test_copies_of_states_and_gradients():
    model, _ = pair("equal", ("filters",))
    model(batch(SHAPE)).square().sum().backward()
    state = copy.deepcopy(model.state_dict())
    weight = model.get_parameter("0.weight")
    for copied, own in (
        (state["0.weight"], weight.detach()),
        (copy.deepcopy(weight.grad), weight.grad),
    ):
        assert (type(copied), copied.requires_grad) == (type(own), False)
        assert torch.equal(copied, own)
        assert copied.data_ptr() != own.data_ptr() or not own.numel()
    leaf = weight.detach().requires_grad_()
    once, again = copy.deepcopy([leaf, leaf])
    assert once is again
    assert (type(once), once.requires_grad) == (type(leaf), True)
    with pytest.raises(RuntimeError, match="created explicitly"):
        copy.deepcopy(weight * 2)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_the_gradient_in_a_hook_is_a_share_too(penalty):
    model, _ = pair("equal", ("filters",))
    weight, caught = model.get_parameter("0.weight"), []

    def halve(gradient):
        try:
            gradient.norm()
        except hetmp.HetmpError as error:
            caught.append(str(error))
        return gradient / 2

    def backward():
        weight.grad = None
        loss = model(batch(SHAPE)).sum()
        (loss + penalty * weight.sum() if penalty else loss).backward()

    backward()
    before = weight.grad.clone()
    weight.register_hook(halve)
    backward()
    assert torch.allclose(weight.grad * 2, before, rtol=0, atol=1e-12)
    assert len(caught) == (world_size() > 1)


def test_a_list_of_parameters_is_stored_as_plain_ones():
    model, _ = pair("equal", ("filters", "whole"))
    file = io.BytesIO()
    torch.save(list(model.parameters()), file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    assert {type(parameter) for parameter in stored} == {nn.Parameter}
    assert all(map(torch.equal, stored, held(model)))


OPTIMIZERS = {
    "sgd": lambda p, quick: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1, foreach=quick),
    "adamw": lambda p, quick: torch.optim.AdamW(p, 0.01, foreach=quick),
}


@pytest.mark.parametrize("quick", [None, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_by_groups_of_parameters(name, quick):
    model, module = pair("one zero", ("filters",))
    differences = Differences(model, module)
    for net in (model, module):
        optimizer = OPTIMIZERS[name](net.parameters(), quick)
        for step in range(3):
            optimizer.zero_grad(set_to_none=step == 1)
            net(batch(SHAPE, step)).square().mean().backward()
            optimizer.step(lambda: torch.zeros(1)) if step == 2 else optimizer.step()
    differences.note_gradients()
    differences.compare_state(adaptive=name == "adamw")
    differences.assert_none()


class Whitening(torch.optim.Optimizer):
    """Of a name that says nothing: it divides by the norm of what it believes to be all."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("sum", torch.zeros_like(p)).add_(p.grad)
                p.sub_(state["sum"] / state["sum"].pow(2).sum().sqrt())


@works("an optimizer that looks at whole tensors")
@SEVERAL
def test_an_optimizer_of_any_name_that_looks_at_whole_tensors_is_refused():
    model, _ = pair("equal", ("filters",))
    model(batch(SHAPE)).sum().backward()
    with pytest.raises(hetmp.HetmpError, match=r"sqrt of a sum over '0.weight'.*hetmp.norm"):
        Whitening(model.parameters()).step()


def test_what_users_add_to_a_step_is_followed():
    model, _ = pair("equal", ("filters",))
    weight, caught = model.get_parameter("0.weight"), []

    def look(*_):
        try:
            weight.norm()
        except hetmp.HetmpError as error:
            caught.append(str(error))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(batch(SHAPE)).sum().backward()
    handles = [
        register_optimizer_step_pre_hook(look),
        optimizer.register_step_pre_hook(look),
        optimizer.register_step_post_hook(look),
    ]
    optimizer.step()
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(caught) == 3 * (world_size() > 1)
    optimizer.param_groups[0]["lr"] = "fast"
    with pytest.raises(TypeError):
        optimizer.step()
    look()
    assert len(caught) == 4 * (world_size() > 1)


# --- an optimizer of the module that was sliced ---------------------------------------------------


@works("an optimizer made from the module that was sliced")
def test_an_optimizer_of_the_sliced_module_is_refused():
    module = seeded(network)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    model = hetmp.slice_model(module, WEIGHTS["equal"](world_size()))
    module = None  # as where the name is used again
    model(batch(SHAPE)).sum().backward()
    with pytest.raises(AgreedError, match=r"holds '0.weight' of the module that was sliced"):
        optimizer.step()


def test_a_module_that_was_sliced_may_be_trained_too():
    module = seeded(network)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    hetmp.slice_model(module, WEIGHTS["equal"](world_size()))
    before = module[0].weight.detach().clone()
    module(batch(SHAPE)).sum().backward()
    optimizer.step()
    assert not torch.equal(module[0].weight, before)

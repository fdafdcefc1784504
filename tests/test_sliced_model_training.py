"""What a training loop of one's own does to a model: on a sliced one as on the module."""

import copy
import os

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hetmp
from helpers.comparison import Differences, batch, mean_loss, rank_loss, seeded, world_size
from helpers.paired import IMAGES, PLANS, Pair, small, with_a_lazy_rank
from helpers.works import works
from hetmp.exchange import share_of

pytestmark = [pytest.mark.mpi, pytest.mark.parametrize("plan", PLANS)]


def made(plan: str) -> Pair:
    """A sliced model, of which a rank has nothing, beside the module."""
    module = seeded(small)
    return Pair(module, with_a_lazy_rank(module, plan))


def backward(pair: Pair, step: int) -> None:
    mean_loss(pair.reference(batch(IMAGES, step)), pair.ranks, step).backward()
    rank_loss(pair.model(batch(IMAGES, step)), pair.rank, step).backward()


def both(pair: Pair) -> tuple[nn.Module, nn.Module]:
    return pair.model, pair.reference


# --- modes, attributes, dtypes ------------------------------------------------------------------


@works("`train()`, `eval()` of the model or a part")
def test_a_part_in_evaluation_mode(plan):
    """A norm that is frozen so neither takes statistics nor changes its own."""
    pair = made(plan)
    for step, part in enumerate(("1", None, "1")):
        for model in both(pair):
            model.train()
            if part is not None:
                model.get_submodule(part).eval()
        backward(pair, step)
        pair.compare(f"step {step}")
        pair.step()
    for model in both(pair):
        model.eval()
    pair.differences.compare("eval", pair.model(batch(IMAGES)), pair.reference(batch(IMAGES)))
    pair.finish()


@works("momentum of a norm, set later")
def test_a_norms_momentum_is_set_later(plan):
    pair = made(plan)
    for step, momentum in enumerate((0.1, 0.9, None)):
        for model in both(pair):
            model.get_submodule("1").momentum = momentum
        backward(pair, step)
        pair.compare(f"step {step}")
        pair.step()
    pair.finish()


@works("`model.double()`, `model.float()`")
def test_a_model_is_converted_later(plan):
    module = seeded(small).float()
    pair = Pair(module, with_a_lazy_rank(module, plan))
    for model in both(pair):
        model.double()
    for step in range(2):
        backward(pair, step)
        pair.compare(f"step {step}")
        pair.step()
    pair.finish()
    assert pair.model.float()(batch(IMAGES, dtype=torch.float32)).dtype == torch.float32


@works("`model.to(device)`")
def test_a_move_leaves_nothing_behind(plan):
    """To a device without values and back, where it is given a trained network's."""
    pair = made(plan)
    pair.model.to("meta")
    assert all(t.is_meta for t in (*pair.model.parameters(), *pair.model.buffers()))
    pair.model.to_empty(device="cpu")
    pair.optimizers[0] = torch.optim.SGD(
        pair.model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3
    )
    pair.model.load_state_dict(pair.reference.state_dict())
    for step in range(2):
        backward(pair, step)
        pair.compare(f"step {step}")
        pair.step()
    pair.finish()


# --- gradients ----------------------------------------------------------------------------------


@works("`parameter.register_hook`, of elementwise functions")
def test_hooks_on_parameters(plan):
    """The hook sees this rank's slice of the gradient, of replicated parameters the sum."""
    pair = made(plan)
    for model in both(pair):
        for number, parameter in enumerate(model.parameters()):
            parameter.register_hook(lambda g, factor=number % 3: factor * g.clamp(-0.01, 0.01))
    for step in range(2):
        backward(pair, step)
        pair.compare(f"step {step}")
        pair.step()
    pair.finish()


@works("`torch.autograd.grad`")
def test_gradients_are_asked_for(plan):
    """Of some parameters and the input, without a `.grad`."""
    pair = made(plan)
    names = ["0.weight", "4.weight", "7.bias"]
    x, mine = batch(IMAGES).requires_grad_(), batch(IMAGES).requires_grad_()
    losses = mean_loss(pair.reference(x), pair.ranks), rank_loss(pair.model(mine), pair.rank)
    wanted = [x, *(pair.reference.get_parameter(name) for name in names)]
    asked = [mine, *(pair.model.get_parameter(name) for name in names)]
    expected = torch.autograd.grad(losses[0], wanted)
    gradients = torch.autograd.grad(losses[1], asked)
    pair.differences.scale = max(float(gradient.norm()) for gradient in expected)
    pair.differences.compare("the input's", gradients[0], expected[0])
    for name, gradient, whole in zip(names, gradients[1:], expected[1:], strict=True):
        state = pair.model.hetmp.table[name].state
        pair.differences.compare(name, gradient, share_of(whole, state, pair.rank))
    assert all(parameter.grad is None for parameter in pair.model.parameters())
    pair.finish()


@works("`clip_grad_value_`")
def test_gradients_are_clipped_by_value(plan):
    pair = made(plan)
    for step in range(2):
        backward(pair, step)
        largest = max(float(p.grad.abs().max()) for p in pair.reference.parameters())
        assert largest > 2e-3
        for model in both(pair):
            nn.utils.clip_grad_value_(model.parameters(), largest / 2)
        pair.compare(f"step {step}")
        pair.step()
    pair.finish()


@works("several forwards to one backward")
def test_three_forwards_and_an_evaluation_between(plan):
    pair = made(plan)
    losses = []
    for model, loss_of, who in (
        (pair.reference, mean_loss, pair.ranks),
        (pair.model, rank_loss, pair.rank),
    ):
        total = []
        for step in range(3):
            total.append(loss_of(model(batch(IMAGES, step)), who, step))
            with torch.no_grad():
                model.eval()(batch(IMAGES, 9))
            model.train()
        losses.append(torch.stack(total).sum())
    for loss in losses:
        loss.backward()
    pair.compare("all three")
    pair.step()
    pair.finish()


@works("parameter groups by name")
def test_groups_by_name(plan):
    """Biases and slopes without decay, the last layer faster."""
    pair = made(plan)
    pair.optimizers = []
    for model in both(pair):
        groups: dict[str, list[nn.Parameter]] = {"decayed": [], "plain": [], "last": []}
        for name, parameter in model.named_parameters():
            kind = "last" if name.startswith("7.") else "decayed"
            groups["plain" if name.endswith("bias") else kind].append(parameter)
        pair.optimizers.append(
            torch.optim.AdamW(
                [
                    {"params": groups["decayed"], "weight_decay": 0.1},
                    {"params": groups["plain"], "weight_decay": 0.0},
                    {"params": groups["last"], "lr": 0.02},
                ],
                lr=0.01,
            )
        )
    for step in range(3):
        backward(pair, step)
        pair.compare(f"step {step}")
        pair.step()
    pair.differences.compare_state(adaptive=True)
    pair.differences.assert_none()


@works("`copy.deepcopy`, `AveragedModel`")
def test_an_averaged_model_beside_the_training(plan):
    pair = made(plan)
    averages = [
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
        for model in both(pair)
    ]
    for step in range(3):
        backward(pair, step)
        pair.step()
        for average, model in zip(averages, both(pair), strict=True):
            average.update_parameters(model)
    differences = Differences(averages[0].module, averages[1].module)
    outputs = [average.eval()(batch(IMAGES)) for average in averages]
    differences.compare("output of the averages", *outputs)
    differences.compare_state()
    differences.assert_none()
    pair.finish()


# --- wrappers -----------------------------------------------------------------------------------


@works("`torch.compile(model)`, `model.compile()`")
def test_compiling_is_refused(plan):
    model = made(plan).model
    averaged = AveragedModel(model)
    for compiled in (
        lambda: torch.compile(model),
        lambda: torch.compile(model=averaged),
        lambda: torch.compile(backend="eager")(model),
        model.compile,
    ):
        with pytest.raises(hetmp.HetmpError, match=r"torch\.compile cannot take a sliced model"):
            compiled()
    assert torch.compile(seeded(small), disable=True) is not None
    assert model(batch(IMAGES)).shape == (4, 4)


@works("`DataParallel(model)`, `DistributedDataParallel(model)`")
def test_data_parallelism_is_refused(plan, tmp_path):
    """Distributed, it would make all ranks' slices rank 0's where they are of one size."""
    module = seeded(small)
    model = hetmp.slice_model(module, [1] * world_size())
    before = copy.deepcopy(model.state_dict())
    for inner in (model, nn.Sequential(model)):
        for kind in (nn.DataParallel, nn.parallel.DistributedDataParallel):
            with pytest.raises(hetmp.HetmpError, match=f"^{kind.__name__} cannot take a sliced"):
                kind(inner)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    # They still take what they can: here in a job of this process alone.
    assert nn.DataParallel(seeded(small))(batch(IMAGES)).shape == (4, 4)
    store = torch.distributed.FileStore(os.fspath(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(seeded(small))
        assert parallel(batch(IMAGES)).shape == (4, 4)
    finally:
        torch.distributed.destroy_process_group()

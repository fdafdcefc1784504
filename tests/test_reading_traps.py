"""What a forward may do that is easily read as something else: each is right, or refused in words.

What is right is trained beside the unsliced module, in float64, also on other sizes.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hetmp
from helpers.comparison import batch, compare_training, pick_weights, seeded, world_size

SHAPE = (4, 3, 8, 8)


class Blocks(nn.Module):
    """Layers that the cases below call, each in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 5, 3, padding=1)
        self.middle, self.norm = nn.Conv2d(7, 7, 3, padding=1), nn.BatchNorm2d(7)


def sliced(build, shape=SHAPE, **named):
    """The module of *build*, read with an example."""
    return hetmp.slice_model(
        seeded(build), [1.0] * world_size(), example_input=batch(shape), **named
    )


# --- sizes ---------------------------------------------------------------------------------------


class Formatted(Blocks):
    def forward(self, x):
        return self.b(self.a(x) * {"8": 2.0}.get(f"{x.shape[2]}", 5.0))


class Joined(Blocks):
    def forward(self, x):
        y = self.a(x)
        return self.b(y * 2 if "x".join(map(str, x.shape[2:])) == "8x8" else y)


class Whole(Blocks):
    def forward(self, x):
        y = self.a(x)
        return self.b(y * 2 if "8, 8" in str(x.shape) else y)


@pytest.mark.mpi
@pytest.mark.parametrize("number, build", list(enumerate([Formatted, Joined, Whole])))
def test_a_size_in_a_text_is_confirmed(number, build):
    compare_training(seeded(build), pick_weights(number), SHAPE, example=True)
    model = sliced(build)
    with pytest.raises(hetmp.HetmpError, match=r"number at .*test_reading_traps.* was 8"):
        model(batch((4, 3, 12, 12)))
    with pytest.raises(hetmp.HetmpError, match=r"depends on a size at .*test_reading_traps"):
        hetmp.slice_model(seeded(build), [1.0] * world_size())


class Asserts(Blocks):
    def forward(self, x):
        torch._assert(x.shape[2] % 4 == 0, f"height {x.shape[2]} is bad, in {x.shape}")
        return self.b(self.a(x))


@pytest.mark.mpi
def test_a_size_in_the_message_of_an_assertion_stays_open():
    model = sliced(Asserts)
    assert model(batch((3, 3, 12, 16))).shape == (3, 5, 12, 16)


class Arithmetic(Blocks):
    def forward(self, x):
        whole, rest = divmod(x.shape[2], 3)
        y = self.a(x) * (whole + rest) * round(x.shape[3] / 3)
        return self.b(sum([y] * x.shape[1]))


@pytest.mark.mpi
def test_arithmetic_of_sizes():
    compare_training(seeded(Arithmetic), pick_weights(0), SHAPE, example=True)
    model, module = sliced(Arithmetic), seeded(Arithmetic)
    x = batch((3, 3, 12, 10))
    assert torch.allclose(model(x), module(x), rtol=1e-12)


class SmallBatch(Blocks):
    def forward(self, x):
        return self.b(self.a(x) * max(x.shape[0], 3))


@pytest.mark.mpi
def test_a_number_of_images_that_decides_is_verified_as_it_is():
    model, _ = compare_training(seeded(SmallBatch), pick_weights(1), SHAPE, example=True)
    assert str(model.hetmp.verification) == "verified against the module"


class LooksUp(Blocks):
    def forward(self, x):
        return self.b(self.a(x) * {8: 2.0}.get(x.shape[2], 1.0))


class Catches(Blocks):
    """Its rows fit into 64 for some sizes only."""

    def forward(self, x):
        y = self.a(x)
        try:
            z = y.view(len(x), -1, 1000)
        except Exception:
            z = y * 2
        return self.b(y) + z.mean()


@pytest.mark.mpi
@pytest.mark.parametrize(
    "build, message", [(LooksUp, r"give int\(size\)"), (Catches, "after an operation that fails")]
)
def test_what_depends_on_sizes_unseen_is_refused(build, message):
    with pytest.raises(hetmp.HetmpError, match=message):
        sliced(build)


# --- memory --------------------------------------------------------------------------------------


class InOrder(Blocks):
    def forward(self, x):
        y = self.a(x)
        if not y.is_contiguous():
            y = y.contiguous() * 2
        z = y.permute(0, 2, 3, 1)
        if not z.is_contiguous():
            z = z.contiguous()
        n, c, h, w = y.shape
        strided = torch.as_strided(y, (n, c, h, w), (c * h * w, h * w, w, 1))
        return self.b(strided + z.permute(0, 3, 1, 2) * y.stride(1))


@pytest.mark.mpi
def test_the_order_of_memory_is_what_the_module_asked_for():
    compare_training(seeded(InOrder), pick_weights(2), SHAPE, example=True)


class Halves(Blocks):
    def forward(self, x):
        x.mul_(0.5)
        return self.b(self.a(x))


@pytest.mark.mpi
def test_a_module_that_changes_its_input_leaves_the_example():
    x = batch(SHAPE)
    hetmp.slice_model(seeded(Halves), [1.0] * world_size(), example_input=x)
    assert torch.equal(x, batch(SHAPE))


# --- what a call leaves behind -------------------------------------------------------------------


class KeepsGrid(Blocks):
    """It keeps what it computed from sizes, and how often it was called in a list."""

    grid = None

    def __init__(self):
        super().__init__()
        self.grids, self.maps = {}, []

    def forward(self, x):
        y = self.a(x)
        if self.grid is None or self.grid.shape[0] != x.shape[2]:
            self.grid = torch.linspace(0, 1, x.shape[2], device=x.device, dtype=x.dtype)[:, None]
        side = int(x.shape[3])
        if side not in self.grids:
            self.grids[side] = torch.linspace(0, 1, side, device=x.device, dtype=x.dtype)
        self.maps.append(y)
        return self.b(y * self.grid * self.grids[side])


@pytest.mark.mpi
def test_what_a_module_keeps_of_sizes_is_computed_anew():
    module = seeded(KeepsGrid)
    compare_training(module, pick_weights(3), SHAPE, example=True)
    assert module.grid is None and not module.grids and not module.maps


_KEPT: dict = {}


class KeepsGlobally(Blocks):
    kept = _KEPT

    def forward(self, x):
        y = self.a(x)
        return self.b(y * self.kept.setdefault("mean", y.mean()))


class Registers(Blocks):
    def forward(self, x):
        if not hasattr(self, "grid"):
            self.register_buffer("grid", torch.linspace(0, 1, 8).double())
        return self.b(self.a(x) * self.grid)


class SumsParameters(Blocks):
    def forward(self, x):
        return self.b(self.a(x)), sum(p.square().sum() for p in self.parameters())


class Hooks(Blocks):
    def forward(self, x):
        y = self.a(x)
        y.register_hook(lambda gradient: gradient * 2)
        return self.b(y)


class Differentiates(Blocks):
    def forward(self, x):
        y = self.a(x)
        return self.b(torch.autograd.grad(y.square().sum(), y, retain_graph=True)[0])


class NestedCheckpoints(Blocks):
    def forward(self, x):
        def inner(y):
            return self.norm(self.middle(y))

        def outer(y):
            return y + checkpoint(inner, y, use_reentrant=False)

        return self.b(checkpoint(outer, self.a(x), use_reentrant=False))


@pytest.mark.mpi
@pytest.mark.parametrize(
    "build, message",
    [
        (KeepsGlobally, r"keeps a value from call to call .* at .*test_reading_traps"),
        (Registers, "'grid' is registered while the module runs"),
        (SumsParameters, r"takes from parameters\(\)"),
        (Hooks, r"calls register_hook at .*test_reading_traps"),
        (Differentiates, r"calls torch.autograd.grad at .*test_reading_traps"),
        (NestedCheckpoints, r"'norm' \(BatchNorm2d\) is in a gradient checkpoint inside another"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(build, message):
    with pytest.raises(hetmp.HetmpError, match=message):
        sliced(build)


class Follows(Blocks):
    """A second network follows the first, and equals it as long as that does not move."""

    def __init__(self, by_data):
        super().__init__()
        self.teacher, self.by_data = nn.Conv2d(3, 7, 3, padding=1).requires_grad_(False), by_data
        self.teacher.load_state_dict(self.a.state_dict())

    @torch.no_grad()
    def update(self):
        for own, other in zip(self.teacher.parameters(), self.a.parameters(), strict=True):
            if self.by_data:
                own.data = own.data * 0.5 + other.data * 0.5
            else:
                own.lerp_(other, 0.5)

    def forward(self, x):
        self.update()
        return self.b(self.a(x) + self.teacher(x))


@pytest.mark.mpi
@pytest.mark.parametrize("by_data", [False, True])
def test_a_module_that_changes_its_parameters_unseen(by_data):
    module = seeded(lambda: Follows(by_data))
    before = {name: p.clone() for name, p in module.state_dict().items()}
    with pytest.raises(hetmp.HetmpError, match=r"does not change the parameter 'teacher\.weight'"):
        hetmp.slice_model(module, [1.0] * world_size())
    assert all(torch.equal(p, before[name]) for name, p in module.state_dict().items())


class Clamps(nn.Module):
    """It counts its calls and changes its parameter."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.rand(7, 1, 1)), 0

    def forward(self, x):
        self.calls += 1
        self.weight.data.clamp_(-0.1, 0.1)
        return x * self.weight * self.calls * (2 if float(x.detach().mean()) > 0 else 3)


class WithLeaf(Blocks):
    def __init__(self):
        super().__init__()
        self.clamps = hetmp.leaf(Clamps())

    def forward(self, x):
        return self.b(self.clamps(self.a(x)))


@pytest.mark.mpi
def test_a_leaf_starts_where_it_stands_and_may_change_itself():
    module = seeded(WithLeaf)
    weight = module.clamps.weight.clone()
    compare_training(module, pick_weights(1), SHAPE)
    assert module.clamps.calls == 0
    assert torch.equal(module.clamps.weight, weight)


class KeepsMap(Blocks):
    def forward(self, x):
        self.map = self.a(x)
        return self.b(self.map)


@pytest.mark.mpi
def test_a_module_that_holds_what_an_earlier_call_computed():
    module = seeded(KeepsMap)
    module(batch(SHAPE))
    model = hetmp.slice_model(module, pick_weights(2))
    assert torch.allclose(model(batch(SHAPE)), module(batch(SHAPE)), rtol=1e-12)
    old = seeded(lambda: nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 5, 3)), nn.ReLU()))
    model = hetmp.slice_model(old, pick_weights(3))
    assert torch.allclose(model(batch(SHAPE)), old(batch(SHAPE)), rtol=1e-12)


class Draws(Blocks):
    def forward(self, x):
        return self.b(self.a(x) * torch.rand(1))


@pytest.mark.mpi
def test_a_refusal_leaves_the_random_generators():
    module = Draws()
    state = torch.get_rng_state()
    with pytest.raises(hetmp.HetmpError, match="draws random numbers"):
        hetmp.slice_model(module, [1.0] * world_size())
    assert torch.equal(torch.get_rng_state(), state)


class Expands(Blocks):
    """A constant in the shape of an activation."""

    def forward(self, x):
        n, _, h, w = x.shape
        eye = torch.eye(7, dtype=x.dtype)[None].expand(n, -1, -1)
        ramp = torch.linspace(0, 1, 7).view(1, 7, 1, 1).repeat(n, 1, h, w)
        return self.b((eye @ self.a(x).flatten(2)).view(n, 7, h, w) * ramp)


@pytest.mark.mpi
def test_a_constant_takes_sizes():
    compare_training(seeded(Expands), pick_weights(0), SHAPE)
    model, module = sliced(Expands), seeded(Expands)
    x = batch((3, 3, 12, 10))
    assert torch.allclose(model(x), module(x), rtol=1e-12)


# --- modes and parameters ------------------------------------------------------------------------


class Frozen(nn.Module):
    """A part whose norm stays in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.other = nn.BatchNorm2d(7), nn.BatchNorm2d(7)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        y = self.other(self.norm(self.norm(x)))
        return y * 2 if self.training else y


class AlwaysEvaluates(Frozen):
    def train(self, mode=True):
        return nn.Module.train(self, False)


class Holds(Blocks):
    def __init__(self, part):
        super().__init__()
        self.part = part()

    def forward(self, x):
        y = self.part(self.a(x))
        return self.b(y + 1 if self.training else y)


@pytest.mark.mpi
@pytest.mark.parametrize("number, part", [(0, Frozen), (1, AlwaysEvaluates)])
def test_a_train_of_the_modules_own(number, part):
    model, module = compare_training(
        seeded(lambda: Holds(part)).train(), pick_weights(number), SHAPE
    )
    x = batch(SHAPE, seed=5)
    for training in (False, True):
        model.train(training), module.train(training)
        with torch.no_grad():
            assert torch.allclose(model(x), module(x), rtol=1e-11)


class AsksParameters(Blocks):
    def __init__(self):
        super().__init__()
        self.middle.requires_grad_(False)

    def forward(self, x):
        y = self.middle(self.a(x))
        y = y if self.middle.weight.requires_grad else y * 2
        return self.b(
            y.masked_fill(y < -1, torch.finfo(y.dtype).eps) * torch.finfo(x.dtype).max ** 0
        )


class PartlyWithoutGradients(Blocks):
    """Its weight is centred, and the centre has no gradient."""

    def forward(self, x):
        weight = self.middle.weight
        with torch.no_grad():
            centre = weight.mean((1, 2, 3), keepdim=True)
        return self.b(F.conv2d(self.a(x), weight - centre, self.middle.bias, padding=1))


class OnItsDevice(Blocks):
    def forward(self, x):
        with torch.device(x.device):
            ramp = torch.arange(7)[:, None, None]
        return self.b(self.a(x) * ramp)


@pytest.mark.mpi
@pytest.mark.parametrize(
    "number, build", list(enumerate([AsksParameters, PartlyWithoutGradients, OnItsDevice]))
)
def test_questions_about_parameters_and_settings(number, build):
    compare_training(seeded(build), pick_weights(number), SHAPE)

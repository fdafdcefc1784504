"""What was read of a module is held against the module itself, before it is sliced."""

import copy
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hetmp
from helpers.comparison import WEIGHTS, compare_training, pick_weights, seeded, world_size
from hetmp.core.errors import HetmpError
from hetmp.slicing.graph import leaf, read_graph
from hetmp.slicing.verification import UnverifiedWarning, Verification, verify

torch.fx.wrap("scaled_by_text")
torch.fx.wrap("add_in_place")


def scaled_by_text(x):
    """Decide by text, which torch.fx does not see: a function of its own."""
    return x * len(str(tuple(x.shape)))


def add_in_place(x, y):
    x[:, 1:] += y[:, 1:]


class Two(nn.Module):
    """Two convolutions; what lies between them is each case's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.b(self.between(self.a(x)))

    def between(self, y):
        return F.relu(y)


IMAGES = (4, 3, 8, 8)


def verified(module: nn.Module, example=None, values=None) -> Verification:
    """The outcome for *module* on one process."""
    return verify(read_graph(module, example), module, values or {})


# --- what is read rightly -----------------------------------------------------------------------


class Instances(Two):
    """What is asked of a stand-in: classes, attributes, dimensions, dtypes."""

    def between(self, y):
        y = y * (3 if isinstance(y, torch.Tensor) else 1) * (2 if torch.is_tensor(y) else 1)
        y = y * (5 if hasattr(y, "no_such_thing") else 1) * (2 if hasattr(y, "mean") else 1)
        y = y * (2 if isinstance(y.shape, torch.Size) else 1) * y.dim() * y.ndim
        return y * (2 if y.is_floating_point() else 1)


class OwnWeight(Two):
    """A weight asked for its device, dtype, sizes and norm."""

    def between(self, y):
        w = self.a.weight
        grid = torch.arange(w.shape[0], device=w.device, dtype=w.dtype).view(1, -1, 1, 1)
        return y * grid / (w.size(1) + w.dim() + w.numel()) + self.b.weight.norm()


class Positions(nn.Module):
    """A learnt projection of fixed coordinates: a branch that does not start at the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 5, 3)
        self.project, self.scale = nn.Conv2d(8, 16, 1), nn.Parameter(torch.rand(16))

    def forward(self, x):
        x = self.first(x)
        n, _, h, w = x.shape
        rows = torch.arange(1, h + 1, device=self.project.weight.device).to(x.dtype)
        angles = rows[:, None].repeat(1, w)[None, :, :, None]
        angles = angles / 10.0 ** torch.arange(4, dtype=x.dtype)
        waves = torch.stack([angles.sin(), angles.cos()], 4).flatten(3).permute(0, 3, 1, 2)
        return self.last((x + self.project(waves).repeat(n, 1, 1, 1)) * self.scale[:, None, None])


class InPlace(Two):
    """A wrapped function that changes its argument and returns nothing."""

    def between(self, y):
        y = y * 2
        add_in_place(y, self.drop(y).detach() * 0 + y.sigmoid())
        return y


class Fourier(Two):
    """A complex parameter, and a complex activation that travels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(8, 8, 4, 3, dtype=torch.cdouble))

    def between(self, y):
        waves = torch.fft.rfft2(y)[:, :, :4, :3]
        waves = torch.einsum("bihw,iohw->bohw", waves, self.mix)
        return torch.fft.irfft2(waves, s=(8, 8))


RIGHT = {
    "instances": Instances,
    "own weight": OwnWeight,
    "positions": Positions,
    "in place": InPlace,
    "fourier": Fourier,
}


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_read_is_what_runs(name, example):
    module = RIGHT[name]().double()
    x = torch.randn(IMAGES, dtype=torch.float64)
    assert verified(module, x if example else None) == Verification(None)


@pytest.mark.mpi
@pytest.mark.parametrize("weights", ["1:2:3", "one zero"])
@pytest.mark.parametrize("name", RIGHT)
def test_it_is_exact_on_slices(name, weights):
    module = seeded(RIGHT[name])
    if hasattr(module, "drop"):
        module.drop.p = 0.0
    model, _ = compare_training(module, WEIGHTS[weights](world_size()), IMAGES, example=True)
    assert model.hetmp.verification == Verification(None)


# --- what is not --------------------------------------------------------------------------------


class Counting(Two):
    """Warms up over its calls."""

    calls = 0

    def between(self, y):
        self.calls += 1
        return y * min(1.0, self.calls / 10)


class ByType(Two):
    def between(self, y):
        return y * 3 if type(y) is torch.Tensor else y


class Generators(Two):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = np.random.default_rng(0)

    def between(self, y):
        return y * float(self.numbers.random())


class Detached(Two):
    """The same value, with less of a gradient, where torch computes."""

    def between(self, y):
        return y if type(y) is not torch.Tensor else y.detach() + 0.5 * (y - y.detach())


WRONG = {
    "a counter": (Counting, r"'mul'.* Its forward sets 'calls'"),
    "by type": (ByType, r"another value for the output: off by .* of its norm, first at "),
    "a generator of NumPy's": (Generators, r"in training, .*first at 'mul'"),
    "a gradient": (Detached, r"another value for the gradient of 'a\.weight'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_refused_by_name_and_line(name):
    kind, said = WRONG[name]
    for example in (None, torch.empty(IMAGES)):
        with pytest.raises(HetmpError, match=said) as refused:
            verified(kind(), example)
        text = str(refused.value)
        assert text.startswith(f"{kind.__name__} cannot be read as it runs: in training, ")
        assert "hetmp.leaf(module)" in text
        if name != "a gradient":
            assert f"{Path(__file__).name}:" in text


def test_a_difference_in_evaluation_mode_only():
    class Evaluation(Two):
        def between(self, y):
            return y * 3 if type(y) is torch.Tensor and not self.training else y

    with pytest.raises(HetmpError, match="in evaluation mode, what was read of it gives"):
        verified(Evaluation())


def test_a_part_that_is_kept_whole_may_count():
    """Its count begins where the module's begins, however often it was read."""

    @leaf
    class Counts(nn.Module):
        calls = 0

        def forward(self, y):
            self.calls += 1
            return y * min(1.0, self.calls / 10)

    class Whole(Two):
        def __init__(self) -> None:
            super().__init__()
            self.part = Counts()

        def between(self, y):
            return self.part(y)

    assert verified(Whole()).reason is None
    module, x = Whole(), torch.randn(IMAGES)
    model = hetmp.slice_model(module, [1.0])
    for _ in range(2):
        torch.testing.assert_close(model(x), module(x))


def test_a_generator_of_torchs_own_is_refused():
    class Own(Two):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator()

        def between(self, y):
            return y * torch.rand(y.shape, generator=self.generator)

    with pytest.raises(HetmpError, match=r"a generator of its own at .*test_verification"):
        read_graph(Own())


def test_a_module_that_takes_its_batch_apart():
    class Apart(Two):
        def between(self, y):
            return torch.stack([image * 2 for image in y.unbind(0)])

    class First(Two):
        def between(self, y):
            return y.unbind(0)[0][None] + y

    assert verified(First()).reason is None  # however many there are
    with pytest.raises(HetmpError, match="takes its batch apart"):
        read_graph(Apart())
    model = hetmp.slice_model(Apart(), [1.0], example_input=torch.empty(IMAGES))
    assert model(torch.zeros(IMAGES)).shape == (4, 4, 8, 8)
    with pytest.raises(HetmpError, match="sliced for 4 images, got 3"):
        model(torch.zeros(3, 3, 8, 8))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.jit.script(Two.__base__()), "torch.jit"),
        (lambda: torch.compile(Two()), "compiled: slice the module itself"),
        (lambda: hetmp.slice_model(Two(), [1.0]), "sliced already"),
        (lambda: Two().state_dict(), "got a OrderedDict$"),
        (lambda: nn.DataParallel(Two()), r"slice its \.module"),
    ],
)
def test_what_is_no_module_as_its_class_wrote_it(make, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = make()
    with pytest.raises(HetmpError, match=said):
        hetmp.slice_model(module, [1.0])


# --- what stays as it was -----------------------------------------------------------------------


class Storing(Two):
    """Keeps an activation, and has a buffer that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def between(self, y):
        self.seen = self.norm(y)
        return self.drop(self.seen)


def states() -> list:
    """The states of all random generators."""
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[2]]  # noqa: NPY002


def test_the_module_is_left_as_it_was():
    module = Storing().train()
    module.a.weight.grad = torch.ones_like(module.a.weight)
    before, generators = copy.deepcopy(module.state_dict()), states()
    outcome = verified(module)
    assert outcome == Verification(None, ("seen",))
    assert str(outcome) == "verified against the module; not set by the sliced model: seen"
    assert not hasattr(module, "seen")
    assert module.training
    assert torch.equal(module.a.weight.grad, torch.ones_like(module.a.weight))
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert states() == generators


def test_values_of_the_example_are_used():
    """Its images are cut to the first two; a value that is not among drawn ones decides."""
    seen = []

    @leaf
    class Looks(nn.Module):
        def forward(self, x):
            if not x.is_meta:
                seen.append(tuple(x.shape[:1]) if bool((x == 7).all()) else None)
            return x * 1

    module = nn.Sequential(Looks(), Two())
    x = torch.full((4, 3, 8, 8), 7.0)
    verified(module, x, {"input": x})
    assert (2,) in seen
    assert None in seen  # and drawn ones


def test_large_images_are_made_small_where_the_module_takes_them():
    sizes = []

    @leaf
    class Looks(nn.Module):
        def forward(self, x):
            if not x.is_meta:
                sizes.append(x.shape[-1])
            return x * 1

    verified(nn.Sequential(Looks(), nn.Conv2d(3, 4, 3)), torch.empty(2, 3, 100, 100))
    assert set(sizes) == {32}
    sizes.clear()
    fixed = nn.Sequential(Looks(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 98 * 98, 2))
    assert verified(fixed, torch.empty(2, 3, 100, 100)).reason is None
    assert 100 in sizes


# --- what is said -------------------------------------------------------------------------------


@pytest.mark.mpi
def test_every_rank_is_told_and_one_warns():
    model = hetmp.slice_model(Storing(), pick_weights(0))
    assert model.hetmp.verification == Verification(None, ("seen",))

    def init(name, shape, generator):
        return torch.zeros(shape)

    with torch.device("meta"):
        module = Two()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = hetmp.slice_model(module, pick_weights(0), init=init)
    assert model.hetmp.verification == Verification("the module has no values yet")
    own = [w for w in caught if issubclass(w.category, UnverifiedWarning)]
    assert len(own) == (model.hetmp.group.rank == 0)


@pytest.mark.mpi
def test_a_refusal_reaches_every_rank():
    with pytest.raises(HetmpError, match="Counting cannot be read as it runs"):
        hetmp.slice_model(Counting(), pick_weights(0))
    model = hetmp.slice_model(Counting(), pick_weights(0), verify=False)
    assert model.hetmp.verification.reason == "it was not asked for"


def test_a_module_that_fails_by_itself_is_not_verified():
    class Fails(Two):
        def between(self, y):
            if type(y) is torch.Tensor and self.training:
                raise ValueError("not today\nreally")
            return y

    assert verified(Fails()).reason == "the module itself fails in training: ValueError: not today"

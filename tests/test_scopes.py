"""What a module sets around its operations: no_grad, autocast, gradient checkpoints, and questions.

Each network is trained beside the unsliced one, in float64: outputs, every gradient, which
parameters have none, and weights.
"""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hetmp
from helpers.comparison import batch, compare_training, pick_weights, seeded, world_size
from hetmp.slicing.graph import read_graph


class Blocks(nn.Module):
    """Layers that the cases below call, each in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.middle, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))


class Frozen(Blocks):
    """A part without gradients, and a replicated parameter in it."""

    def forward(self, x):
        with torch.no_grad():
            y = F.relu(self.middle(self.a(x))) * self.scale
        return self.b(self.norm(y))


class FrozenInference(Blocks):
    def forward(self, x):
        with torch.inference_mode():
            y = self.middle(self.a(x))
        return self.b(y.clone())


class Taken(Blocks):
    """One gathered value, taken with and without gradients."""

    def forward(self, x):
        y = self.a(x)
        with torch.no_grad():
            gate = self.b(y)
        return self.b(y) * gate.sigmoid() + self.b(y.detach())


class Decorated(Blocks):
    @torch.no_grad()
    def target(self, x):
        return self.b(self.norm(x))

    def forward(self, x):
        y = self.a(x)
        return self.b(y) - self.target(y)


class Switched(Blocks):
    """Another region in each mode."""

    def forward(self, x):
        with torch.set_grad_enabled(not self.training):
            y = self.middle(self.a(x))
        return self.b(y)


class Asking(Blocks):
    def forward(self, x):
        y = self.a(x)
        if torch.is_grad_enabled():
            y = y * 3
        if y.requires_grad:
            y = y + 1
        return self.b(y)


class Devices(Blocks):
    """Answers that are text, a string, a number, and members of a set."""

    def forward(self, x):
        y = self.a(x)
        if "cpu" in str(x.device):
            y = y * 3
        if y.device.type == "cuda" or y.is_cuda:
            y = y * 7
        if y.device == torch.device("cpu") and y.dtype in {torch.float64, torch.float32}:
            y = y + 2
        return self.b(y.to(self.a.weight.device))


class Checkpointed(Blocks):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def body(self, x):
        return F.relu(self.norm(self.middle(F.relu(x))))

    def forward(self, x):
        y = self.a(x)
        z = checkpoint(self.body, y, use_reentrant=self.reentrant)
        again = checkpoint(self.middle, z, use_reentrant=self.reentrant)
        return self.b(z) + self.b(again) + y.mean()


CASES = {
    "no_grad": Frozen,
    "inference_mode": FrozenInference,
    "a value with and without": Taken,
    "decorated": Decorated,
    "another region in each mode": Switched,
    "questions about gradients": Asking,
    "questions about devices": Devices,
    "a checkpoint": lambda: Checkpointed(False),
    "a reentrant checkpoint": lambda: Checkpointed(True),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", CASES)
def test_training_is_the_modules_own(name):
    number = list(CASES).index(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a checkpoint whose input has no gradient
        compare_training(
            seeded(CASES[name]),
            pick_weights(number),
            (4, 3, 6, 6),
            example=number % 2 == 0,
            input_gradient=name == "a reentrant checkpoint",
        )


@pytest.mark.mpi
@pytest.mark.parametrize("kind", [Asking, Switched])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_each_mode_runs_its_own_operations(kind, training, grad):
    module = seeded(kind).train(training)
    model = hetmp.slice_model(module, pick_weights(0)).train(training)
    x = batch((4, 3, 6, 6))
    with torch.set_grad_enabled(grad):
        output, expected = model(x), module(x)
    assert torch.allclose(output, expected, rtol=1e-12, atol=1e-12)
    assert output.requires_grad == expected.requires_grad


@pytest.mark.mpi
def test_an_island_without_autocast():
    """What lies in it is not rounded to bfloat16; what lies outside is."""

    class Island(Blocks):
        def forward(self, x):
            y = self.a(x)
            with torch.autocast(x.device.type, enabled=False):
                return y.dtype == torch.bfloat16, torch.exp(self.b(y.float()).mean((2, 3)))

    torch.manual_seed(0)
    module = Island()
    model = hetmp.slice_model(copy.deepcopy(module), pick_weights(1))
    x = batch((4, 3, 6, 6), dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (_, output), (was_cast, expected) = model(x), module(x)
    assert was_cast
    assert output.dtype == expected.dtype == torch.float32
    assert torch.allclose(output, expected, rtol=2e-2)
    with torch.no_grad():
        assert torch.allclose(model(x)[1], module(x)[1], rtol=1e-5)


@pytest.mark.mpi
def test_a_checkpoint_keeps_nothing_between_its_ends():
    """Its values are computed again, with the dropout masks of the first time."""

    class Wide(Blocks):
        def __init__(self, again: bool) -> None:
            super().__init__()
            self.again, self.drop = again, nn.Dropout(0.5)

        def body(self, x):
            for _ in range(4):
                x = self.drop(F.gelu(self.middle(x)))
            return x

        def forward(self, x):
            y = self.a(x)
            y = checkpoint(self.body, y, use_reentrant=False) if self.again else self.body(y)
            return self.b(y)

    gradients, saved = [], []
    for again in (False, True):
        module = seeded(lambda again=again: Wide(again))
        model = hetmp.slice_model(module, [1] * world_size())
        sizes: list[int] = []
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            output = model(batch((4, 3, 6, 6)))
        output.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        saved.append(sum(sizes))
    assert saved[1] < saved[0]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.mpi
def test_a_setting_that_the_module_was_not_read_under():
    class Asks(Blocks):
        def forward(self, x):
            y = self.a(x)
            return self.b(y * 2 if torch.is_autocast_enabled("cpu") else y)

    torch.manual_seed(0)
    model = hetmp.slice_model(Asks(), [1] * world_size())
    x = batch((2, 3, 6, 6), dtype=torch.float32)
    model(x)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(hetmp.HetmpError, match=r"a setting at .*test_scopes.* is True here"),
    ):
        model(x)


def test_what_is_set_around_an_operation_is_shown():
    graph = read_graph(Frozen())
    scopes = {node.path: str(node.scope) for node in graph.nodes if node.path}
    assert scopes["a"] == scopes["middle"] == "no_grad"
    assert scopes["b"] == scopes["norm"] == ""
    graph = read_graph(Checkpointed(False))
    assert [str(n.scope) for n in graph.training.nodes if n.path == "middle"] == ["checkpoint"] * 2

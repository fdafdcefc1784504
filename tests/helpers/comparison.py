"""Trains a sliced model beside the unsliced one and compares everything that both have.

Every rank has a loss of its own, so the output gradients differ between the ranks. The unsliced
model is trained on the mean of all ranks' losses, which each rank can compute: the sliced model
averages over the ranks. Differences are collected and asserted at the end, so that a rank
with a difference does not leave the others waiting in a collective.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

import hetmp
from hetmp.exchange import plain_tensors, share_of
from hetmp.slicing.graph import read_graph
from hetmp.slicing.layer_schemes import layer_schemes
from hetmp.slicing.plan import LayerPlan

TOLERANCE = 1e-10
"""Of the tensor's own norm or the model's largest gradient norm, whichever is larger."""

ZERO_GRADIENT_TOLERANCE = 1e-8
"""For parameters whose true gradient is zero, under an adaptive optimizer."""

WEIGHTS: dict[str, Callable[[int], list[float]]] = {
    "equal": lambda ranks: [1.0] * ranks,
    "1:2:3": lambda ranks: [rank + 1.0 for rank in range(ranks)],
    "70:25:5": lambda ranks: [70.0, 25.0, 5.0, 4.0, 3.0][:ranks],
    "one zero": lambda ranks: [3.0, 0.0, 2.0, 1.0, 2.0][:ranks],
    "root zero": lambda ranks: [0.0, 2.0, 1.0, 3.0, 1.0][:ranks] if ranks > 1 else [1.0],
    "all on last": lambda ranks: [0.0] * (ranks - 1) + [1.0],
}

SCHEMES: tuple[tuple[str, ...], ...] = (
    ("filters",),
    ("inputs",),
    ("filters", "inputs"),
    ("whole", "filters"),
    ("inputs", "filters"),
    ("whole",),
    ("filters", "filters", "inputs"),
    ("inputs", "whole", "filters"),
    ("filters", "whole", "inputs"),
    ("batch",),
    ("batch", "filters"),
    ("inputs", "batch", "batch"),
)
"""Patterns of schemes, repeated over the layers of a model."""


def world_size() -> int:
    """How many ranks run this test."""
    return hetmp.Group().size


def pick(choices: Sequence, number: int):
    """One of *choices* for test *number*: another on every rank count, so that pairs spread."""
    return choices[(number + world_size()) % len(choices)]


def pick_weights(number: int) -> list[float]:
    """Weights for test *number*, of another kind on every rank count."""
    return pick(list(WEIGHTS.values()), number)(world_size())


MIXING = (nn.modules.conv._ConvNd, nn.Linear)


def make_plan(
    module: nn.Module,
    weights: Sequence[float],
    schemes: Sequence[str] = ("filters",),
    *,
    turned: bool = False,
) -> hetmp.Plan:
    """A plan for *weights*, layer by layer, with *schemes* repeated over the layers.

    A convolution with groups has no scheme ``inputs``: it follows ``filters`` instead.

    Args:
        turned: whether every layer's weights are those of the one before, one rank further, so
            that layers which meet are cut in unlike ways.
    """
    layers = [(name, x) for name, x in module.named_modules() if isinstance(x, MIXING)]
    planned = []
    for number, (name, layer) in enumerate(layers):
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        groups = getattr(layer, "groups", 1)
        scheme = schemes[number % len(schemes)]
        start = number % len(weights) if turned else 0
        shares = hetmp.apportion(
            channels,
            [*weights[start:], *weights[:start]],
            multiple_of=channels // groups if groups > 1 else 1,
        )
        planned.append(
            LayerPlan(
                name=name,
                kind=type(layer).__name__,
                channels=channels,
                scheme="filters" if groups > 1 and scheme == "inputs" else scheme,
                counts=shares.counts,
                weights=(*weights[start:], *weights[:start]) if scheme == "batch" else (),
            )
        )
    return hetmp.Plan(ranks=len(weights), layers=tuple(planned))


ON_IMAGES: tuple[tuple[str, ...], ...] = (
    ("batch",),
    ("batch", "batch", "filters"),
    ("filters", "batch", "batch"),
    ("batch", "filters", "batch"),
    ("inputs", "batch", "inputs"),
)
"""Patterns of schemes with slices of the batch."""


def plan_on_images(
    module: nn.Module, weights: Sequence[float], number: int, shape: Sequence[int]
) -> hetmp.Plan:
    """A plan for test *number*, in which layers follow ``batch`` where they can.

    Args:
        shape: of a batch. A layer that has no axis of its length follows ``filters`` instead.
    """
    schemes = ON_IMAGES[number % len(ON_IMAGES)]
    plan = make_plan(module, weights, schemes, turned=bool(number % 2))
    can = layer_schemes(read_graph(module, torch.empty(*shape, dtype=torch.float64)), "batch")
    for layer in plan.layers:
        if layer.scheme == "batch" and layer.name not in can:
            plan = plan.with_layer(layer.name, scheme="filters", weights=())
    return plan


def batch(shape: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same random numbers on every rank."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module in float64, the same on every rank; norms and slopes are not left at their ones."""
    torch.manual_seed(seed)
    module = build().double()
    with torch.no_grad():
        for layer in module.modules():
            if not isinstance(layer, MIXING):
                for parameter in layer.parameters(recurse=False):
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def rank_loss(output: Tensor, rank: int, step: int = 0) -> Tensor:
    """A loss that only this rank has, with a gradient that depends on the output."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    slope, target = torch.randn(2, *output.shape, generator=generator, dtype=torch.float64)
    return (slope * output).mean() + (output - target).square().mean()


def mean_loss(output: Tensor, ranks: int, step: int = 0) -> Tensor:
    """The loss of the unsliced model: the mean over the ranks."""
    return torch.stack([rank_loss(output, rank, step) for rank in range(ranks)]).mean()


class Differences:
    """What differed, by name, and by how much of what is allowed.

    Attributes:
        found: a line for everything that differed by more than is allowed.
        largest: the largest error, relative to what it is measured by.
    """

    def __init__(self, model: hetmp.SlicedModel, reference: nn.Module) -> None:
        self.model, self.reference = model, reference
        self.found: list[str] = []
        self.scale = 0.0
        self.largest = 0.0
        self.idle: set[str] = set()

    def note_gradients(self) -> None:
        """Take the largest gradient norm, the measure of all, from the reference."""
        norms = {
            name: float(parameter.grad.norm())
            for name, parameter in self.reference.named_parameters()
            if parameter.grad is not None
        }
        self.scale = max(norms.values(), default=0.0)
        self.idle |= {name for name, norm in norms.items() if norm < 1e-12 * self.scale}

    def compare(self, what: str, a: Tensor | None, b: Tensor | None, allowed=TOLERANCE) -> None:
        """Compare *a* with what it should be, *b*; or their shares, with *b*'s norm."""
        if a is None or b is None:
            if a is not b:
                self.found.append(f"{what}: {'nothing' if a is None else 'something'}")
            return
        if a.shape != b.shape or a.dtype != b.dtype:
            self.found.append(f"{what}: {a.dtype} {tuple(a.shape)}, not {b.dtype} {tuple(b.shape)}")
            return
        with plain_tensors():
            measure = max(float(b.detach().double().norm()), self.scale)
            error = float((a.detach().double() - b.detach().double()).norm())
        limit = allowed * measure
        self.largest = max(self.largest, error / measure if error else 0.0)
        if not error <= limit:
            self.found.append(f"{what}: off by {error:.2e}, allowed {limit:.2e}")

    def compare_gradients(self, when: str) -> None:
        """This rank's share of every gradient."""
        table, rank = self.model.hetmp.table, self.model.hetmp.group.rank
        mine = dict(self.model.named_parameters())
        for name, parameter in self.reference.named_parameters():
            expected = parameter.grad
            if expected is not None:
                expected = share_of(expected, table[name].state, rank)
            self.compare(f"{when}, gradient of {name}", mine[name].grad, expected)

    def compare_state(self, *, adaptive: bool = False) -> None:
        """Every parameter and buffer, whole. Collective."""
        merged = hetmp.merge_model(self.model)
        expected = self.reference.state_dict()
        if list(merged) != list(expected):
            self.found.append(f"state_dict has {list(merged)}, not {list(expected)}")
            return
        for name, tensor in expected.items():
            loose = adaptive and name in self.idle
            allowed = ZERO_GRADIENT_TOLERANCE if loose else TOLERANCE
            self.compare(f"after the last step, {name}", merged[name], tensor, allowed)

    def assert_none(self) -> None:
        """Fail with what was found."""
        assert not self.found, "\n".join(self.found[:20])


def sgd(parameters) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def adam(parameters) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay."""
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=1e-2)


def leaves(output) -> list[Tensor]:
    """The tensors of an output, whatever it is made of."""
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, Mapping) else output
    return [tensor for item in items for tensor in leaves(item)]


def compare_training(
    module: nn.Module,
    weights: "Sequence[float] | hetmp.Plan",
    shape: Sequence[int],
    *,
    steps: int = 2,
    optimizer: Callable[..., torch.optim.Optimizer] = sgd,
    example: bool = False,
    input_gradient: bool = True,
    tuning: hetmp.Tuning | None = None,
) -> tuple[hetmp.SlicedModel, nn.Module]:
    """Train both for some steps; outputs, losses, gradients, weights and buffers are equal.

    What was read of the module is verified under weights alone: a plan does not change it.

    Args:
        shape: of a batch.
        steps: a wrong gradient shows in the first, a wrong buffer or state in the second; more
            where the curve is the subject.
        example: whether slice_model is given an example_input.
        input_gradient: whether the input requires a gradient, which is compared too.
        tuning: how the sliced model does its work.

    Returns:
        The trained models, for more comparison.
    """
    reference = copy.deepcopy(module)
    example_input = torch.empty(*shape, dtype=torch.float64) if example else None
    model = hetmp.slice_model(
        module,
        weights,
        example_input=example_input,
        tuning=tuning,
        verify=not isinstance(weights, hetmp.Plan),
    )
    differences = Differences(model, reference)
    rank, ranks = model.hetmp.group.rank, model.hetmp.group.size
    optimizers = [optimizer(model.parameters()), optimizer(reference.parameters())]
    for step in range(steps):
        x, mine = (batch(shape, step).requires_grad_(input_gradient) for _ in range(2))
        for one in optimizers:
            one.zero_grad()
        expected = leaves(reference(x))
        sum(mean_loss(tensor, ranks, step) for tensor in expected).backward()
        outputs = leaves(model(mine))
        sum(rank_loss(tensor, rank, step) for tensor in outputs).backward()

        differences.note_gradients()
        when = f"step {step}"
        assert len(outputs) == len(expected)
        for number, (output, wanted) in enumerate(zip(outputs, expected, strict=True)):
            differences.compare(f"{when}, output {number}", output, wanted)
            differences.compare(
                f"{when}, loss {number}",
                rank_loss(output, rank, step),
                rank_loss(wanted, rank, step),
            )
        differences.compare(f"{when}, gradient of the input", mine.grad, x.grad)
        differences.compare_gradients(when)
        for one in optimizers:
            one.step()
    differences.compare_state(adaptive=optimizer is adam)
    differences.assert_none()
    return model, reference

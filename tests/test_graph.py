"""Reading a module: what is understood, and what is refused by name and place."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hetmp.errors import HetmpError
from hetmp.graph import read_graph


def refusal(module: nn.Module, example_input=None) -> str:
    with pytest.raises(HetmpError) as refused:
        read_graph(module, example_input)
    return str(refused.value)


class Chain(nn.Module):
    """Runs *run* on an input, with a convolution and a norm at hand."""

    def __init__(self, run) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(63, 10),
    )


# --- what is read -------------------------------------------------------------------------------


def test_layers_are_read_in_the_order_in_which_they_run():
    graph = read_graph(network())
    assert [node.path for node in graph.nodes] == ["0.0", "0.1", "0.2", "1", "2", "3"]
    assert [node.path for node in graph.mixing()] == ["0.0", "3"]
    sources = [graph.entry, *(node.name for node in graph.nodes)]
    assert [node.source for node in graph.nodes] == sources[:-1]
    assert graph.result == sources[-1]
    assert graph.dims == 4
    assert [node.path for node in graph.consumers(graph.nodes[0].name)] == ["0.1"]
    assert graph.nodes[0].place == "'0.0' (Conv2d)"


def test_sizes_are_known_from_an_example():
    graph = read_graph(network(), torch.empty(5, 3, 8, 8))
    assert [node.given for node in graph.nodes] == [
        (5, 7, 6, 6),
        (5, 7, 6, 6),
        (5, 7, 6, 6),
        (5, 7, 3, 3),
        (5, 63),
        (5, 10),
    ]


def test_sizes_that_the_layers_tell_are_known_without_an_example():
    """The linear layer behind it tells how long the flattened axis is."""
    nodes = read_graph(network()).nodes
    assert [node.given for node in nodes] == [
        (None, 7, None, None),
        (None, 7, None, None),
        (None, 7, None, None),
        (None, 7, None, None),
        (None, 63),
        (None, 10),
    ]
    nodes = read_graph(nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten(), nn.ReLU())).nodes
    assert nodes[-1].given == (None, None)


@pytest.mark.parametrize(
    ("layers", "dims"),
    [
        ([nn.Linear(3, 4)], 2),
        ([nn.ReLU(), nn.Conv3d(3, 4, 1)], 5),
        ([nn.BatchNorm1d(3), nn.Conv1d(3, 4, 1)], 3),
        ([nn.Flatten(), nn.Linear(3, 4)], None),
    ],
)
def test_how_many_dimensions_an_input_has(layers, dims):
    assert read_graph(nn.Sequential(*layers)).dims == dims


def test_a_module_of_the_users_own():
    module = Chain(lambda self, x: self.relu(self.norm(self.conv(x))))
    assert [node.path for node in read_graph(module).nodes] == ["conv", "norm", "relu"]


def test_a_layer_without_parameters_may_run_twice():
    module = Chain(lambda self, x: self.relu(self.norm(self.relu(self.conv(x)))))
    graph = read_graph(module)
    assert [node.path for node in graph.nodes] == ["conv", "relu", "norm", "relu"]
    assert len({node.name for node in graph.nodes}) == 4


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_reading_touches_nothing(device):
    with torch.device(device):
        module = network()
    module[0][1].eval()
    module[0][0].weight.requires_grad_(False)
    before = copy.deepcopy(module)
    graph = read_graph(module, torch.empty(2, 3, 8, 8))
    assert all(parameter.is_meta for parameter in graph.skeleton.parameters())
    assert [p.requires_grad for p in graph.skeleton.parameters()] == [False, *[True] * 5]
    for a, b in zip(module.modules(), before.modules(), strict=True):
        assert a.training == b.training
    for (name, a), b in zip(module.state_dict().items(), before.state_dict().values(), strict=True):
        assert a.is_meta == (device == "meta")
        assert device == "meta" or torch.equal(a, b), name


def test_both_modes_are_left_as_they_were_when_tracing_fails():
    module = Chain(lambda self, x: self.conv(x) if x.sum() > 0 else x).eval()
    module.relu.train()
    refusal(module)
    assert [layer.training for layer in module.modules()] == [False, False, False, True]


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "groups=2"),
        (nn.ConvTranspose2d(4, 8, 3, groups=4), "groups=4"),
        (nn.GroupNorm(2, 4), "no rule"),
        (nn.InstanceNorm2d(4), "no rule"),
        (nn.LSTM(4, 4), "no rule"),
        (nn.MultiheadAttention(4, 2), "no rule"),
        (nn.MaxPool2d(2, return_indices=True), "return_indices"),
        (nn.AdaptiveMaxPool2d(2, return_indices=True), "return_indices"),
        (nn.Softmax(), "dim is not set"),
        (nn.Upsample(scale_factor=2), "no rule"),
        (nn.AlphaDropout(), "no rule"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_that_cannot_be_sliced_is_named_with_its_place(layer, named):
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), layer))
    text = refusal(module)
    assert f"layer '1.1' ({type(layer).__name__}) cannot be sliced" in text
    assert named in text


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_may_do_anything():
    text = refusal(nn.Sequential(Doubled(3, 4, 1)))
    assert "layer '0' (Doubled) cannot be sliced" in text


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda self, x: F.relu(self.conv(x)), "relu"),
        (lambda self, x: self.conv(x).flatten(1), "flatten"),
        (lambda self, x: torch.flatten(self.conv(x), 1), "flatten"),
        (lambda self, x: self.conv(x) + x, "add"),
        (lambda self, x: self.conv(x) * self.conv.weight.sum(), "conv.weight"),
    ],
)
def test_what_is_no_layer_is_named(run, named):
    text = refusal(Chain(run))
    assert re.search(rf"operation .*{named}.* of Chain cannot be sliced", text)


def test_control_flow_on_values_is_refused():
    text = refusal(Chain(lambda self, x: self.conv(x) if x.sum() > 0 else x))
    assert "torch.fx cannot trace Chain" in text
    assert "ontrol flow" in text


def test_other_layers_in_training_than_in_evaluation():
    module = Chain(lambda self, x: self.norm(self.conv(x)) if self.training else self.conv(x))
    assert "other layers in training than in evaluation" in refusal(module)


class TwoInputs(Chain):
    def forward(self, x, y):
        return self.conv(x)


def test_two_inputs():
    text = refusal(TwoInputs(None))
    assert "TwoInputs takes more than one input (x, y)" in text


@pytest.mark.parametrize(
    "run",
    [
        lambda self, x: (self.conv(x), x),
        lambda self, x: {"out": self.conv(x)},
        lambda self, x: [self.conv(x)],
    ],
)
def test_more_than_a_tensor_as_output(run):
    assert "Chain returns" in refusal(Chain(run))


def test_a_layer_with_parameters_that_runs_twice():
    text = refusal(Chain(lambda self, x: self.conv(self.relu(self.conv(x)))))
    assert "layer 'conv' (Conv2d) cannot be sliced: it runs more than once" in text


def test_tied_parameters():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    text = refusal(module)
    assert "'0.weight' and '1.weight' are one tensor" in text


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
@pytest.mark.parametrize("path", ["0.1", "0", ""])
def test_hooks(path, register):
    """They would see slices, or never run: on a layer, on what holds it, on the whole."""
    module = network()
    layer = module.get_submodule(path)
    getattr(layer, register)(lambda *args: None)
    text = refusal(module)
    assert f"{path!r} ({type(layer).__name__}) cannot be sliced: its hooks" in text


def test_weight_norm_as_a_parametrization():
    module = network()
    nn.utils.parametrizations.weight_norm(module[0][0])
    text = refusal(module)
    assert "'0.0'" in text


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_of_old():
    module = network()
    nn.utils.weight_norm(module[0][0])
    text = refusal(module)
    assert "'0.0'" in text


def test_a_lazy_layer():
    text = refusal(nn.Sequential(nn.LazyConv2d(4, 1)))
    assert "'0" in text
    assert "lazy" in text.lower()
    module = nn.Sequential(nn.LazyConv2d(4, 1))
    module(torch.empty(1, 3, 2, 2))
    assert read_graph(module).nodes[0].taken[1] == 3


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([nn.Conv2d(3, 7, 1), nn.Conv2d(8, 5, 1)], r"'1' \(Conv2d\) takes 8 channels.*gives 7"),
        ([nn.Conv2d(3, 7, 1), nn.BatchNorm2d(6)], r"'1' \(BatchNorm2d\) takes 6.*gives 7"),
        ([nn.Conv2d(3, 7, 1), nn.PReLU(5)], r"'1' \(PReLU\) takes 5.*gives 7"),
        ([nn.Linear(3, 7), nn.ReLU(), nn.Linear(6, 1)], r"'2' \(Linear\) takes 6.*gives 7"),
        ([nn.Conv2d(3, 7, 1), nn.Conv1d(7, 5, 1)], r"'1' \(Conv1d\) takes batches of 3 dim.*4"),
        ([nn.Conv1d(3, 7, 1), nn.MaxPool2d(2)], r"'1' \(MaxPool2d\) takes batches of 4 dim.*3"),
    ],
)
def test_neighbours_that_disagree(layers, named):
    assert re.search(named, refusal(nn.Sequential(*layers)))


def test_nothing_to_slice():
    assert "Sequential has no convolution or linear layer" in refusal(nn.Sequential(nn.ReLU()))
    assert "no convolution or linear layer" in refusal(nn.Sequential())


def test_a_layer_that_is_not_in_a_module():
    """torch.fx would look inside it."""
    text = refusal(nn.Conv2d(3, 4, 1))
    assert "Conv2d" in text
    assert "nn.Sequential" in text


@pytest.mark.parametrize("module", [3, None, nn.ReLU, lambda x: x])
def test_what_is_no_module(module):
    assert "nn.Module" in refusal(module)


@pytest.mark.parametrize("shape", [(5, 4, 8, 8), (3, 8, 8), (5, 3, 2, 2), (5, 3, 9, 12)], ids=str)
def test_an_example_that_does_not_fit(shape):
    text = refusal(network(), torch.empty(*shape))
    assert str(shape) in text or "'0.0' (Conv2d)" in text

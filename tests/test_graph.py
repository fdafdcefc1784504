"""Reading a module: its layers, their sizes, and what is refused by name and place."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from helpers.reading import Running, read, refusal
from hetmp.slicing.graph import read_graph


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
    (trace,) = graph.traces
    values = [*trace.entries, *(node.name for node in graph.nodes)]
    assert [list(node.call.values) for node in graph.nodes] == [[name] for name in values[:-1]]
    assert trace.result.name == values[-1]
    assert list(trace.entries.values()) == ["input"]
    assert graph.dims == 4
    assert [node.path for node in trace.consumers(graph.nodes[0].name)] == ["0.1"]
    assert graph.nodes[0].place == "'0.0' (Conv2d)"
    assert not list(graph.fallbacks())


def shapes(graph) -> list:
    return [node.call.result.shape for node in graph.nodes]


def test_sizes_are_known_from_an_example():
    graph = read_graph(network(), torch.empty(5, 3, 8, 8))
    assert shapes(graph) == [
        (None, 7, 6, 6),
        (None, 7, 6, 6),
        (None, 7, 6, 6),
        (None, 7, 3, 3),
        (None, 63),
        (None, 10),
    ]
    assert graph.nodes[0].call.result.image_bytes == 4 * 7 * 6 * 6
    assert graph.nodes[0].call.result.dims == 4


def test_sizes_that_the_layers_tell_are_known_without_an_example():
    """The linear layer behind it tells how long the flattened axis is."""
    assert shapes(read_graph(network())) == [
        (None, 7, None, None),
        (None, 7, None, None),
        (None, 7, None, None),
        (None, 7, None, None),
        (None, 63),
        (None, 10),
    ]
    nodes = read_graph(nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten(), nn.ReLU())).nodes
    assert nodes[-1].call.result.shape == (None, None)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_the_batch_is_never_taken_for_known(batch):
    """Whatever other size it happens to be equal to."""
    graph = read_graph(network(), torch.empty(batch, 3, 8, 8))
    assert {shape[0] for shape in shapes(graph)} == {None}


class Shifted(Running):
    def forward(self, x, shift):
        return self.conv(x) + shift


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (1, 3, 1, 1), (3, 1, 1), ()], ids=str)
def test_the_batch_is_not_known_either_where_an_input_has_none(shape):
    graph = read_graph(Shifted(None), (torch.empty(5, 3, 8, 8), torch.empty(shape)))
    assert shapes(graph) == [(None, 3, 8, 8)] * 2


def test_a_module_may_fix_its_batch_size():
    graph = read(lambda self, x: self.conv(x).view(5, 3, -1), torch.empty(5, 3, 2, 2))
    assert shapes(graph) == [(5, 3, 2, 2), (5, 3, 4)]


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
    graph = read(lambda self, x: self.relu(self.norm(self.conv(x))))
    assert [node.path for node in graph.nodes] == ["conv", "norm", "relu"]


def test_a_layer_may_run_twice():
    """Each run is an operation of its own; a plan speaks of the layer once."""
    graph = read(lambda self, x: self.conv(self.relu(self.norm(self.relu(self.conv(x))))))
    assert [node.path for node in graph.nodes] == ["conv", "relu", "norm", "relu", "conv"]
    assert len({node.name for node in graph.nodes}) == 5
    assert [node.path for node in graph.mixing()] == ["conv"]


def test_grouped_convolutions_are_read_like_others():
    layers = [nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 3, groups=8)]
    graph = read_graph(nn.Sequential(*layers))
    assert [node.path for node in graph.mixing()] == ["0", "1"]
    assert not list(graph.fallbacks())


def test_tied_parameters_are_known():
    """One weight of two layers, and one layer under two names."""
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    graph = read_graph(module)
    assert graph.aliases == {"1.weight": "0.weight"}
    assert [graph.is_tied(node) for node in graph.mixing()] == [True, True, False]

    linear = nn.Linear(4, 4)
    graph = read_graph(nn.Sequential(linear, nn.ReLU(), linear))
    assert graph.aliases["2"] == "0"
    assert graph.aliases["2.bias"] == "0.bias"
    assert [node.path for node in graph.mixing()] == ["0"]
    assert [graph.is_tied(node) for node in graph.mixing()] == [False]


@pytest.mark.parametrize(
    ("run", "tied"),
    [
        (lambda self, x: self.conv(x) * self.conv.weight.sum(), True),
        (lambda self, x: (self.conv(x), self.conv.bias), True),
        (lambda self, x: self.conv(x).to(self.conv.weight.dtype), False),
        (lambda self, x: self.conv(x) * self.norm.weight.sum(), False),
    ],
)
def test_a_parameter_that_forward_looks_at_is_tied_too(run, tied):
    """What is computed from it needs all of it; its dtype is every rank's."""
    graph = read(run)
    assert [graph.is_tied(node) for node in graph.mixing()] == [tied]


def test_a_weight_of_a_layer_under_two_names_and_of_another_layer():
    linear = nn.Linear(4, 4)
    module = nn.Sequential(linear, nn.Linear(4, 4), linear)
    module[1].weight = linear.weight
    graph = read_graph(module)
    assert [graph.is_tied(node) for node in graph.mixing()] == [True, True]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_reading_touches_nothing(device):
    with torch.device(device):
        module = network()
    module[0][1].eval()
    module[0][0].weight.requires_grad_(False)
    before, drawn = copy.deepcopy(module), torch.get_rng_state()
    graph = read_graph(module, torch.empty(2, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.is_meta for parameter in graph.skeleton.parameters())
    assert [p.requires_grad for p in graph.skeleton.parameters()] == [False, *[True] * 5]
    for a, b in zip(module.modules(), before.modules(), strict=True):
        assert a.training == b.training
    for (name, a), b in zip(module.state_dict().items(), before.state_dict().values(), strict=True):
        assert a.is_meta == (device == "meta")
        assert device == "meta" or torch.equal(a, b), name


def test_both_modes_are_left_as_they_were_when_tracing_fails():
    module = Running(lambda self, x: self.conv(x) if x.sum() > 0 else x).eval()
    module.relu.train()
    refusal(module)
    assert [layer.training for layer in module.modules()] == [False, False, False, True]


# --- what is computed whole ---------------------------------------------------------------------


class Stretched(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.AlphaDropout(), "no rule"),
        (nn.FractionalMaxPool2d(2, output_size=2), "no rule"),
        (Stretched(4), "no rule"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_that_cannot_be_sliced_says_why(layer, reason):
    """A subclass of a known layer may do anything; of a batch norm, it is not looked into."""
    graph = read_graph(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), layer)))
    (node,) = graph.fallbacks()
    assert node.place == f"'1.1' ({type(layer).__name__})"
    assert reason in node.reason
    assert not node.rule.mixes


@pytest.mark.parametrize("layer", [nn.LSTM(3, 3), nn.GRU(3, 3), nn.MultiheadAttention(3, 1)])
def test_layers_that_give_several_tensors(layer):
    def run(self, x):
        y = self.conv(x).flatten(2).transpose(1, 2)
        given, _ = (
            self.layer(y, y, y) if isinstance(layer, nn.MultiheadAttention) else self.layer(y)
        )
        return given

    (node,) = read(run, torch.empty(2, 3, 4, 4), layer=layer).fallbacks()
    assert node.place == f"'layer' ({type(layer).__name__})"
    assert [item.shape for item in node.call.result.items][:1] == [(None, 16, 3)]


def test_a_known_layer_that_is_called_with_two_tensors():
    """An upwards convolution may be told how large its output is to be."""

    def run(self, x):
        return self.up(self.conv(x), output_size=(8, 8))

    (node,) = read(run, torch.empty(2, 3, 4, 4), up=nn.ConvTranspose2d(3, 4, 2, 2)).fallbacks()
    assert node.place == "'up' (ConvTranspose2d)"
    assert "called with more than one tensor" in node.reason


def test_a_parametrization_that_is_no_operation_on_parameters():
    """The layer is another class then: spectral norm remembers, and changes what it remembers."""
    module = network()
    nn.utils.parametrizations.spectral_norm(module[0][0])
    (node,) = read_graph(module).fallbacks()
    assert "'0.0'" in node.place


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["0.1", "0", ""])
def test_backward_hooks_of_old(path):
    module = network()
    layer = module.get_submodule(path)
    layer.register_backward_hook(lambda *args: None)
    text = refusal(module)
    assert f"{path!r} ({type(layer).__name__}) cannot be sliced" in text
    assert "use register_full_backward_hook" in text


def test_hooks_that_compute_weights():
    """They set an attribute before each run, which slices of the parameters know nothing of."""
    module = network()
    prune.l1_unstructured(module[0][0], "weight", amount=0.5)
    text = refusal(module)
    assert "'0.0' (Conv2d) cannot be sliced: its hooks compute 'weight'" in text


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_spectral_norm_of_old():
    module = network()
    nn.utils.spectral_norm(module[0][0])
    assert "'0.0' (Conv2d) cannot be sliced: its hooks compute 'weight'" in refusal(module)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_of_old_on_what_is_no_convolution():
    module = nn.Sequential(network(), nn.utils.weight_norm(nn.Bilinear(3, 4, 5)))
    module[1].weight = module[1].weight * 2  # as after a pass
    text = refusal(module)
    assert "'1' (Bilinear)" in text
    assert "nn.utils.parametrizations.weight_norm" in text


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_of_old_and_a_hook():
    """The hook is another matter: what computes the weight is part of the layer."""
    module = network()
    nn.utils.weight_norm(module[0][0]).register_forward_hook(print)
    graph = read_graph(module)
    assert graph.hooked == ("0.0",)
    assert not list(graph.fallbacks())


def test_a_lazy_layer():
    text = refusal(nn.Sequential(nn.LazyConv2d(4, 1)))
    assert "'0" in text
    assert "lazy" in text.lower()
    module = nn.Sequential(nn.LazyConv2d(4, 1))
    module(torch.empty(1, 3, 2, 2))
    assert read_graph(module).nodes[0].call.operand.shape[1] == 3


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([nn.Conv2d(3, 7, 1), nn.Conv2d(8, 5, 1)], r"'1' \(Conv2d\) takes 8 channels.*gives 7"),
        ([nn.Conv2d(3, 7, 1), nn.BatchNorm2d(6)], r"'1' \(BatchNorm2d\) takes 6.*gives 7"),
        ([nn.Conv2d(3, 7, 1), nn.PReLU(5)], r"'1' \(PReLU\) takes 5.*gives 7"),
        ([nn.Linear(3, 7), nn.ReLU(), nn.Linear(6, 1)], r"'2' \(Linear\) takes 6.*gives 7"),
        ([nn.Conv1d(3, 7, 1), nn.MaxPool2d(2)], r"'1' \(MaxPool2d\) takes batches of 4 dim.*3"),
    ],
)
def test_neighbours_that_disagree(layers, named):
    assert re.search(named, refusal(nn.Sequential(*layers)))


def test_neighbours_that_no_input_fits():
    text = refusal(nn.Sequential(nn.Conv2d(3, 7, 1), nn.Conv1d(7, 5, 1)))
    assert "the size of Sequential's input cannot be guessed" in text
    assert "conv1d" in text
    assert "example_input" in text


def test_an_input_whose_size_cannot_be_guessed():
    """No square image gives 3 * 5 * 7 numbers."""
    module = Running(lambda self, x: self.conv(x).view(-1, 3, 5, 7))
    text = refusal(module)
    assert "the size of Running's input cannot be guessed" in text
    assert "give slice_model an example_input" in text
    assert shapes(read_graph(module, torch.empty(2, 3, 5, 7)))[-1] == (None, 3, 5, 7)


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
    with pytest.raises(ValueError, match=r"only an nn\.Module can be sliced"):
        read_graph(module)


@pytest.mark.parametrize("shape", [(5, 4, 8, 8), (3, 8, 8), (5, 3, 2, 2), (5, 3, 9, 12)], ids=str)
def test_an_example_that_does_not_fit(shape):
    text = refusal(network(), torch.empty(*shape))
    assert str(shape) in text or "'0.0' (Conv2d)" in text

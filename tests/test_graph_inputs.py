"""The arguments that a module takes and what it returns: named, matched, refused."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from helpers.reading import Running, read, refusal
from hetmp.core.errors import HetmpError
from hetmp.ops import references
from hetmp.slicing.graph import read_graph

X = torch.empty(2, 3, 4, 4)


def binding_refused(graph, *args, **kwargs) -> str:
    with pytest.raises(HetmpError) as refused:
        graph.inputs.bind(args, kwargs)
    return str(refused.value)


# --- what goes in -------------------------------------------------------------------------------


class TwoInputs(Running):
    def forward(self, x, y):
        return self.conv(x) + y


def test_two_inputs_ask_for_an_example():
    text = refusal(TwoInputs(None))
    assert "TwoInputs takes more than one input (x, y)" in text
    assert "example_input" in text


@pytest.mark.parametrize("example", [(X, X), [X, X], {"x": X, "y": X}, {"y": X, "x": X}])
def test_two_inputs_by_place_or_by_name(example):
    graph = read_graph(TwoInputs(None), example)
    assert graph.inputs.names == ["x", "y"]
    assert list(graph.training.entries.values()) == ["x", "y"]
    one, other = X.clone(), X.clone()
    for args, kwargs in [((one, other), {}), ((one,), {"y": other}), ((), {"y": other, "x": one})]:
        bound = graph.inputs.bind(args, kwargs)
        assert bound["x"] is one
        assert bound["y"] is other


class WithDefaults(Running):
    def forward(self, x, scale=2.0, mask=None, *, flipped=False):
        y = self.conv(x) * scale
        if mask is not None:
            y = y * mask
        return y.flip(3) if flipped else y


def test_arguments_with_defaults_keep_them():
    graph = read_graph(WithDefaults(None))
    assert graph.inputs.names == ["x"]
    assert graph.nodes[-1].call.args[1] == 2.0
    for args, kwargs in [((X,), {}), ((X, 2), {}), ((), {"x": X, "flipped": False, "mask": None})]:
        assert list(graph.inputs.bind(args, kwargs)) == ["x"]


def test_an_example_may_say_otherwise():
    graph = read_graph(WithDefaults(None), {"x": X, "mask": X, "scale": 3.0, "flipped": True})
    assert graph.inputs.names == ["x", "mask"]
    assert [node.call.title for node in graph.nodes] == ["Conv2d", "mul", "mul", "flip"]
    assert graph.nodes[1].call.args[1] == 3.0
    assert list(graph.inputs.bind((X, 3.0, X), {"flipped": True})) == ["x", "mask"]
    assert "sliced for scale=3.0, got 2.0" in binding_refused(graph, X, mask=X, flipped=True)


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((), {}, "WithDefaults was called with missing a required argument: 'x'"),
        ((X, 2.0, None, False), {}, "too many positional arguments"),
        ((X,), {"scaled": 3.0}, "unexpected keyword argument 'scaled'"),
        ((3,), {}, "WithDefaults takes a tensor for x, got 3"),
        ((X, 3.0), {}, "was sliced for scale=2.0, got 3.0: give slice_model an example_input"),
        ((X, X), {}, "was sliced for scale=2.0, got a tensor"),
        ((X,), {"mask": X}, "was sliced for mask=None, got a tensor: .* example_input with mask"),
        ((X,), {"flipped": True}, "was sliced for flipped=False, got True"),
    ],
)
def test_a_wrong_call_is_refused(args, kwargs, named):
    graph = read_graph(WithDefaults(None))
    with pytest.raises(HetmpError, match=named):
        graph.inputs.bind(args, kwargs)


class AnyNumber(Running):
    def forward(self, *images, **offsets):
        y = self.conv(images[0]) + images[1]
        for offset in offsets.values():
            y = y + offset
        return y


def test_any_number_of_arguments_is_that_of_the_example():
    assert "takes no named input" in refusal(AnyNumber(None))
    graph = read_graph(AnyNumber(None), (X, X))
    assert graph.inputs.names == ["images_0", "images_1"]
    assert list(graph.inputs.bind((X, X), {})) == ["images_0", "images_1"]
    assert "AnyNumber takes 2 items for images" in binding_refused(graph, X)
    assert "AnyNumber takes nothing in offsets" in binding_refused(graph, X, X, up=X)


class Nested(Running):
    def forward(self, batch):
        return self.conv(batch["image"]) + batch["noise"][0]


def test_a_dict_of_lists():
    graph = read_graph(Nested(None), {"batch": {"image": X, "noise": [X]}})
    assert graph.inputs.names == ["batch_image", "batch_noise_0"]
    image, noise = X.clone(), X.clone()
    bound = graph.inputs.bind(({"noise": (noise,), "image": image},), {})
    assert bound["batch_image"] is image
    assert bound["batch_noise_0"] is noise
    for batch, named in [
        ({"image": X}, "Nested takes image, noise in batch"),
        (X, "Nested takes image, noise in batch"),
        ({"image": X, "noise": X}, r"Nested takes 1 items for batch['noise']"),
        ({"image": X, "noise": [X, X]}, r"Nested takes 1 items for batch['noise']"),
        ({"image": X, "noise": [None]}, r"takes a tensor for batch['noise'][0], got None"),
    ]:
        assert named in binding_refused(graph, batch)


@pytest.mark.parametrize(
    ("example", "named"),
    [
        ((X,), "example_input does not fit TwoInputs: missing a required argument: 'y'"),
        ((X, X, X), "too many positional arguments"),
        ({"x": X, "z": X}, "missing a required argument: 'y'"),
        (3, "missing a required argument"),
        ((3, 4), "example_input contains no tensor"),
        ((X, torch.empty(2, 5, 4, 4)), "an input of shape .*2, 5, 4, 4.* does not fit the model"),
    ],
)
def test_an_example_that_does_not_fit_is_refused(example, named):
    with pytest.raises(HetmpError, match=named):
        read_graph(TwoInputs(None), example)


# --- what comes out -----------------------------------------------------------------------------

Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    "result",
    [
        lambda y, x: (y, x),
        lambda y, x: [y, 3, None],
        lambda y, x: {"out": y, "aux": {"in": (x, "text")}},
        lambda y, x: Pair(y, [x]),
    ],
)
def test_whatever_is_built_of_tensors_may_be_returned(result):
    graph = read(lambda self, x: result(self.conv(x), x))
    given = graph.training.result
    (entry,) = graph.training.entries
    wanted = result(graph.nodes[0].name, entry)
    assert type(given) is type(wanted)
    names = [name for name in ("conv", entry) if name in str(wanted)]
    assert list(references(given)) == names


def test_a_value_may_be_returned_twice():
    graph = read(lambda self, x: (lambda y: (y, y))(self.conv(x)))
    assert list(references(graph.training.result)) == ["conv", "conv"]


def test_no_tensor_need_be_returned():
    graph = read(lambda self, x: (self.conv(x), None)[1])
    assert graph.training.result is None
    assert [node.path for node in graph.nodes] == ["conv"]


class Segments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return {"out": self.conv(x), "size": x.shape[2:]}


def test_a_size_may_be_returned():
    graph = read_graph(Segments())
    assert set(graph.training.result) == {"out", "size"}

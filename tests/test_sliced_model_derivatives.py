"""Second derivatives and torch.func's transforms: refused on every rank, in words."""

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import batch, pick_weights, seeded, world_size
from helpers.refusing import refused
from helpers.works import works

pytestmark = pytest.mark.mpi

IMAGES = (4, 3, 6, 6)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.Tanh(), nn.Flatten(), nn.Linear(7 * 16, 5))


def model_and_module() -> tuple[hetmp.SlicedModel, nn.Module]:
    module = seeded(network)
    return hetmp.slice_model(module, pick_weights(0), verify=False), module


@works("`create_graph=True` through the model")
def test_second_derivatives_are_refused_or_right():
    """Of a penalty on the gradient of a head, which would be left out, and of the input."""
    for of in ("weight", "input"):
        model, module = model_and_module()
        results = []
        for net in (model, module):
            x = batch(IMAGES).requires_grad_()
            wanted = x if of == "input" else net.get_parameter("3.weight")

            def penalty(net=net, x=x, wanted=wanted):
                (gradient,) = torch.autograd.grad(net(x).square().mean(), wanted, create_graph=True)
                gradient.square().sum().backward()

            if net is model and world_size() > 1:
                assert "create_graph=True goes back through a sliced model" in refused(penalty)
            else:
                penalty()
                results.append(x.grad)
        if world_size() == 1:
            torch.testing.assert_close(*results, rtol=1e-10, atol=1e-14)
        output, expected = model(batch(IMAGES)), module(batch(IMAGES))  # it can go on
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)


@works("`torch.func.grad`, `vmap` and the like of the model")
def test_transforms_of_torch_func_are_refused():
    model, _ = model_and_module()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values):
        return torch.func.functional_call(model, values, (batch(IMAGES),)).square().mean()

    assert "torch.func" in refused(lambda: torch.func.grad(loss)(parameters))

"""Layers whose weight is computed from their own parameters, in the ways that are found outside."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize


class Standardized(nn.Conv2d):
    """Weight standardization as it is mostly written."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (self.weight.std((1, 2, 3), keepdim=True) + 1e-3)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Moments(nn.Conv2d):
    """As Big Transfer had it first, with a padding of its own."""

    def forward(self, x):
        v, m = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - m) / torch.sqrt(v + 1e-10)
        return F.conv2d(F.pad(x, (1, 0, 1, 0)), weight, self.bias, self.stride, groups=self.groups)


class Flattened(nn.Conv2d):
    """Sizes are asked of the weight."""

    def forward(self, x):
        rows = self.weight.view(self.weight.size(0), -1)
        rows = F.layer_norm(rows, rows.shape[1:])
        weight = rows.view_as(self.weight) * self.weight.shape[0] ** -0.5
        return F.conv2d(x, weight, self.bias, groups=self.groups)


class StdConv2d(nn.Conv2d):
    """As timm has it."""

    def forward(self, x):
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            training=True,
            momentum=0.0,
            eps=1e-6,
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledStdConv2d(nn.Conv2d):
    """As timm has it for networks without norms."""

    def __init__(self, *sizes, **how):
        super().__init__(*sizes, **how)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x):
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=(self.gain * self.scale).view(-1),
            training=True,
            momentum=0.0,
            eps=1e-6,
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Tempered(nn.Conv2d):
    """A factor for all filters, one for each input channel, a mask, and a scaled bias."""

    def __init__(self, *sizes, **how):
        super().__init__(*sizes, **how)
        self.factor = nn.Parameter(torch.tensor(0.7))
        self.inputs = nn.Parameter(torch.rand(self.in_channels))
        self.register_buffer("mask", torch.rand_like(self.weight).round())

    def forward(self, x):
        weight = self.weight * self.mask * self.factor * self.inputs.view(1, -1, 1, 1)
        return F.conv2d(x, weight, self.bias * self.factor)


class Inside(nn.Module):
    """No layer: its parameters are in modules inside it, next to a layer that it calls."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.pad = nn.Conv2d(inputs, inputs, 1)
        self.rows = nn.Module()
        self.rows.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.gain = nn.Parameter(torch.rand(outputs))

    def forward(self, x):
        weight = F.normalize(self.rows.weight, dim=(1, 2, 3)) * self.gain.view(-1, 1, 1, 1)
        return F.conv2d(self.pad(x), weight)


class Upwards(nn.ConvTranspose2d):
    def forward(self, x):
        axes = (0, 2, 3) if self.groups == 1 else (1, 2, 3)
        weight = self.weight / self.weight.square().sum(axes, keepdim=True).sqrt()
        return F.conv_transpose2d(x, weight, self.bias, self.stride, groups=self.groups)


class Rows(nn.Linear):
    def forward(self, x):
        weight = F.normalize(self.weight, dim=1)
        return F.linear(x.permute(0, 2, 3, 1), weight, self.bias).permute(0, 3, 1, 2)


class Centred(nn.Module):
    """A parametrization of the user's own."""

    def forward(self, weight):
        return weight - weight.mean(dim=(1, 2, 3), keepdim=True)


def centred(layer):
    parametrize.register_parametrization(layer, "weight", Centred())
    return layer


CASES = {
    "standardized": lambda: Standardized(7, 11, 3),
    "standardized without a bias": lambda: Standardized(7, 11, 3, stride=2, bias=False),
    "standardized with padding": lambda: Standardized(7, 11, 3, padding="same"),
    "standardized depthwise": lambda: Standardized(7, 14, 3, groups=7),
    "standardized groups": lambda: Standardized(7, 21, 3, groups=7),
    "moments": lambda: Moments(7, 11, 3),
    "flattened": lambda: Flattened(7, 11, 3),
    "batch norm": lambda: StdConv2d(7, 11, 3, bias=False),
    "batch norm with a gain": lambda: ScaledStdConv2d(7, 11, 3, padding=1),
    "batch norm depthwise": lambda: ScaledStdConv2d(7, 7, 3, groups=7),
    "transposed": lambda: Upwards(7, 11, 2, stride=2),
    "transposed groups": lambda: Upwards(7, 14, 2, groups=7),
    "linear": lambda: Rows(7, 11),
    "inside": lambda: Inside(7, 11),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(7, 11, 3)),
    "weight norm with reflections": lambda: parametrizations.weight_norm(
        nn.Conv2d(7, 11, 3, padding=1, padding_mode="reflect", bias=False)
    ),
    "weight norm depthwise": lambda: parametrizations.weight_norm(nn.Conv2d(7, 7, 3, groups=7)),
    "weight norm transposed": lambda: parametrizations.weight_norm(
        nn.ConvTranspose2d(7, 11, 2), dim=1
    ),
    "weight norm of old": lambda: nn.utils.weight_norm(nn.Conv2d(7, 11, 3)),
    "a parametrization of the user's": lambda: centred(nn.Conv2d(7, 11, 3)),
    "two parametrizations": lambda: centred(parametrizations.weight_norm(nn.Conv2d(7, 11, 3))),
}


class Network(nn.Module):
    """The layer between two that are as any other."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Conv2d(3, 7, 1), layer
        with torch.no_grad():
            channels = layer(torch.zeros(2, 7, 7, 6)).shape[1]
        self.last = nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.layer(torch.tanh(self.first(x)))))

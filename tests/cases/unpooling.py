"""Pooling that remembers places, and the way back."""

from torch import nn
from torch.nn import functional as F

from helpers.functional import full, sliced

FLAT = {1: lambda x: x.flatten(2), 2: lambda x: x, 3: lambda x: x.unsqueeze(2)}


SIZE = {1: 2, 2: (2, 3), 3: (1, 2, 2)}


def there_and_back(dims):
    """Pooling and unpooling functions over *dims* axes."""
    pool, unpool = getattr(F, f"max_pool{dims}d"), getattr(F, f"max_unpool{dims}d")

    def work(x):
        x = FLAT[dims](x)
        values, indices = pool(x, SIZE[dims], return_indices=True)
        return unpool(values.square(), indices, SIZE[dims], output_size=x.size())

    return work


def adaptive(x):
    values, indices = F.adaptive_max_pool2d(x, 2, True)
    line, _ = F.adaptive_max_pool1d_with_indices(x.flatten(2), 1)
    cube, _ = F.adaptive_max_pool3d_with_indices(x.unsqueeze(2), 1)
    return values * (indices % 5) + line.unsqueeze(3) + cube[:, :, 0]


def of_a_sample(x):
    values, indices = F.max_pool2d_with_indices(x[0], 2)
    return F.max_unpool2d(values, indices=indices, kernel_size=2)[None]


def of_a_matrix(x):
    """(n, c, h * w), which pooling takes for (c, h, w)."""
    return F.avg_pool2d(x.flatten(2), (2, 3))


CASES = {
    "1d": sliced(there_and_back(1)),
    "2d": sliced(there_and_back(2)),
    "3d": sliced(there_and_back(3), channels=(3, 3)),
    "adaptive": sliced(adaptive),
    "of-a-sample": sliced(of_a_sample),
    "over-channels": full(of_a_matrix),
}


class Remembering(nn.Module):
    """An encoder whose decoder puts the maxima back, as in SegNet."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2, return_indices=True)
        self.unpool = (nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d)[dims - 1](2)
        self.down = nn.ModuleList([conv(2, 4, 3, padding=1), conv(4, 7, 1)])
        self.up = nn.ModuleList([conv(7, 4, 1), conv(4, 3, 3, padding=1)])

    def forward(self, x):
        taken = []
        for layer in self.down:
            x = layer(x).sigmoid()
            size = x.size()
            x, indices = self.pool(x)
            taken.append((indices, size))
        for layer, (indices, size) in zip(self.up, taken[::-1], strict=True):
            x = layer(self.unpool(x, indices, output_size=size))
        return x

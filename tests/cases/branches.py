"""A module with everything that branches can do."""

import torch
from torch import nn
from torch.nn import functional as F

IMAGES = (3, 3, 8, 8)


class Everything(nn.Module):
    """Concatenation, depthwise convolution, squeeze and excitation, a shared block, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 13, 3, padding=1), nn.BatchNorm2d(13)
        self.depthwise = nn.Conv2d(13, 26, 3, padding=1, groups=13, bias=False)
        self.squeeze, self.excite = nn.Linear(26, 5), nn.Conv2d(5, 26, 1)
        self.narrow = nn.Conv2d(26, 12, 1)
        self.shared = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.SiLU(inplace=True)
        )
        self.mix = nn.Conv2d(25, 10, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(5, 7, 2, stride=2, groups=1)
        self.classes, self.mask = nn.Linear(5, 4), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        y = F.relu(self.norm(self.stem(x)))
        z = self.depthwise(y)
        gate = self.squeeze(z.mean((2, 3))).relu()
        z = z * torch.sigmoid(self.excite(gate[:, :, None, None]))
        z = self.narrow(z)
        z = self.shared(self.shared(z) + z)
        a, b = self.mix(torch.cat([z, y], dim=1)).chunk(2, 1)
        wide = torch.cat((self.up(a), x), 1)
        pooled = F.adaptive_avg_pool2d(b, 1).flatten(1)
        return {"classes": self.classes(pooled), "mask": (self.mask(wide),)}

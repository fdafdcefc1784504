"""Train a network of your own, in a loop of your own, on ranks of unequal speed.

Problem: tell 1,797 handwritten digits apart. Rank 0 is twice as fast as rank 1 and three times as
fast as rank 2, so it holds more of every layer's filters. The sliced network must end with the
numbers of the unsliced one: rank 0 trains that one as well, in the same loop, and compares.

Cost: about 6 seconds of a core for each of 3 ranks, most of them for importing torch. No files are
written.

    .venv/bin/mpirun -n 3 .venv/bin/python -m mpi4py examples/own_loop.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hetmp
from hetmp import data

EPOCHS, BATCH_SIZE = 3, 64


class Network(nn.Module):
    """A residual block between two convolutions: nothing in it knows of ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.inner = nn.Conv2d(24, 24, 3, padding=1)
        self.last = nn.Conv2d(24, 32, 3)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:  # (n, 1, 8, 8) -> (n, 10)
        x = F.relu(self.norm(self.first(x)))
        x = F.max_pool2d(x + F.relu(self.inner(x)), 2)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


def train(model: nn.Module, images: data.Split) -> float:
    """Train *model*, sliced or not, and return the loss of the last step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss = torch.zeros(())
    for epoch in range(EPOCHS):
        # Every rank gives the whole batch. The seed makes it the same batch.
        for x, labels in data.batches(images, BATCH_SIZE, seed=0, epoch=epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.double()), labels)
            loss.backward()
            optimizer.step()
    return float(loss.detach())


group = hetmp.Group()
digits = data.load("digits")
torch.manual_seed(0)
network = Network().double()  # in float64 a wrong gradient cannot pass for rounding

speeds = [1 / (1 + rank) for rank in range(group.size)]  # 1, 1/2, 1/3, ...
model = hetmp.slice_model(network, speeds)  # copies: network itself stays as it is
group.say(f"filters of 'inner' by rank: {model.hetmp.plan.layer('inner').counts}")

loss = train(model, digits.train)
state = hetmp.merge_model(model)  # whole tensors under the names of Network

if group.is_root:
    unsliced = train(network, digits.train)
    for name, expected in network.state_dict().items():
        torch.testing.assert_close(state[name], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(loss, unsliced, rtol=0, atol=1e-10)
    print(f"last loss: {loss:.6f} in slices, {unsliced:.6f} unsliced")
    print(f"{len(state)} tensors of the merged state_dict equal the unsliced network's")

"""Small models whose layers are hard to name or to capture, and their activations."""

import torch
from torch import nn

from landscape.activations import stream
from landscape.selection import layers_of

DOUBLE = torch.float64


class Branches(nn.Module):
    """A shared layer that runs twice, a dictionary, a tuple, and a module that is never called."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.shared = nn.Linear(4, 4)
        self.block = Both()
        self.pair = Pair()
        self.single = Single()
        self.idle = nn.Linear(4, 4)

    def forward(self, x):
        x = self.shared(self.shared(self.first(x)).tanh())
        return self.single(self.pair(self.block(x)["hidden"])[0])[0]


class Both(nn.Module):
    def forward(self, x):
        return {"hidden": x * 2, "logits": x + 1, "index": x.argmax(1)}


class Pair(nn.Module):
    def forward(self, x):
        return x * 3, (x.relu(), None)


class Single(nn.Module):
    def forward(self, x):
        return (x - 1, torch.arange(len(x)))


class Fold(nn.Module):
    """Windows of each example become examples, and come together again."""

    def __init__(self):
        super().__init__()
        self.windows = nn.Linear(3, 5)
        self.out = nn.Linear(10, 2)

    def forward(self, x):
        return self.out(self.windows(x.reshape(-1, 3)).reshape(len(x), -1))


class Patches(nn.Module):
    """A small vision transformer: maps, tokens, and a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(2, 8, 2, stride=2)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), 2
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 4)

    def forward(self, x):
        return self.lstm(x.transpose(0, 1))[0][-1]


class Turn(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class Last(nn.Module):
    def forward(self, x):
        return x.movedim(1, -1)


class Copy(nn.Module):
    def forward(self, x):
        return x + 0


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand(x.shape)


class Twice(nn.Module):
    """Runs its layer again for batches of more than three."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(self.layer(x)) if len(x) > 3 else self.layer(x)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make().double().eval().requires_grad_(False)


def random(*shape):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def batches(x, size):
    return [(part, part) for part in x.split(size)]


def blocks_of(model, layers, x, maps="average", size=7, **options):
    found = layers_of(model, layers, x[:3], maps=maps, **options)
    blocks = list(stream(model, found.layers, batches(x, size), maps=maps))
    dim = 1 if maps.startswith("frequency") else 0
    return {
        name: torch.cat([block[i] for block in blocks], dim) for i, name in enumerate(found.names)
    }


def num_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def raising(*_):
    raise RuntimeError("out of order")

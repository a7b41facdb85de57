"""Tiny problems on which every analysis is tested: one for each way in which models differ."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset, TensorDataset

from landscape.datasets import Batches
from landscape.states import State
from landscape.task import Task, wrong

cross_entropy = partial(F.cross_entropy, reduction="none")


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).mean(1)


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


class Residual(nn.Module):
    """Batch norm behind batch norm, around a skip: deep statistics depend on early ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.branch(x)).mean((2, 3)))


class Tokens(nn.Module):
    """Embedding tied to the output, layer norm, a constant table, and two named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.norm = nn.LayerNorm(5)
        self.out = nn.Linear(5, 7, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("table", torch.linspace(-1, 1, 4)[:, None].repeat(1, 5))

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        x = self.embed(tokens) + self.table
        return self.out(self.norm(x) * scale[:, None, None])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class NamedInputs(Dataset[Any]):
    def __init__(self, tokens: Tensor, scale: Tensor, targets: Tensor) -> None:
        self.tensors = tokens, scale, targets

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        tokens, scale, targets = self.tensors
        return {"tokens": tokens[index], "scale": scale[index]}, targets[index]


def uneven(dataset: Dataset[Any]) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=9)


@dataclass(frozen=True)
class Case:
    """A model, its data (46 examples, in uneven batches) and its loss."""

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[torch.Generator], Any]
    loss: Any = cross_entropy
    metrics: Any = None

    def task(self) -> Task:
        metrics = {"error": wrong} if self.metrics is None else self.metrics
        data = self.data(torch.Generator().manual_seed(7))
        return Task(self.name, self.model(), self.loss, data, metrics)

    def states(self, num: int = 2) -> list[State]:
        """States of unlike initialisations, with batch-norm statistics that are not the initial."""
        states = []
        for seed in range(num):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                state = self.model().state_dict()
                for name, tensor in state.items():
                    if name.endswith("running_mean"):
                        tensor.normal_()
                    elif name.endswith("running_var"):
                        tensor.uniform_(0.5, 2)
                    elif name.endswith("num_batches_tracked"):
                        tensor.fill_(10 + seed)
            states.append(state)
        return states


def _vectors(generator: torch.Generator) -> Batches:
    x = torch.randn(46, 6, generator=generator)
    return Batches(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), batch_size=10)


def _images(generator: torch.Generator) -> Batches:
    x = torch.randint(0, 256, (46, 2, 5, 5), generator=generator, dtype=torch.uint8)
    y = torch.arange(46) % 3  # brightness depends on the class, so sorting by class matters
    x = (x // 3 + (y * 60)[:, None, None, None]).to(torch.uint8)
    return Batches(x, y, batch_size=10, transform=scaled)


def scaled(images: Tensor) -> Tensor:
    return images.float() / 128 - 1


def _regression(generator: torch.Generator) -> Any:
    x = torch.randn(46, 6, generator=generator)
    return uneven(TensorDataset(x, x[:, :2] ** 2))


def _sentences(generator: torch.Generator) -> Any:
    tokens = torch.randint(0, 7, (46, 4), generator=generator)
    return uneven(NamedInputs(tokens, torch.rand(46, generator=generator), tokens.roll(1, 1)))


def _sequences(generator: torch.Generator) -> Any:
    x = torch.randn(46, 5, 3, generator=generator)
    return uneven(TensorDataset(x, (x.sum((1, 2)) > 0).long()))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))


def _plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2))


def _group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )


CASES = {
    case.name: case
    for case in (
        Case("mlp", _mlp, _vectors),
        Case("regression", _plain, _regression, squared_error, {}),
        Case("residual", Residual, _images),
        Case("group-norm", _group_norm, _images),
        Case("tokens", Tokens, _sentences, token_loss, {}),
        Case("recurrent", Recurrent, _sequences),
    )
}

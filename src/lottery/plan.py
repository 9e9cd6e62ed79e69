"""What follows from params.yaml: iterations, sizes, images, the order of the levels, and what a missing key means.

Every stage depends on this module, because all of it decides bytes; the schema and its messages, in `params`, do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from lottery.core.arms import TWINNED, Rows
from lottery.core.layout import PUBLISHED, Kind, Layout, perceptron, published

if TYPE_CHECKING:
    from lottery.params import Criterion, Data, Level, Network, Prune, Scope, Train


class Examples(NamedTuple):
    """What is known of a data set before it is there."""

    training: int  # images, before the validation images are taken out
    shape: tuple[int, ...]  # of one: (height, width), with channels as a third, or (features,)
    classes: int


DATA: Mapping[str, Examples] = {
    "mnist": Examples(60_000, (28, 28), 10),
    "fashion-mnist": Examples(60_000, (28, 28), 10),
    "kmnist": Examples(60_000, (28, 28), 10),
    "cifar-10": Examples(50_000, (32, 32, 3), 10),
    "digits": Examples(1_438, (8, 8), 10),  # of 1,797 images; the rest is its test set
}
OWN: Final = "own"  # data, and a network, of the person who runs the pipeline

BEFORE_TRAINING = ("snip", "synflow")  # criteria that look at untrained weights

# the values of keys that params.yaml may leave out
SCHEDULE: Final = "constant"
MOMENTUM: Final = 0.0
WEIGHT_DECAY: Final = 0.0
TWINS: Final = False
REWIND: Final = 0
SOURCE: Final = "ticket"
NETWORK: Final = "perceptron"
DATA_FILE: Final = "data/example.npz"
NETWORK_FILE: Final = "networks/example.py"
NETWORK_CLASS: Final = "Net"
CONV_RATE: Final = 0.5  # as in the paper's Conv-2
OUTPUT_RATE: Final = 0.5  # prune.output_rate's default; beside 0 the only value that scope global accepts


class Plan:
    """The part of `params.Params` that computes: what its sections come to."""

    if TYPE_CHECKING:  # fields of `Params`, which pydantic must not find here
        data: Data
        network: Network
        train: Train
        prune: Prune
        levels: Mapping[str, Level]

    @property
    def data_file(self) -> Path:
        """What ``download`` leaves, from the repository's root."""
        return Path("data") / f"{self.data.name}.safetensors"

    @property
    def examples(self) -> Examples:
        """The form of the data set. Raises LotteryError where it is a person's own and cannot be read."""
        if self.data.name != OWN:
            return DATA[self.data.name]
        from lottery.files.own_data import facts  # which needs numpy

        own = facts(_folder(self.data.file) / self.data.file)
        return Examples(own.train, own.shape, own.classes)

    @property
    def can_be_drawn(self) -> bool:
        """Whether the examples are grey square images, as a person draws them in `lottery demo`."""
        shape = self.examples.shape
        return len(shape) > 1 and shape[0] == shape[1] and shape[2:] in ((), (1,))

    @property
    def layout(self) -> Layout:
        """What every network is made of. Raises LotteryError where it is a person's own and cannot be used."""
        network, (_, shape, classes) = self.network, self.examples
        if network.name in PUBLISHED:
            return published(network.name, shape, classes)
        if network.name == OWN:
            from lottery.core.networks.own import lay_out  # which needs torch

            return lay_out(network.file, network.class_, network.arguments, shape, classes, _folder(network.file))
        return perceptron((prod(shape), *(network.hidden or ()), classes), shape)

    @property
    def without_flow(self) -> str:
        """The words that say why synflow has no meaning for a person's own network; empty where it has one."""
        layout = self.layout
        if layout.own is None:
            return ""
        from lottery.core.networks.own import normalized_by_input
        from lottery.core.pruning import without_flow

        by_input = normalized_by_input(layout.own)
        return f", whose {by_input[0]} divides by the size of what flows in" if by_input else without_flow(layout)

    @property
    def slower(self) -> dict[Kind, float]:
        """Which kinds of layers are pruned at a fraction of a step's rate."""
        conv_rate = CONV_RATE if self.prune.conv_rate is None else self.prune.conv_rate
        return {"output": self.prune.output_rate, "convolution": conv_rate}

    @property
    def validation_images(self) -> int:
        """Training images held out for early stopping: ``data.validation``, but a tenth for ``digits``."""
        return DATA["digits"].training // 10 if self.data.name == "digits" else self.data.validation

    @property
    def training_images(self) -> int:
        """Images left to train on, validation images taken out."""
        return self.examples.training - self.validation_images

    @property
    def iterations(self) -> int:
        """Iterations that every network trains for; the incomplete last batch of an epoch is dropped."""
        if self.train.iterations is not None:
            return self.train.iterations
        return (self.train.epochs or 0) * (self.training_images // self.train.batch_size)

    @property
    def order(self) -> tuple[str, ...]:
        """The names of the levels, every parent before its children, and otherwise as in the file."""
        places = {name: place for place, name in enumerate(self.levels)}
        children: dict[str, list[str]] = {}
        for name, level in self.levels.items():
            children.setdefault(level.parent, []).append(name)
        order: list[str] = []
        ready = [(places[name], name) for name in children.get("dense", ())]
        while ready:
            _, name = heappop(ready)
            order.append(name)
            for child in children.get(name, ()):
                heappush(ready, (places[child], child))
        return tuple(order)

    def path(self, level: str) -> tuple[float, ...]:
        """The sparsities from dense down to ``level``, its own the last; dense's is empty.

        Raises KeyError where there is no such level.
        """
        path: list[float] = []
        while level != "dense":
            path.append(self.levels[level].sparsity)
            level = self.levels[level].parent
        return tuple(reversed(path))

    def arms(self, level: str) -> tuple[str, ...]:
        """The arms of a level."""
        return ("dense",) if level == "dense" else self.levels[level].arms or self.prune.arms

    def rows(self, level: str) -> Rows:
        """The networks of a level, twins left out."""
        return Rows(self.arms(level), self.train.seeds)

    def networks(self, level: str) -> int:
        """The number of networks that a level trains, twins included."""
        arms = self.arms(level)
        twins = sum(arm in TWINNED for arm in arms) if self.train.twins else 0
        return (len(arms) + twins) * len(self.train.seeds)

    @property
    def every_arm(self) -> tuple[str, ...]:
        """The arms of all levels, each once."""
        return tuple(dict.fromkeys(arm for level in self.order for arm in self.arms(level)))

    def criterion(self, level: str) -> Criterion:
        """By what a level's weights are ranked."""
        return self.levels[level].criterion or self.prune.criterion

    def scope(self, level: str) -> Scope:
        """Whether a level's weights are ranked layer by layer or all together."""
        return self.levels[level].scope or self.prune.scope


def _folder(file: str) -> Path:
    """The folder that a file of the repository is named from: this one, or in a subfolder the nearest that has it."""
    above = [] if Path(file).is_file() else Path.cwd().parents
    return next((folder for folder in above if (folder / file).is_file()), Path())

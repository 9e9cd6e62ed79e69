"""Networks of your own, as an example: one for images, with batch normalization, and one for tables.

With `network: {name: own, file: networks/example.py, class: Net, arguments: {}}` in params.yaml the pipeline trains,
prunes and rewinds it as any other. The weights of Linear and Conv layers are pruned; biases and normalization are not.
docs/adapt.md says what a module may do.
"""

from torch import Tensor, nn


class Net(nn.Module):
    """Two convolutions for images [N, channels, side, side]; gives logits [N, classes]."""

    def __init__(
        self, side: int = 8, channels: int = 1, filters: int = 8, classes: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, filters, 3, padding=1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(filters, 2 * filters, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * filters),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(2 * filters * (side // 4) ** 2, 4 * filters)
        self.output = nn.Linear(4 * filters, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of scaled images [N, channels, side, side]."""
        values = self.dropout(self.features(images).flatten(1))
        return self.output(self.hidden(values).relu())


class Table(nn.Module):
    """A perceptron for features [N, D], such as those of data/example.npz; gives logits [N, classes]."""

    def __init__(self, features: int = 13, units: int = 32, classes: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, units), nn.LayerNorm(units), nn.ReLU(), nn.Linear(units, classes)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits [N, classes] of scaled features [N, D]."""
        return self.layers(features)

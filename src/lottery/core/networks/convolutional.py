"""Published convolutional networks, as modules that take scaled pixels [N, D] and give logits [N, C]."""

from torch import Tensor, channels_last, nn
from torch.nn.functional import max_pool2d, relu

from lottery.core.layout import PUBLISHED, Layout


class Convolutional(nn.Module):
    """A network of `layout.PUBLISHED`. Where a convolution is pooled, it is rectified after that.

    To pool first gives what rectifying first gives, in three quarters of the time.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._form, self._example = PUBLISHED[layout.family], layout.example
        for piece in layout.weights:
            outputs, inputs, *_ = piece.shape
            layer: nn.Module = nn.Linear(inputs, outputs)
            if piece.kind == "convolution":
                layer = nn.Conv2d(inputs, outputs, self._form.kernel, padding=self._form.padding)
            self.add_module(piece.layer, layer)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [N, C] of scaled pixels [N, D]."""
        values = inputs.reshape(-1, *(*self._example, 1)[:3]).movedim(3, 1).to(memory_format=channels_last)
        *layers, output = self.children()
        for place, layer in enumerate(layers, start=1):
            if place == len(self._form.filters) + 1:
                values = values.flatten(1)
            values = layer(values)
            if place <= len(self._form.filters) and place % self._form.pool_every == 0:
                values = max_pool2d(values, 2)
            values = relu(values)
        logits: Tensor = output(values)
        return logits

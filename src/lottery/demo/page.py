"""What the page shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from lottery import LotteryError
from lottery.demo.frame import Frame, Pixels, as_address, as_ink
from lottery.demo.networks import Network, load_networks
from lottery.files.data import TORCHVISION_CLASSES, load_split, torchvision_datasets
from lottery.params import Params
from lottery.templates import environment

if TYPE_CHECKING:
    from gradio import Blocks

HERE = Path(__file__).parent
MEASURED = 10_000  # images that the frame is measured on
TEMPLATE = environment(HERE).get_template("page.html.j2")


@dataclass(frozen=True)
class Demo:
    """The networks of a workspace, and what the page says of them."""

    data: str
    frame: Frame
    networks: Sequence[Network]  # dense first
    classes: Sequence[str]  # their names

    @classmethod
    def of(cls, p: Params) -> "Demo":
        """Load what params.yaml asks for. Raises LotteryError where an output is missing."""
        count = p.examples.classes
        if not p.can_be_drawn:
            raise LotteryError(
                f"params.yaml: data.name: {p.data.name} has no grey square images, and others cannot be drawn; "
                "choose mnist, fashion-mnist, kmnist or digits"
            )
        split = load_split(p.data_file, p.validation_images, p.data.scale)
        networks = load_networks(p, split.scaling)
        images = split.train.pixels[:MEASURED].numpy().reshape(-1, *networks[0].connections.shape)
        classes = [str(number) for number in range(count)]
        if p.data.name in ("fashion-mnist", "kmnist"):
            classes = getattr(torchvision_datasets(), TORCHVISION_CLASSES[p.data.name]).classes
        return cls(p.data.name, Frame.of(images), networks, classes)

    def answer(self, drawing: str | None, density: float) -> tuple[str, str, str]:
        """As HTML: what the networks get, what the one nearest to a density in percent says, and what all say.

        ``drawing`` is a canvas as a data address; without one, nothing is said.
        """
        image = self.frame(as_ink(drawing)) if drawing else None
        said = [self._said(network, image) for network in self.networks]
        chosen = min(said, key=lambda one: abs(one["network"].density - density))
        empty = np.zeros((self.frame.side, self.frame.side), np.uint8)
        parts = self.parts(dense=said[0])
        return (
            parts.seen(as_address(empty if image is None else image)),
            parts.chosen(chosen),
            parts.every(said, chosen),
        )

    def parts(self, **names: Any) -> Any:
        """The macros of page.html.j2."""
        return TEMPLATE.make_module({"demo": self, **names})

    def _said(self, network: Network, image: Pixels | None) -> dict[str, Any]:
        shares = np.zeros(len(self.classes))
        if image is not None:
            shares = softmax(network.logits(image[None])[0].astype(np.float64))
        first = None if image is None else int(shares.argmax())
        return {"network": network, "picture": network.picture(image), "shares": shares.tolist(), "first": first}


def page(demo: Demo) -> "Blocks":
    """The page, which asks for an answer whenever the pen or the slider moves."""
    import gradio

    parts, sparsest = demo.parts(), min(network.density for network in demo.networks)
    blocks = gradio.Blocks(title="Lottery tickets: draw", analytics_enabled=False, fill_width=True)
    with blocks:
        gradio.HTML(parts.head())
        with gradio.Row():
            with gradio.Column(min_width=300, scale=0):
                pad = gradio.HTML(
                    html_template=parts.pad(), js_on_load=(HERE / "pad.js").read_text(encoding="utf-8"), elem_id="pad"
                )
                seen = gradio.HTML(elem_id="seen")
            with gradio.Column(min_width=300):
                slider = gradio.Slider(
                    0,
                    100,
                    round(sparsest, 1),
                    step=0.1,
                    label="Density: % of the weights that are kept",
                    elem_id="density",
                    buttons=[],
                )
                chosen = gradio.HTML(elem_id="chosen")
        every = gradio.HTML(elem_id="every")
        gradio.on(
            [blocks.load, pad.change, slider.input],
            demo.answer,
            [pad, slider],
            [seen, chosen, every],
            queue=False,
            trigger_mode="always_last",  # of what comes while an answer is on its way, the last asks again
            show_progress="hidden",
            api_visibility="private",
        )
    return blocks

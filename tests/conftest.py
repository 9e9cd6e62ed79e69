"""What the tests share: hypothesis that draws the same examples every time, a folder to work in, and small data."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clones import clone, finished, origin  # noqa: F401  # fixtures
from hypothesis import HealthCheck, settings

from lottery.core.images import Images, Scaling, Split
from lottery.core.layout import Layout
from lottery.core.stack import Masks, everything

for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # a make that a test starts is none of `make test`'s
    os.environ.pop(name, None)

# a shell that starts `make test` in the background has it ignore these, and all that it starts
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")
torch.set_num_threads(1)  # on tensors this small two threads wait for each other longer than they work


def random_masks(networks: int, layout: Layout, density: float, seed: int = 0) -> Masks:
    """Masks that keep about this fraction of the weights of each layer, at random places."""
    draws, masks = torch.Generator().manual_seed(seed), everything(networks, layout)
    for mask in masks.weights:
        mask.copy_(torch.rand(mask.shape, generator=draws) < density)
    return masks


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the current one and as the repository's root."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def make_split() -> Callable[..., Split]:
    """A function that makes a split of noise: ``train`` + ``validation`` images of ``pixels`` pixels, some blank."""

    def make(train: int, validation: int, pixels: int, classes: int, seed: int = 0) -> Split:
        draws = torch.Generator().manual_seed(seed)
        images = torch.randint(256, (train + validation, pixels), generator=draws, dtype=torch.uint8)
        images[torch.rand(images.shape, generator=draws) < torch.rand(pixels, generator=draws)] = 0
        labels = torch.randint(classes, (train + validation,), generator=draws)
        return Split(
            Images(images[:train], labels[:train]), Images(images[train:], labels[train:]), Scaling((128.0,), (74.0,))
        )

    return make


@pytest.fixture(scope="session")
def digits() -> tuple[Split, Images]:
    """scikit-learn's 1,797 images of 8x8 pixels: 1,300 to train on, 150 for validation and 347 to test on."""
    from sklearn.datasets import load_digits  # takes 2 s, which tests without it need not spend

    data = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))  # the last were written by other people
    pixels = torch.from_numpy(data.images).flatten(1).to(torch.uint8)[order]  # 0 to 16
    labels = torch.from_numpy(data.target).long()[order]
    train, validation, test = (slice(0, 1300), slice(1300, 1450), slice(1450, 1797))
    scaling = Scaling((float(pixels[train].double().mean()),), (float(pixels[train].double().std()),))
    split = Split(Images(pixels[train], labels[train]), Images(pixels[validation], labels[validation]), scaling)
    return split, Images(pixels[test], labels[test])

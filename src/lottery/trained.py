"""A trained network as a torch module, for whoever goes on with it: `lottery.load`."""

import shutil
from pathlib import Path

from dvc.api import DVCFileSystem
from torch import Tensor, nn

from lottery import LotteryError, params
from lottery.core.families import accuracy, family
from lottery.core.images import Scaling
from lottery.core.networks.own import learn
from lottery.core.stack import Masks, Stack
from lottery.files.artifacts import load_contents, load_masks, load_parameters
from lottery.files.data import load_split, load_test
from lottery.files.workplace import root, scratch
from lottery.params import Params
from lottery.plan import OWN
from lottery.provenance import git
from lottery.ticket.export import export as write
from lottery.ticket.ticket import Ticket
from lottery.ticket.workspace import ARM, best_seed
from lottery.tracking.address import first_line
from lottery.tracking.outputs import recorded


class Network(nn.Module):
    """A network at its early-stopping iteration, which verdicts judge; its pruned weights are 0.

    It takes uint8 images, or float32 features, [N, ...], scales them, and gives logits [N, C].
    """

    def __init__(self, parameters: Stack, masks: Masks, scaling: Scaling, test_accuracy: float) -> None:
        super().__init__()
        self.scaling = scaling
        self.test_accuracy = test_accuracy  # a fraction
        self.layers = family(parameters.layout).module(parameters)
        for index, mask in enumerate(family(masks.layout).module_masks(masks)):
            self.register_buffer(f"mask{index}", mask)  # bool, of a layer's weight's shape, True where it is kept

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C] of uint8 images, or float32 features, [N, ...]."""
        logits: Tensor = self.layers(self.scaling(images.flatten(1)))
        return logits


def load(level: str, arm: str = "ticket", seed: int = 0, rev: str | None = None) -> Network:
    """Load one trained network.

    It is the workspace's, or that of ``rev``: a commit, or a DVC experiment by name, from DVC's cache or remote. Raises
    LotteryError where there is no such network, or where its files are not within reach.
    """
    if rev is None:
        _learn_own()
        return _load(root(), level, arm, seed)
    if "/" in level or level.startswith("."):  # it becomes a path
        raise LotteryError(f"level {level}: no such level; the name of one has letters, digits and hyphens alone")
    # DVC takes a project in a subfolder of a git repository for a repository within one, and names paths from git's
    prefix = git("-C", str(root()), "rev-parse", "--show-prefix")
    with scratch() as folder:
        try:
            files = DVCFileSystem(str(root()), rev=rev, subrepos=True)
            for path in ("dvc.lock", "data", f"models/{level}"):
                if not files.exists(f"{prefix}{path}"):
                    raise LotteryError(f"{rev}: has no {path}")
                files.get(f"{prefix}{path}", str(folder / path), recursive=True)
            if (network := _made(folder, level, rev).network).name == OWN:
                learn(files.read_text(f"{prefix}{network.file}"))
        except LotteryError:
            raise
        except Exception as error:  # of DVC's, its data packages' or a remote's
            raise LotteryError(f"{rev}: DVC cannot read {level}: {first_line(error)}") from error
        return _load(folder, level, arm, seed, rev)


def export(
    level: str, arm: str | None, seed: int | None, to: Path, half: bool = False, initialization: bool = False
) -> Ticket:
    """Write the files of a network of the workspace into a folder; without a seed, of that with the lowest loss.

    Raises LotteryError where there is no such network, or where the folder holds something.
    """
    _learn_own()
    p, arm = _made(root(), level), arm or ("dense" if level == "dense" else ARM)
    models = root() / "models" / level
    if seed is None and arm in load_contents(models).rows.arms:
        seed = best_seed(models, arm)
    _row(models, arm, seed or 0)
    try:
        if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
            raise LotteryError(f"--to {to}: is there already; name an empty folder, or a new one")
        to.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise LotteryError(f"--to {to}: cannot be made ({error}); name another folder") from error
    with scratch() as folder:
        ticket = write(folder, p, root(), level, (arm, seed or 0), "half" if half else "float32", initialization)
        shutil.copytree(folder, to, dirs_exist_ok=True)
    return ticket


def _learn_own() -> None:
    """Read the file of a person's own network, which is named from the root."""
    file = root() / params.load(root() / "params.yaml").network.file
    if file.is_file():
        learn(file.read_text(encoding="utf-8"))


def _made(folder: Path, level: str, rev: str = "") -> Params:
    """The parameters that made a level. Raises LotteryError where there is no such level."""
    try:
        lock = (folder / "dvc.lock").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LotteryError(f"dvc.lock: cannot be read ({error}); `dvc repro` makes it") from error
    # the parameters that made it, which params.yaml may not have any more
    made = {entry.name: entry.params for entry in recorded(lock, params.load(root() / "params.yaml"), rev)}
    levels = [name for name in made if name not in ("download", "evaluate", "export", "plot")]
    if level not in levels:
        raise LotteryError(f"level {level}: no such level; the levels are {', '.join(levels)}")
    return made[level]


def _row(models: Path, arm: str, seed: int) -> int:
    """The row of a network in a level's folder. Raises LotteryError where it has no such network."""
    networks = list(load_contents(models).rows)
    if (arm, seed) not in networks:
        has = ", ".join(f"{arm} {seed}" for arm, seed in networks)
        raise LotteryError(f"level {models.name}, {arm}, seed {seed}: no such network; {models.name} has {has}")
    return networks.index((arm, seed))


def _load(folder: Path, level: str, arm: str, seed: int, rev: str = "") -> Network:
    models, p = folder / "models" / level, _made(folder, level, rev)
    here = [_row(models, arm, seed)]
    parameters = load_parameters(models, "early_stopping").rows(here)
    scaling = load_split(folder / p.data_file, p.validation_images, p.data.scale).scaling
    test = family(parameters.layout).examples(load_test(folder / p.data_file), scaling)
    masks = load_masks(models).rows(here)
    return Network(parameters, masks, scaling, float(accuracy(parameters, test, 1)))

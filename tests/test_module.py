"""Any torch module as a family of networks: LeNet-5, and a perceptron that is a module against the hand-written one."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import random_masks
from safetensors.torch import load, save
from torch import nn
from torch.nn.functional import cross_entropy

from lottery.core.families import accuracy, family, score
from lottery.core.images import CHUNK, Images, Scaling, Split
from lottery.core.layout import Layout, described, description, perceptron, published
from lottery.core.networks.convolutional import Convolutional
from lottery.core.networks.own import lay_out
from lottery.core.pruning import CRITERIA, Evidence, density, prune_globally, prune_layers, weights_kept
from lottery.core.stack import Stack, everything, initialize
from lottery.core.training import Group, Recipe, State, Task, train
from lottery.evaluation.structure import describe, of_networks, weights_on_paths

CLASSES = 10
LENET = published("lenet-5", (28, 28), 10)
SIZES = (20, 12, 9, CLASSES)
MakeSplit = Callable[..., Split]


# a perceptron as people write it, with the layers' names of the hand-written one
MLP = f"""
from torch import nn

class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer0, self.layer1, self.layer2 = nn.Linear({SIZES[0]}, 12), nn.Linear(12, 9), nn.Linear(9, {CLASSES})

    def forward(self, inputs):
        return self.layer2(self.layer1(self.layer0(inputs).relu()).relu())
"""


@pytest.fixture
def mlp(tmp_path: Path) -> Layout:
    """The layout of a person's own perceptron."""
    file = tmp_path / "mlp.py"
    file.write_text(MLP)
    return lay_out(str(file), "Mlp", {}, (SIZES[0],), CLASSES)


def _networks(layout: Layout, count: int = 2) -> Stack:
    """Fresh networks with biases that are not 0."""
    return initialize(layout, "kaiming-uniform", [torch.Generator().manual_seed(seed) for seed in range(count)])


def _both(mlp: Layout, count: int = 2) -> tuple[Stack, Stack]:
    """The same perceptrons as modules and as the hand-written family has them."""
    ours, theirs = Stack.zeros(count, mlp), _networks(perceptron(SIZES), count)
    for mine, weight in zip(ours.weights, theirs.weights, strict=True):
        mine.copy_(weight.mT)
    for mine, bias in zip(ours.biases, theirs.biases, strict=True):
        mine.copy_(bias)
    return ours, theirs


# --- against the hand-written perceptron -----------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["snip", "synflow"])
def test_criteria_by_autograd_give_the_scores_of_the_hand_written_perceptron(
    mlp: Layout, make_split: MakeSplit, criterion: str
) -> None:
    split = make_split(300, 10, SIZES[0], CLASSES)
    scores = []
    for networks in _both(mlp):
        masks = everything(2, networks.layout)
        for mask in masks.weights:
            mask[:, 0, 0] = False  # the same connection in both
        evidence = Evidence(networks, networks, (0, 1), (0.5,), split)
        scores.append(CRITERIA[criterion](evidence, masks))
    for ours, theirs in zip(scores[0].weights, scores[1].weights, strict=True):
        torch.testing.assert_close(ours.mT, theirs, rtol=1e-4, atol=1e-7)


def test_a_module_is_measured_as_the_hand_written_perceptron(mlp: Layout, make_split: MakeSplit) -> None:
    split = make_split(10, CHUNK + 30, SIZES[0], CLASSES)
    measured = [
        score(networks, family(networks.layout).examples(split.validation, split.scaling)) for networks in _both(mlp)
    ]
    torch.testing.assert_close(measured[0], measured[1])


def test_a_module_trains_as_the_hand_written_perceptron(mlp: Layout, make_split: MakeSplit) -> None:
    split, recipe = make_split(100, 20, SIZES[0], CLASSES), Recipe(20, 10, 0.01, 5)
    ours, theirs = (train(networks, None, [0, 1], (), split, recipe) for networks in _both(mlp))
    for mine, weight in zip(ours.final.weights, theirs.final.weights, strict=True):
        torch.testing.assert_close(mine.mT, weight, rtol=1e-3, atol=1e-4)


def test_a_module_has_the_structure_and_the_picture_of_the_hand_written_perceptron(mlp: Layout) -> None:
    ours, theirs = everything(2, mlp), random_masks(2, perceptron(SIZES), 0.1)
    for mine, mask in zip(ours.weights, theirs.weights, strict=True):
        mine.copy_(mask.mT)
    known = ["arm", "layer", "density", "overlap", "chance"]  # nobody knows which layer of a module reads which
    tables = [describe({"ticket": masks}) for masks in (ours, theirs)]
    pd.testing.assert_frame_equal(*(table[known] for table in tables))
    assert tables[0].drop(columns=known).isna().all(axis=None)
    assert [*of_networks(ours)] == ["effective_density"]
    assert of_networks(ours)["effective_density"].isnan().all()
    pictures = [family(masks.layout).picture(masks) for masks in (ours, theirs)]
    torch.testing.assert_close(*pictures, equal_nan=True)


# --- LeNet-5 ---------------------------------------------------------------------------------------------------------


def test_lenet_5_has_the_pieces_of_its_layout_and_430500_weights() -> None:
    module = Convolutional(LENET)
    parameters = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert parameters == {piece.name: piece.shape for piece in LENET.pieces}
    assert LENET.prunable == 430_500
    assert LENET.titles == ["convolution 1", "convolution 2", "hidden layer 1", "output layer"]
    assert described(**description(LENET)) == LENET
    for name, layer in module.named_children():
        fans = nn.init._calculate_fan_in_and_fan_out(layer.weight)
        assert {piece.fans for piece in LENET.pieces if piece.layer == name} == {fans}


def test_the_gradients_of_lenet_5_are_autograds_and_pooling_first_changes_nothing(make_split: MakeSplit) -> None:
    split, networks = make_split(30, 5, 784, CLASSES), _networks(LENET)
    batch = torch.randint(30, (2, 8), generator=torch.Generator().manual_seed(0))
    learner, log_likelihoods = family(LENET).lessons(split).learner(networks, 8), torch.empty(2, 8, 1)
    learner(batch, log_likelihoods)
    learner(batch, log_likelihoods)  # what the first call left behind adds nothing to the second
    for row in range(2):
        pieces = {piece.name: networks[piece.name][row].double().requires_grad_() for piece in LENET.pieces}
        values = split.scaling(split.train.pixels[batch[row]]).double().view(-1, 1, 28, 28)
        for layer in ("convolution1", "convolution2"):
            values = torch.conv2d(values, pieces[f"{layer}.weight"], pieces[f"{layer}.bias"]).relu()
            values = torch.max_pool2d(values, 2)
        values = values.flatten(1) @ pieces["hidden1.weight"].T + pieces["hidden1.bias"]
        logits = values.relu() @ pieces["output.weight"].T + pieces["output.bias"]
        losses = cross_entropy(logits, split.train.labels[batch[row]], reduction="none")
        losses.mean().backward()
        torch.testing.assert_close(-log_likelihoods[row, :, 0].double(), losses.detach(), rtol=1e-4, atol=1e-5)
        for name, piece in pieces.items():
            difference = learner.gradients[name][row].double() - piece.grad
            assert difference.norm() <= 1e-4 * piece.grad.norm()


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_lenet_5_is_the_same_bits_alone_and_in_a_stack_and_its_pruned_weights_stay_zero(
    make_split: MakeSplit, density: float
) -> None:
    split, recipe = make_split(40, 10, 784, CLASSES), Recipe(4, 10, 0.01, 2)
    masks = random_masks(3, LENET, density, 0)
    start = _networks(LENET, 3).masked(masks)
    together = train(start, masks, [0, 1, 2], (0.5,), split, recipe, threads=2)
    assert torch.equal(together.final.masked(masks).flat, together.final.flat)
    assert (together.final.flat != start.flat).any(dim=1).all()
    for row in range(3):
        alone = train(start.rows([row]), masks.rows([row]), [row], (0.5,), split, recipe)
        assert torch.equal(alone.final.flat[0], together.final.flat[row])
        assert torch.equal(alone.early_stopping.flat[0], together.early_stopping.flat[row])
    examples = family(LENET).examples(split.validation, split.scaling)
    assert torch.equal(accuracy(together.final, examples, 1), accuracy(together.final, examples, 2))


def test_a_saved_state_of_lenet_5_goes_on_to_the_same_bits(make_split: MakeSplit) -> None:
    split, recipe = make_split(40, 10, 784, CLASSES), Recipe(6, 10, 0.01, 2)
    task, lessons = Task(LENET, (0,), (), recipe), family(LENET).lessons(split)
    states = []
    for interrupted in (False, True):
        state = State.begin(task, _networks(LENET, 1))
        group = Group(0, task, None, lessons, state)
        while not group.finished:
            group.advance()
            if interrupted:
                group = Group(0, task, None, lessons, State.of(load(save(group.state.tensors())), LENET))
        states.append(group.state.tensors())
    assert save(states[0]) == save(states[1])


@pytest.mark.parametrize("conv_rate", [0.0, 0.5, 1.0])
def test_convolutions_are_pruned_at_their_fraction_of_each_steps_rate(conv_rate: float) -> None:
    scores, slower = _networks(LENET, 1), {"output": 0.5, "convolution": conv_rate}
    p80 = prune_layers(scores, everything(1, LENET), 0.8, 0.0, slower)
    p95 = prune_layers(scores, p80, 0.95, 0.8, slower)
    first = [round((1 - conv_rate * 0.8) * size) for size in (500, 25_000)]
    assert weights_kept(p80)[0].tolist() == [*first, 80_000, 3000]
    second = [round((1 - conv_rate * (1 - 0.05 / 0.2)) * kept) for kept in first]
    assert weights_kept(p95)[0].tolist() == [*second, 20_000, 1875]


def test_convolutions_of_rate_0_are_left_whole_by_a_global_ranking_too() -> None:
    scores, masks = _networks(LENET, 1), everything(1, LENET)
    kept = weights_kept(prune_globally(scores, masks, 0.9, {"convolution": 0}))[0].tolist()
    assert kept[:2] == [500, 25_000]
    assert sum(kept) == 43_050


@pytest.mark.parametrize("share", [0.002, 0.01, 0.2])
def test_weights_on_paths_through_channels_are_those_that_anything_flows_through(share: float) -> None:
    masks = random_masks(2, LENET, share, 0)
    networks = Stack(torch.ones(2, LENET.starts[-1]), LENET)
    flows = (family(LENET).flow(networks, masks).flat > 0).sum(dim=1)
    assert weights_on_paths(family(LENET).connections(masks)).tolist() == flows.tolist()


def test_units_of_lenet_5_are_channels() -> None:
    masks = everything(1, LENET)
    masks["hidden1.weight"][0].view(500, 50, 16)[:, 7] = False  # all that channel 7 leads to
    masks["convolution1.weight"][0, 3] = False
    measured = {name: values.tolist() for name, values in of_networks(masks).items()}
    assert measured["connected_inputs"] == [1]
    assert measured["connected_hidden1"] == [19]
    assert measured["connected_hidden2"] == [49]
    assert measured["connected_hidden3"] == [500]
    # channel 7's kernels lead nowhere, and channel 3's outgoing ones come from nowhere
    lost = 500 * 16 + 25 + 20 * 25 + 49 * 25
    assert measured["effective_density"] == [pytest.approx((430_500 - lost) / 430_500)]
    assert float(density(masks)) == pytest.approx((430_500 - 500 * 16 - 25) / 430_500)


def test_a_lenet_5_to_go_on_with_gives_the_logits_that_were_measured(make_split: MakeSplit) -> None:
    split, networks = make_split(5, 12, 784, CLASSES), _networks(LENET)
    examples = family(LENET).examples(split.validation, split.scaling)
    module = family(LENET).module(networks.rows([1]))
    logits = module(Scaling((128.0,), (74.0,))(split.validation.pixels))
    measured = family(LENET).log_probabilities(networks, examples)[1]
    torch.testing.assert_close(logits.log_softmax(dim=1), measured)
    for mask, (name, parameter) in zip(
        family(LENET).module_masks(everything(1, LENET)),
        (each for each in module.named_parameters() if each[0].endswith("weight")),
        strict=True,
    ):
        assert mask.shape == parameter.shape, name


def test_images_are_measured_in_their_own_order() -> None:
    images = Images(torch.arange(20, dtype=torch.uint8)[:, None].expand(20, 784), torch.arange(20) % CLASSES)
    assert torch.equal(family(LENET).examples(images, Scaling((0.0,), (1.0,))).labels, images.labels)

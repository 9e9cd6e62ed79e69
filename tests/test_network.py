"""R multilayer perceptrons as one: what they start from, what they say, and their gradients."""

import json
import math
from itertools import pairwise

import pytest
import torch
from conftest import random_masks
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from lottery.core.families import accuracy, score
from lottery.core.images import CHUNK, Images, Scaling
from lottery.core.layout import CACHE_LINE, described, description, perceptron
from lottery.core.networks.perceptron import (
    Examples,
    Gradients,
    Perceptron,
    blank,
    by_use,
    ends,
    rearranged,
    rearranged_networks,
)
from lottery.core.stack import Stack, initialize, stack

sizes_of_networks = st.tuples(st.integers(1, 24), st.lists(st.integers(1, 24), max_size=3), st.integers(2, 10)).map(
    lambda drawn: (drawn[0], *drawn[1], drawn[2])
)
seeds = st.integers(0, 2**32 - 1)
SCALING = Scaling((33.0,), (79.0,))


def _generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def _noise(networks: int, sizes: tuple[int, ...], draws: Generator) -> Stack:
    """Networks whose weights and biases are all other numbers, of a size that keeps the classes in doubt."""
    parameters = Stack.zeros(networks, perceptron(sizes))
    for weight, bias in zip(parameters.weights, parameters.biases, strict=True):
        weight.normal_(0, math.sqrt(2 / sum(weight.shape[1:])), generator=draws)
        bias.normal_(0, 0.1, generator=draws)
    return parameters


def _images(count: int, sizes: tuple[int, ...], draws: Generator) -> Images:
    """Noise in which some pixels are blank in most images, and some in few."""
    pixels = torch.randint(256, (count, sizes[0]), generator=draws, dtype=torch.uint8)
    pixels[torch.rand(pixels.shape, generator=draws) < torch.rand(sizes[0], generator=draws)] = 0
    return Images(pixels, torch.randint(sizes[-1], (count,), generator=draws))


def _pieces(parameters: Stack) -> tuple[Tensor, ...]:
    return parameters.weights + parameters.biases


# --- weights and biases in one buffer --------------------------------------------------------------------------------


@given(sizes_of_networks, st.integers(1, 4))
def test_weights_and_biases_are_views_of_one_buffer_that_begin_on_cache_lines_and_do_not_overlap(
    sizes: tuple[int, ...], networks: int
) -> None:
    parameters = Stack.zeros(networks, perceptron(sizes))
    for number, piece in enumerate(_pieces(parameters), start=1):
        assert all(row.storage_offset() % CACHE_LINE == 0 for row in piece)
        piece.fill_(number)
    assert [tuple(weight.shape) for weight in parameters.weights] == [(networks, n, m) for n, m in pairwise(sizes)]
    assert [tuple(bias.shape) for bias in parameters.biases] == [(networks, m) for m in sizes[1:]]
    for number, piece in enumerate(_pieces(parameters), start=1):
        assert (piece == number).all()
        assert int((parameters.flat == number).sum()) == piece.numel()


@given(sizes_of_networks)
def test_a_layouts_pieces_begin_on_cache_lines_and_follow_each_other(sizes: tuple[int, ...]) -> None:
    layout = perceptron(sizes)
    *starts, length = layout.starts
    assert all(place % CACHE_LINE == 0 for place in layout.starts)
    for piece, start, end in zip(layout.pieces, starts, [*starts[1:], length], strict=True):
        assert 0 <= end - start - piece.size < CACHE_LINE
    assert [piece.shape for piece in layout.weights] == [*pairwise(sizes)]
    assert [piece.shape for piece in layout.biases] == [(units,) for units in sizes[1:]]
    assert [piece.layer for piece in layout.weights] == [piece.layer for piece in layout.biases]
    assert [piece.kind for piece in layout.weights] == ["hidden"] * (len(sizes) - 2) + ["output"]
    assert layout.prunable == sum(n * m for n, m in pairwise(sizes))


@given(sizes_of_networks)
def test_a_layout_is_what_its_description_in_json_describes(sizes: tuple[int, ...]) -> None:
    layout = perceptron(sizes)
    again = described(**json.loads(json.dumps(description(layout))))
    assert again == layout
    assert (hash(again), again.shown) == (hash(layout), "-".join(map(str, sizes)))


def test_rows_of_a_slice_are_views_and_rows_of_a_list_are_copies() -> None:
    parameters = _noise(3, (2, 3), _generator())
    before = parameters.clone()
    parameters.rows([0, 2]).weights[0].fill_(7)
    assert torch.equal(parameters.flat, before.flat)
    parameters.rows(slice(1, 3)).weights[0].fill_(7)
    assert (parameters.weights[0][1:] == 7).all()
    assert torch.equal(parameters.weights[0][0], before.weights[0][0])


def test_a_stack_holds_all_networks_in_their_order() -> None:
    a, b = _noise(2, (3, 4, 2), _generator(1)), _noise(3, (3, 4, 2), _generator(2))
    stacked = stack([a, b])
    assert len(stacked) == 5
    for piece, first, second in zip(_pieces(stacked), _pieces(a), _pieces(b), strict=True):
        assert torch.equal(piece, torch.cat([first, second]))


@given(sizes_of_networks, seeds)
def test_a_masked_copy_is_zero_where_pruned_and_the_same_elsewhere(sizes: tuple[int, ...], seed: int) -> None:
    parameters = _noise(2, sizes, _generator(seed))
    before = parameters.clone()
    masks = random_masks(2, parameters.layout, 0.5, seed)
    masked = parameters.masked(masks)
    for weight, mask, original in zip(masked.weights, masks.weights, before.weights, strict=True):
        assert torch.equal(weight, torch.where(mask, original, 0.0))
    for bias, original in zip(masked.biases, before.biases, strict=True):
        assert torch.equal(bias, original)
    assert torch.equal(parameters.flat, before.flat)


# --- initialization --------------------------------------------------------------------------------------------------


def test_glorot_normal_weights_are_normal_with_variance_2_over_in_plus_out() -> None:
    parameters = initialize(perceptron((784, 300, 100, 10)), "glorot-normal", [_generator(seed) for seed in range(3)])
    for weight in parameters.weights:
        variance = 2 / (weight.shape[1] + weight.shape[2])
        several_errors = 4 / math.sqrt(weight.numel())
        assert weight.square().mean() == pytest.approx(variance, rel=2 * several_errors)
        assert float(weight.mean()) == pytest.approx(0, abs=several_errors * math.sqrt(variance))
        within_one_deviation = (weight.abs() < math.sqrt(variance)).double().mean()
        assert float(within_one_deviation) == pytest.approx(0.6827, abs=several_errors)


@given(sizes_of_networks, seeds)
def test_glorot_normal_biases_are_zero(sizes: tuple[int, ...], seed: int) -> None:
    assert all((bias == 0).all() for bias in initialize(perceptron(sizes), "glorot-normal", [_generator(seed)]).biases)


def test_kaiming_uniform_is_uniform_within_the_bounds_of_pytorchs_linear_layer() -> None:
    sizes = (784, 300, 100, 10)
    parameters = initialize(perceptron(sizes), "kaiming-uniform", [_generator(seed) for seed in range(3)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = [[torch.nn.Linear(n, m) for _ in range(3)] for n, m in pairwise(sizes)]
    for layer, theirs in enumerate(linear):
        for ours, pytorchs in (
            (parameters.weights[layer].flatten(), torch.cat([module.weight.detach().flatten() for module in theirs])),
            (parameters.biases[layer].flatten(), torch.cat([module.bias.detach() for module in theirs])),
        ):
            bound = 1 / math.sqrt(sizes[layer])
            near_the_bound = 0.25 if len(ours) < 100 else 0.03
            assert max(ours.abs().max(), pytorchs.abs().max()) <= bound
            assert min(ours.abs().max(), pytorchs.abs().max()) > (1 - near_the_bound) * bound
            assert float(ours.mean()) == pytest.approx(0, abs=3 * bound / math.sqrt(len(ours)))
            assert float(ours.square().mean()) == pytest.approx(bound**2 / 3, rel=4 / math.sqrt(len(ours)))


def test_kaiming_normal_weights_are_normal_with_variance_2_over_in_and_biases_are_pytorchs() -> None:
    sizes = (784, 300, 100, 10)
    parameters = initialize(perceptron(sizes), "kaiming-normal", [_generator(seed) for seed in range(3)])
    for weight, bias, inputs in zip(parameters.weights, parameters.biases, sizes[:-1], strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pytorchs = torch.nn.init.kaiming_normal_(torch.empty(weight.shape[2], inputs))
        for weights in (weight, pytorchs):
            several_errors = 4 / math.sqrt(weights.numel())
            assert weights.square().mean() == pytest.approx(2 / inputs, rel=2 * several_errors)
            assert float(weights.mean()) == pytest.approx(0, abs=several_errors * math.sqrt(2 / inputs))
            within_one_deviation = (weights.abs() < math.sqrt(2 / inputs)).double().mean()
            assert float(within_one_deviation) == pytest.approx(0.6827, abs=several_errors)
        assert 0.7 / math.sqrt(inputs) < bias.abs().max() <= 1 / math.sqrt(inputs)


@pytest.mark.parametrize("scheme", ["glorot-normal", "kaiming-uniform", "kaiming-normal"])
@given(sizes_of_networks, st.lists(seeds, min_size=1, max_size=4))
def test_a_networks_initialization_depends_on_its_own_generator_alone(
    scheme: str, sizes: tuple[int, ...], its_seeds: list[int]
) -> None:
    together = initialize(perceptron(sizes), scheme, [_generator(seed) for seed in its_seeds])
    for row, seed in enumerate(its_seeds):
        alone = initialize(perceptron(sizes), scheme, [_generator(seed)])
        assert torch.equal(together.flat[row], alone.flat[0])


@given(sizes_of_networks, seeds)
def test_rearranged_networks_say_the_same_of_rearranged_images(sizes: tuple[int, ...], seed: int) -> None:
    draws = _generator(seed)
    parameters, images = _noise(2, sizes, draws), _images(9, sizes, draws)
    order = torch.randperm(sizes[0], generator=draws)
    networks = rearranged_networks(parameters, order)
    assert torch.equal(rearranged_networks(networks, order.argsort()).flat, parameters.flat)
    for r in range(2):
        ours = SCALING(rearranged(images, order).pixels) @ networks.weights[0][r]
        torch.testing.assert_close(ours, SCALING(images.pixels) @ parameters.weights[0][r], rtol=1e-4, atol=1e-4)
    for piece, before in zip(_pieces(networks)[1:], _pieces(parameters)[1:], strict=True):
        assert torch.equal(piece, before)


# --- gradients -------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(sizes_of_networks, st.integers(1, 4), st.integers(2, 33), st.floats(-2, 2, width=32), st.booleans(), seeds)
def test_gradients_and_log_likelihoods_equal_autograds(
    sizes: tuple[int, ...], networks: int, batch: int, blank: float, wide: bool, seed: int
) -> None:
    draws = _generator(seed)
    if wide:  # wide enough for batches that end before a cache line does
        sizes = (sizes[0] + 5 * CACHE_LINE, *sizes[1:])
    parameters = _noise(networks, sizes, draws)
    inputs = torch.randn(networks, batch, sizes[0], generator=draws)
    labels = torch.randint(sizes[-1], (networks, batch, 1), generator=draws)
    backward = Gradients(parameters, batch, blank)
    backward.used = torch.randint(sizes[0] + 1, (networks,), generator=draws).tolist()
    for r, used in enumerate(backward.used):
        inputs[r, :, used:] = blank
    log_likelihoods = torch.full((networks, batch, 1), math.nan)
    backward.inputs.copy_(inputs)
    backward.labels.copy_(labels)
    backward(log_likelihoods)
    backward(log_likelihoods)  # what the first call left behind adds nothing to the second

    for r in range(networks):
        weights = [weight[r].double().requires_grad_() for weight in parameters.weights]
        biases = [bias[r].double().requires_grad_() for bias in parameters.biases]
        values = inputs[r].double()
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if layer:
                # float32 may put a value this near to the ReLU's kink on its other side, with another derivative
                assume(float(values.detach().abs().min()) > 1e-5)
                values = values.relu()
            values = values @ weight + bias
        losses = cross_entropy(values, labels[r, :, 0], reduction="none")
        # float32 knows 1 - p to 1e-7, which must be little against the errors that the gradient is made of
        assume(float((-torch.expm1(-losses)).square().mean().sqrt().detach()) > 0.05)
        losses.mean().backward()

        torch.testing.assert_close(-log_likelihoods[r, :, 0].double(), losses.detach(), rtol=1e-5, atol=1e-6)
        ours = [piece[r].double() for piece in _pieces(backward.gradients)]
        autograds = [tensor.grad for tensor in weights + biases]
        for gradient, autograd in zip(ours, autograds, strict=True):
            # where images or units cancel out to next to nothing, what float32 rounds is what cancels out
            assert (gradient - autograd).norm() <= 1e-5 * max(autograd.norm(), 0.03)


@given(sizes_of_networks, st.integers(1, 4), st.integers(1, 9), seeds)
def test_the_padding_between_gradients_is_zero(sizes: tuple[int, ...], networks: int, batch: int, seed: int) -> None:
    draws = _generator(seed)
    backward = Gradients(_noise(networks, sizes, draws), batch)
    backward.inputs.normal_(generator=draws)
    backward.labels.random_(sizes[-1], generator=draws)
    backward(torch.empty(networks, batch, 1))
    for piece in _pieces(backward.gradients):
        piece.zero_()
    assert (backward.gradients.flat == 0).all()


def test_a_network_that_is_wrong_beyond_doubt_has_finite_gradients_and_loss() -> None:
    parameters = Stack.zeros(1, perceptron((1, 2)))
    parameters.weights[0][0] = torch.tensor([[1000.0, -1000.0]])
    backward, log_likelihoods = Gradients(parameters, 2), torch.empty(1, 2, 1)
    backward.inputs.fill_(1)
    backward.labels.copy_(torch.tensor([[[0], [1]]]))
    backward(log_likelihoods)
    assert log_likelihoods.flatten().tolist() == [0.0, -2000.0]
    assert backward.gradients.weights[0].flatten().tolist() == [0.5, -0.5]
    assert backward.gradients.biases[0].flatten().tolist() == [0.5, -0.5]


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_an_image_ends_with_its_last_used_pixel_in_the_order_of_how_many_use_them() -> None:
    pixels = torch.tensor([[0, 9, 0, 7, 0], [0, 0, 0, 1, 0], [5, 0, 0, 3, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 255]])
    images = Images(pixels.to(torch.uint8), torch.zeros(5, dtype=torch.int64))
    assert ends(images, SCALING).tolist() == [4, 4, 4, 0, 5]
    order = by_use(images, SCALING)
    assert order.tolist() == [3, 0, 1, 4, 2]
    assert ends(rearranged(images, order), SCALING).tolist() == [3, 1, 2, 0, 4]
    assert blank(SCALING) == float(SCALING(images.pixels)[3, 0])


def test_examples_are_chunks_of_the_images_without_the_pixels_that_none_of_a_chunk_uses() -> None:
    images = _images(2 * CHUNK + 3, (40, 10), _generator())
    images.pixels[:, 7] = 0
    images.pixels[5] = 0
    examples = Examples(images, SCALING)
    assert [len(chunk) for chunk in examples.chunks] == [CHUNK, CHUNK, 3]
    whole = torch.full((len(images), 40), examples.blank)
    for rows, chunk in zip(whole.split(CHUNK), examples.chunks, strict=True):
        rows[:, examples.pixels[: chunk.shape[1]]] = chunk
        assert (chunk[:, -1] != examples.blank).any()
    theirs = torch.cat([SCALING(images.pixels), images.labels[:, None]], dim=1)
    ours = torch.cat([whole, examples.labels[:, None]], dim=1)
    assert sorted(ours.tolist()) == sorted(theirs.tolist())
    used = (images.pixels != 0).sum(dim=0)[examples.pixels]
    assert (used[1:] <= used[:-1]).all()


def test_images_without_a_single_used_pixel_are_measured_by_the_biases_and_the_blank_input() -> None:
    parameters = _noise(1, (3, 2), _generator())
    examples = Examples(Images(torch.zeros(2, 3, dtype=torch.uint8), torch.tensor([0, 1])), SCALING)
    expected = SCALING(torch.zeros(2, 3)) @ parameters.weights[0][0] + parameters.biases[0][0]
    torch.testing.assert_close(Perceptron().log_probabilities(parameters, examples)[0], expected.log_softmax(dim=1))


@settings(max_examples=12)
@given(
    sizes_of_networks,
    st.integers(1, 3),
    st.sampled_from([1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3]),
    seeds,
)
def test_the_score_is_the_mean_cross_entropy_and_the_fraction_of_right_answers(
    sizes: tuple[int, ...], networks: int, images: int, seed: int
) -> None:
    draws = _generator(seed)
    parameters = _noise(networks, sizes, draws)
    drawn = _images(images, sizes, draws)
    examples = Examples(drawn, SCALING)
    losses, accuracies = score(parameters, examples)
    assert torch.equal(torch.stack([losses, accuracies]), torch.stack(score(parameters, examples)))  # nothing changed
    for r in range(networks):
        values = SCALING(drawn.pixels).double()
        for layer, (weight, bias) in enumerate(zip(parameters.weights, parameters.biases, strict=True)):
            values = (values.relu() if layer else values) @ weight[r].double() + bias[r].double()
        assert float(losses[r]) == pytest.approx(float(cross_entropy(values, drawn.labels)), rel=1e-5)
        highest, second = values.topk(2, dim=1).values.unbind(dim=1)
        unsure = int((highest - second < 1e-4).sum())
        right = int((values.argmax(dim=1) == drawn.labels).sum())
        assert abs(float(accuracies[r]) * images - right) <= unsure + 1e-9


@settings(max_examples=15)
@given(sizes_of_networks, st.integers(2, 5), st.integers(1, 2100), seeds)
def test_a_networks_score_is_the_same_bits_alone_and_in_a_stack(
    sizes: tuple[int, ...], networks: int, images: int, seed: int
) -> None:
    draws = _generator(seed)
    parameters = _noise(networks, sizes, draws)
    examples = Examples(_images(images, sizes, draws), SCALING)
    losses, accuracies = score(parameters, examples)
    for r in range(networks):
        loss, right = score(parameters.rows(slice(r, r + 1)), examples)
        assert torch.equal(losses[r : r + 1], loss)
        assert torch.equal(accuracies[r : r + 1], right)


@pytest.mark.parametrize("threads", [1, 2])
def test_accuracy_is_the_scores_on_any_number_of_threads(threads: int) -> None:
    draws = _generator()
    parameters = _noise(5, (20, 16, 4), draws)
    examples = Examples(_images(1500, (20, 4), draws), SCALING)
    assert torch.equal(accuracy(parameters, examples, threads), score(parameters, examples)[1])

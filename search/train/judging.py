"""How good a trained network is, beside the share of images that it gets right: its cross-entropy on them.

Accuracy on some thousand images hides what a few of them decide: two networks of 20 % error on 5,000 images
differ by half a point by chance. Cross-entropy counts how sure each answer is. It is taken at the
temperature that suits it best (Guo et al. 2017), since how sure all answers are together says nothing about
their order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from smash_search.train.network import Recipe, accuracy, answers_of, mean_over_classes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from smash_base.preprocess import Preprocessing
    from smash_search.data import Split

RANGE = (-3.0, 3.0)  # of the logarithm of the temperature
ROUNDS, FEWER_ROUNDS = 60, 20  # thirds that the range loses: to a billionth, and to two thousandths of it
MOST_IMAGES = 10_000  # that a loss is taken on, about; of more, every second, third, ...


def cross_entropies(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Cross-entropy of each image, float64 [N], of logits [N, K] divided by a temperature."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(1, keepdims=True)
    chosen = scaled[np.arange(len(labels)), labels]
    losses: np.ndarray = np.log(np.exp(scaled).sum(1)) - chosen
    return losses


def fit_temperature(
    logits: np.ndarray, labels: np.ndarray, rounds: int = ROUNDS, doubt: float = 0.0
) -> float:
    """The temperature with the lowest cross-entropy; unimodal in its logarithm, found by ternary search.

    Args:
        logits: [N, K].
        labels: int64 [N].
        rounds: Number of steps of the search.
        doubt: share of every image that counts as one of the second likeliest class.
    """
    runner_up = logits.argsort(1)[:, -2] if doubt else labels

    def loss_at(place: float) -> float:
        loss = cross_entropies(logits, labels, math.exp(place)).mean()
        if doubt:
            other = cross_entropies(logits, runner_up, math.exp(place)).mean()
            loss = (1 - doubt) * loss + doubt * other
        return float(loss)

    low, high = RANGE
    for _ in range(rounds):
        first, second = low + (high - low) / 3, high - (high - low) / 3
        if loss_at(first) < loss_at(second):
            high = second
        else:
            low = first
    return math.exp((low + high) / 2)


class Judge:
    """Accuracy and loss of a network from the same answers.

    Attributes:
        loss: cross-entropy of the network that was judged last, over at most :data:`MOST_IMAGES` that are
            spread evenly over the split, since images may lie in the order of their classes; the mean over
            the classes where the recipe balances them. None before, where classes do not exclude each other,
            and where it is no number.

    Args:
        recipe: says what is measured (:func:`smash_search.train.network.measure_of`).
    """

    def __init__(self, recipe: Recipe) -> None:
        self._balanced = recipe.balance != "none"
        self.loss: float | None = None

    def __call__(
        self,
        network: nn.Module,
        split: Split,
        preprocessing: Preprocessing,
        device: torch.device | str = "cpu",
    ) -> float:
        """What the recipe measures; :attr:`loss` then holds the loss."""
        if split.targets is not None:
            return accuracy(network, split, preprocessing, device)
        answers = answers_of(network, split, preprocessing, device)
        few = slice(None, None, max(1, -(-len(split) // MOST_IMAGES)))
        temperature = fit_temperature(answers[few], split.labels[few], FEWER_ROUNDS)
        losses = cross_entropies(answers[few], split.labels[few], temperature)
        loss = self._mean(losses, split.labels[few])
        self.loss = loss if math.isfinite(loss) else None
        return self._mean(answers.argmax(1) == split.labels, split.labels)

    def _mean(self, values: np.ndarray, labels: np.ndarray) -> float:
        return mean_over_classes(values, labels) if self._balanced else float(values.mean())

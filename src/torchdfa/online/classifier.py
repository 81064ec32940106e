"""OnlineHead as a scikit-learn classifier; needs the package scikit-learn (the extra ``train``)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from torchdfa.online.head import OnlineHead
from torchdfa.rules import Rule
from torchdfa.settings import demand, whole

_PREDICT_BYTES = 2**26


class OnlineHeadClassifier(ClassifierMixin, BaseEstimator):
    """Fully connected layers trained by BP, DFA or BDFA, with scikit-learn's methods.

    ``partial_fit`` learns the samples once, in the order in which they come; ``fit`` begins anew and passes over all of
    them ``epochs`` times, in random order. Features are best standardised first, as by ``StandardScaler``.
    ``lr``, ``momentum``, ``weight_decay``, ``clip``, ``class_weight`` and ``batch_size`` may change between calls of
    ``partial_fit``; the other settings count from the next ``fit`` on.

    >>> import torchdfa as dfa
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> x, y = load_iris(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), OnlineHeadClassifier(rule=dfa.BDFA(), random_state=0)).fit(x, y)
    >>> model.score(x, y) > 0.9
    True

    Args:
        hidden_layer_sizes: Widths of the hidden layers, or that of a single one; none: a linear classifier.
        rule: How the hidden layers get their errors; None: BP.
        lr: Learning rate; one, or one for each layer including the output's.
        momentum: Of SGD.
        weight_decay: L2 penalty.
        clip: Largest norm of the gradient; None: no limit.
        activation: Of the hidden layers: "relu", "leaky_relu", "tanh" or "sigmoid".
        dropout: Share of each hidden layer that is dropped while learning.
        class_weight: A dict of label to weight, "balanced" (of the labels that ``fit`` saw), or None.
        epochs: Passes of ``fit`` over the samples.
        batch_size: Samples a step.
        random_state: Of the weights, the order of samples and dropout.

    Attributes:
        classes_: The labels, sorted.
        head_: The trained :class:`torchdfa.OnlineHead`.
        loss_curve_: Mean loss of each pass of ``fit``.
        n_features_in_: Features that it takes.
        feature_names_in_: Their names, if it was trained on a data frame with string column names.
    """

    def __init__(
        self,
        hidden_layer_sizes: tuple[int, ...] | int = (100,),
        *,
        rule: Rule | None = None,
        lr: float | tuple[float, ...] = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        clip: float | None = 10.0,
        activation: str = "relu",
        dropout: float = 0.0,
        class_weight: dict[Any, float] | str | None = None,
        epochs: int = 100,
        batch_size: int = 32,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.rule = rule
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.clip = clip
        self.activation = activation
        self.dropout = dropout
        self.class_weight = class_weight
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> OnlineHeadClassifier:
        """Learn from the samples X, (N, D), with labels y, (N,), from new weights on."""
        demand(self, epochs=whole(self.epochs))
        x, y = self._samples(X, y, reset=True)
        order = self._begin(x.shape[1], unique_labels(y), y)
        index = _indices(y, self.classes_)
        self.loss_curve_: list[float] = []
        for _ in range(self.epochs):
            chosen = torch.from_numpy(order.permutation(len(x)))
            self.loss_curve_.append(self._learn(x[chosen], index[chosen]))
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> OnlineHeadClassifier:
        """Learn from the samples X, (N, D), once and in their order.

        Args:
            X: Features.
            y: Labels.
            classes: All labels that will come; needed in the first call, unless ``fit`` was called before.
        """
        first = not hasattr(self, "head_")
        x, y = self._samples(X, y, reset=first)
        if first:
            if classes is None:
                raise ValueError("partial_fit: the first call needs classes=, all labels that will come.")
        elif classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(f"partial_fit: classes={classes!r}, but the first call had {self.classes_!r}.")
        if self.class_weight == "balanced" and (first or self.head_.class_weights is None):
            raise ValueError(
                "partial_fit: class_weight='balanced' needs all labels at once, as fit has them; give a dict."
            )
        labels = unique_labels(classes) if first else self.classes_
        index = _indices(y, labels)
        if first:
            self._begin(x.shape[1], labels, y)
        else:
            self._set(self.head_, y)
        self._learn(x, index)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the labels of the samples, shape (N,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each label in ``classes_``, shape (N, K), float32."""
        check_is_fitted(self, "head_")
        x = _tensor(validate_data(self, X, dtype=np.float32, reset=False))
        rows = max(1, _PREDICT_BYTES // (4 * max(self.head_.sizes)))
        return torch.cat([self.head_.predict_proba(part) for part in x.split(rows)]).numpy()

    def _samples(self, X: Any, y: Any, reset: bool) -> tuple[Tensor, np.ndarray]:
        demand(self, batch_size=whole(self.batch_size))
        x, y = validate_data(self, X, y, dtype=np.float32, reset=reset)
        check_classification_targets(y)
        return _tensor(x), y

    def _set(self, head: OnlineHead, y: np.ndarray) -> None:
        """Give a head that learns already the settings that can still change."""
        head.lr, head.momentum, head.weight_decay, head.clip = self.lr, self.momentum, self.weight_decay, self.clip
        if self.class_weight != "balanced":
            head.class_weights = self._weights(self.classes_, y)

    def _weights(self, classes: np.ndarray, y: np.ndarray) -> np.ndarray | None:
        return None if self.class_weight is None else compute_class_weight(self.class_weight, classes=classes, y=y)

    def _begin(self, features: int, classes: np.ndarray, y: np.ndarray) -> np.random.RandomState:
        """Make the head, and return what draws the order of samples."""
        if len(classes) < 2:
            raise ValueError(f"OnlineHeadClassifier: found one class, {classes[0]!r}; a classifier needs two or more.")
        random = check_random_state(self.random_state)
        self.head_ = OnlineHead(
            (features, *np.atleast_1d(self.hidden_layer_sizes).tolist(), len(classes)),
            rule=self.rule,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            clip=self.clip,
            class_weights=self._weights(classes, y),
            activation=self.activation,  # type: ignore[arg-type]
            dropout=self.dropout,
            seed=int(random.randint(2**31)),
            dtype=torch.float32,
        )
        self.classes_ = classes
        return random

    def _learn(self, x: Tensor, index: Tensor) -> float:
        losses = [
            len(part) * self.head_.step(part, labels)
            for part, labels in zip(x.split(self.batch_size), index.split(self.batch_size), strict=True)
        ]
        return math.fsum(losses) / len(x)


def _indices(y: np.ndarray, classes: np.ndarray) -> Tensor:
    """Return the place of each label in the sorted classes."""
    index = np.searchsorted(classes, y)
    known = classes[np.minimum(index, len(classes) - 1)] == y
    if not np.all(known):
        raise ValueError(f"y holds the labels {np.unique(y[~known])}, which are not in classes {classes}.")
    return torch.from_numpy(index)


def _tensor(x: Any) -> Tensor:
    # Arrays of mapped files may be read-only, of which torch makes no tensors without a warning.
    return torch.from_numpy(x if x.flags.writeable else x.copy())

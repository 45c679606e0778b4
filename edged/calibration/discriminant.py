"""Linear discriminant weights with a shrunk covariance: with few labels for many features closer than logistic ones.

The classes are taken for normal clouds with one common covariance, which is pulled towards a multiple of the identity.
Source: Friedman, "Regularized discriminant analysis" (1989). Pure numpy; one decomposition serves every shrinkage.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edged.calibration.heads import Matrix, Vector

SHRINKAGES = (0.1, 0.3, 0.5, 0.8)
NEVER = -1e4
"""The bias of a class without labels."""


def weights(
    features: Matrix, labels: NDArray[np.int64], classes: int, shrinkages: Sequence[float] = SHRINKAGES
) -> Iterator[tuple[float, Matrix, Vector]]:
    """For each shrinkage: itself, weights (classes, features), biases (classes). ``features`` are standardised."""
    counts = np.bincount(labels, minlength=classes)
    present = np.flatnonzero(counts)
    means = np.array([features[labels == place].mean(axis=0) for place in present])
    within = features - means[np.searchsorted(present, labels)]
    _, lengths, axes = np.linalg.svd(within, full_matrices=False)
    values = lengths**2 / len(features)
    mean = max(float(values.sum()) / features.shape[1], 1e-9)
    along = means @ axes.T
    logs = np.log(counts[present] / counts.sum())
    for shrinkage in shrinkages:
        beside = 1 / (shrinkage * mean)  # no item differs from its class in any other direction
        inverse = 1 / ((1 - shrinkage) * values + shrinkage * mean)
        scaled = means * beside + (along * (inverse - beside)) @ axes
        found, bias = np.zeros((classes, features.shape[1])), np.full(classes, NEVER)
        found[present] = scaled
        bias[present] = logs - 0.5 * (scaled * means).sum(axis=1)
        yield shrinkage, found, bias

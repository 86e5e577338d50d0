"""Instance dependence: how much the prompts of one task differ between instances and between classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lateprompt.utils.errors import LatePromptError


@dataclass(frozen=True)
class Variance:
    """Where the variance of vectors lies, summed over their dimensions.

    Args:
        total: mean squared distance from the mean vector.
        between: the part of it between the means of the classes.
        within: the part of it within the classes; `between + within == total`.
        instance_share: `total` as a share of the mean squared length: 0 for vectors that are all the same.
        class_share: `between / total`, the share of the variance that the class explains (eta squared).
        adjusted_class_share: the same, less what classes drawn at random would explain of so many rows (epsilon
            squared); can be below 0.
        neighbours: share of rows whose nearest other row (cosine, centred) has the same class.
        neighbours_by_chance: this share where neighbours are drawn at random.
    """

    total: float
    between: float
    within: float
    instance_share: float
    class_share: float
    adjusted_class_share: float
    neighbours: float
    neighbours_by_chance: float


def variance_by_class(vectors: np.ndarray, labels: np.ndarray) -> Variance:
    """Split the variance of vectors into that within and that between classes.

    Args:
        vectors: (rows, width), or (rows, k, width) for prompts of k vectors.
        labels: (rows,) class numbers.

    Raises:
        LatePromptError: fewer than two rows, or labels that do not fit.

    Example:
        >>> import numpy as np
        >>> from lateprompt.analysis.instances import variance_by_class
        >>> found = variance_by_class(np.array([[0.0, 1], [0, 1], [1, 0], [1, 0]]), np.array([0, 0, 1, 1]))
        >>> found.class_share, found.within, found.neighbours
        (1.0, 0.0, 1.0)
    """
    flat = _flat(vectors)
    if len(flat) < 2 or len(flat) != len(labels):
        raise LatePromptError(f"{len(flat)} vectors for {len(labels)} labels; give two or more, and a label for each")
    centred = flat - flat.mean(0)
    numbers, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.zeros((len(numbers), flat.shape[1]))
    np.add.at(means, which, centred)
    means /= counts[:, None]
    n, classes = len(flat), len(numbers)
    total = float((centred**2).sum() / n)
    between = float((counts * (means**2).sum(1)).sum() / n)
    length = float((flat**2).sum() / n)
    if total <= 1e-10 * max(length, 1e-30):  # all the same, but for rounding
        total = between = 0.0
    share = between / total if total else 0.0
    adjusted = 1 - (1 - share) * (n - 1) / (n - classes) if total and n > classes else 0.0
    nearest = nearest_rows(flat, flat, 1, centre=flat.mean(0), same=True)[0][:, 0] if total else None
    return Variance(
        total=total,
        between=between,
        within=total - between,
        instance_share=total / length if length else 0.0,
        class_share=share,
        adjusted_class_share=adjusted,
        neighbours=0.0 if nearest is None else float((labels[nearest] == labels).mean()),
        neighbours_by_chance=float((counts * (counts - 1)).sum() / (n * (n - 1))),
    )


def principal_plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project vectors onto their two principal components.

    Args:
        vectors: (rows, width) or (rows, k, width).

    Returns:
        Places (rows, 2), and the shares (2,) of the variance along each axis.

    Example:
        >>> import numpy as np
        >>> from lateprompt.analysis.instances import principal_plane
        >>> places, shares = principal_plane(np.array([[0.0, 0, 1], [2, 0, 1], [4, 0, 1]]))
        >>> np.abs(places[:, 0]).round(6).tolist(), shares.round(6).tolist()
        ([2.0, 0.0, 2.0], [1.0, 0.0])
    """
    flat = _flat(vectors)
    centred = flat - flat.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(flat), 2))
    shares = np.zeros(2)
    of_all = float((sizes**2).sum())
    for axis in range(min(2, len(sizes))):
        places[:, axis] = left[:, axis] * sizes[axis]
        shares[axis] = sizes[axis] ** 2 / of_all if of_all else 0.0
    return places, shares


def nearest_rows(
    vectors: np.ndarray, others: np.ndarray, number: int, *, centre: np.ndarray | None = None, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows of `others` whose vectors are most similar, by cosine similarity of what is left of their mean.

    Args:
        vectors: (rows, width) or (rows, k, width).
        others: the vectors to search, of the same width.
        number: how many to find for each row.
        centre: (width,), what is taken off first; None: the mean of `others`.
        same: both are the same rows, and a row is not its own neighbour.

    Returns:
        Row numbers (rows, number), the most similar first, and their similarities.
    """
    own, found = _flat(vectors), _flat(others)
    middle = found.mean(0) if centre is None else centre.reshape(-1)
    own, found = _unit(own - middle), _unit(found - middle)
    similar = own @ found.T
    if same:
        np.fill_diagonal(similar, -np.inf)
    order = np.argsort(-similar, axis=1, kind="stable")[:, :number]
    return order, np.take_along_axis(similar, order, axis=1)


def _flat(vectors: np.ndarray) -> np.ndarray:
    return vectors.reshape(len(vectors), -1).astype(np.float64)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)  # type: ignore[no-any-return]

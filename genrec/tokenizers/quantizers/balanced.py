"""Clusters that hold equally many items.

Owns the assignment of rows to centres of fixed capacity, at nearly the least total distance, and
the k-means around it. Knows neither levels nor codes.

The assignment is an auction: rows bid for centres, and a centre that is asked for by more rows than
it has room for becomes dearer. The prices are worth keeping: a row's place is then simply where
squared distance plus price is least, for rows that were not there as well.

Source: balanced k-means of OneRec (Deng et al. 2025, algorithm 1), which fills the clusters one
after the other, each with the nearest of the items that are left; the last take what nobody wanted.
Here all clusters are filled at once, by the auction for transportation problems of Bertsekas and
Castanon (1989). That equal clusters are cells of distance plus price: Aurenhammer et al. (1998).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genrec.tokenizers.quantizers.kmeans import KMeansPlan, fit_centres, sum_clusters
from genrec.types import FloatArray, IndexArray

_ACCURACY = 0.02
_LEAST_GAP = 0.001
_COARSER = 8.0
_MOST_BIDDINGS = 4_000
_ROUNDS = 8
_SETTLED = 0.02


@dataclass(frozen=True, slots=True)
class EvenClusters:
    """Centres, their prices, and the cluster of each row; cluster sizes differ by at most one.

    Shapes:
        centres: (K, d) float32.
        prices: (K,) float32, added to squared distances.
        members: (n,) int32.
    """

    centres: FloatArray
    prices: FloatArray
    members: NDArray[np.int32]


def fit_even_centres(rows: FloatArray, size: int, plan: KMeansPlan) -> EvenClusters:
    """`size` clusters of equally many rows, each centre the mean of its own.

    Starts from plain k-means, and stops when few rows still move. Holds (n, K) distances in memory.

    Args:
        rows: what is clustered; more distinct ones than `size`.
        size: K.
        plan: of the k-means that it starts from.
    """
    centres = fit_centres(rows, size, plan)
    squares = (rows**2).sum(axis=1)
    capacities = np.full(size, len(rows) // size, dtype=np.int64)
    capacities[: len(rows) % size] += 1
    prices = None
    members = np.full(len(rows), -1, dtype=np.int32)
    for _ in range(_ROUNDS):
        before = members
        members, prices = assign_evenly(_measure(rows, squares, centres), capacities, prices)
        sums, counts = sum_clusters(rows, members, size)
        centres = (sums / counts[:, None]).astype(np.float32)
        if (members != before).mean() < _SETTLED:
            break
    members, prices = assign_evenly(_measure(rows, squares, centres), capacities, prices)
    return EvenClusters(centres, (prices - prices.mean()).astype(np.float32), members)


def _measure(rows: FloatArray, squares: FloatArray, centres: FloatArray) -> FloatArray:
    distances: FloatArray = rows @ centres.T
    distances *= -2
    distances += squares[:, None]
    distances += (centres**2).sum(axis=1)
    return distances


def assign_evenly(
    distances: FloatArray, capacities: IndexArray, prices: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Each row's cluster, every cluster full, and the clusters' prices.

    For each row, distance plus price is least at its cluster, or above the least by no more than a
    fiftieth of the mean gap between nearest and second-nearest cluster (a thousandth of the mean
    range of distances counts as a gap, where that is larger, and so does a fiftieth of the mean
    distance to the second-nearest). Where most rows crowd in one place, the auction can reach its
    limit; rows that it leaves over then fill what room there is.

    Args:
        distances: from each row to each cluster.
        capacities: how many rows each cluster takes, at least one; they sum to n.
        prices: where to start, as an earlier call gave them.

    Shapes:
        distances: (n, K) float32.
        capacities: (K,) int64.
        returns: (n,) int32 and (K,) float64.
    """
    n, size = distances.shape
    assert capacities.sum() == n, "every row finds room, and no room is left"
    cold = prices is None
    prices = np.zeros(size) if prices is None else prices.copy()
    members = np.zeros(n, dtype=np.int32)
    if size > 1:
        least = np.partition(distances, 1, axis=1)[:, :2]
        span = float((distances.max(axis=1) - least[:, 0]).mean())
        gap = max(
            float((least[:, 1] - least[:, 0]).mean()),
            _ACCURACY * float(least[:, 1].mean()),
            # Where centres coincide there is no gap, and prices would take ages to rise.
            _LEAST_GAP * span,
        )
        bids = [_ACCURACY * max(gap, float(np.finfo(np.float32).tiny))]
        while cold and bids[-1] * _COARSER < span:  # first in steps as coarse as prices can rise
            bids.append(bids[-1] * _COARSER)
        for bidding in reversed(bids):
            members = _run_auction(distances, capacities, prices, bidding)
        _fill_room(members, distances + prices, capacities)
    return members, prices


def _run_auction(
    distances: FloatArray, capacities: IndexArray, prices: NDArray[np.float64], bidding: float
) -> NDArray[np.int32]:
    """One auction from empty clusters; `prices` rise in place, by `bidding` at least a bid.

    Rows without a cluster at its end, which has a limit, are -1.
    """
    members = np.full(len(distances), -1, dtype=np.int32)
    bids = np.zeros(len(distances))
    waiting = np.arange(len(distances))
    for _ in range(_MOST_BIDDINGS):
        if not waiting.size:
            break
        costs = distances[waiting] + prices
        wanted = np.argmin(costs, axis=1)
        at = np.arange(len(waiting))
        least = costs[at, wanted]
        costs[at, wanted] = np.inf
        bids[waiting] = prices[wanted] + (costs.min(axis=1) - least) + bidding
        members[waiting] = wanted
        waiting = _evict(members, bids, wanted, capacities, prices)
    return members


def _fill_room(
    members: NDArray[np.int32], costs: NDArray[np.float64], capacities: IndexArray
) -> None:
    """Put each row that is still without a cluster into the cheapest one with room, in place."""
    room = capacities - np.bincount(members[members >= 0], minlength=len(capacities))
    for row in np.flatnonzero(members < 0).tolist():
        chosen = int(np.argmin(np.where(room > 0, costs[row], np.inf)))
        members[row] = chosen
        room[chosen] -= 1


def _evict(
    members: NDArray[np.int32],
    bids: NDArray[np.float64],
    asked: IndexArray,
    capacities: IndexArray,
    prices: NDArray[np.float64],
) -> IndexArray:
    """The rows that the lowest bids leave outside; a full cluster costs its lowest bid kept."""
    touched = np.zeros(len(capacities) + 1, dtype=np.bool_)  # the last stands for no cluster: -1
    touched[asked] = True
    held = np.flatnonzero(touched[members])
    held = held[np.lexsort((-bids[held], members[held]))]
    cluster = members[held]
    first = np.searchsorted(cluster, cluster)
    rank = np.arange(len(held)) - first
    last = rank == capacities[cluster] - 1
    prices[cluster[last]] = bids[held[last]]
    outside: IndexArray = held[rank >= capacities[cluster]]
    members[outside] = -1
    return np.sort(outside)

"""The built-in users: a documented process of choice, and the best ranking anyone could give.

Owns how users choose from `genrec.data.synthetic_catalogue`, and the exact probability of each next
choice. Knows no file and no recommender. The same seed gives the same frames on any machine.

The process. A user trusts one brand out of doors and one at home. Nobody sees these two tastes:
they show only in what is chosen, and never change. Each next item is drawn from the items not yet
chosen, with probability proportional to `route x taste x appeal`:

- route: how well the item's category follows the category chosen last. .60 goes to one category of
  the other sphere (after an outing, something for home, and back), .20 to the next category of the
  same department (tent, sleeping bag, camp stove), .10 to a second category of the other sphere and
  .10 to all 40 alike. The first choice is any category.
- taste: .90 for the trusted brand of the item's sphere plus .02 for each of the sphere's 5 brands.
- appeal: the item's share among the items of its category and brand, from 1 to 3 parts each.

A history is 5 to 15 items long, whatever is in it. So the next category follows from the last item,
but its brand from earlier items of the other sphere: counts from item to item see little of it, and
a model that reads categories and brands off the items sees nearly all. What is best possible is
known, since the 25 pairs of tastes can be summed over by Bayes' rule: `predict_next`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from genrec.data.synthetic_catalogue import BRANDS, LEAVES, Catalogue, draw_order, make_items
from genrec.errors import DataError
from genrec.types import IndexArray

Probabilities = NDArray[np.float64]

ORACLE_LENGTH = 50
MIN_CHOICES, MAX_CHOICES = 5, 15

_ROUTE_OVER, _ROUTE_ALONG, _ROUTE_OTHER = 0.60, 0.20, 0.10
_LOYALTY = 0.90
_BRAND_SHARES = (0.28, 0.24, 0.20, 0.16, 0.12)  # of users who trust each brand of a sphere
_DEPARTMENT_LEAVES = 5
_START_SECONDS = 1_704_067_200  # 2024-01-01
_DAY_SECONDS = 86_400
_ORACLE_BATCH = 256  # users at once: bounds memory at 256 x N floats


@dataclass(frozen=True, slots=True)
class ChoiceProcess:
    """How users choose; the values behind `route x taste x appeal`.

    Shapes:
        category, brand: (N,) int64.
        appeal: (N,) float64.
        routes: (C, C) float64, from the last category to the next; rows sum to 1.
        tastes: (P, B) float64, a pair of tastes to each brand; sums to 1 within a sphere.
        prior: (P,) float64, the share of users with each pair of tastes.
    """

    category: IndexArray
    brand: IndexArray
    appeal: Probabilities
    routes: Probabilities
    tastes: Probabilities
    prior: Probabilities


@dataclass(frozen=True, slots=True)
class SyntheticData:
    """The built-in catalogue, its log, and the best possible ranking of each user's last choice.

    `items` holds item_id, title, brand, categories, description, price; `interactions` user_id,
    item_id, timestamp (seconds); `oracle` user_id, item_ids, probability (both lists, best first).
    """

    items: pl.DataFrame
    interactions: pl.DataFrame
    oracle: pl.DataFrame
    process: ChoiceProcess


def make_catalogue(*, n_items: int = 1500, n_users: int = 4000, seed: int = 0) -> SyntheticData:
    """The built-in data for a seed.

    Raises:
        DataError: n_items is outside what the catalogue has titles for, or n_users is below 1.
    """
    if n_users < 1:
        raise DataError(f"n_users is {n_users}: the built-in log needs at least 1 user")
    rng = np.random.Generator(np.random.PCG64(seed))
    catalogue = make_items(n_items, rng)
    process = _make_process(catalogue, rng)
    taste = np.searchsorted(np.cumsum(process.prior)[:-1], rng.random(n_users), side="right")
    choices = _draw_choices(process, taste, rng)
    item_ids = catalogue.items["item_id"]
    user_ids = pl.Series(
        [f"U{index:0{max(4, len(str(n_users - 1)))}d}" for index in range(n_users)]
    )
    return SyntheticData(
        catalogue.items,
        _interaction_frame(choices, item_ids, user_ids, rng),
        _oracle_frame(process, choices, item_ids, user_ids),
        process,
    )


def predict_next(process: ChoiceProcess, histories: IndexArray) -> Probabilities:
    """The exact probability of each item to be chosen next, given all that was chosen before.

    Args:
        process: how users choose.
        histories: items chosen, oldest first; rows are filled up with -1 at the end.

    Shapes:
        histories: (U, T) int64.
        returns: (U, N) float64; rows sum to 1, chosen items have 0.

    Source: Bayes' rule over the pairs of tastes. A choice has likelihood weight / (total weight of
    the items not yet chosen), and that total depends on the taste, so it is kept for each pair.
    """
    length = (histories >= 0).sum(axis=1)
    posterior = np.tile(process.prior, (len(histories), 1))
    for step in range(histories.shape[1]):
        live = np.flatnonzero(length > step)
        chosen = process.brand[histories[live, step]]
        total = _open_weight(process, histories[live, :step])
        posterior[live] *= process.tastes.T[chosen] / total
        posterior[live] /= posterior[live].sum(axis=1, keepdims=True)
    liked = (posterior / _open_weight(process, histories)) @ process.tastes
    weight = _route_rows(process, histories)[:, process.category]
    weight *= liked[:, process.brand] * process.appeal
    rows, places = np.nonzero(histories >= 0)
    weight[rows, histories[rows, places]] = 0.0
    return weight


def _make_process(catalogue: Catalogue, rng: np.random.Generator) -> ChoiceProcess:
    pairs = [(out, home) for out in range(len(_BRAND_SHARES)) for home in range(len(_BRAND_SHARES))]
    tastes = np.full((len(pairs), len(BRANDS)), (1 - _LOYALTY) / len(_BRAND_SHARES))
    for row, (out, home) in enumerate(pairs):
        tastes[row, [out, len(_BRAND_SHARES) + home]] += _LOYALTY
    prior = np.array([_BRAND_SHARES[out] * _BRAND_SHARES[home] for out, home in pairs])
    routes = _make_routes(rng)
    return ChoiceProcess(
        catalogue.category, catalogue.brand, catalogue.appeal, routes, tastes, prior
    )


def _make_routes(rng: np.random.Generator) -> Probabilities:
    """Rows sum to 1 and so do columns: no category is popular for its own sake."""
    n_leaves = len(LEAVES)
    half = n_leaves // 2
    routes = np.full(
        (n_leaves, n_leaves), (1 - _ROUTE_OVER - _ROUTE_ALONG - _ROUTE_OTHER) / n_leaves
    )
    over = draw_order(rng, half), draw_order(rng, half)
    for leaf in range(n_leaves):
        sphere, place = divmod(leaf, half)
        away = half * (1 - sphere)
        department, within = divmod(leaf, _DEPARTMENT_LEAVES)
        along = department * _DEPARTMENT_LEAVES + (within + 1) % _DEPARTMENT_LEAVES
        routes[leaf, away + over[sphere][place]] += _ROUTE_OVER
        routes[leaf, along] += _ROUTE_ALONG
        routes[leaf, away + over[sphere][(place + 1) % half]] += _ROUTE_OTHER
    return routes


def _route_rows(process: ChoiceProcess, histories: IndexArray) -> Probabilities:
    """Where each user goes from the category chosen last; all alike where nothing was chosen."""
    n_leaves = len(process.routes)
    if histories.shape[1] == 0:
        return np.full((len(histories), n_leaves), 1 / n_leaves)
    length = (histories >= 0).sum(axis=1)
    last = histories[np.arange(len(histories)), length - 1]
    return np.where((length > 0)[:, None], process.routes[process.category[last]], 1 / n_leaves)


def _open_weight(process: ChoiceProcess, histories: IndexArray) -> Probabilities:
    """The total weight of the items not yet chosen, for each pair of tastes; (U, P)."""
    stocked = np.zeros((len(process.routes), process.tastes.shape[1]))
    np.add.at(stocked, (process.category, process.brand), process.appeal)
    routes = _route_rows(process, histories)
    total: Probabilities = routes @ stocked @ process.tastes.T
    users = np.arange(len(histories))
    for item in histories.T:
        weight = routes[users, process.category[item]] * process.appeal[item] * (item >= 0)
        total -= weight[:, None] * process.tastes.T[process.brand[item]]
    return total


def _draw_choices(
    process: ChoiceProcess, taste: IndexArray, rng: np.random.Generator
) -> IndexArray:
    """What each user chooses: (U, 15) int64, filled up with -1."""
    spread = MAX_CHOICES - MIN_CHOICES + 1
    # Squared, so that short histories are the usual ones (8 on average), as in real logs.
    length = MIN_CHOICES + (spread * rng.random(len(taste)) ** 2).astype(np.int64)
    choices = np.full((len(taste), MAX_CHOICES), -1, dtype=np.int64)
    for step in range(MAX_CHOICES):
        waiting = np.flatnonzero(length > step)
        # Drawing from all items and refusing those chosen before is drawing from the others.
        while len(waiting):
            drawn = _draw_items(process, choices[waiting, :step], taste[waiting], rng)
            fresh = (drawn >= 0) & (choices[waiting] != drawn[:, None]).all(axis=1)
            choices[waiting[fresh], step] = drawn[fresh]
            waiting = waiting[~fresh]
    return choices


def _draw_items(
    process: ChoiceProcess, histories: IndexArray, taste: IndexArray, rng: np.random.Generator
) -> IndexArray:
    """One item a user by route, taste and appeal; -1 where the brand sells nothing of the kind."""
    draws = rng.random((len(taste), 3))
    category = _draw_places(_route_rows(process, histories), draws[:, 0])
    sphere = np.array([leaf.sphere for leaf in LEAVES])[category]
    sells = np.array([brand.sphere for brand in BRANDS]) == sphere[:, None]
    brand = _draw_places(process.tastes[taste] * sells, draws[:, 1])
    cell = process.category * len(BRANDS) + process.brand
    order: IndexArray = np.argsort(cell, kind="stable")
    # Cell c covers the stretch (c, c + 1] of one line, cut into its items by their appeal.
    before = np.cumsum(process.appeal[order]) - process.appeal[order]
    first = np.searchsorted(cell[order], cell[order])
    line = cell[order] + before - before[first]
    wanted = category * len(BRANDS) + brand
    found = order[np.searchsorted(line, wanted + draws[:, 2], side="right") - 1]
    return np.where(cell[found] == wanted, found, np.int64(-1))


def _draw_places(shares: Probabilities, draws: Probabilities) -> IndexArray:
    """For each row of shares (which sum to 1), the column that the draw from [0, 1) falls in."""
    place = (np.cumsum(shares, axis=1) <= draws[:, None]).sum(axis=1)
    within: IndexArray = np.minimum(place, shares.shape[1] - 1)
    return within


def _interaction_frame(
    choices: IndexArray, item_ids: pl.Series, user_ids: pl.Series, rng: np.random.Generator
) -> pl.DataFrame:
    first = (365 * _DAY_SECONDS * rng.random(len(choices))).astype(np.int64)
    # Mostly days, sometimes a month and more, never less than a minute.
    gaps = 60 + (60 * _DAY_SECONDS * rng.random(choices.shape) ** 3).astype(np.int64)
    seconds = _START_SECONDS + first[:, None] + np.cumsum(gaps, axis=1)
    users, places = np.nonzero(choices >= 0)
    return pl.DataFrame(
        {
            "user_id": user_ids[users],
            "item_id": item_ids[choices[users, places]],
            "timestamp": seconds[users, places].astype(np.float64),
        }
    )


def _oracle_frame(
    process: ChoiceProcess, choices: IndexArray, item_ids: pl.Series, user_ids: pl.Series
) -> pl.DataFrame:
    length = (choices >= 0).sum(axis=1)
    earlier = choices.copy()
    earlier[np.arange(len(choices)), length - 1] = -1
    ranked: list[list[str]] = []
    probability: list[list[float]] = []
    for start in range(0, len(earlier), _ORACLE_BATCH):
        predicted = predict_next(process, earlier[start : start + _ORACLE_BATCH])
        best = _rank_rows(predicted, ORACLE_LENGTH)
        chances = np.take_along_axis(predicted, best, axis=1)
        for row, chance in zip(best, chances, strict=True):
            ranked.append(item_ids[row[chance > 0]].to_list())
            probability.append(chance[chance > 0].tolist())
    return pl.DataFrame({"user_id": user_ids, "item_ids": ranked, "probability": probability})


def _rank_rows(scores: Probabilities, k: int) -> IndexArray:
    """The columns of the k largest scores of each row, best first."""
    k = min(k, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)

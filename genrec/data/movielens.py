"""The source `movielens`: the 100K, 1M and 10M files, and the CSV of 20M, 25M, 32M and "latest".

Owns the three file shapes and the genre list of 100K. Source: grouplens.org/datasets/movielens.
"""

from __future__ import annotations

from pathlib import Path

from genrec.data.layout import Column, Columns, Layout, TableFile
from genrec.data.recipe import DataRecipe
from genrec.errors import DataError
from genrec.recipe import expand_path

_RATING_HEADER = ("userId", "movieId", "rating", "timestamp")
_MOVIE_HEADER = ("movieId", "title", "genres")
_GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
_ITEM_HEADER_100K = ("movieId", "title", "released", "video released", "url", *_GENRES_100K)
_NO_GENRES = "(no genres listed)"

RATINGS: Columns = {
    "user_id": Column(("userId",), required=True),
    "item_id": Column(("movieId",), required=True),
    "timestamp": Column(("timestamp",), required=True),
    "rating": Column(("rating",), required=True),
}


def _split_genres(text: object) -> str:
    return "" if text == _NO_GENRES else ", ".join(str(text or "").split("|"))


def _list_genres(*flags: object) -> str:
    return ", ".join(name for name, flag in zip(_GENRES_100K, flags, strict=True) if flag == "1")


_MOVIES: Columns = {
    "item_id": Column(("movieId",), required=True),
    "title": Column(("title",), required=True),
    "categories": Column(("genres",), _split_genres),
}
_MOVIES_100K: Columns = {**_MOVIES, "categories": Column(_GENRES_100K, _list_genres)}


def find_layout(recipe: DataRecipe) -> Layout:
    """The layout of the MovieLens files in a folder, whichever release they are.

    Raises:
        DataError: the folder holds none.
    """
    folder = expand_path(recipe.path or ".")
    for ratings, movies, describe in (
        ("u.data", "u.item", _layout_100k),
        ("ratings.dat", "movies.dat", _layout_1m),
        ("ratings.csv", "movies.csv", _layout_csv),
    ):
        if (folder / ratings).is_file():
            return describe(folder / ratings, folder / movies)
    raise DataError(
        f"source movielens finds none of u.data, ratings.dat and ratings.csv in {folder}; "
        f"set `path` to the unpacked folder"
    )


def _layout_100k(ratings: Path, movies: Path) -> Layout:
    return Layout(
        interactions=TableFile(ratings, "plain", "\t", _RATING_HEADER),
        interaction_columns=RATINGS,
        items=TableFile(movies, "plain", "|", _ITEM_HEADER_100K, "latin-1"),
        item_columns=_MOVIES_100K,
    )


def _layout_1m(ratings: Path, movies: Path) -> Layout:
    encoding = "utf-8" if _is_utf8(movies) else "latin-1"  # 10M is utf-8, 1M latin-1
    return Layout(
        interactions=TableFile(ratings, "plain", "::", _RATING_HEADER),
        interaction_columns=RATINGS,
        items=TableFile(movies, "plain", "::", _MOVIE_HEADER, encoding),
        item_columns=_MOVIES,
    )


def _layout_csv(ratings: Path, movies: Path) -> Layout:
    return Layout(
        interactions=TableFile(ratings, "csv"),
        interaction_columns=RATINGS,
        items=TableFile(movies, "csv"),
        item_columns=_MOVIES,
    )


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    except OSError:
        return True  # the reader says what is wrong with the file
    return True

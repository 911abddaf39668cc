"""Keywords that stand for an item, a query or a user: the words that tell a text from the others.

Owns how words are counted and weighed, over items' own texts and the reviews of training choices.
A word is three letters or more between spaces or punctuation, so text of a script without spaces
gives few and long ones. Knows no task and no wording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import (
    ENGLISH_STOP_WORDS,
    CountVectorizer,
    TfidfTransformer,
)

from genrec.prompts.corpus import Corpus
from genrec.prompts.render import CleanText, clean_text
from genrec.types import IndexArray

OWN_COLUMNS = ("title", "brand", "categories", "description")
MOST_ITEMS = 0.5
"""A word of more than this share of the items tells none from the others, and is no keyword."""

_WORD = r"(?u)\b[^\W\d_]{3,}\b(?!['\u2019]t\b)"
"""Not the first half of `wasn't`, which scikit-learn's list of stop words does not know."""

_STOP_WORDS = sorted(
    ENGLISH_STOP_WORDS | {"com", "http", "https", "www", "did", "does", "doing", "just"}
)
"""Pieces of addresses tell no item from another either, nor do these verbs."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Word counts of a corpus: about eight bytes for each different word of an item or review.

    Shapes:
        names: (V,) the words, in alphabetical order.
        own: (N, V) counts in each item's own text.
        said: (M, V) counts in the review of each choice, by place in the walks.
        heard: (N, V) counts in all the reviews of each item: `said` summed.
    """

    names: NDArray[np.str_]
    own: csr_matrix
    said: csr_matrix
    heard: csr_matrix
    weights: TfidfTransformer

    def rank(self, counts: csr_matrix, most: int) -> list[list[str]]:
        """The words of each row that weigh most, the heaviest first; ties by alphabet.

        Args:
            counts: (R, V).
            most: how many words a row at most.
        """
        weighed = self.weigh(counts)
        ranked = []
        for start, end in pairwise(weighed.indptr.tolist()):
            terms, scores = weighed.indices[start:end], weighed.data[start:end]
            order = np.lexsort((terms, -scores))[:most]
            ranked.append(self.names[terms[order]].tolist())
        return ranked

    def weigh(self, counts: csr_matrix) -> csr_matrix:
        """(R, V) weights of counted words, TF-IDF with the logarithm of the count."""
        present = counts.copy()
        present.eliminate_zeros()
        return self.weights.transform(present, copy=False) if present.nnz else present


def find_terms(corpus: Corpus) -> Terms:
    """The corpus's words, counted once.

    Only the corpus's own choices are read, so a held-out review is in no count.

    Source:
        Kieu et al., KALM4Rec (arXiv 2405.19612), which weighs keywords of reviews by TF-IRF; ours
        are single words by scikit-learn's TF-IDF, a document being an item.
    """
    return corpus.remember("keywords.terms", lambda: _count_terms(corpus))


def _count_terms(corpus: Corpus) -> Terms:
    own, said = join_own_texts(corpus), join_reviews(corpus)
    names, counts = _count_words([*own, *said])
    n_items, of_item = len(own), corpus.walks.item_index
    ones = np.ones(len(of_item), dtype=np.float32)
    places = np.arange(len(of_item))
    by_item = csr_matrix((ones, (of_item, places)), shape=(n_items, len(of_item)))
    documents = counts[:n_items] + by_item @ counts[n_items:]
    n_with = np.bincount(documents.indices, minlength=len(names))
    telling = n_with <= max(1, MOST_ITEMS * n_items)
    counts = counts[:, telling]
    return Terms(
        names=names[telling],
        own=counts[:n_items],
        said=counts[n_items:],
        heard=by_item @ counts[n_items:],
        weights=TfidfTransformer(norm=None, sublinear_tf=True).fit(documents[:, telling]),
    )


def _count_words(texts: list[str]) -> tuple[NDArray[np.str_], csr_matrix]:
    """Every word of the texts, and (R, V) how often each text has it."""
    counter = CountVectorizer(stop_words=_STOP_WORDS, token_pattern=_WORD, dtype=np.float32)
    analyze = counter.build_analyzer()
    if not any(analyze(text) for text in texts):  # scikit-learn refuses texts without a word
        return np.array([""]), csr_matrix((len(texts), 1), dtype=np.float32)
    counts = counter.fit_transform(texts).tocsr()
    return counter.get_feature_names_out().astype(np.str_), counts


def join_own_texts(corpus: Corpus) -> list[str]:
    """Each item's own words, in item_index order."""
    most = corpus.max_text_characters
    columns = [_drop_cut_words(corpus.texts(column), most) for column in OWN_COLUMNS]
    return ["\n".join(texts) for texts in zip(*columns, strict=True)]


def join_reviews(corpus: Corpus) -> list[str]:
    """The title and text of each choice's review, by place in the walks; empty without one."""
    most = corpus.recipe.max_review_characters
    titles = _drop_cut_words(corpus.event_texts("review_title"), most)
    texts = _drop_cut_words(corpus.event_texts("review_text"), most)
    return [f"{title}\n{text}" for title, text in zip(titles, texts, strict=True)]


def _drop_cut_words(texts: Sequence[str], most: int) -> list[str]:
    """The texts without the last word where they are as long as allowed: half of it may be gone."""
    return [(text.rpartition(" ")[0] or text) if len(text) >= most else text for text in texts]


def find_item_keywords(corpus: Corpus) -> list[CleanText]:
    """Each item's keywords, from its own text alone, in item_index order."""
    terms = find_terms(corpus)
    return corpus.remember(
        "keywords.items", lambda: _join_ranked(corpus, terms, terms.own, separator=", ")
    )


def find_item_queries(corpus: Corpus) -> list[CleanText]:
    """What one might type to find each item: its keywords, parted by spaces."""
    terms = find_terms(corpus)
    return corpus.remember(
        "keywords.queries", lambda: _join_ranked(corpus, terms, terms.own, separator=" ")
    )


def read_intentions(corpus: Corpus, places: IndexArray) -> list[CleanText]:
    """What each chosen item is wanted for: its own words and those of others' reviews of it.

    The review that belongs to the choice itself is left out of the count.

    Args:
        corpus: its items and training reviews.
        places: (R,) places in the walks.
    """
    terms = find_terms(corpus)
    items = corpus.walks.item_index[places]
    counts = terms.own[items] + terms.heard[items] - terms.said[places]
    return _join_ranked(corpus, terms, counts, separator=", ")


def find_intended(corpus: Corpus, places: IndexArray) -> NDArray[np.bool_]:
    """(R,) whether `read_intentions` has a word for the choice at each place."""
    terms = find_terms(corpus)
    of_item = corpus.walks.item_index
    spoken = count_words(terms.said) > 0
    reviews = np.bincount(of_item, weights=spoken, minlength=len(corpus.sids))
    items = of_item[places]
    described = count_words(terms.own)[items] > 0
    found: NDArray[np.bool_] = described | (reviews[items] > spoken[places])
    return found


def read_range_keywords(corpus: Corpus, starts: IndexArray, ends: IndexArray) -> list[CleanText]:
    """Keywords of the choices from each start to before each end.

    They are of the reviews written there; where there is none, of the items' own texts.

    Args:
        corpus: its items and training reviews.
        starts: (R,) places in the walks.
        ends: (R,) places in the walks.
    """
    terms = find_terms(corpus)
    return _join_ranked(corpus, terms, sum_ranges(corpus, starts, ends), separator=", ")


def sum_ranges(corpus: Corpus, starts: IndexArray, ends: IndexArray) -> csr_matrix:
    """(R, V) word counts that `read_range_keywords` ranks."""
    terms = find_terms(corpus)
    chosen = _select_ranges(starts, ends, len(corpus.walks.item_index))
    counts = chosen @ terms.said
    silent = np.flatnonzero(count_words(counts) == 0)
    if len(silent):
        items = csr_matrix(
            (chosen.data, corpus.walks.item_index[chosen.indices], chosen.indptr),
            shape=(len(starts), len(corpus.sids)),
        )
        # Only rows without any word of a review gain something.
        keep = np.zeros(len(starts), dtype=np.float32)
        keep[silent] = 1
        counts = counts + csr_matrix(items.multiply(keep[:, None])) @ terms.own
    return counts


def find_worded(corpus: Corpus) -> NDArray[np.bool_]:
    """(M,) whether the choice at each place has a word, in its review or its item's own text."""
    terms = find_terms(corpus)
    own = count_words(terms.own) > 0
    found: NDArray[np.bool_] = own[corpus.walks.item_index] | (count_words(terms.said) > 0)
    return found


def count_words(counts: csr_matrix) -> IndexArray:
    """(R,) how many different words each row has."""
    return np.asarray(np.diff(counts.indptr), dtype=np.int64)


def _select_ranges(starts: IndexArray, ends: IndexArray, n_places: int) -> csr_matrix:
    lengths = ends - starts
    bounds = np.append(0, np.cumsum(lengths))
    places = np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], lengths)
    ones = np.ones(len(places), dtype=np.float32)
    return csr_matrix((ones, places, bounds), shape=(len(starts), n_places))


def _join_ranked(
    corpus: Corpus, terms: Terms, counts: csr_matrix, *, separator: str
) -> list[CleanText]:
    most = corpus.max_text_characters
    ranked = terms.rank(counts, corpus.recipe.keywords)
    return [clean_text(separator.join(words), most) for words in ranked]

"""Scorers of captions: figures of all predictions together, which are no means over samples."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from cmoe.tasks.scorer import Target

ORDERS = (1, 2, 3, 4)
_SIGMA = 6.0  # of the penalty for another length
_SCALE = 10.0

_TOKEN = re.compile(
    r"n't(?!\w)|'(?:s|re|ve|ll|d|m)(?!\w)"  # what the tokeniser of the Penn Treebank parts
    r"|(?:[^\W\d_]\.){2,}|\d+(?:[.,:]\d+)+"
    r"|\w+?(?=n't(?!\w))|\w+(?:[-/]\w+)*|[^\w\s]"
)
_DROPPED = frozenset("\"'`.?!,:;-\N{EN DASH}\N{EM DASH}\N{LEFT SINGLE QUOTATION MARK}“”")

Gram = tuple[str, ...]


def cider(predictions: Sequence[str], targets: Sequence[Target]) -> float:
    """CIDEr-D of captions against their references: 0 to 10, though papers print 100 times that.

    Vedantam et al. 2015 (arXiv 1411.5726), equations 2 to 5 with section 7's changes, as COCO's
    `cider_scorer.py` computes it. A rare n-gram counts more, by the number of samples whose
    references have it: one sample's share depends on all others, and a single sample has 0.

    COCO's code asks a Java program for tokens. Here an expression does: in lower case, without
    punctuation, clitics (`'s`, `n't`) parted. Where ordinary captions are told, both give the same.
    """
    said = [_grams(text) for text in predictions]
    wanted = [[_grams(text) for text in target.references] for target in targets]
    seen = Counter(gram for each in wanted for gram in set().union(*each))
    rarity = _Rarity(math.log(len(targets)), seen)
    shares = [
        sum(_likeness(rarity.weighed(one), rarity.weighed(other)) for other in others) / len(others)
        for one, others in zip(said, wanted, strict=True)
    ]
    return _SCALE * sum(shares) / len(shares)


def words(text: str) -> list[str]:
    """A caption's tokens."""
    plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return [token for token in _TOKEN.findall(plain) if token not in _DROPPED]


def _grams(text: str) -> Counter[Gram]:
    found = words(text)
    return Counter(tuple(found[i : i + n]) for n in ORDERS for i in range(len(found) - n + 1))


@dataclass(frozen=True)
class _Weighed:
    """A caption's n-grams by their weights, the norms by n, and its length in bigrams."""

    weights: dict[Gram, float]
    norms: dict[int, float]
    length: int


@dataclass(frozen=True)
class _Rarity:
    """How rare n-grams are: the logarithm of all samples, and in how many each is."""

    whole: float
    seen: Counter[Gram]

    def weighed(self, grams: Counter[Gram]) -> _Weighed:
        weights = {
            gram: count * (self.whole - math.log(max(1, self.seen[gram])))
            for gram, count in grams.items()
        }
        squares = dict.fromkeys(ORDERS, 0.0)
        for gram, weight in weights.items():
            squares[len(gram)] += weight * weight
        norms = {n: math.sqrt(square) for n, square in squares.items()}
        return _Weighed(weights, norms, sum(c for gram, c in grams.items() if len(gram) == 2))


def _likeness(said: _Weighed, wanted: _Weighed) -> float:
    """The mean over n of the clipped cosines, less for another length."""
    products = dict.fromkeys(ORDERS, 0.0)
    for gram, weight in said.weights.items():
        other = wanted.weights.get(gram, 0.0)
        products[len(gram)] += min(weight, other) * other
    norms = {n: said.norms[n] * wanted.norms[n] for n in ORDERS}
    cosines = (products[n] / norms[n] if norms[n] else products[n] for n in ORDERS)
    penalty = math.exp(-((said.length - wanted.length) ** 2) / (2 * _SIGMA**2))
    return penalty * sum(cosines) / len(ORDERS)


def bleu4(predictions: Sequence[str], targets: Sequence[Target]) -> float:
    """BLEU-4 of the corpus, 0 to 1 (Papineni et al. 2002), by sacreBLEU (Post 2018).

    Its defaults: `nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp`.
    """
    from sacrebleu.metrics import BLEU

    found = BLEU().corpus_score(list(predictions), _streams(t.references for t in targets))
    return min(1.0, float(found.score) / 100)  # rounding can lift it over 1


def _streams(references: Iterable[Sequence[str]]) -> list[tuple[str | None, ...]]:
    """Every sample's first reference, then every second one; None where a sample has fewer."""
    return list(zip_longest(*zip(*zip_longest(*references), strict=True)))

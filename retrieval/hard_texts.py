"""Hard wrong texts: a caption with one word exchanged for another that the corpus also has in that place.

Telling "a red circle at the top" from "a red circle at the left" needs what a batch of random captions rarely asks for:
which attribute belongs to which thing. After NegCLIP (arXiv:2210.01936), but without a parser or a word list: two words
are exchangeable when the corpus has both between the same neighbors.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"\w+|[^\w\s]")
_EDGE = ""


class WordExchange:
    """Learns from `texts` which words stand between which neighbors; `min_count` keeps slips of the pen out."""

    def __init__(self, texts: Sequence[str], min_count: int = 3) -> None:
        seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for text in texts:
            words = [_EDGE, *_WORD.findall(text.lower()), _EDGE]
            for before, word, after in zip(words, words[1:], words[2:], strict=False):
                seen[before, after][word] += 1
        common = {place: sorted(word for word, count in found.items() if count >= min_count) for place, found in seen.items()}
        self._choices = {place: words for place, words in common.items() if len(words) > 1}

    def draw(self, text: str, rng: np.random.Generator) -> str:
        """`text` in lower case with one word exchanged; unchanged when no word of it has an alternative."""
        matches = list(_WORD.finditer(text.lower()))
        words = [_EDGE, *(match.group() for match in matches), _EDGE]
        places = [index for index in range(len(matches)) if (words[index], words[index + 2]) in self._choices]
        for index in rng.permutation(places).tolist():
            others = [word for word in self._choices[words[index], words[index + 2]] if word != words[index + 1]]
            if others:
                start, stop = matches[index].span()
                return text.lower()[:start] + others[int(rng.integers(len(others)))] + text.lower()[stop:]
        return text

"""Answers as pictures."""

import numpy as np
import pytest

from cm3.core.errors import UsageError
from cm3.decode.records import Generation, codes_of
from cm3.tokens import Vocab


def test_codes_of_one_picture(vocab: Vocab) -> None:
    codes = codes_of(Generation(vocab.image_start + np.arange(12), "stop"), vocab)
    assert np.array_equal(codes, np.arange(12).reshape(3, 4))


@pytest.mark.parametrize("ids", [[30], list(range(51, 56)), [*range(51, 62), 30]])
def test_anything_but_a_picture_is_refused(vocab: Vocab, ids: list[int]) -> None:
    with pytest.raises(UsageError, match="not one picture"):
        codes_of(Generation(np.array(ids), "stop"), vocab)

"""Grid positions from ids, the table of row and column vectors, and rotary factors."""

import pytest
import torch

from cm3.model import CM3Config
from cm3.model.positions import grid_positions_of, grid_table, rotary_factors, rotate

CONFIG = CM3Config(vocab_size=20, grid_shape=(2, 2), grid_embedding=True, image_start=10, image_stop=20)


def test_grid_positions_count_from_the_start_of_every_run() -> None:
    ids = torch.tensor([[1, 10, 11, 12, 13, 3, 19, 18, 17, 16], [0, 0, 1, 4, 3, 10, 10, 10, 10, 10]])
    expected = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4], [0, 0, 0, 0, 0, 1, 2, 3, 4, 1]])
    assert torch.equal(grid_positions_of(ids, CONFIG), expected)


def test_grid_positions_need_the_image_range() -> None:
    with pytest.raises(ValueError, match="image_start"):
        grid_positions_of(torch.zeros(1, 2, dtype=torch.int64), CM3Config(grid_shape=(2, 2), grid_embedding=True))


def test_grid_table_is_row_plus_column() -> None:
    rows, columns = torch.randn(2, 5), torch.randn(3, 5)
    table = grid_table(rows, columns)
    assert table.shape == (7, 5)
    assert not table[0].any()
    torch.testing.assert_close(table[1 + 1 * 3 + 2], rows[1] + columns[2])


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    config = CM3Config(hidden_size=16, num_attention_heads=2)
    query, key = torch.randn(1, 1, 2, 8), torch.randn(1, 1, 2, 8)

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotate(x, *rotary_factors(torch.tensor([[position]]), config, torch.float32))

    torch.testing.assert_close(turned(query, 7).norm(dim=-1), query.norm(dim=-1))
    near, far = (turned(query, 5) * turned(key, 3)).sum(-1), (turned(query, 105) * turned(key, 103)).sum(-1)
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(near, (turned(query, 6) * turned(key, 3)).sum(-1))

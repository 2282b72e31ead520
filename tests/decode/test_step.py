"""The stepping transformer and its cache against the model's own forward over the whole row, for every variant of the model."""

import pytest
import torch
from torch import nn

from cm3.decode import cache
from cm3.decode.rows import Rows


@pytest.mark.parametrize("layout", ["together", "shared"])
def test_steps_and_windows_equal_the_whole_row(vocab, make_model, caption, whole, variant, layout: str, monkeypatch) -> None:
    monkeypatch.setattr(cache, "SHARE_FROM", 1 if layout == "shared" else 1000)
    model = make_model(vocab, **variant)
    long, short, blank = (caption(length, length).stream() for length in (9, 4, 1))
    streams = [[long, blank], [long, blank], [short, blank], [long]]  # the last request has one stream
    owners = [(request, stream) for request, of_one in enumerate(streams) for stream in of_one]
    rows = Rows(model, streams, room=10)
    drawn = (vocab.image_start + torch.randint(0, 24, (4, 8), generator=torch.Generator().manual_seed(0))).tolist()
    for step in range(4):
        hidden = rows.hidden()
        for row, (request, stream) in enumerate(owners):
            expected = whole(model, stream, drawn[request][:step], list(range(1, step + 1)))[-1]
            torch.testing.assert_close(hidden[row], expected, atol=1e-5, rtol=1e-5)
        rows.feed(torch.tensor([ids[step] for ids in drawn]), torch.full((4,), step + 1))
    rows.hidden()
    rows.keep([0, 2, 3])
    kept, owners = [0, 2, 3], [(request, stream) for request, stream in owners if request != 1]
    fed = torch.tensor([4, 2, 3])  # the second and the third take some of their tokens back
    tried = torch.tensor([drawn[request][start : start + 3] for request, start in zip(kept, fed.tolist())])
    hidden = rows.try_out(tried, fed[:, None] + torch.arange(1, 4), fed)
    for row, (request, stream) in enumerate(owners):
        stop = int(fed[kept.index(request)]) + 3
        expected = whole(model, stream, drawn[request][:stop], list(range(1, stop + 1)))[-3:]
        torch.testing.assert_close(hidden[row], expected, atol=1e-5, rtol=1e-5)


class Doubled(nn.Module):
    """A projection that is more than a matrix, as an adapter makes it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)


def test_adapters_and_hooks_count(vocab, make_model, caption, whole) -> None:
    model, stream = make_model(vocab, qk_norm="shared", grid_embedding=True), caption(5).stream()
    model.model.layers[0].self_attn.v_proj = Doubled(model.model.layers[0].self_attn.v_proj)
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda module, given, made: made + 1)
    rows = Rows(model, [[stream]], room=4)
    rows.feed(torch.tensor([vocab.image_start]), torch.tensor([1]))
    torch.testing.assert_close(rows.hidden()[0], whole(model, stream, [vocab.image_start], [1])[-1], atol=1e-5, rtol=1e-5)


def test_prompts_of_candidates_are_computed_once_and_shared(vocab, make_model, caption, monkeypatch) -> None:
    model, seen = make_model(vocab), []
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda **named: seen.append(named["input_ids"].shape) or forward(**named))
    long, blank = caption(40).stream(), caption(2).stream()
    monkeypatch.setattr(cache, "SHARE_FROM", 20)
    rows = Rows(model, [[long, blank]] * 8, room=4)
    assert sorted(shape[0] * shape[1] for shape in seen) == [4, 42]  # the short one is not padded to the long one
    assert [block.keys[0].shape[0] for block in rows._cache._blocks] == [1, 1]  # one copy of each for eight candidates

"""The release's own layout, against a forward pass written from the paper and Meta's description of its shards."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.model_conversion import convert, export
from cm3.model_folder import open_model_folder

HEADS, KV_HEADS, HEAD, LAYERS = 4, 2, 8, 2  # of the releases that `original_folder` makes


def read_shards(folder, ranks: int) -> list[dict[str, Tensor]]:
    names = ["consolidated.pth"] if ranks == 1 else [f"consolidated.{rank:02d}.pth" for rank in range(ranks)]
    [place] = (folder / "models").iterdir()
    return [torch.load(place / name, weights_only=True) for name in names]


def rms(x: Tensor, gain: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * gain


def turned(x: Tensor) -> Tensor:
    """Neighboring pairs of (T, H, K) as complex numbers, turned by the angle of their position."""
    angles = torch.arange(x.shape[0])[:, None] * 10000.0 ** (-torch.arange(0, HEAD, 2) / HEAD)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]  # (T, 1, K / 2)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)


def parallel_logits(shards: list[dict[str, Tensor]], tokens: Tensor, swin_norm: bool) -> Tensor:
    """Logits (T, V) of one row, rank by rank: the parts of a matrix product are summed, those of an embedding joined."""
    ranks = len(shards)

    def attention(x: Tensor, layer: str) -> Tensor:
        out = torch.zeros_like(x)
        for shard in shards:
            own = {name.removeprefix(f"{layer}.attention."): t for name, t in shard.items() if name.startswith(layer)}
            query, key, value = ((x @ own[f"w{side}.weight"].T).unflatten(-1, (-1, HEAD)) for side in "qkv")  # (T, H / R, K)
            normed = [
                F.layer_norm(t, (HEAD,), own[f"{side}_normalization.weight"], own[f"{side}_normalization.bias"])
                for t, side in ((query, "q"), (key, "k"))
            ]
            query, key = (turned(t).transpose(0, 1) for t in normed)
            key, value = (t.repeat_interleave(HEADS // KV_HEADS, dim=0) for t in (key, value.transpose(0, 1)))
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            out = out + mixed.transpose(0, 1).flatten(1) @ own["wo.weight"].T
        return out

    def feed_forward(x: Tensor, layer: str) -> Tensor:
        w1, w2, w3 = ([shard[f"{layer}.feed_forward.w{n}.weight"] for shard in shards] for n in (1, 2, 3))
        return sum((F.silu(x @ w1[r].T) * (x @ w3[r].T)) @ w2[r].T for r in range(ranks))

    x = torch.cat([shard["tok_embeddings.weight"][tokens] for shard in shards], dim=-1)
    for number in range(LAYERS):
        layer = f"layers.{number}"
        first, second = shards[0][f"{layer}.attention_norm.weight"], shards[0][f"{layer}.ffn_norm.weight"]
        if swin_norm:
            x = x + rms(attention(x, layer), first)
            x = x + rms(feed_forward(x, layer), second)
        else:
            x = x + attention(rms(x, first), layer)
            x = x + feed_forward(rms(x, second), layer)
    return torch.cat([rms(x, shards[0]["norm.weight"]) @ shard["output.weight"].T for shard in shards], dim=-1)


@pytest.mark.parametrize(("ranks", "swin_norm"), [(1, False), (2, True)])
def test_equals_the_parallel_forward_pass_and_comes_back(original_folder, tmp_path, ranks, swin_norm):
    source = original_folder(ranks, swin_norm)
    done = convert(source, tmp_path / "ours")
    opened = open_model_folder(tmp_path / "ours")
    assert done.parameters == sum(p.numel() for p in opened.model.parameters())
    tokens = torch.randint(0, 40, (19,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = opened.model(tokens[None]).logits[0]
        expected = parallel_logits(read_shards(source, ranks), tokens, swin_norm)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    export(tmp_path / "ours", tmp_path / "theirs", "chameleon-original", shards=ranks)
    for before, after in zip(read_shards(source, ranks), read_shards(tmp_path / "theirs", ranks), strict=True):
        assert set(before) - {"rope.freqs"} == set(after)
        for name, tensor in after.items():
            assert torch.equal(before[name].view(torch.uint8), tensor.view(torch.uint8)), name
    images = torch.load(tmp_path / "theirs" / "tokenizer" / "vqgan.ckpt", weights_only=True)["state_dict"]
    original = torch.load(source / "tokenizer" / "vqgan.ckpt", weights_only=True)["state_dict"]
    assert set(images) == set(original)
    assert all(torch.equal(images[name], tensor) for name, tensor in original.items())


def test_ranks_that_drifted_apart_are_averaged_and_it_is_said(original_folder, tmp_path):
    source = original_folder(2)
    file = source / "models" / "7b" / "consolidated.01.pth"
    parts = torch.load(file, weights_only=True)
    before = parts["norm.weight"].clone()
    parts["norm.weight"] = before + 0.5
    torch.save(parts, file)
    with pytest.warns(UserWarning, match="copies of some norms are not equal; their mean is taken"):
        convert(source, tmp_path / "ours")
    torch.testing.assert_close(open_model_folder(tmp_path / "ours").model.model.norm.weight.data, before + 0.25)


def test_heads_that_differ_do_not_fit_into_one_shard(original_folder, tmp_path):
    convert(original_folder(2), tmp_path / "ours")
    with pytest.raises(UsageError, match=r"differs between heads .*--to chameleon"):
        export(tmp_path / "ours", tmp_path / "theirs", "chameleon-original", shards=1)
    assert not (tmp_path / "theirs").exists()
    with pytest.raises(UsageError, match="evenly into 3 shards"):
        export(tmp_path / "ours", tmp_path / "theirs", "chameleon-original", shards=3)


def test_what_is_missing_is_named(original_folder, tmp_path):
    source = original_folder(2)
    place = source / "models" / "7b"
    (place / "consolidated.01.pth").rename(tmp_path / "kept")
    with pytest.raises(ArtefactError, match="has 1 of 2 shards"):
        convert(source, tmp_path / "ours")
    (tmp_path / "kept").rename(place / "consolidated.01.pth")
    (source / "tokenizer" / "vqgan.yaml").write_text("model: 3")
    with pytest.raises(ArtefactError, match=r"vqgan\.yaml .* does not describe a VQGAN"):
        convert(source, tmp_path / "ours")
    (source / "tokenizer").rename(tmp_path / "tokenizer")
    with pytest.raises(InputError, match="no tokenizer/"):
        convert(source, tmp_path / "ours")
    (place / "params.json").rename(place / "other.json")
    with pytest.raises(InputError, match="of no known format"):
        convert(source, tmp_path / "ours")


def test_a_shard_that_holds_code_is_not_opened(original_folder, tmp_path):
    source = original_folder(1)
    torch.save({"tok_embeddings.weight": Exception("anything")}, source / "models" / "7b" / "consolidated.pth")
    with pytest.raises(ArtefactError, match="holds more than tensors"):
        convert(source, tmp_path / "ours")

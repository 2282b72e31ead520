"""Tiny Chameleons with random weights: in the layout of transformers, and as original model-parallel shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ChameleonConfig, ChameleonForConditionalGeneration
from transformers.models.chameleon import ChameleonVQVAEConfig

from vqgan.config import VQConfig
from vqgan.model import VQModel

CODES, GRID, RESOLUTION, SENTINELS = 16, (2, 2), 8, 8
HEADS, KV_HEADS, WIDTH, INNER, LAYERS = 4, 2, 32, 48, 2
LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")
SPECIALS = [
    *("<s>", "<pad>", "</s>", "<unk>"),
    *(f"IMGIMG{str(code).translate(LETTERS)}Z" for code in range(CODES)),
    *("<eoss>", "<racm3:break>"),
    *(f"<sentinel:{index}>" for index in range(SENTINELS)),
    *("<reserved08706>", "<reserved08707>", "<reserved08708>", "<reserved08709>"),
]
CORPUS = ["a large red circle left of a blue square", "two green circles, one blue triangle.", "how many circles?  12"] * 3


def chameleon_tokenizer() -> Tokenizer:
    """A byte-level BPE built as the released one is: the same splits, the same kinds of special tokens in the same order."""
    tokenizer = Tokenizer(models.BPE())
    patterns = ["<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I|J){1,4})Z", "([\\t\\n]|    |  )"]
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    endings = [pre_tokenizers.Digits(True), pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, *endings])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def image_tensors(seed: int = 5) -> dict[str, torch.Tensor]:
    """A whole random VQGAN, encoder and decoder, in taming's names."""
    options = {"channels": 32, "channel_multipliers": (1, 1, 1), "residual_blocks": 1, "latent_channels": 8}
    config = VQConfig(
        image_size=RESOLUTION, downsample_factor=4, codebook_size=CODES, codebook_dim=8, network="taming",
        network_options=options, quantizer="vq",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = VQModel(config).state_dict()
    return {name.replace("quantizer.", "quantize.", 1): tensor.contiguous() for name, tensor in state.items()}


def chameleon_config(vocabulary: dict[str, int], swin_norm: bool) -> ChameleonConfig:
    vq = ChameleonVQVAEConfig(
        embed_dim=8, num_embeddings=CODES, latent_channels=8, resolution=RESOLUTION, base_channels=32,
        channel_multiplier=[1, 1, 1], num_res_blocks=1,
    )  # fmt: skip
    named = {"<image>" if name == "<reserved08707>" else name: id_ for name, id_ in vocabulary.items()}
    return ChameleonConfig(
        vocab_size=len(vocabulary), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=256, swin_norm=swin_norm,
        vq_config=vq, vocabulary_map=named, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip


@pytest.fixture(scope="session")
def released_tokenizer() -> Tokenizer:
    return chameleon_tokenizer()


@pytest.fixture(scope="session")
def transformers_folder(released_tokenizer, randomize, tmp_path_factory) -> Callable[..., Path]:
    """Makes `ChameleonForConditionalGeneration` folders; with `decoder` the VQGAN is whole, as in Anole's."""
    made: dict[tuple[bool, bool], Path] = {}

    def make(swin_norm: bool = False, decoder: bool = True) -> Path:
        if (swin_norm, decoder) in made:
            return made[swin_norm, decoder]
        folder = tmp_path_factory.mktemp("chameleon")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            reference = ChameleonForConditionalGeneration(chameleon_config(released_tokenizer.get_vocab(), swin_norm)).eval()
        randomize(reference, 1, 0.2)
        images = image_tensors()
        reference.model.vqmodel.load_state_dict({name: t for name, t in images.items() if not name.startswith("decoder.")})
        reference.save_pretrained(folder)
        if decoder:
            tensors = load_file(folder / "model.safetensors")
            tensors |= {f"model.vqmodel.{name}": t for name, t in images.items() if name.startswith("decoder.")}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        text = released_tokenizer.to_str().replace("<reserved08707>", "<image>")
        (folder / "tokenizer.json").write_text(text, "utf-8")
        made[swin_norm, decoder] = folder
        return folder

    return make


@pytest.fixture(scope="session")
def original_folder(released_tokenizer, tmp_path_factory) -> Callable[..., Path]:
    """Makes releases as Meta's: `models/7b` with `ranks` shards of random weights and `tokenizer/`."""

    def make(ranks: int, swin_norm: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("original")
        models_folder, parts = folder / "models" / "7b", folder / "tokenizer"
        models_folder.mkdir(parents=True)
        parts.mkdir()
        size = released_tokenizer.get_vocab_size()
        generator = torch.Generator().manual_seed(ranks)
        for rank in range(ranks):
            name = "consolidated.pth" if ranks == 1 else f"consolidated.{rank:02d}.pth"
            torch.save(random_shard(size, ranks, generator), models_folder / name)
        parameters = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "norm_eps": 1e-5}
        stated = {"model": {**parameters, "qk_normalization": True, "swin_norm": swin_norm, "rope_theta": 10000.0}}
        (models_folder / "params.json").write_text(json.dumps(stated))
        (models_folder / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": ranks}))
        (parts / "text_tokenizer.json").write_text(released_tokenizer.to_str(), "utf-8")
        torch.save({"state_dict": image_tensors()}, parts / "vqgan.ckpt")
        network = {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "z_channels": 8, "resolution": RESOLUTION}
        settings = {"model": {"params": {"n_embed": CODES, "embed_dim": 8, "ddconfig": network}}}
        (parts / "vqgan.yaml").write_text(yaml.safe_dump(settings))
        return folder

    return make


def random_shard(size: int, ranks: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """One rank's part; norms that every rank has whole are the same in all."""
    head = WIDTH // HEADS
    shared = torch.Generator().manual_seed(99)

    def draw(*shape: int, source: torch.Generator = generator, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(shape, generator=source) * 0.2 + mean

    tensors = {
        "tok_embeddings.weight": draw(size, WIDTH // ranks),
        "norm.weight": draw(WIDTH, source=shared, mean=1.0),
        "output.weight": draw(size // ranks, WIDTH),
        "rope.freqs": draw(head // 2),
    }
    for layer in range(LAYERS):
        own = {
            "attention.wq.weight": draw(WIDTH // ranks, WIDTH),
            "attention.wk.weight": draw(KV_HEADS * head // ranks, WIDTH),
            "attention.wv.weight": draw(KV_HEADS * head // ranks, WIDTH),
            "attention.wo.weight": draw(WIDTH, WIDTH // ranks),
            "feed_forward.w1.weight": draw(INNER // ranks, WIDTH),
            "feed_forward.w2.weight": draw(WIDTH, INNER // ranks),
            "feed_forward.w3.weight": draw(INNER // ranks, WIDTH),
            "attention_norm.weight": draw(WIDTH, source=shared, mean=1.0),
            "ffn_norm.weight": draw(WIDTH, source=shared, mean=1.0),
        }
        for side in "qk":
            own[f"attention.{side}_normalization.weight"] = draw(head, mean=1.0)
            own[f"attention.{side}_normalization.bias"] = draw(head)
        tensors |= {f"layers.{layer}.{name}": tensor for name, tensor in own.items()}
    return tensors

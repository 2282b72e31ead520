"""The pipeline on a tiny untrained model: the grammar makes every answer whole, the seeds make it the same again."""

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.core.errors import InputError, UsageError
from cm3.decode import Done, ImagePiece, Request, TextAnswer, TextPiece
from cm3.documents.document import Document, ImageSegment, Neighbor, TextSegment
from cm3.model.presets import create_model, preset
from cm3.model_folder import Parts
from cm3.pipeline import CM3Pipeline
from cm3.tokens import BPETextTokenizer, DocumentTokenizer, Vocab, vocab_for
from cm3.tokens.turns import Turn, encode_prompt, encode_turns
from sft.tasks import make_task
from vqgan.config import VQConfig
from vqgan.model import VQModel
from vqgan.tokenizer import VQTokenizer

CORPUS = ["a red circle", "a blue square", "how many circles?", "describe"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = VQTokenizer(VQModel(VQConfig(image_size=24, downsample_factor=8, codebook_size=64, codebook_dim=8)))
    return Parts(image_tokenizer=images.save(tmp_path_factory.mktemp("parts") / "images"))


@pytest.fixture(scope="module")
def pipe(parts):
    import vqgan

    text = BPETextTokenizer.train(CORPUS, 280)
    vocab = vocab_for(text, 64, (3, 3))
    config = preset(
        "tiny", vocab_size=vocab.size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=160,
        grid_embedding=True, grid_shape=vocab.grid_shape, image_start=vocab.image_start, image_stop=vocab.image_stop,
        initializer_range=0.2, texts_were_masked=True,
    )  # fmt: skip
    tokenizer = DocumentTokenizer(vocab, text, vqgan.from_pretrained(parts.image_tokenizer))
    return CM3Pipeline(create_model(config, 0), tokenizer, parts=parts)


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))


@pytest.fixture
def asked(pipe, monkeypatch):
    """Every request that reaches the engine."""
    seen = []
    generate = pipe.engine.generate

    def recorded(requests, *rest, **named):
        seen.extend(requests)
        return generate(requests, *rest, **named)

    monkeypatch.setattr(pipe.engine, "generate", recorded)
    return seen


def test_picture_zero_of_four_is_the_picture_of_one(pipe):
    four = pipe.draw("a red circle", n=4, seed=7)
    one = pipe.draw("a red circle", n=1, seed=7)
    assert np.array_equal(four[0].codes, one[0].codes)
    assert [drawn.seed for drawn in four] == [(7, 0), (7, 1), (7, 2), (7, 3)]
    assert len({drawn.codes.tobytes() for drawn in four}) == 4
    assert not np.array_equal(pipe.draw("a red circle", seed=8)[0].codes, one[0].codes)


def test_a_picture_is_what_its_codes_decode_to(pipe):
    drawn = pipe.draw("a red circle")[0]
    assert (drawn.image.size, drawn.codes.shape) == ((24, 24), (3, 3))
    [decoded] = pipe.decode_codes([drawn.codes])
    assert decoded.tobytes() == drawn.image.tobytes()
    assert pipe.generate("a red circle")[0].tobytes() == drawn.image.tobytes()


def test_a_picture_of_anything(pipe, asked):
    pipe.generate(None)
    assert asked[0].prompt.token_ids.tolist() == [pipe.vocab.bos_id, pipe.vocab.mask_id(0), pipe.vocab.break_id]


def test_texts(pipe, image):
    assert isinstance(pipe.caption(image), str)
    assert pipe.ask(image, "how many circles?") == pipe.ask(image, "how many circles?")


def test_prompts_are_those_of_the_tasks(pipe, image, asked):
    pipe.generate("a red circle")
    pipe.caption(image)
    pipe.ask(image, "how many circles?")
    pipe.edit(image, "a blue square")
    segment = ImageSegment(image=image)
    turns = [
        make_task("text_to_image").prompt("a red circle"),
        make_task("captioning").prompt(segment),
        make_task("vqa").prompt(segment, "how many circles?"),
        make_task("editing").prompt(segment, "a blue square"),
    ]
    for request, expected in zip(asked, turns, strict=True):
        assert np.array_equal(request.prompt.token_ids, encode_prompt(expected, pipe.tokenizer).token_ids)


def test_a_model_is_asked_with_the_templates_it_was_tuned_with(pipe, asked):
    tuned = CM3Pipeline(pipe.model, pipe.tokenizer, {"text_to_image": make_task("text_to_image", {"template": "draw {caption}"})})
    tuned.engine = pipe.engine
    tuned.generate("a red circle")
    assert pipe.tokenizer.text.decode(asked[0].prompt.token_ids[1:-1]) == "draw a red circle"


def test_infilling_changes_nothing_outside_its_region(pipe, image):
    before = pipe.tokenizer.image_tokenizer.encode(pipe.tokenizer.image_tokenizer.preprocess([image]))[0].numpy()
    drawn = pipe.draw_infill(image, box=(9, 2, 17, 17), prompt="a red circle", seed=3, temperature=1.0)
    region = np.zeros((3, 3), bool)
    region[:, 1:3] = True  # pixels 9..16 lie in the columns 8..15 and 16..23
    assert np.array_equal(drawn.codes[~region], before[~region])
    assert not np.array_equal(drawn.codes[region], before[region])
    mask = np.zeros((24, 24), bool)
    mask[2:17, 9:17] = True
    for given in (mask, Image.fromarray((mask * 255).astype(np.uint8))):
        again = pipe.draw_infill(image, given, prompt="a red circle", seed=3, temperature=1.0)
        assert np.array_equal(again.codes, drawn.codes)


def test_a_region_of_more_runs_than_sentinels_changes_nothing_outside(pipe, image):
    text = pipe.tokenizer.text
    vocab = Vocab(text.vocab_size, 64, (3, 3), num_masks=2, text_start=text.first_id)
    tokenizer = DocumentTokenizer(vocab, text, pipe.tokenizer.image_tokenizer)
    before = tokenizer.image_tokenizer.encode(tokenizer.image_tokenizer.preprocess([image]))[0].numpy()
    region = np.indices((3, 3)).sum(0) % 2 == 0  # five runs
    drawn = CM3Pipeline(pipe.model, tokenizer).draw_infill(image, region.repeat(8, 0).repeat(8, 1), temperature=1.0)
    assert np.array_equal(drawn.codes[~region], before[~region])
    assert not np.array_equal(drawn.codes[region], before[region])


def test_what_is_filled_in_does_not_depend_on_what_was_there(pipe, image):
    other = image.copy()
    other.paste((0, 255, 0), (0, 0, 24, 8))
    first, second = (pipe.draw_infill(picture, box=(0, 0, 24, 8)).codes for picture in (image, other))
    assert np.array_equal(first[0], second[0])


def test_options_by_name(pipe):
    greedy = [pipe.draw("a red circle", n=2, temperature=0.0)[index].codes for index in range(2)]
    assert np.array_equal(*greedy)
    guided = pipe.draw("a red circle", guidance=3.0, temperature=0.0)[0].codes
    assert not np.array_equal(guided, greedy[0])
    pipe.draw("a red circle", strategy="contrastive", strategy_options={"k": 4})
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        pipe.generate("a red circle", temperatur=1)
    with pytest.raises(UsageError, match="contrastive"):
        pipe.generate("a red circle", strategy="contrastiv")
    with pytest.raises(UsageError, match="does not take"):
        pipe.generate("a red circle", strategy="plain", guidance=2)


class Redness:
    """Judges a picture by the mean of its red channel."""

    def score(self, text, images):
        return torch.tensor([float(np.asarray(picture)[..., 0].mean()) for picture in images])


def test_best_of_keeps_the_best_candidate_of_each_picture(pipe, monkeypatch):
    monkeypatch.setitem(pipe.__dict__, "reranker", Redness())
    candidates = pipe.draw("a red circle", n=6, seed=1)
    chosen = pipe.draw("a red circle", n=2, best_of=3, seed=1)
    reds = Redness().score("", [drawn.image for drawn in candidates]).reshape(2, 3)
    assert [drawn.seed for drawn in chosen] == [(1, int(reds[0].argmax())), (1, 3 + int(reds[1].argmax()))]
    assert [drawn.score for drawn in chosen] == reds.max(1).values.tolist()
    assert chosen[0].seed == pipe.draw("a red circle", best_of=3, seed=1)[0].seed


def test_edits_and_infills_are_chosen_among_candidates(pipe, image, monkeypatch):
    monkeypatch.setitem(pipe.__dict__, "reranker", Redness())
    region = {"box": (8, 0, 24, 16), "prompt": "a red circle"}
    calls = (
        lambda **options: pipe.draw_edits(image, "a blue square", seed=4, **options),
        lambda **options: pipe.draw_infills(image, seed=4, **region, **options),
    )
    for call in calls:
        candidates, chosen = (call(guidance=2.0, temperature=1.0, **choice) for choice in ({"n": 4}, {"n": 2, "best_of": 2}))
        assert len({drawn.codes.tobytes() for drawn in candidates}) > 1
        reds = Redness().score("", [drawn.image for drawn in candidates]).reshape(2, 2)
        assert [drawn.seed for drawn in chosen] == [(4, int(reds[0].argmax())), (4, 2 + int(reds[1].argmax()))]
        assert [len(drawn.candidates) for drawn in chosen] == [2, 2]
        assert np.array_equal(call()[0].codes, call(temperature=0.0)[0].codes)  # alone: the likeliest
    kept = pipe.draw_infill(image, **region, best_of=3, rerank="likelihood", seed=4)
    assert {drawn.codes[2].tobytes() for drawn in kept.candidates} == {kept.codes[2].tobytes()}  # outside of the region
    with pytest.raises(UsageError, match="draw_edits or draw_infills"):
        pipe.edit(image, "a blue square", n=2)
    with pytest.raises(UsageError, match="best_of chooses by the prompt"):
        pipe.infill(image, box=(0, 0, 8, 8), best_of=2)


class Memory:
    """Answers every query with the same documents, nearest first."""

    def __init__(self, image):
        pair = (TextSegment("a blue square"), ImageSegment(image=image))
        self.documents, self.queries = [Document("a", pair), Document("b", pair[:1])], []

    def search(self, text=None, image=None, k=1):
        self.queries.append((text, image))
        return [Neighbor(document, 0.5, rank) for rank, document in enumerate(self.documents[:k])]


def test_retrieved_documents_stand_before_the_prompt(pipe, image, asked, monkeypatch):
    memory = Memory(image)
    monkeypatch.setitem(pipe.__dict__, "memory", memory)
    pipe.generate("a red circle", retrieve=2)
    prompt = asked[0].prompt
    neighbors = [pipe.tokenizer.encode(document).token_ids[1:-1] for document in memory.documents]
    breaks = [pipe.vocab.break_id]
    own = pipe.tokenizer.text.encode("a red circle")
    expected = [pipe.vocab.bos_id, *neighbors[0], *breaks, *neighbors[1], *breaks, *own, *breaks]
    assert prompt.token_ids.tolist() == expected
    assert prompt.context_stop == len(expected) - len(own) - 1
    pipe.ask(image, "how many circles?", retrieve=1)
    (text, none), (nothing, picture) = memory.queries
    assert (text, none, nothing) == ("a red circle", None, None)
    assert picture.tobytes() == image.tobytes()


def test_judges_and_candidates(pipe, monkeypatch):
    chosen = pipe.draw("a red circle", best_of=3, seed=1, rerank=Redness())[0]
    assert [candidate.seed for candidate in chosen.candidates] == [(1, 0), (1, 1), (1, 2)]
    assert chosen.score == max(candidate.score for candidate in chosen.candidates)
    by_model = pipe.draw("a red circle", best_of=3, seed=1, rerank="likelihood")[0]
    turns = [Turn("assistant", (TextSegment("a red circle"),), train=True)]
    for candidate in by_model.candidates:
        asked = encode_prompt(make_task("captioning").prompt(ImageSegment(codes=candidate.codes)), pipe.tokenizer).token_ids
        whole = [*asked, *encode_turns(turns, pipe.tokenizer).token_ids[1:]]
        with torch.no_grad():
            log_probs = pipe.model(torch.tensor([whole])).logits[0].log_softmax(-1)
        expected = sum(float(log_probs[place - 1, whole[place]]) for place in range(len(asked), len(whole)))
        assert candidate.score == pytest.approx(expected, abs=1e-3)
    with pytest.raises(UsageError, match="'encoder', 'likelihood' or a Reranker"):
        pipe.draw("a red circle", best_of=2, rerank="taste")
    with pytest.raises(UsageError, match="'encoder', 'likelihood' or a Reranker"):
        pipe.draw("a red circle", rerank="taste")


def test_gaps_in_texts(pipe, image, asked):
    vocab, text = pipe.vocab, pipe.tokenizer.text
    pipe.fill_text("a ___ circle and ___", image)
    ids = asked[-1].prompt.token_ids
    start = [vocab.bos_id, *text.encode("a"), vocab.mask_id(0), *text.encode("circle and"), vocab.mask_id(1), vocab.break_id]
    assert ids[: len(start)].tolist() == start
    assert vocab.is_image(ids[len(start) : -1]).all()
    assert ids[-1] == vocab.mask_id(0)
    assert isinstance(pipe.caption(image, infill=True), str)
    assert asked[-1].prompt.token_ids[:3].tolist() == [vocab.bos_id, vocab.mask_id(0), vocab.break_id]
    pipe.ask(image, "how many circles?", infill=True)
    start = [vocab.bos_id, *text.encode("how many circles?"), vocab.mask_id(0), vocab.break_id]
    assert asked[-1].prompt.token_ids[: len(start)].tolist() == start


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("a large ___ circle on ___", "a large circle on"),
        ("a   ___ circle", "a   circle"),
        ("line\n___\n  end ", "line\n\n  end "),
        ("a___b", "ab"),
        ("  ___!", " !"),
        ("___", ""),
    ],
)
def test_all_outside_the_gaps_stays_as_it_was_given(pipe, image, given, left, asked):
    filled = pipe.fill_text(given, image, seed=1, temperature=1.0)
    fills = r"(\S|\S.*\S)".join(re.escape(piece) for piece in given.split("___"))
    assert re.fullmatch(fills, filled, re.DOTALL)
    ids = asked[-1].prompt.token_ids.tolist()
    source = [id_ for id_ in ids[: ids.index(pipe.vocab.break_id)] if pipe.vocab.is_text(id_)]
    assert pipe.tokenizer.text.decode(source) == left  # no blank that the words would not have without gaps


def test_several_regions_at_once(pipe, image):
    before = pipe.tokenizer.image_tokenizer.encode(pipe.tokenizer.image_tokenizer.preprocess([image]))[0].numpy()
    region = np.zeros((3, 3), bool)
    region[0, 0] = region[1:, 2] = True
    for options in ({}, {"guidance": 2.0}, {"window": 4}):
        drawn = pipe.draw_infill(image, box=[(0, 0, 8, 8), (16, 8, 24, 24)], prompt="a red circle", temperature=1.0, **options)
        assert np.array_equal(drawn.codes[~region], before[~region])


def test_texts_and_pairs_of_anything(pipe, asked):
    texts = pipe.write(n=3, seed=1, temperature=1.0)
    assert len(texts) == 3
    assert asked[0].prompt.token_ids.tolist() == [pipe.vocab.bos_id]
    assert pipe.imagine(seed=1, limit=5000)[0].images  # the text ends where the picture must begin
    for document in pipe.imagine(n=2, seed=1, limit=6):
        assert isinstance(document.segments[0], TextSegment)
        assert document.images[0].load().size == (24, 24)


def test_variations(pipe, image, monkeypatch):
    monkeypatch.setattr(pipe, "caption", lambda picture: "a red circle")  # an untrained model says too much
    varied, drawn = pipe.vary(image, n=2, seed=3), pipe.generate("a red circle", n=2, seed=3)
    assert [picture.tobytes() for picture in varied] == [picture.tobytes() for picture in drawn]
    assert len(pipe.vary_text("a red circle", n=2)) == 2


def test_a_window_changes_nothing(pipe, image):
    for options in ({}, {"guidance": 2.0}, {"strategy": "mixed"}):
        one, several = (pipe.draw("a red circle", n=3, window=window, **options) for window in (1, 5))
        assert [drawn.codes.tolist() for drawn in one] == [drawn.codes.tolist() for drawn in several]


@pytest.mark.parametrize(
    ("record", "words"), [(False, "never saw <mask> in place of a text"), (None, "nothing says whether .* in place of a text")]
)
def test_guidance_of_a_model_without_masks_says_so(pipe, image, record, words, monkeypatch):
    monkeypatch.setattr(pipe.model.config, "texts_were_masked", record)
    pipe.generate("a red circle")
    for options in ({"guidance": 2.0}, {"strategy": "contrastive"}):
        with pytest.warns(UserWarning, match=words):
            pipe.generate("a red circle", **options)
    with pytest.warns(UserWarning, match=words.replace("text", "picture")):
        pipe.caption(image, strategy="guidance", strategy_options={"drop": "image"})
    for call in (
        lambda: pipe.generate("a red circle", guidance=1.0),
        lambda: pipe.generate(None, guidance=2.0),
        lambda: pipe.infill(image, box=(0, 0, 8, 8), prompt="a red circle", guidance=2.0),  # there the text is left out
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is compared
            call()


def test_int8_weights_draw_and_are_not_saved(toy_model, tmp_path):
    full, small = (CM3Pipeline.from_pretrained(toy_model, int8=int8) for int8 in (False, True))
    ids = torch.tensor([[full.vocab.bos_id, full.vocab.break_id]])
    assert not torch.equal(full.model(ids).logits, small.model(ids).logits)
    assert len(small.generate("a red circle", n=2)) == 2
    with pytest.raises(UsageError, match="opened with int8=True cannot be saved"):
        small.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_than_memory_holds_is_refused_before_anything_is_drawn(pipe, asked, monkeypatch):
    calls = {
        "texts": pipe.write,
        "pairs": pipe.imagine,
        "pictures (n times best_of)": lambda **n: pipe.generate("a red circle", best_of=2, rerank="likelihood", **n),
    }
    for free in (1000, 10**12):
        monkeypatch.setattr("cm3.decode.memory.available_memory", lambda device, free=free: free)
        for what, call in calls.items():
            with pytest.raises(UsageError, match=re.escape(what) + " need about .*B of memory .* ask for fewer"):
                call(n=2 if free == 1000 else 10**12)
    assert not asked
    monkeypatch.setattr("cm3.decode.engine.available_memory", lambda device: 1000)
    with pytest.raises(UsageError, match="keys and values of one answer"):
        pipe.generate("a red circle")


def test_neighbors_that_do_not_fit_are_dropped_whole(pipe, image, asked, monkeypatch):
    memory = Memory(image)
    memory.documents[0] = Document("a", (TextSegment("a blue square " * 60),))
    monkeypatch.setitem(pipe.__dict__, "memory", memory)
    with pytest.warns(UserWarning, match="left out whole"):
        pipe.generate("a red circle", retrieve=2)
    assert pipe.tokenizer.text.decode(asked[0].prompt.token_ids[1 : asked[0].prompt.context_stop - 1]) == "a blue square"


def test_no_more_documents_are_encoded_than_can_fit(pipe, image, asked, monkeypatch):
    memory = Memory(image)
    memory.documents *= 500
    encoded, encode = [], pipe.tokenizer.encode
    monkeypatch.setitem(pipe.__dict__, "memory", memory)
    monkeypatch.setattr(pipe.tokenizer, "encode", lambda document: encoded.append(document) or encode(document))
    with pytest.warns(UserWarning, match="of 1000 retrieved documents"):
        pipe.generate("a red circle", retrieve=1000)
    assert len(asked[0].prompt.token_ids) > 160 - 9 - 10  # the context is full
    assert len(encoded) < 160
    with pytest.raises(InputError, match="; use fewer retrieved documents or ask"):
        pipe.engine.generate([Request(asked[0].prompt, TextAnswer(100))])


def test_stream_gives_whole_pieces_and_then_done(pipe, image):
    document = Document("d", (TextSegment("a red circle"), ImageSegment(image=image)))
    pieces = list(pipe.stream(document, seed=2, limit=80, max_images=2, temperature=1.0))
    assert isinstance(pieces[-1], Done)
    assert not any(isinstance(piece, Done) for piece in pieces[:-1])
    assert any(isinstance(piece, ImagePiece) for piece in pieces)
    assert pieces[-1].images == sum(isinstance(piece, ImagePiece) for piece in pieces)
    for piece in pieces[:-1]:
        assert piece.image.size == (24, 24) if isinstance(piece, ImagePiece) else isinstance(piece, TextPiece)


def test_chat(pipe, image):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "how many circles?"}]},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "describe"},
    ]
    replies = [pipe.chat(messages, seed=seed, temperature=1.0) for seed in range(8)]
    assert {reply["content"][0]["type"] for reply in replies} == {"text", "image"}
    assert all(reply["role"] == "assistant" and len(reply["content"]) == 1 for reply in replies)


def test_what_is_saved_draws_the_same(pipe, tmp_path):
    tuned = CM3Pipeline(pipe.model, pipe.tokenizer, {"vqa": make_task("vqa", {"template": "q: {question}"})}, pipe.parts)
    opened = CM3Pipeline.from_pretrained(tuned.save(tmp_path / "model"))
    assert opened.tasks["vqa"].template == "q: {question}"
    assert np.array_equal(opened.draw("a red circle", seed=5)[0].codes, pipe.draw("a red circle", seed=5)[0].codes)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda pipe, image: pipe.generate("  "), InputError, "prompt is empty"),
        (lambda pipe, image: pipe.ask(image, ""), InputError, "question is empty"),
        (lambda pipe, image: pipe.edit(image, ""), InputError, "instruction is empty"),
        (lambda pipe, image: pipe.generate("half a \ud800"), InputError, "Unicode"),
        (lambda pipe, image: pipe.generate("a red circle " * 90), InputError, "; shorten the prompt or ask"),
        (lambda pipe, image: pipe.generate("a", n=0), UsageError, "n must be at least 1"),
        (lambda pipe, image: pipe.generate("a", n=1.5), UsageError, "n must be a whole number, got 1.5"),
        (lambda pipe, image: pipe.write(n=-1), UsageError, "n must be at least 1, got -1"),
        (lambda pipe, image: pipe.write(limit=0), UsageError, "limit must be at least 1, got 0"),
        (lambda pipe, image: pipe.imagine(n=-1), UsageError, "n must be at least 1, got -1"),
        (lambda pipe, image: pipe.imagine(limit=0), UsageError, "limit must be at least 1, got 0"),
        (lambda pipe, image: pipe.generate("a", best_of=2), UsageError, "encoder/"),
        (lambda pipe, image: pipe.generate(None, best_of=2), UsageError, "prompt"),
        (lambda pipe, image: pipe.generate("a", retrieve=1), UsageError, "memory/"),
        (lambda pipe, image: pipe.generate(None, retrieve=2), UsageError, "retrieve is 2, but documents .* give a prompt"),
        (lambda pipe, image: pipe.caption(image, retrieve=2, infill=True), UsageError, "retrieve is 2, but .* infill"),
        (lambda pipe, image: pipe.ask(image, "?", retrieve=2, infill=True), UsageError, "retrieve is 2, but .* infill"),
        (lambda pipe, image: pipe.caption(image, retrieve=-5, infill=True), UsageError, "retrieve must be at least 0, got -5"),
        (lambda pipe, image: pipe.generate(None, retrieve=-5), UsageError, "retrieve must be at least 0, got -5"),
        (lambda pipe, image: pipe.draw("a", rerank="encoder"), UsageError, "rerank judges candidates, and best_of is 1"),
        (lambda pipe, image: pipe.edit(image, "a", rerank="likelihood"), UsageError, "rerank judges candidates"),
        (lambda pipe, image: pipe.generate("a", image_guidance=2.0), UsageError, "image_guidance .* use guidance alone"),
        (lambda pipe, image: pipe.caption("nowhere.png"), InputError, "no picture at"),
        (lambda pipe, image: pipe.caption(b"not an image"), InputError, "no picture"),
        (lambda pipe, image: pipe.infill(image), UsageError, "needs a region: give either a mask or a box"),
        (lambda pipe, image: pipe.infill(image, np.ones((24, 24)), box=(0, 0, 8, 8)), UsageError, "given both a mask and a box"),
        (lambda pipe, image: pipe.infill(image.resize((48, 24)), box=(0, 0, 8, 8)), InputError, "region marks nothing.*cut off"),
        (lambda pipe, image: pipe.infill(image, box=(0, 0, 25, 8)), UsageError, "does not lie inside"),
        (lambda pipe, image: pipe.infill(image, box=(8, 0, 8, 8)), UsageError, "does not lie inside"),
        (lambda pipe, image: pipe.infill(image, box=(0, 0, 8)), UsageError, "3 numbers"),
        (lambda pipe, image: pipe.infill(image, box=(0, 0, float("nan"), 8)), UsageError, "four whole numbers"),
        (lambda pipe, image: pipe.infill(image, "mask.png"), InputError, "expected a picture, or an array"),
        (lambda pipe, image: pipe.infill(image, np.ones((8, 8))), InputError, "must be the same"),
        (lambda pipe, image: pipe.infill(image, np.zeros((24, 24))), InputError, "marks nothing"),
        (lambda pipe, image: pipe.infill(image, box=(0, 0, 8, 8), prompt=" "), InputError, "prompt is empty"),
        (lambda pipe, image: pipe.infill(image, box=(0, 0, 24, 24)), InputError, "covers the whole picture"),
        (lambda pipe, image: pipe.infill(image, box=[(0, 0, 8, 8), (0, 0, 30, 8)]), UsageError, "does not lie inside"),
        (lambda pipe, image: pipe.fill_text("a red circle", image), InputError, "has no gap"),
        (lambda pipe, image: pipe.fill_text("a" + " ___" * 17, image), UsageError, "num_masks"),
        (lambda pipe, image: pipe.generate("a", window=0), UsageError, "window"),
        (lambda pipe, image: pipe.generate("a", guidance=float("nan")), UsageError, "scale"),
        (lambda pipe, image: pipe.generate("a", min_p=-1), UsageError, "min_p"),
        (lambda pipe, image: pipe.chat([]), InputError, "no messages"),
        (lambda pipe, image: pipe.chat([{"role": "system", "content": "x"}]), InputError, "role 'system'"),
        (lambda pipe, image: pipe.chat([{"role": "user", "content": [{"type": "audio"}]}]), InputError, "content item"),
    ],
)
def test_mistakes_are_one_sentence(pipe, image, call, error, message):
    with pytest.raises(error, match=message) as raised:
        call(pipe, image)
    assert "\n" not in str(raised.value)


def test_a_text_model_says_that_it_takes_no_pictures(pipe, image):
    text_only = CM3Pipeline(pipe.model, DocumentTokenizer(pipe.vocab, pipe.tokenizer.text))
    for call in (lambda: text_only.caption(image), lambda: text_only.generate("a red circle")):
        with pytest.raises(UsageError, match="no image_tokenizer/"):
            call()


def test_an_explanation_stands_before_the_answer(pipe, image, monkeypatch):
    monkeypatch.setattr(pipe, "_say", lambda *_: "circle red top left → top left")
    assert pipe.ask(image, "where is the circle?") == "top left"
    assert pipe.explain(image, "where is the circle?") == "circle red top left → top left"

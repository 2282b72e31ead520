"""The approximate indexes: one contract for all kinds, and what each finds."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from cm3.core.artefact import hash_file
from cm3.core.errors import ArtefactError, InputError, UsageError
from retrieval.index import EXACT_LIMIT, INDEXES, IndexKind, VectorIndex, approximate, choose_index
from retrieval.index.faiss_files import FILE
from retrieval.index.flat import FlatIndex, largest
from retrieval.index.recall import recall_shares
from retrieval.indexing import measure_recall

APPROXIMATE = [name for name in INDEXES.names() if name != "flat"]


@pytest.mark.parametrize("name", INDEXES.names())
def test_contract(name: str, unit_vectors: np.ndarray, tmp_path: Path) -> None:
    """Built, saved and loaded: the same hits, in falling order, without repetition; most of them right."""
    kind = INDEXES.get(name)
    assert isinstance(kind, IndexKind)
    built = kind.build(unit_vectors, seed=3)
    assert isinstance(built, VectorIndex)
    built.tune(unit_vectors[-256:], 0.97)
    built.save(tmp_path)
    loaded = kind.load(tmp_path, unit_vectors, built.describe())
    scores, rows = loaded.search(unit_vectors[:50], 10)
    again = built.search(unit_vectors[:50], 10)
    assert (rows == again[1]).all()
    assert (scores == again[0]).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(found)) == 10 for found in rows.tolist())
    expected = FlatIndex(unit_vectors).search(unit_vectors[:50], 10)[1]
    assert np.mean([np.isin(want, got).mean() for want, got in zip(expected, rows, strict=True)]) >= 0.9
    assert (rows[:, 0] == np.arange(50)).mean() >= 0.95
    assert loaded.describe() == built.describe()
    assert loaded.describe()["kind"] == name


@pytest.mark.parametrize("name", APPROXIMATE)
def test_equal_input_gives_an_equal_file(name: str, unit_vectors: np.ndarray, tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        INDEXES.get(name).build(unit_vectors, seed=3).save(tmp_path / run)
    assert hash_file(tmp_path / "a" / FILE) == hash_file(tmp_path / "b" / FILE)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_faiss_has_nothing_to_warn_of(name: str, unit_vectors: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    """Above all that no more centers are learned, and so no other codes, than there are vectors for."""
    INDEXES.get(name).build(unit_vectors, seed=3)
    assert capfd.readouterr() == ("", "")


def test_the_rotation_is_learned_far_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of vectors whose directions weigh as unequally as those of embeddings, codes alone find about as many as after faiss's own
    50 rounds; after a single round 8 percent points less."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((64, 64)))[0] * np.arange(1, 65)[:, None] ** -0.7
    vectors = (rng.standard_normal((2200, 64)) @ axes).astype(np.float32)
    vectors, queries = np.split(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), [2000])
    expected = np.argsort(queries @ -vectors.T, axis=1)[:, :10]

    def found(rounds: int) -> float:
        monkeypatch.setattr(approximate, "_ROTATION_ROUNDS", rounds)
        built = approximate.IVF_PQ.build(vectors, seed=3)
        built.breadth = int(built.lists.nlist)
        nearest = built.index.search(queries, 10)[1]
        return float(np.mean([np.isin(*pair).mean() for pair in zip(expected, nearest)]))

    assert found(approximate._ROTATION_ROUNDS) > found(50) - 0.03


@pytest.mark.parametrize("name", APPROXIMATE)
def test_an_index_of_other_vectors_is_refused(name: str, unit_vectors: np.ndarray, tmp_path: Path) -> None:
    built = INDEXES.get(name).build(unit_vectors, seed=3)
    built.save(tmp_path)
    for other in (unit_vectors[1:], np.ascontiguousarray(unit_vectors[:, 1:])):
        with pytest.raises(ArtefactError, match="build the memory again"):
            INDEXES.get(name).load(tmp_path, other, built.describe())


def test_an_index_that_is_not_as_described_is_refused(unit_vectors: np.ndarray, tmp_path: Path) -> None:
    lists = INDEXES.get("ivf").build(unit_vectors, seed=3)
    lists.save(tmp_path)
    for change in ({"breadth": 99}, {"kind": "hnsw"}):
        with pytest.raises(ArtefactError, match="described as"):
            INDEXES.get("ivf").load(tmp_path, unit_vectors, {**lists.describe(), **change})


def test_a_file_of_other_faiss_classes_is_refused_by_name(unit_vectors: np.ndarray, tmp_path: Path) -> None:
    """Each fits the vectors and loads in faiss: one of another class, one inside another, one whose lists lie elsewhere."""
    count, width = unit_vectors.shape
    lists = INDEXES.get("ivf").build(unit_vectors, seed=3)
    description, plain = lists.describe(), faiss.IndexFlatIP(width)
    plain.add(unit_vectors)
    nested = faiss.index_factory(width, f"IVF{lists.lists.nlist}_HNSW8,Flat", faiss.METRIC_INNER_PRODUCT)
    nested.train(unit_vectors)
    nested.add(unit_vectors)
    elsewhere = faiss.OnDiskInvertedLists(lists.lists.nlist, lists.lists.code_size, str(tmp_path / "other.lists"))
    elsewhere.merge_from_1(lists.lists.invlists)
    lists.lists.replace_invlists(elsewhere)
    for index, name in ((plain, "IndexFlatIP"), (nested, "IndexHNSWFlat"), (lists.index, "OnDiskInvertedLists")):
        assert index.ntotal == count
        faiss.write_index(index, str(tmp_path / FILE))
        with pytest.raises(ArtefactError, match=f"made of .*{name}.*, expected IndexIVFFlat, IndexFlatIP, ArrayInvertedLists"):
            INDEXES.get("ivf").load(tmp_path, unit_vectors, description)


@pytest.mark.parametrize("content", [None, b"", b"IxFI garbage"])
def test_a_file_that_faiss_cannot_read_is_an_artefact_error(
    content: bytes | None, unit_vectors: np.ndarray, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ArtefactError, match=r"index\.faiss"):
        INDEXES.get("hnsw").load(tmp_path, unit_vectors, {})


def test_too_few_vectors_for_lists_are_an_input_error(unit_vectors: np.ndarray) -> None:
    for name, least in (("ivf", 156), ("ivf_sq8", 156), ("ivf_rabitq", 156), ("ivf_pq", 624)):
        with pytest.raises(InputError, match=f"at least {least} vectors, got 100"):
            INDEXES.get(name).build(unit_vectors[:100], seed=0)


def test_the_rule_by_size() -> None:
    assert [choose_index(count) for count in (1, EXACT_LIMIT, EXACT_LIMIT + 1, 10**7)] == ["flat", "flat", "hnsw", "ivf_sq8"]


def test_the_rule_by_memory() -> None:
    gib = 2**30
    kinds = [choose_index(10**6, 512, int(limit * gib)) for limit in (4, 2, 1.2)]
    assert kinds == ["hnsw", "ivf_sq8", "ivf_pq"]
    # 50,000 vectors in an array of 65,536, as measured (141 MiB beside the mapped vectors), and the links
    assert INDEXES.get("hnsw").footprint(50_000, 512).build == pytest.approx(141 * 2**20, rel=0.15)
    assert choose_index(1000, 512, int(0.05 * gib)) == "flat"
    with pytest.raises(UsageError, match=r"can be built within 0.01 GiB .*hnsw 2.26 GiB, ivf_sq8"):
        choose_index(10**6, 512, int(0.01 * gib))


@pytest.mark.parametrize("name", INDEXES.names())
def test_more_vectors_never_need_less_memory(name: str) -> None:
    """A build that counts as it goes may be refused at once: no document to come would make room."""
    counts = sorted({round(1.1**power) + more for power in range(220) for more in (-1, 0)} | {2**n for n in range(30)})
    builds = [INDEXES.get(name).footprint(count, 512).build for count in counts]
    assert builds == sorted(builds)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_the_estimate_is_near_the_size_of_the_file(name: str, tmp_path: Path) -> None:
    """The file holds what a search keeps in memory; short lists of the product quantizer are padded to whole blocks."""
    vectors = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
    INDEXES.get(name).build(vectors, seed=0).save(tmp_path)
    size = (tmp_path / FILE).stat().st_size
    estimate = INDEXES.get(name).footprint(*vectors.shape).search
    assert estimate == pytest.approx(size, rel=0.5 if name == "ivf_pq" else 0.15)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_tuning_reaches_the_target_and_looks_no_further_than_needed(name: str, unit_vectors: np.ndarray) -> None:
    index = INDEXES.get(name).build(unit_vectors, seed=3)
    queries = np.roll(unit_vectors[:200], 1, axis=1)
    expected = FlatIndex(unit_vectors).search(queries, 10)
    breadths = []
    for target in (0.6, 0.97):
        index.tune(queries, target)
        assert recall_shares(expected, index.search(queries, 10)).mean() >= target
        breadths.append(index.describe()["breadth"])
    assert breadths[0] <= breadths[1]
    assert name == "hnsw" or breadths[0] < breadths[1]


@pytest.mark.parametrize("name", APPROXIMATE)
def test_any_of_many_equal_vectors_is_found(name: str, unit_vectors: np.ndarray) -> None:
    """Of 20 copies of each vector an index comes upon ten others than an exact search, and is no worse for that."""
    copied, queries = np.tile(unit_vectors[:100], (20, 1)), np.roll(unit_vectors[:200], 1, axis=1)
    index = INDEXES.get(name).build(copied, seed=3)
    index.tune(queries, 0.97)
    recall = measure_recall(index, copied, queries)
    assert recall["value"] >= 0.97
    assert index.describe()["breadth"] < 256


def test_recall_by_scores_counts_equals_up_to_their_places() -> None:
    """A hit that is missed is missed, though its equals and those of the last are found; where none are equal, ids decide."""
    rows = np.zeros((1, 4), np.int64)
    exact = np.array([[0.9, 0.8, 0.5, 0.5]], np.float32)
    for found, share in (
        ([0.9, 0.8, 0.5, 0.5 - 1e-7], 1.0),
        ([0.9, 0.5, 0.5, 0.5], 0.75),
        ([0.9, 0.8, 0.5, 0.49], 0.75),
        ([0.5, 0.4, -np.inf, -np.inf], 0.25),
    ):
        assert recall_shares((exact, rows), (np.array([found], np.float32), rows)) == pytest.approx(share)
    rng = np.random.default_rng(0)
    scores = rng.permutation(1000).astype(np.float32)[None] / 1000
    order = np.argsort(-scores, axis=1)
    want, got = order[:, :50], order[:, np.sort(rng.choice(100, 50, replace=False))]
    assert recall_shares((scores[:, want[0]], want), (scores[:, got[0]], got)) == pytest.approx(np.isin(want, got).mean())


def test_an_unknown_kind_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="hnsw"):
        INDEXES.get("hnws")


@pytest.mark.parametrize("count", [40, 64 * 40, 64 * 40 + 17, 5000])
@pytest.mark.parametrize("levels", [3, 10**6])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_largest_scores_of_a_row(batch: int, count: int, levels: int) -> None:
    """With many equals (three levels) and with hardly any, in whole runs and in the rest behind them."""
    scores = torch.randint(levels, (batch, count), generator=torch.Generator().manual_seed(count)).float()
    scores[0, -1] = levels  # the very last column
    columns = largest(scores, 18)
    assert torch.equal(scores.gather(1, columns).sort(dim=1, descending=True).values, scores.topk(18, dim=1).values)
    assert all(len(set(row)) == 18 for row in columns.tolist())


def test_a_search_finds_all_that_it_finds_itself() -> None:
    """Also where a score lies as near to the border between the equal and the nearer as float32 can say."""
    last = np.random.default_rng(0).uniform(0.05, 1, 10_000).astype(np.float32)
    for places in range(-3, 4):
        nearer = last + np.float32(1e-6) + places * np.spacing(last)
        scores = np.stack([nearer, last], axis=1)
        assert (recall_shares((scores, scores), (scores, scores)) == 1).all()

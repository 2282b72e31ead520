"""`cm3 retrieval`: what people type, from a folder of pictures to a searched, changed, checked and exported memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cm3.core.artefact import current


@pytest.fixture
def memory(command, pictures, tmp_path):
    pictures("data")
    command.works("retrieval", "build", "data", "memory", "--encoder", "hashing")
    return tmp_path / "memory"


def ids_in(memory):
    return json.loads((current(memory) / "ids.json").read_text())


def test_build_search_and_grid(command, memory, tmp_path):
    found = json.loads(command.works("retrieval", "search", memory, "--text", "picture", "--k", "3", "--json"))
    assert [set(entry) for entry in found] == [{"id", "score", "rank", "text", "image"}] * 3
    assert [entry["rank"] for entry in found] == [0, 1, 2]
    command.works("retrieval", "search", memory, "--text", "picture", "--grid", tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[0] > 100
    info = command.works("retrieval", "info", memory)
    assert "generation-000001" in info
    assert "kind flat, exact True\n" in info


def test_add_and_remove(command, memory, pictures, tmp_path):
    pictures("data/more", 25)
    before = ids_in(memory)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    Image.new("RGB", (9, 9), "red").save(fresh / "red.png")
    (fresh / "red.txt").write_text("a red square")
    added = json.loads(command.works("retrieval", "add", "memory", "fresh", "--json"))
    assert (added["count"], added["ok"], added["rejected"]) == (len(before) + 1, 1, {})
    assert ids_in(memory) == [*before, "red"]
    command.fails(2, ["'red'", "unique"], "retrieval", "add", memory, "fresh")
    (tmp_path / "gone.txt").write_text(f"{before[0]}\n{before[1]}\n")
    removed = json.loads(command.works("retrieval", "remove", memory, "red", "--from-file", "gone.txt", "--json"))
    assert removed["removed"] == 3
    assert ids_in(memory) == before[2:]
    command.fails(2, ["no document 'red'"], "retrieval", "remove", memory, "red")
    command.fails(2, ["no ids"], "retrieval", "remove", memory)
    command.fails(2, ["nowhere.txt"], "retrieval", "remove", memory, "--from-file", "nowhere.txt")
    assert "all as they were written" in command.works("retrieval", "verify", memory)


def test_rejected_records_are_accounted_for_and_too_many_of_them_refused(command, memory, pictures, tmp_path):
    for file in sorted(pictures("many", 100).iterdir()):
        file.rename(file.with_stem(f"m{file.stem}"))  # ids that `memory` has not
    (tmp_path / "many" / "broken.png").write_bytes(b"no picture at all")
    calls = [
        ("retrieval", "build", "many", "second", "--encoder", "hashing"),
        ("retrieval", "add", "memory", "many"),
        ("retrieval", "neighbors", "second", "many", "table"),
    ]
    for call in calls:
        if call[1] != "neighbors":
            command.fails(3, ["1 of 101 records", "budget is 0.00%"], *call, "--budget", "0")
        assert command.works(*call).endswith(", 1 rejected (not_an_image 1)\n")
    again = json.loads(command.works(*calls[0], "--json"))
    assert (again["seen"], again["ok"], again["rejected"]) == (101, 100, {"not_an_image": 1})
    assert again["problems"][0]["where"] == "broken.png"


def test_neighbors_for_a_training_set(command, memory, tmp_path):
    made = json.loads(command.works("retrieval", "neighbors", memory, "data", "table", "--k", "2", "--json"))
    table = np.load(tmp_path / "table" / "table.npy")
    assert table.shape == (made["count"], 2)
    lines = [json.loads(line) for line in (tmp_path / "table" / "neighbors.jsonl").read_text().splitlines()]
    ids = ids_in(memory)
    for line, rows in zip(lines, table.tolist(), strict=True):
        assert line["neighbors"] == [ids[row] for row in rows if row >= 0]
        assert line["id"] not in line["neighbors"]
    command.works("verify", "table")
    command.fails(2, ["'cm3leom'", "cm3leon"], "retrieval", "neighbors", memory, "data", "t", "--recipe", "cm3leom")


def test_merge_and_search_of_several(command, memory, pictures, tmp_path):
    (tmp_path / "b").mkdir()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "b" / "red.png")
    (tmp_path / "b" / "red.txt").write_text("an entirely different thing")
    command.works("retrieval", "build", "b", "second", "--encoder", "hashing")
    query = ("--text", "an entirely different thing", "--k", "1", "--json")
    found = json.loads(command.works("retrieval", "search", memory, "second", *query))
    assert found[0]["id"] == "red"
    merged = json.loads(command.works("retrieval", "merge", memory, "second", "--out", "both", "--json"))
    assert merged["count"] == len(ids_in(memory)) + 1
    assert json.loads(command.works("retrieval", "search", "both", *query)) == found


def test_export_and_import(command, memory, tmp_path):
    pytest.importorskip("pyarrow")
    command.works("retrieval", "export", memory, "layout")
    command.works("retrieval", "import", "layout", "again", "--encoder", "hashing")
    assert ids_in(tmp_path / "again") == ids_in(memory)


def test_damage_is_found(command, memory):
    file = current(memory) / "vectors.npy"
    content = bytearray(file.read_bytes())
    content[300] ^= 1
    file.write_bytes(content)
    for action in (("verify",), ("info",), ("search", "--text", "x")):
        command.fails(4, ["vectors.npy", "damaged"], "retrieval", action[0], memory, *action[1:])


def test_unverified_starts_without_reading_every_byte_but_finds_what_is_missing(command, memory):
    vectors, pictures = current(memory) / "vectors.npy", current(memory) / "pictures.bin"
    content = bytearray(vectors.read_bytes())
    content[300] ^= 1
    vectors.write_bytes(content)
    command.works("retrieval", "search", memory, "--text", "x", "--unverified")
    command.works("retrieval", "info", memory, "--unverified")
    command.works("retrieval", "neighbors", memory, "data", "table", "--unverified")
    pictures.write_bytes(pictures.read_bytes()[:-1])
    command.fails(4, ["pictures.bin", "bytes, expected"], "retrieval", "search", memory, "--text", "x", "--unverified")


def test_a_device_that_is_not_there_is_named(command, memory):
    search = ("retrieval", "search", memory, "--text", "picture")
    assert command.works(*search, "--device", "cpu") == command.works(*search)
    for action in (
        search[1:],
        ("neighbors", memory, "data", "t"),
        ("eval", memory, "data"),
        ("build", "data", "new", "--encoder", "hashing"),
        ("add", memory, "data"),
        ("remove", memory, "any"),
        ("merge", memory, "--out", "new"),
        ("import", "data", "new", "--encoder", "hashing"),
    ):
        command.fails(2, ["no device 'cuda:99'", "take cpu"], "retrieval", *action, "--device", "cuda:99")


def test_a_memory_limit_says_the_estimate(command, pictures, tmp_path):
    pictures("data")
    build = ("retrieval", "build", "data", "memory", "--encoder", "hashing", "--memory-limit", "0.000001")
    command.fails(2, ["estimates: flat", "GiB", "raise the limit"], *build)
    command.fails(2, ["'hnsw'", "needs about"], *build, "--index", "hnsw")
    command.fails(2, ["memory_limit_gib", "greater than 0"], *build[:-1], "0")
    assert not (tmp_path / "memory").exists()
    command.works(*build[:-2])
    before = ids_in(tmp_path / "memory")
    command.fails(2, ["estimates: flat"], "retrieval", "remove", "memory", before[0], *build[-2:])
    assert ids_in(tmp_path / "memory") == before


@pytest.mark.filterwarnings("ignore")  # of the engine
def test_shards_are_built_within_the_limit_and_searched(command, pictures, tmp_path):
    pytest.importorskip("datatrove")
    pictures("data")
    shards = ("retrieval", "shards", "data", "parts", "--encoder", "hashing", "--tasks", "2", "--memory-limit", "3", "--json")
    made = json.loads(command.works(*shards))["shards"]
    assert json.loads((tmp_path / "parts" / "plan.json").read_text())["memory_limit_gib"] == 3
    assert json.loads(command.works("retrieval", "search", *made, "--text", "picture", "--k", "1", "--json"))

"""The world on disk: what the public readers find there is what was drawn."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from cm3.core.errors import UsageError
from cm3.documents import read_documents
from cm3.scenes.dataset import PARTS, SPLITS, edit_document, pair_document, vqa_document, write_world
from cm3.scenes.read import read_scene, read_scenes
from cm3.scenes.render import render
from cm3.scenes.score import score_caption
from cm3.scenes.split import is_held_out
from cm3.scenes.world import Scene, WorldConfig

CONFIG = WorldConfig()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    return out, write_world(out, CONFIG, num_train=24, num_test=6, seed=3)


def read(world, part, split):
    return list(read_documents(world[0] / part / split))


def test_counts(world):
    documents = world[1].documents
    assert set(documents) == {f"{part}/{split}" for part in PARTS for split in SPLITS}
    assert {name: len(read(world, *name.split("/"))) for name in documents} == documents
    assert (documents["pairs/train"], documents["vqa/train"], documents["edits/train"]) == (24, 8, 8)
    assert world[1].num_images == (24 + 6 + 6) + (8 + 6 + 6) + 3 * (8 + 6 + 6)
    assert world[1].images_per_s > 0


@pytest.mark.parametrize("split", SPLITS)
def test_pairs_hold_a_scene_its_picture_and_its_caption(world, split):
    for document in read(world, "pairs", split):
        scene = Scene.from_json(document.meta["scene"])
        assert read_scene(document.images[0].load()) == scene
        assert score_caption(document.text, scene).exact
        assert document.meta["held_out"] is (split == "test") is is_held_out(scene)


def test_questions_stand_beside_their_picture(world):
    for document in read(world, "vqa", "test"):
        assert read_scene(document.images[0].load()) == Scene.from_json(document.meta["scene"])
        assert set(document.meta["questions"][0]) - {"explanation"} == {"question", "answer", "kind"}
        assert document.text == ""


def test_training_pictures_are_asked_more(world):
    train, test = read(world, "vqa", "train"), read(world, "vqa", "test")
    for document in [*train, *test]:
        asked = [item["question"] for item in document.meta["questions"]]
        assert len(asked) == len(set(asked))
    mean = [sum(len(document.meta["questions"]) for document in part) / len(part) for part in (train, test)]
    assert mean[0] > 2 * mean[1]
    kinds = Counter(item["kind"] for document in train for item in document.meta["questions"])
    assert kinds["existence"] > 1.4 * kinds["count"]  # drawn twice as often, and none twice


def test_edits_hold_mask_source_and_target(world):
    for document in read(world, "edits", "train"):
        assert document.meta["images"] == ["mask", "source", "target"]
        mask, source, target = (image.load() for image in document.images)
        before, after = (Scene.from_json(document.meta[name]) for name in ("before", "after"))
        assert read_scenes([source, target]) == [before, after]
        inside = np.asarray(mask)[..., 0] > 127
        changed = (np.asarray(source) != np.asarray(target)).any(axis=2)
        assert changed.any()
        assert not changed[~inside].any()
        assert document.meta["instruction"]


@pytest.mark.parametrize("make", [pair_document, vqa_document, edit_document])
def test_a_sample_depends_on_seed_split_and_index_alone(make):
    def content(*key):
        document = make(CONFIG, *key)
        return document.id, document.text, json.dumps(document.meta), [image.encoded for image in document.images]

    assert content("train", 0, 5) == content("train", 0, 5)
    assert len({content("train", 0, 5)[2], content("train", 1, 5)[2], content("validation", 0, 5)[2]}) == 3


def test_larger_data_sets_begin_with_the_smaller(world, tmp_path):
    write_world(tmp_path, CONFIG, num_train=30, num_test=7, seed=3)
    larger = list(read_documents(tmp_path / "pairs" / "train"))
    assert [document.text for document in larger[:24]] == [document.text for document in read(world, "pairs", "train")]


def test_the_configuration_reaches_the_pictures(tmp_path):
    config = WorldConfig(image_size=72, max_objects=1, jitter=2, texture=1)
    write_world(tmp_path, config, num_train=3, num_test=1)
    for document in read_documents(tmp_path / "pairs" / "train"):
        scene = Scene.from_json(document.meta["scene"])
        assert len(scene.objects) == 1
        assert np.array_equal(np.asarray(document.images[0].load()), np.asarray(render(scene, config)))


def test_an_empty_world_is_refused(tmp_path):
    with pytest.raises(UsageError, match="at least 1"):
        write_world(tmp_path, CONFIG, num_train=0, num_test=1)
    assert list(tmp_path.iterdir()) == []

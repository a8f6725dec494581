"""Visits: order, sentences and augmentation are functions of seed, epoch and item alone."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from igvg_d2.data import build_grounding_train_loader
from igvg_d2.data.sampling import (
    VisitDataset,
    VisitSampler,
    draw_sentence,
    group_by_object,
)
from igvg_d2.testing import tiny_cfg

NUM_OBJECTS = 30


def draw(sample):
    """A mapper that shows which sentence was drawn and its first random number."""
    return {"sample_id": sample["sample_id"], "number": float(sample["rng"].uniform())}


@pytest.fixture
def objects():
    """Name of a data set: object i has one to three true sentences and one false one."""
    samples = []
    for i in range(NUM_OBJECTS):
        for j in range(2 + i % 3):
            target = [] if j == 0 else [{"bbox": [0, 0, 1, 1]}]
            samples.append({"sample_id": f"{i}_{j}", "ref_id": i, "annotations": target})
    name = "sampling_test_data"
    DatasetCatalog.register(name, lambda: samples)
    MetadataCatalog.get(name).set(evaluator_type="grefcoco")
    return name


def make_cfg(name, unit="object", **kwargs):
    """Batches of 6 of these data."""
    options = {"DATALOADER.NUM_WORKERS": 0, "SOLVER.IMS_PER_BATCH": 6, "SEED": 3, **kwargs}
    cfg = tiny_cfg([x for item in options.items() for x in item])
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATALOADER.SAMPLE_UNIT = unit
    return cfg


def take(loader, batches):
    """The first batches as lists of (sample_id, number)."""
    return [
        [(x["sample_id"], x["number"]) for x in batch]
        for batch in itertools.islice(loader, batches)
    ]


def test_every_epoch_visits_each_item_once_in_another_order():
    visits = list(itertools.islice(VisitSampler(7, seed=1), 21))
    epochs = [[index for epoch, index in visits if epoch == e] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(itertools.islice(VisitSampler(7, seed=2), 21)) != visits
    ordered = itertools.islice(VisitSampler(3, seed=1, shuffle=False), 5)
    assert list(ordered) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    with pytest.raises(ValueError, match="at least one item"):
        VisitSampler(0, seed=1)


def test_processes_share_what_one_process_would_see(monkeypatch):
    alone = list(itertools.islice(VisitSampler(7, seed=1), 20))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        sampler = VisitSampler(7, seed=1)
        assert list(itertools.islice(sampler, 10)) == alone[rank::2]
        sampler.position = 8
        assert list(itertools.islice(sampler, 6)) == alone[8 + rank :: 2]


@pytest.mark.parametrize("unit, size", [("object", 30), ("expression", 90)])
def test_units_of_an_epoch(objects, unit, size):
    loader = build_grounding_train_loader(make_cfg(objects, unit), draw)
    assert loader.num_items == size and loader.seed == 3
    first = [name for batch in take(loader, size // 6) for name, _ in batch]
    key = "{0}".format if unit == "expression" else (lambda name: name.split("_")[0])
    assert len({key(name) for name in first}) == len(first) == size


def test_sentences_are_drawn_evenly_and_anew_every_epoch(objects):
    epochs = 200
    loader = build_grounding_train_loader(make_cfg(objects), draw)
    counts = Counter(name for batch in take(loader, 5 * epochs) for name, _ in batch)
    assert len(counts) == 90 and sum(counts.values()) == 30 * epochs
    for name, count in counts.items():
        share = 1 / (2 + int(name.split("_")[0]) % 3)
        # Five standard deviations.
        assert abs(count / epochs - share) < 5 * (share * (1 - share) / epochs) ** 0.5, name
    false = sum(count for name, count in counts.items() if name.endswith("_0")) / (30 * epochs)
    assert false == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3, abs=0.02)


def test_workers_and_interruptions_change_nothing(objects):
    expected = take(build_grounding_train_loader(make_cfg(objects), draw), 12)
    assert len({number for batch in expected for _, number in batch}) == 72
    for workers in (1, 2):
        cfg = make_cfg(objects, **{"DATALOADER.NUM_WORKERS": workers})
        assert take(build_grounding_train_loader(cfg, draw), 12) == expected
        continued = build_grounding_train_loader(cfg, draw)
        continued.seek(7 * 6)
        assert take(continued, 5) == expected[7:]
    other = build_grounding_train_loader(make_cfg(objects, SEED=4), draw)
    assert take(other, 12) != expected


def test_two_processes_give_the_batches_of_one(objects, monkeypatch):
    expected = take(build_grounding_train_loader(make_cfg(objects), draw), 8)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        shares.append(take(build_grounding_train_loader(make_cfg(objects), draw), 8))
    for batch, *parts in zip(expected, *shares):
        assert sorted(batch) == sorted(parts[0] + parts[1])


def test_draws_are_pinned_for_every_process_and_machine():
    items = [[f"{i}{j}" for j in range(5)] for i in range(8)]
    rngs = [np.random.default_rng((11, 2, i)) for i in range(8)]
    drawn = [draw_sentence(item, rng) for item, rng in zip(items, rngs)]
    assert drawn == ["00", "12", "20", "30", "44", "52", "64", "71"]
    assert [index for _, index in itertools.islice(VisitSampler(8, seed=11), 8)] == [
        3,
        1,
        7,
        5,
        4,
        2,
        0,
        6,
    ]


def test_the_loader_takes_nothing_from_the_random_numbers_of_training(objects):
    torch.manual_seed(0)
    np.random.seed(0)
    take(build_grounding_train_loader(make_cfg(objects), draw), 3)
    found = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert found == (torch.rand(1), np.random.rand())


def test_an_item_the_mapper_refuses_is_replaced():
    items = [{"sample_id": i} for i in range(5)]
    dataset = VisitDataset(items, lambda x: None if x["sample_id"] == 3 else x["sample_id"], seed=0)
    replaced = [dataset[epoch, 3] for epoch in range(20)]
    assert 3 not in replaced and len(set(replaced)) == 4
    assert replaced == [dataset[epoch, 3] for epoch in range(20)]
    with pytest.raises(RuntimeError, match="100 samples in a row"):
        VisitDataset(items, lambda x: None, seed=0)[0, 0]


def test_wrong_units_and_samplers_are_named(objects):
    with pytest.raises(ValueError, match="DATALOADER.SAMPLE_UNIT: expected .*'image'"):
        build_grounding_train_loader(make_cfg(objects, "image"), draw)
    with pytest.raises(ValueError, match="'ref_id' in every sample of 'mine'"):
        group_by_object([{"sample_id": "1"}], "mine")
    options = {"DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler"}
    with pytest.raises(ValueError, match="DATALOADER.SAMPLER_TRAIN.*RepeatFactor"):
        build_grounding_train_loader(make_cfg(objects, **options), draw)


def test_a_single_sentence_takes_no_random_number():
    rng = np.random.default_rng(0)
    assert draw_sentence({"sample_id": 1}, rng) == {"sample_id": 1}
    assert rng.uniform() == np.random.default_rng(0).uniform()


def test_more_targets_than_queries_are_counted(objects, caplog):
    cfg = make_cfg(objects, **{"MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES": 1})
    build_grounding_train_loader(cfg, draw)
    assert "object queries" not in caplog.text
    samples = DatasetCatalog.get(objects)
    samples[1]["annotations"] = [{"bbox": [0, 0, 1, 1]}] * 3
    samples[2]["annotations"] = [{"bbox": [0, 0, 1, 1]}] * 2
    build_grounding_train_loader(cfg, draw)
    assert f"2 of {len(samples)} expressions have more targets (up to 3)" in caplog.text
    assert "NUM_OBJECT_QUERIES 1" in caplog.text
    caplog.clear()
    cfg.MODEL.QUERY_GENERATOR.NAME = ""
    build_grounding_train_loader(cfg, draw)
    assert "object queries" not in caplog.text, "without queries there is no limit"

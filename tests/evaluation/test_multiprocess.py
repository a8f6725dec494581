"""One, two and four processes, and a file scored again, give the same numbers to the last digit."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm

from igvg_d2.evaluation import Calibration, GRefCOCOEvaluator
from igvg_d2.io.rle import mask_to_rle
from tests.scripts import load_script

scorer = load_script("tools/score_predictions.py")

NAME = "multiprocess_test"
PROTOCOLS = ("native", "official", "released")
NUM_SAMPLES = 23
CALIBRATION = Calibration(0.4, "false-answers", 0.1, None, {"other": "hash"}, {}, {})


def make_case():
    """Samples with 0 to 3 targets of several sizes, and noisy outputs, always the same."""
    generator = np.random.default_rng(5)
    samples, outputs = [], []
    for i in range(NUM_SAMPLES):
        size = (int(generator.integers(20, 40)), int(generator.integers(20, 60)))
        corners = [generator.integers(0, 10, 2).tolist() for _ in range(i % 4)]
        boxes = [[x, y, x + 8 + i % 3, y + 7] for x, y in corners]
        masks = np.zeros((i % 4 + 1, *size), bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes):
            mask[y1:y2, x1:x2] = True
        annotations = [
            dict(
                bbox=[x1, y1, x2 - x1, y2 - y1], bbox_mode=BoxMode.XYWH_ABS, category_id=0,
                segmentation=mask_to_rle(mask), iscrowd=0, id=j,
                polygons=[np.array([x1, y1, x2, y1, x2, y2, x1, y2], float)],
            )  # fmt: skip
            for j, (mask, (x1, y1, x2, y2)) in enumerate(zip(masks, boxes))
        ]
        samples.append(
            dict(
                sample_id=f"{i}_0", ref_id=i, sent_id=0, image_id=i // 2, file_name=f"{i}.jpg",
                height=size[0], width=size[1], expression="x", annotations=annotations,
            )  # fmt: skip
        )
        candidates = Instances(size)
        moved = torch.tensor(boxes + [[0, 0, 5, 5]], dtype=torch.float32)
        candidates.pred_boxes = Boxes(moved + torch.tensor(generator.normal(0, 0.5, 4)).float())
        candidates.scores = torch.tensor(generator.random(len(moved))).float()
        noisy = masks ^ (generator.random(masks.shape) < 0.02)
        candidates.pred_masks = torch.from_numpy(noisy)
        candidates.pred_points = torch.from_numpy(generator.random((len(moved), 2)) * 20).float()
        # As a model resizes its logits: not what nearest makes of the mask.
        resized = {s: torch.from_numpy(generator.random((s, s)) < 0.3) for s in (480, 320)}
        score = torch.tensor(float(generator.random()), dtype=torch.float32)
        outputs.append(
            {
                "mask": torch.from_numpy(noisy.any(0)),
                "no_target": bool(score > 0.6),
                "no_target_score": score,
                "candidates": candidates,
                "resized_masks": resized,
            }
        )
    return samples, outputs


def evaluate(rank, world_size, folder):
    """One process of an evaluation; a padded sampler repeats the first samples at the end."""
    samples, outputs = make_case()
    DatasetCatalog.register(NAME, lambda: samples)
    MetadataCatalog.get(NAME).set(evaluator_type="grefcoco")
    if world_size > 1:
        address = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
        comm.create_local_process_group(world_size)
    try:
        evaluator = GRefCOCOEvaluator(
            dataset_name=NAME,
            output_folder=f"{folder}/out",
            save_predictions=True,
            protocols=PROTOCOLS,
            metrics_file=f"{folder}/metrics.json",
            calibration=CALIBRATION,
        )
        evaluator.reset()
        padded = NUM_SAMPLES + -NUM_SAMPLES % world_size
        for i in range(rank, padded, world_size):
            i %= NUM_SAMPLES
            evaluator.process([{"sample_id": samples[i]["sample_id"]}], [outputs[i]])
        evaluator.evaluate()
    finally:
        if world_size > 1:
            dist.destroy_process_group()
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """{processes: (report, folder)}."""
    found = {}
    for world_size in (1, 2, 4):
        folder = tmp_path_factory.mktemp(f"processes_{world_size}")
        if world_size == 1:
            evaluate(0, 1, str(folder))
        else:
            mp.start_processes(
                evaluate, (world_size, str(folder)), nprocs=world_size, start_method="fork"
            )
        path = folder / "out" / f"{NAME}_metrics.json"
        found[world_size] = json.loads(path.read_text()), folder
    return found


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_do_not_change_a_digit(reports, world_size):
    assert reports[world_size][0] == reports[1][0]
    assert reports[1][0]["num_samples"] == NUM_SAMPLES


def test_each_result_says_what_it_is(reports):
    report, folder = reports[1]
    (line,) = (folder / "metrics.json").read_text().splitlines()
    assert json.loads(line)["evaluation"] == list(report["protocols"].values())
    sizes = {name: block["resolution"] for name, block in report["protocols"].items()}
    assert sizes == {"native": "original", "official": "480x480", "released": "320x320"}
    for block in report["protocols"].values():
        assert block["counts"] == {"0": 6, "1": 6, "2": 6, "3plus": 5}
        assert block["thresholds"]["grec_score_threshold"] == 0.7
        assert {"gres", "grec"} <= block["results"].keys() and "dataset_hash" in block
        assert block["calibration"]["no_target_threshold"] == 0.4
    assert "gres_calibrated" in report["protocols"]["official"]["results"]
    assert "gres_calibrated_official" in report["results"]
    # Those without target are about one image each, so their share is the mean over images.
    wrong = [float(output["no_target_score"]) < 0.4 for output in make_case()[1][::4]]
    found, gres = (report["results"][task] for task in ("calibrated", "gres_calibrated"))
    assert found["alpha"] == 10.0 and found["false_answers"] == 100.0 * np.mean(wrong)
    assert (found["N_acc"], found["T_acc"]) == (gres["N_acc"], gres["T_acc"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_written_file_scored_again_gives_its_numbers(reports, num_workers):
    report, folder = reports[2]
    samples, _ = make_case()
    DatasetCatalog.register(NAME, lambda: samples)
    MetadataCatalog.get(NAME).set(evaluator_type="grefcoco")
    path = str(folder / "out" / f"{NAME}_predictions.jsonl")
    file = folder / "calibration.json"
    file.write_text(json.dumps(CALIBRATION.to_dict()))
    again = scorer.score(
        NAME, path, protocols=PROTOCOLS, calibration=str(file), num_workers=num_workers
    )
    written = json.loads(json.dumps(report["results"]))
    undefined = {
        k: {m: None if v != v else v for m, v in row.items()} for k, row in again["results"].items()
    }
    assert undefined == written
    assert len(again["dataset_hash"]) == 64

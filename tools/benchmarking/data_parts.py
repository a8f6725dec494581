"""The loader and the evaluator, on photos and targets that are made up or on those of a config."""

import io
import json
import os
import pickle

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from igvg_d2.data import (
    GroundingDatasetMapper,
    build_grounding_test_loader,
    build_grounding_train_loader,
)
from igvg_d2.data.datasets import register_expressions
from igvg_d2.evaluation import build_grounding_evaluator
from igvg_d2.io.rle import to_rle
from igvg_d2.modeling.postprocessing import PostprocessOptions, grounding_postprocess

from .clock import memory_mib, seconds_of
from .model_parts import Result

NAME = "benchmark_photos"
_PHOTOS = 64
_EXPRESSIONS_PER_PHOTO = 4
# Targets of expressions: like gRefCOCO, some have none or several.
_TARGETS = (1, 0, 2, 1, 1, 3, 1, 0)
_TEXT = "all the {} circles on the left of the square"
_COLORS = "red green blue gray".split()
# Answers about images that are in memory at a time.
_ANSWERS = 8


def make_photos(folder, size):
    """Write JPEGs with outlined objects, and register them as data set ``benchmark_photos``.

    Args:
        folder: to be filled, if it is empty.
        size: (height, width) of the photos in pixels.
    """
    path = os.path.join(folder, "photos.json")
    if not os.path.exists(path):
        _write_photos(folder, path, size)
    if NAME not in DatasetCatalog.list():
        register_expressions(NAME, path, folder)


def _write_photos(folder, path, size):
    rng = np.random.default_rng(0)
    height, width = size
    images, annotations, expressions = [], [], []
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for i in range(_PHOTOS):
        small = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((width, height), Image.BICUBIC)).astype(np.int16)
        # Noise of this size makes files as large as COCO's, half a byte per pixel.
        pixels = pixels + rng.normal(0, 7, (height, width, 1)).astype(np.int16)
        photo = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        photo.save(os.path.join(folder, f"{i}.jpg"), quality=90)
        images.append({"id": i, "file_name": f"{i}.jpg", "height": height, "width": width})
        for j in range(_EXPRESSIONS_PER_PHOTO):
            number, ids = i * _EXPRESSIONS_PER_PHOTO + j, []
            for _ in range(_TARGETS[number % len(_TARGETS)]):
                radius = rng.uniform(0.05, 0.2, 2) * (width, height)
                center = rng.uniform(0.25, 0.75, 2) * (width, height)
                wobble = rng.uniform(0.8, 1.0, (len(angles), 1))
                outline = center + wobble * radius * np.stack([np.cos(angles), np.sin(angles)], 1)
                low, high = outline.min(0), outline.max(0)
                ids.append(len(annotations))
                annotations.append(
                    {
                        "id": ids[-1], "image_id": i, "category_id": 1, "iscrowd": 0,
                        "bbox": [*low.tolist(), *(high - low).tolist()],
                        "area": float(np.prod(high - low)),
                        "segmentation": [outline.ravel().round(2).tolist()],
                    }  # fmt: skip
                )
            text = _TEXT.format(_COLORS[j % len(_COLORS)])
            expressions.append(
                {"id": number, "image_id": i, "text": text, "annotation_ids": ids}
            )  # fmt: skip
    content = {"images": images, "annotations": annotations, "expressions": expressions}
    content["categories"] = [{"id": 1, "name": "thing"}]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


def use_photos(cfg, args):
    """Let a config read the photos, with a tokenizer that needs no file; not with --real."""
    if args.real:
        return
    make_photos(args.photos, args.photo)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.INPUT.TOKENIZER.NAME, cfg.INPUT.TOKENIZER.FILE = "ShapesTokenizer", ""


def loader(cfg, case, args):
    """A :class:`Result` per batch of the training loader, and of the test loader as an other."""
    use_photos(cfg, args)
    cfg.DATALOADER.NUM_WORKERS = case["workers"]
    batch = cfg.SOLVER.IMS_PER_BATCH
    result = Result(batch)
    steps = max(2, -(-args.samples // batch))
    floor = _decode_seconds(cfg.DATASETS.TRAIN[0]) * batch / max(1, case["workers"])
    train = iter(build_grounding_train_loader(cfg))
    # What lies ready because workers had time is not their speed.
    skip = 2 * case["workers"] + args.warmup
    for seconds in _time_batches(train, skip, steps):
        result.add(seconds)
    del train
    test = build_grounding_test_loader(cfg, cfg.DATASETS.TEST[0], batch_size=batch)
    count = len(test)
    skip = min(skip, count - 1)
    times = _time_batches(iter(test), skip, max(1, min(steps, count - skip - 1)))
    result.others["a batch of the test loader"] = [wall for wall, _ in times]
    # A worker fills batches in turn, so single batches say nothing: the mean of all.
    mean = sum(result.seconds) / len(result.seconds)
    cpu = sum(result.cpu_seconds) / len(result.cpu_seconds)
    result.seconds, result.cpu_seconds = [mean], [cpu]
    result.floors, result.peak_mib = {"loader": floor}, memory_mib("cpu", peak=True)
    result.parts = {"loader": [mean]}
    if case["workers"]:
        result.notes.append("CPU time and memory are those of the main process, not of the workers")
    return result


def _time_batches(batches, skip, steps):
    """(wall, CPU) seconds of each of ``steps`` batches after ``skip`` others."""
    for _ in range(skip):
        next(batches)
    return [seconds_of(lambda: next(batches, None)) for _ in range(steps)]


def _decode_seconds(name):
    """Seconds in which Pillow alone turns a JPEG of the data set into pixels, of full size."""
    files = []
    for sample in DatasetCatalog.get(name)[: 8 * _EXPRESSIONS_PER_PHOTO : _EXPRESSIONS_PER_PHOTO]:
        with open(sample["file_name"], "rb") as file:
            files.append(file.read())
    seconds, _ = seconds_of(lambda: [Image.open(io.BytesIO(x)).convert("RGB") for x in files])
    return seconds / len(files)


def evaluator(cfg, case, args):
    """A :class:`Result` of the evaluator on made-up answers, per sample, under TEST.PROTOCOLS."""
    use_photos(cfg, args)
    cfg.OUTPUT_DIR = args.photos
    name = cfg.DATASETS.TEST[0]
    judge = build_grounding_evaluator(cfg, name)
    judge.output_folder, judge.allow_missing = None, True
    samples = list(judge.samples.values())[: args.samples]
    # In which the protocols compare masks, as the loader asks for them.
    frames = GroundingDatasetMapper(cfg, is_train=False).frame_sizes
    judge.reset()
    record = floor = cpu = 0.0
    rng = np.random.default_rng(0)
    for at in range(0, len(samples), _ANSWERS):
        some = samples[at : at + _ANSWERS]
        answers = make_answers(cfg, some, frames, rng)
        inputs = [{"sample_id": x["sample_id"]} for x in some]
        seconds, cpu_seconds = seconds_of(lambda: judge.process(inputs, answers))
        record, cpu = record + seconds, cpu + cpu_seconds
        floor += seconds_of(lambda: list(map(_least_work, some, answers)))[0]
    # What processes exchange.
    size = len(pickle.dumps(getattr(judge, "records", [])))
    summary, cpu_seconds = seconds_of(judge.evaluate)
    cpu += cpu_seconds
    count = len(samples)
    result = Result(1, peak_mib=memory_mib("cpu", peak=True))
    result.add(
        ((record + summary) / count, cpu / count),
        {"records": record / count, "summary": summary / count},
    )
    result.floors = {"records": floor / count}
    result.rates["record_bytes"] = size / count
    result.notes.append(f"evaluator: {count} samples, protocols {', '.join(cfg.TEST.PROTOCOLS)}")
    return result


def make_answers(cfg, samples, frames, rng):
    """What a good model would answer: targets, a little moved, and queries that found nothing."""
    height, width = cfg.INPUT.IMAGE_SIZE
    queries = cfg.MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES
    size, n = (height // 4, width // 4), len(samples)
    masks = np.full((n, queries, *size), -5.0, np.float32)
    logits = torch.tensor([-3.0, 3.0]).repeat(n, queries, 1)
    boxes = torch.from_numpy(rng.uniform(0.2, 0.6, (n, queries, 4)).astype(np.float32))
    absent = torch.zeros(n, 2)
    for i, sample in enumerate(samples):
        targets = sample["annotations"][:queries]
        absent[i] = torch.tensor([3.0, -3.0] if targets else [-3.0, 3.0])
        for q in range(queries):
            x, y, w, h = boxes[i, q].tolist()
            if q < len(targets):
                rle = to_rle(targets[q]["segmentation"], sample["height"], sample["width"])
                mask = Image.fromarray(mask_util.decode(rle)).resize(size[::-1])
                masks[i, q][np.roll(np.asarray(mask), 1, axis=1) > 0] = 5.0
                logits[i, q] = torch.tensor([3.0, -3.0])
                continue
            top, left = int((y - h / 2) * size[0]), int((x - w / 2) * size[1])
            masks[
                i, q, max(0, top) : int((y + h / 2) * size[0]),
                max(0, left) : int((x + w / 2) * size[1]),
            ] = 5.0  # fmt: skip
    masks = torch.from_numpy(masks)
    outputs = {
        "pred_logits": logits,
        "pred_boxes": boxes,
        "pred_masks": masks,
        "pred_points": boxes[..., :2],
        "sem_seg": masks.amax(dim=1, keepdim=True),
        "no_target_logits": absent,
    }
    options = PostprocessOptions(
        score_thresh=0.7,
        mask_thresh=0.5,
        output_mask="merge",
        mask_resize="logits",
        no_target_test="softmax",
        align_corners=False,
    )
    sizes = [(x["height"], x["width"]) for x in samples]
    return grounding_postprocess(outputs, (height, width), sizes, options, [frames] * n)


def _least_work(sample, answer):
    """The least that compares masks: encode the answer and intersect it with the target."""
    rles = [
        to_rle(a["segmentation"], sample["height"], sample["width"])
        for a in sample["annotations"]
    ]  # fmt: skip
    mask = mask_util.encode(np.asfortranarray(answer["mask"].numpy().view(np.uint8)))
    target = mask_util.merge(rles) if rles else mask
    return mask_util.area(mask_util.merge([mask, target], intersect=True))

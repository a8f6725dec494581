"""Samples that cannot be used: errors that name them, and replacement where it was asked for.

By default the first bad sample stops a training run. With ``DATALOADER.SKIP_BAD_SAMPLES`` another
sample takes its place; every replaced one is reported along with the batch it is missing from, so
that one process can list them all. An evaluation always stops: a number without the hard cases is
not the benchmark's.
"""

import zlib
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data.detection_utils import SizeMismatchError

from .sampling import draw_sentence

_Sample = Dict[str, Any]

# Key of the reports in a sample that replaces others.
REPORT_KEY = "bad_samples"


class BadSampleError(ValueError):
    """A sample cannot be used; the message names sample, file, what is wrong and what to do."""


class MissingImageError(BadSampleError, FileNotFoundError):
    """There is no image for an annotation."""

    # OSError would show the message as an error number.
    __str__ = ValueError.__str__


class ImageSizeError(BadSampleError, SizeMismatchError):
    """Image and annotation disagree about the size."""


def describe_sample(sample: _Sample) -> str:
    """Which sample and which file, for messages."""
    return f"sample {sample.get('sample_id', '?')} ('{sample.get('file_name', '?')}')"


def check_targets(
    boxes: np.ndarray, rles: Sequence[Optional[Dict[str, Any]]], sample: _Sample
) -> None:
    """Refuse targets that would be taught as nothing.

    Args:
        boxes: float (T, 4) XYXY pixels, original frame, as annotated.
        rles: T masks, None where a target has a box only.
        sample: dataset dict with ``height`` and ``width``.

    Raises:
        BadSampleError: a box not finite or without area within the image; a mask without pixels.
    """
    size = np.array([sample["width"], sample["height"]] * 2, dtype=np.float64)
    clipped = np.clip(boxes, 0.0, size)
    # NaN compares as False.
    has_area = (clipped[:, 2:] > clipped[:, :2]).all(axis=1) & np.isfinite(boxes).all(axis=1)
    if not has_area.all():
        index = int(np.flatnonzero(~has_area)[0])
        raise BadSampleError(
            f"box {index + 1} of {len(boxes)} of {describe_sample(sample)} has no area within the "
            f"image: x0, y0, x1, y1 = {[round(float(v), 2) for v in boxes[index]]}, image "
            f"{sample['width']} x {sample['height']}; correct or remove the annotation"
        )
    # One by one: of a list, pycocotools refuses more than 255.
    areas = np.array([rle is None or mask_util.area(rle) for rle in rles])
    if not areas.all():
        index = int(np.flatnonzero(areas == 0)[0])
        raise BadSampleError(
            f"mask {index + 1} of {len(areas)} of {describe_sample(sample)} has no pixels; correct "
            "or remove the annotation (no target is an empty list of annotations)"
        )


class CheckedMapper:
    """A mapper whose output is looked at, whoever wrote it; the first bad sample is an error.

    Args:
        mapper: from dataset dict to model input; raises :class:`BadSampleError` itself for what it
            notices.
    """

    def __init__(self, mapper: Callable[[_Sample], _Sample]):
        self.mapper = mapper

    def __call__(self, dataset_dict: _Sample) -> _Sample:
        """The mapper's output for one sample.

        Raises:
            BadSampleError: by the mapper, or because a value of the image is not finite.
        """
        sample = self.mapper(dataset_dict)
        image = None if sample is None else sample.get("image")
        if image is None:
            return sample
        if image.is_floating_point() and not torch.isfinite(image).all():
            raise BadSampleError(
                f"the image of {describe_sample(sample)} has values that are NaN or infinite; "
                "write it again, or correct the mapper"
            )
        return sample


class BadSampleSkipper(CheckedMapper):
    """Puts another sample in the place of a bad one.

    Which one is drawn from the generator of the visit (``rng``), not from random numbers of a
    worker, so that a run can be repeated with any number of workers and processes. The replacement
    carries, under ``bad_samples``, one dict with ``sample_id``, ``file_name``, ``reason``,
    ``replaced_by`` and ``dataset_size`` for each sample it stands for.

    Args:
        mapper: see :class:`CheckedMapper`.
        items: all items of the training set: dataset dicts, or lists of dicts about one object.
        max_attempts: so many bad ones in a row are an error: then it is not the samples.
    """

    def __init__(
        self,
        mapper: Callable[[_Sample], _Sample],
        items: Sequence[Union[_Sample, List[_Sample]]],
        max_attempts: int = 20,
    ):
        super().__init__(mapper)
        self.items = items
        self.max_attempts = max_attempts

    def __call__(self, dataset_dict: _Sample) -> _Sample:
        """The mapper's output for this sample, or for the first good one of its substitutes."""
        reports: List[_Sample] = []
        candidate, rng = dataset_dict, dataset_dict.get("rng")
        if rng is None:
            rng = np.random.default_rng(zlib.crc32(describe_sample(dataset_dict).encode()))
        while len(reports) < self.max_attempts:
            try:
                sample = super().__call__(candidate)
            except BadSampleError as error:
                report = {key: str(candidate.get(key, "?")) for key in ("sample_id", "file_name")}
                reports.append({**report, "reason": str(error)})
                item = self.items[int(rng.integers(len(self.items)))]
                candidate = {**draw_sentence(item, rng), "rng": rng}
                continue
            if reports and sample is not None:
                substitute = str(candidate.get("sample_id", "?"))
                common = {"replaced_by": substitute, "dataset_size": len(self.items)}
                sample[REPORT_KEY] = [{**report, **common} for report in reports]
            return sample
        raise BadSampleError(
            f"{describe_sample(dataset_dict)} and {self.max_attempts - 1} samples tried in its "
            f"place are all bad; the last one: {reports[-1]['reason']}"
        )

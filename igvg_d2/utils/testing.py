"""Small models and batches for tests, also of projects outside this package."""

from typing import Dict, List, Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import BitMasks, Boxes, Instances

from igvg_d2.config import add_igvg_config


def tiny_cfg(opts: Sequence = ()) -> CfgNode:
    """Config of a model that runs in milliseconds: 64 x 64 pixels, 4 x 4 tokens, width 32.

    Args:
        opts: KEY, VALUE, KEY, VALUE, ... overrides.
    """
    cfg = get_cfg()
    add_igvg_config(cfg)
    small = {
        "MODEL.META_ARCHITECTURE": "IGVG",
        "MODEL.BACKBONE.NAME": "BEiT3",
        "MODEL.DEVICE": "cpu",
        "MODEL.BEIT3.EMBED_DIM": 32,
        "MODEL.BEIT3.DEPTH": 2,
        "MODEL.BEIT3.NUM_HEADS": 2,
        "MODEL.BEIT3.FFN_DIM": 48,
        "MODEL.BEIT3.VOCAB_SIZE": 64,
        "MODEL.BEIT3.MAX_TEXT_POSITIONS": 24,
        "MODEL.BEIT3.PRETRAIN_IMAGE_SIZE": (64, 64),
        "MODEL.IGVG.HIDDEN_DIM": 32,
        "MODEL.NECK.OUT_CHANNELS": [32, 32, 32, 32],
        "MODEL.PIXEL_DECODER.CONV_DIMS": [32, 32, 16],
        "MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES": 4,
        "MODEL.QUERY_GENERATOR.NHEADS": 2,
        "MODEL.QUERY_GENERATOR.DIM_FEEDFORWARD": 32,
        "MODEL.GROUNDING_HEAD.NHEADS": 2,
        "MODEL.GROUNDING_HEAD.DIM_FEEDFORWARD": 32,
        "MODEL.GROUNDING_HEAD.DEC_LAYERS": 2,
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "INPUT.FORMAT": "RGB",
        "INPUT.IMAGE_SIZE": (64, 64),
    }
    cfg.merge_from_list([x for item in small.items() for x in item])
    cfg.merge_from_list(list(opts))
    return cfg


def random_batch(
    num_targets: Sequence[int], size=(64, 64), lengths: Sequence[int] = (), seed: int = 0
) -> List[Dict]:
    """Training inputs in the mapper's format, with random images, texts and box-shaped masks.

    Args:
        num_targets: targets of each sample; 0 for no target.
        size: (H, W) in pixels.
        lengths: tokens of each text; 5, 6, 7, ... by default.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    batch = []
    for i, count in enumerate(num_targets):
        length = lengths[i] if lengths else 5 + i
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) / 2
        boxes = torch.cat([corner, corner + 16], dim=1).round()
        masks = torch.zeros(count, height, width, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist()):
            mask[y1:y2, x1:x2] = True
        instances = Instances(size)
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.zeros(count, dtype=torch.int64)
        instances.gt_masks = BitMasks(masks)
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        batch.append(
            {
                "image": image,
                "height": height,
                "width": width,
                "text_ids": torch.randint(4, 60, (length,), generator=generator),
                "text_padding_mask": torch.zeros(length, dtype=torch.bool),
                "expression": f"sample {i}",
                "sample_id": str(i),
                "instances": instances,
            }
        )
    return batch

"""Outputs about a padded network input, cut to the image in its top left corner."""

from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F

from .transfer import to_device


def crop_outputs(
    outputs: Dict[str, Optional[torch.Tensor]],
    index: int,
    network_size: Tuple[int, int],
    content_size: Tuple[int, int],
    align_corners: bool = False,
) -> Dict[str, Optional[torch.Tensor]]:
    """Outputs of one sample as if the network had seen the image without its padding.

    Args:
        outputs: of a batch, see :func:`grounding_postprocess`; normalised by the network input.
        index: of the sample.
        network_size: (H, W) of the network input.
        content_size: (rows, columns) of the image in the top left corner of it.
        align_corners: bilinear mode of the resize of masks to the network input.

    Returns:
        the same keys for a batch of this sample: masks float (1, M, rows, columns) in the pixels of
        the network input, boxes and points normalised by the image (outside of [0, 1] where they
        lie in the padding), the attention map without cells that see padding only.
    """
    (height, width), (rows, columns) = network_size, content_size
    cropped = {
        key: None if value is None else value[index : index + 1] for key, value in outputs.items()
    }
    if (rows, columns) == (height, width):
        return cropped
    for key in ("sem_seg", "pred_masks"):
        if cropped.get(key) is not None:
            masks = F.interpolate(
                *(cropped[key].float(), (height, width)),
                mode="bilinear",
                align_corners=align_corners,
            )
            cropped[key] = masks[..., :rows, :columns]
    for key in ("pred_boxes", "pred_points"):
        if cropped.get(key) is not None:
            value = cropped[key].float()
            scale = to_device(torch.tensor([width / columns, height / rows]), value.device)
            cropped[key] = value * scale.repeat(value.shape[-1] // 2)
    if cropped.get("attention_map") is not None:
        cells = cropped["attention_map"].shape[-2:]
        seen = [-(-n * size // total) for n, size, total in zip(cells, content_size, network_size)]
        cropped["attention_map"] = cropped["attention_map"][..., : seen[0], : seen[1]]
    return cropped

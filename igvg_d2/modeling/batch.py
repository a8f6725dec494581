"""What stands around the network: texts of input dicts as tensors, outputs as answers."""

from typing import Dict, List, Optional, Sequence, Tuple

import torch

from .postprocessing import PostprocessOptions, grounding_postprocess, rank_outputs


def pad_texts(batched_inputs: List[Dict]) -> Tuple[torch.Tensor, torch.Tensor, bool]:
    """Texts of a batch, padded to the longest one, on the host.

    Args:
        batched_inputs: dicts with "text_ids" and "text_padding_mask", see :class:`IGVG`.

    Returns:
        text_ids int64 (N, L), text_padding_mask bool (N, L), and whether anything is padding.
    """
    # Trailing padding of the inputs, if any, is cut first; lengths are known on the host.
    lengths = [int((~x["text_padding_mask"]).sum()) for x in batched_inputs]
    longest = max(lengths)
    text_ids = torch.ones(len(lengths), longest, dtype=torch.int64)
    text_padding_mask = torch.ones(len(lengths), longest, dtype=torch.bool)
    for i, (length, x) in enumerate(zip(lengths, batched_inputs)):
        text_ids[i, :length] = x["text_ids"][:length]
        text_padding_mask[i, :length] = False
    return text_ids, text_padding_mask, min(lengths) < longest


def answer_batch(
    batched_inputs: List[Dict],
    outputs: Dict[str, Optional[torch.Tensor]],
    network_size: Sequence[int],
    options: PostprocessOptions,
) -> List[Dict]:
    """Answers as the inputs of a model ask for them.

    Args:
        batched_inputs: see ``IGVG.forward``.
        outputs, network_size, options: see :func:`rank_outputs`.

    Returns:
        N dicts, see :func:`grounding_postprocess`; or {"ranked": :class:`RankedOutput`} each.
    """
    height, width = network_size
    sizes = [(x.get("height", height), x.get("width", width)) for x in batched_inputs]
    contents = [tuple(x.get("content_size", (height, width))) for x in batched_inputs]
    if batched_inputs[0].get("defer_masks"):
        ranked = rank_outputs(outputs, (height, width), sizes, options, contents)
        return [{"ranked": x} for x in ranked]
    frames = [x.get("frame_sizes", ()) for x in batched_inputs]
    return grounding_postprocess(outputs, (height, width), sizes, options, frames, contents)

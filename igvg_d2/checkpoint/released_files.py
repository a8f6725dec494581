"""Files of other projects as ``MODEL.WEIGHTS``: brought to the names and sizes of the model."""

import logging
from typing import Any, Dict, Tuple

from torch import nn

from .beit3_conversion import convert_beit3, is_beit3
from .files import check_tensors
from .instancevg_conversion import convert_instancevg, is_instancevg
from .instancevg_keys import ENCODERS

logger = logging.getLogger(__name__)

# Origin of files that hold the encoder alone: BEiT-3's own and what the converter makes of them,
# and those that another backbone converts.
ENCODER_ONLY = "BEiT-3"

_TOKENS = "backbone.text_embed.tokens.weight"
_PATCHES = "backbone.vision_embed.proj.weight"


def adapt_checkpoint(
    loaded: Dict[str, Any], path: str, model: nn.Module, any_queries: bool = False
) -> Dict[str, Any]:
    """Bring a loaded file to our parameter names.

    Args:
        loaded: content of the file. A released InstanceVG checkpoint and a file of BEiT-3 are
            converted, the latter to the image and patch size of ``model``, and a file that the
            backbone of ``model`` takes for its own; others pass unchanged.
        path: of the file, for messages.
        model: that the weights are for.
        any_queries: accept another number of queries.

    Returns:
        dict with the tensors under "model", their origin under "__author__", and N_q under
        "num_queries" where the file tells it.

    Raises:
        ValueError: the file has missing, unknown or misshapen keys, or the model has another
            encoder or number of queries than the file; names the file and the config keys.
    """
    try:
        if is_beit3(loaded):
            state, report = convert_beit3(loaded, *_input_sizes(model))
            adapted = {"model": state, "__author__": ENCODER_ONLY}
        elif is_instancevg(loaded):
            state, report = convert_instancevg(loaded)
            queries = report.size.num_queries
            adapted = {"model": state, "__author__": "InstanceVG", "num_queries": queries}
        else:
            adapted, report = loaded if "model" in loaded else {"model": loaded}, None
            check_tensors(adapted["model"])
            adapted = _ask_backbone(adapted, path, model)
        _check_encoder(adapted["model"], model)
        if not any_queries:
            _check_queries(adapted.get("num_queries"), model)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
    if report is not None:
        logger.info(f"'{path}', of {adapted['__author__']}, is converted while it is read.")
        for key, reason in report.dropped.items():
            logger.info(f"Not carried over: {key} ({reason})")
        if report.aliases:
            logger.info(f"{len(report.aliases)} tensors repeat another one, verified equal.")
    return adapted


def _ask_backbone(adapted: Dict[str, Any], path: str, model: nn.Module) -> Dict[str, Any]:
    """A file of the authors of another encoder, by our names, if the backbone takes it for one."""
    convert = getattr(getattr(model, "backbone", None), "convert_weights", None)
    encoder = convert(adapted["model"]) if convert else None
    if encoder is None:
        return adapted
    share = f"{len(encoder)} tensors of {len(adapted['model'])}"
    logger.info(f"'{path}' is converted while it is read: the encoder has {share}.")
    state = {f"backbone.{name}": tensor for name, tensor in encoder.items()}
    return {"model": state, "__author__": ENCODER_ONLY}


def _input_sizes(model: nn.Module) -> Tuple[Tuple[int, int], int]:
    """(height, width) in pixels that the model's position table covers, and its patch size."""
    parameters = dict(model.named_parameters())
    if _PATCHES not in parameters:
        raise ValueError(
            "This is a BEiT-3 file, but the configured model has no encoder of patches; set "
            "MODEL.BACKBONE.NAME to BEiT3."
        )
    patch = parameters[_PATCHES].shape[-1]
    rows, columns = model.backbone.vision_embed.grid
    return (rows * patch, columns * patch), patch


def _check_encoder(state: Dict[str, Any], model: nn.Module) -> None:
    """Say "large" instead of listing a thousand shapes."""
    parameters = dict(model.named_parameters())
    if _TOKENS not in state or _TOKENS not in parameters:
        return
    found, wanted = state[_TOKENS].shape[-1], parameters[_TOKENS].shape[-1]
    if found != wanted and found in ENCODERS:
        depth, ffn_dim, num_heads = ENCODERS[found]
        name = "large" if found == max(ENCODERS) else "base"
        raise ValueError(
            f"The encoder in the file is BEiT-3 {name}, of width {found}; the configured model has "
            f"width {wanted}. Use a config of that size, or set MODEL.BEIT3.EMBED_DIM {found} "
            f"MODEL.BEIT3.DEPTH {depth} MODEL.BEIT3.FFN_DIM {ffn_dim} "
            f"MODEL.BEIT3.NUM_HEADS {num_heads}."
        )


def _check_queries(found: Any, model: nn.Module) -> None:
    """N_q is no parameter's size: another one would load without complaint and answer wrongly."""
    generator = getattr(model, "query_generator", None)
    wanted = getattr(generator, "num_queries", None)
    if found is None or wanted is None or int(found) == wanted:
        return
    raise ValueError(
        f"The model in the file has {int(found)} object queries, the configured one {wanted}. Use "
        "the config of the data set that it was trained on, or set "
        f"MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES {int(found)}."
    )

"""Options of a fine-tuning from facts about data, weights and machine, each with its reason."""

import math
import os
from typing import Any, Dict, Mapping, NamedTuple, Tuple

import torch
from detectron2.config import CfgNode

# Epochs of data with fewer expressions than the bound; the paper has 10 for 209,344.
_EPOCHS = ((300, 60), (3_000, 30), (30_000, 15), (math.inf, 10))
# Data with fewer expressions are small: a whole encoder would learn them by heart.
_SMALL, _LARGE = 1_000, 10_000
_LARGEST_BATCH = 16
# Share of the memory that is planned for; the rest is for kernels, fragments and other programs.
_USABLE = 0.75
# What dev/estimate_memory.py counts at ViT-B and ViT-L, 320 and 640 pixels: values kept per token,
# channel and layer of the encoder, and bytes per pixel of the rest at width 256, by AMP.
_ENCODER_VALUES, _OTHER_BYTES, _TEXT_TOKENS = 29.3, {True: 1284, False: 2240}, 20

Choices = Dict[str, Tuple[Any, str]]


class Facts(NamedTuple):
    """What the options follow from.

    Attributes:
        samples: expressions to train on.
        validation: expressions to evaluate on; 0 for none.
        has_masks: the targets to evaluate on have masks, at least some.
        start: weights of a whole "model", of an "encoder", or "nothing".
        encoder_is_new: it has parts that begin from initial values although there are weights.
        parameters: numbers in the encoder and in the other parts.
        device: "cpu", "cuda" or "mps".
        bf16: a GPU that multiplies in bfloat16.
        memory: GiB that a process may take.
        processes: of the training run.
        cores: of the machine.
    """

    samples: int
    validation: int = 0
    has_masks: bool = True
    start: str = "model"
    encoder_is_new: bool = False
    parameters: Tuple[int, int] = (221_000_000, 12_000_000)
    device: str = "cpu"
    bf16: bool = False
    memory: float = 16.0
    processes: int = 1
    cores: int = 1


class _Chooser(Choices):
    """Collects options; what the user has set stays."""

    def add(self, key: str, value: Any, reason: str) -> Any:
        """The value that holds."""
        return self.setdefault(key, (value, reason))[0]


def device_facts(device: str, memory: float, num_processes: int) -> Dict[str, Any]:
    """The fields ``device``, ``bf16`` and ``memory`` of :class:`Facts`.

    Args:
        device: as ``MODEL.DEVICE``.
        memory: GiB that a process may take; 0 for what the GPU has free, or a share of the host's.
        num_processes: of the training run on this machine.
    """
    kind, bf16 = torch.device(device).type, False
    if kind == "cuda":
        bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        found = torch.cuda.mem_get_info(device)[0]
    else:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / num_processes
    return {"device": kind, "bf16": bf16, "memory": memory or found / 2**30}


def choose_options(facts: Facts, recipe: CfgNode, asked: Mapping[str, Any]) -> Choices:
    """Options that suit a fine-tuning.

    Args:
        facts: see there.
        recipe: config of the model with the learning rate and batch that it was trained with.
        asked: options that the user has set, by key; they stay.

    Returns:
        key -> (value, reason in a line), those of ``asked`` too.

    Raises:
        ValueError: not even one image fits into the memory, which says what would help; or a batch
            of none is asked for.
    """
    for key in ("SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATION_STEPS"):
        if asked.get(key, 1) < 1:
            raise ValueError(f"{key}: expected 1 or more, found {asked[key]}")
    chosen = _Chooser({key: (value, "as you asked") for key, value in asked.items()})
    count, solver = facts.samples, recipe.SOLVER
    batch = min(_LARGEST_BATCH, 2 ** int(math.log2(max(2, count // 4))))
    batch = -(-batch // facts.processes) * facts.processes
    reason = f"a quarter of {count} expressions, from 2 to {_LARGEST_BATCH}"
    batch = chosen.add("SOLVER.IMS_PER_BATCH", batch, reason)
    _choose_schedule(facts, chosen)

    rate = solver.BASE_LR * math.sqrt(batch / solver.IMS_PER_BATCH)
    reason = f"{solver.BASE_LR:g} at batch {solver.IMS_PER_BATCH}, by the root of the batch"
    if facts.start == "model" and not facts.encoder_is_new:
        rate, reason = max(2e-5, rate / 5), f"a fifth of what trained the model: {reason}"
    chosen.add("SOLVER.BASE_LR", float(f"{rate:.1e}"), reason)
    frozen, reason = [], f"{count} expressions, no reason to freeze the encoder"
    if facts.start != "model" or facts.encoder_is_new:
        reason = "the model, or a part of its encoder, has not been trained yet"
    elif count < _SMALL:
        frozen, reason = ["backbone."], f"the encoder would learn {count} expressions by heart"
    if chosen.add("MODEL.FREEZE", frozen, reason) == ["backbone."]:
        chosen.add("MODEL.BEIT3.DROP_PATH", 0.0, "a frozen encoder should answer as it will in use")
        chosen.add("SOLVER.BACKBONE_MULTIPLIER", 1.0, "of no effect on a frozen encoder")
    elif solver.BACKBONE_MULTIPLIER == 1.0 and facts.start != "nothing":
        chosen.add("SOLVER.BACKBONE_MULTIPLIER", 0.1, "the encoder keeps what it has learned")
    jitter = 0.2 if count < _SMALL else 0.1 if count < _LARGE else 0.0
    reason = f"brightness and contrast; {count} expressions, the fewer the more"
    chosen.add("INPUT.COLOR_JITTER", jitter, reason)
    for axis in ("HORIZONTAL", "VERTICAL"):
        reason = "mirrored, typed English goes wrong: 'right next to', 'a black top'"
        chosen.add(f"INPUT.FLIP.{axis}_PROB", 0.0, reason)
    _choose_memory(facts, recipe, batch, chosen)
    reason = f"{facts.cores} cores read images"
    workers = max(1, min(4, facts.cores // facts.processes - 1))
    chosen.add("DATALOADER.NUM_WORKERS", workers, reason)
    chosen.add("SEED", 0, "an interrupted training run continues exactly")
    return chosen


def _choose_schedule(facts: Facts, chosen: _Chooser) -> None:
    """Epochs, warm-up, and how often to evaluate and save."""
    epochs = next(epochs for bound, epochs in _EPOCHS if facts.samples < bound)
    reason = f"{facts.samples} expressions; the fewer, the more often each is seen"
    if "SOLVER.MAX_ITER" in chosen:
        epochs, reason = 0, "SOLVER.MAX_ITER counts"
    epochs = chosen.add("SOLVER.EPOCHS", epochs, reason)
    often = max(1, epochs // 10)
    warmup = min(max(1, epochs // 20), max(0, epochs - 1))
    chosen.add("SOLVER.WARMUP_EPOCHS", warmup, "the averages of the optimizer begin at zero")
    chosen.add("SOLVER.WARMUP_METHOD", "linear", "goes with a cosine")
    chosen.add("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "falls without steps to be placed")
    if "SOLVER.CHECKPOINT_PERIOD" not in chosen:
        chosen.add("SOLVER.CHECKPOINT_EPOCHS", often, "lost at most, if the machine fails")
    chosen.add("SOLVER.CHECKPOINT_KEEP", 2, "the last one, and one should it be damaged")
    if facts.validation and "TEST.EVAL_PERIOD" not in chosen:
        chosen.add("TEST.EVAL_EPOCHS", often, "some ten evaluations")
    if facts.validation and "TEST.PROTOCOLS" not in chosen:
        chosen.add("TEST.PROTOCOLS", ["native"], "masks in the size of your images")
        metric, reason = "gres/gIoU", "model_best.pth has the best weights by it"
        if not facts.has_masks:
            metric, reason = "grec/F1score", f"{reason}; no mask to evaluate on"
        chosen.add("TEST.BEST_METRIC", metric, reason)


def _choose_memory(facts: Facts, recipe: CfgNode, batch: int, chosen: _Chooser) -> None:
    """Precision, and the largest micro-batches that fit."""
    is_gpu = facts.device == "cuda"
    reason = "half the memory, and faster" if is_gpu else f"no gain on {facts.device}"
    if chosen.add("SOLVER.AMP.ENABLED", is_gpu, reason):
        precision = "bf16" if facts.bf16 else "fp16"
        chosen.add("SOLVER.AMP.PRECISION", precision, "the wider one, if the GPU knows it")
    split, again = "SOLVER.ACCUMULATION_STEPS", "MODEL.BEIT3.CHECKPOINTING"
    share = max(1, batch // facts.processes)
    limit = _USABLE * facts.memory
    # BatchNorm sees a micro-batch: single images are the last resort.
    options = [(r, s) for r in (False, True) for s in range(1, share + 1) if share % s == 0]
    options.sort(key=lambda option: option[1] == share > 1)
    for recompute, steps in options:
        recompute = chosen.get(again, (recompute, ""))[0]
        steps = chosen.get(split, (steps, ""))[0]
        need = estimate_memory(facts, recipe, chosen, max(1, share // steps), recompute)
        if need <= limit:
            break
    else:
        raise ValueError(
            f"a training step needs some {need:.1f} GiB, also with one image at a time, and "
            f"{limit:.1f} of {facts.memory:.1f} GiB are planned for; freeze the encoder "
            "(MODEL.FREEZE '[\"backbone.\"]'), lower INPUT.IMAGE_SIZE, take a smaller model, or "
            "say how much there is (--memory)"
        )
    where = f"a step takes some {need:.1f} of {facts.memory:.1f} GiB"
    chosen.add(split, steps, f"micro-batches of {max(1, share // steps)}: {where}")
    chosen.add(again, recompute, "less memory, a third more time" if recompute else where)


def estimate_memory(
    facts: Facts, recipe: CfgNode, chosen: Choices, size: int, recompute: bool
) -> float:
    """GiB of a training step, to some 15 % what dev/estimate_memory.py counts at ViT-B and ViT-L.

    Args:
        facts: with the number of parameters.
        recipe: sizes of the model, and the optimizer.
        chosen: what is frozen, the precision, and maybe INPUT.IMAGE_SIZE.
        size: images in a micro-batch of a process.
        recompute: activations of the encoder (MODEL.BEIT3.CHECKPOINTING).
    """
    solver, encoder, half = recipe.SOLVER, recipe.MODEL.BEIT3, chosen["SOLVER.AMP.ENABLED"][0]
    height, width = chosen.get("INPUT.IMAGE_SIZE", (recipe.INPUT.IMAGE_SIZE, ""))[0]
    is_frozen = "backbone." in chosen["MODEL.FREEZE"][0]
    trained = facts.parameters[1] + (0 if is_frozen else facts.parameters[0])
    # Gradients, the optimizer's averages, and the copies that autocast keeps.
    per_trained = 4 * (3 + solver.AMSGRAD) + (2 if half else 0)
    weights = 4 * (1 + solver.EMA.ENABLED) * sum(facts.parameters) + per_trained * trained
    tokens = height * width / encoder.PATCH_SIZE**2 + _TEXT_TOKENS
    layer = _ENCODER_VALUES * encoder.EMBED_DIM * tokens * (2 if half else 4)
    layers = 0 if is_frozen else 1 + 0.1 * encoder.DEPTH if recompute else encoder.DEPTH
    others = _OTHER_BYTES[bool(half)] * height * width * recipe.MODEL.IGVG.HIDDEN_DIM / 256
    return (weights + size * (layer * layers + others)) / 2**30

#!/usr/bin/env python
"""Ask an exported model about an image, without PyTorch and without this project's library.

    python demo/onnx_demo.py demo/igvg_tiny_shapes.onnx demo/images/scene.jpg "all triangles"

Needs onnxruntime, numpy and Pillow; for BEiT-3's tokenizer also sentencepiece and --tokenizer
beit3.spm. Prints what GroundingResult.to_dict() has but for the masks; --output draws them.
"""

import argparse
import hashlib
import json
import math
import string
from pathlib import Path

try:
    import numpy as np
    import onnxruntime
    from PIL import Image, ImageDraw, ImageOps
except ImportError as missing:
    raise SystemExit(f"onnx_demo.py: {missing}; run: pip install onnxruntime numpy Pillow")

# Of pixels only; of the others that Pillow knows, EPS starts a program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")


def printable(error):
    """An error's text in one line, with characters that would act on a terminal escaped."""
    line = " ".join(str(error).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def load(path):
    """A session of onnxruntime on a file of tools/export.py."""
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no other class in common
        raise SystemExit(printable(f"cannot load '{path}': {error}"))
    if "preprocessing" not in session.get_modelmeta().custom_metadata_map:
        raise SystemExit(printable(f"'{path}' is no file of tools/export.py: no 'preprocessing'"))
    return session


def read(path):
    """An image of 8 bits per channel in RGB as a person sees it, transparent parts over white."""
    image = ImageOps.exif_transpose(Image.open(path, formats=FORMATS))
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"'{path}': pixels of more than 8 bits; save it with 8")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def tokenize(facts, text, file):
    """Token ids of a text; `facts` says how, `file` is that of sentencepiece."""
    if facts["name"] == "ShapesTokenizer":
        words = text.lower().translate({ord(x): " " for x in string.punctuation}).split()
        known = {word: i for i, word in enumerate(facts["words"], facts["unk_id"] + 1)}
        ids = [known.get(word, facts["unk_id"]) for word in words]
    elif facts["name"] == "BEiT3Tokenizer":
        if not file:
            raise SystemExit("the model needs --tokenizer beit3.spm")
        if hashlib.sha256(Path(file).read_bytes()).hexdigest() != facts["sha256"]:
            raise SystemExit(printable(f"--tokenizer: '{file}' is not the file of the model"))
        from sentencepiece import SentencePieceProcessor

        if facts["clean_text"]:
            text = text.lower().translate(
                {**dict.fromkeys(map(ord, ".,'!?\"()*#:;")), 45: " ", 47: " "}
            )
        ids = SentencePieceProcessor(model_file=file).encode(text)
        # The vocabulary of XLM-RoBERTa has one more token at its beginning.
        ids = [i + 1 if i else facts["unk_id"] for i in ids]
    else:
        raise SystemExit(f"the tokenizer {facts['name']} is that of another project")
    if not ids:
        raise SystemExit(f"the expression {text!r} has no token")
    return [facts["bos_id"], *ids[: facts["max_tokens"] - 2], facts["eos_id"]]


def prepare(facts, image):
    """Network input uint8 (1, 3, H, W), and (rows, columns) of it that the image fills."""
    height, width = facts["image_size"]
    rows, columns = height, width
    if facts["resize_mode"] == "letterbox":
        scale = min(height / image.height, width / image.width)
        rows = min(height, max(1, round(image.height * scale)))
        columns = min(width, max(1, round(image.width * scale)))
    if facts["resize"] != "cv2":
        content = image.resize((columns, rows), Image.BILINEAR)
    else:  # OpenCV's rule: no filter
        matrix = (image.width / columns, 0, 0, 0, image.height / rows, 0)
        content = image.transform((columns, rows), Image.AFFINE, matrix, Image.BILINEAR)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[...] = np.round(facts["mean"])
    pixels[:rows, :columns] = np.asarray(content)[..., :: -1 if facts["channels"] == "BGR" else 1]
    return pixels.transpose(2, 0, 1)[None], (rows, columns)


def stretch(maps, size, align_corners=False):
    """float (..., h, w) -> (..., *size), bilinear."""
    for axis, target in ((-2, size[0]), (-1, size[1])):
        length, at = maps.shape[axis], np.arange(target)
        at = (
            at * (length - 1) / max(target - 1, 1)
            if align_corners
            else (at + 0.5) * length / target - 0.5
        )
        low = np.minimum(np.maximum(at, 0).astype(int), length - 1)
        weight = np.maximum(at, 0).astype(np.float32) - low
        weight = weight[:, None] if axis == -2 else weight
        high = np.take(maps, np.minimum(low + 1, length - 1), axis)
        maps = np.take(maps, low, axis) * (1 - weight) + high * weight
    return maps


def to_masks(logits, facts, network, content, size):
    """Logits (..., Hm, Wm) -> bool masks (..., height, width) of the original image."""
    least = math.log(facts["mask_thresh"] / (1 - facts["mask_thresh"]))
    is_binary = facts["mask_resize"] == "binary"
    if content != network or is_binary:
        logits = stretch(logits, network, is_binary and facts["align_corners"])
        logits = logits[..., : content[0], : content[1]]
    if not is_binary:
        return stretch(logits, size) >= least
    rows, columns = (np.arange(b) * a // b for a, b in zip(content, size))
    return (logits >= least)[..., rows, :][..., columns]


def suppress(boxes, scores, threshold):
    """Scores, 0 for a box that overlaps a better one by more than the threshold."""
    scores, area = scores.copy(), np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    order = np.argsort(-scores, kind="stable")
    for i, best in enumerate(order):
        if scores[best] > 0:
            rest = order[i + 1 :]
            low = np.maximum(boxes[rest, :2], boxes[best, :2])
            common = np.prod(
                np.maximum(np.minimum(boxes[rest, 2:], boxes[best, 2:]) - low, 0), axis=1
            )
            scores[rest[common > threshold * (area[rest] + area[best] - common)]] = 0
    return scores


def answer(session, image, text, tokenizer=""):
    """(dict of the answer, union mask bool (height, width)) about an RGB image."""
    facts = session.get_modelmeta().custom_metadata_map
    before, after = (json.loads(facts[key]) for key in ("preprocessing", "postprocessing"))
    ids = np.array([tokenize(json.loads(facts["tokenizer"]), text, tokenizer)], np.int64)
    pixels, content = prepare(before, image)
    inputs = {"image": pixels, "text_ids": ids, "text_padding_mask": np.zeros(ids.shape, bool)}
    names = [output.name for output in session.get_outputs()]
    found = {name: value[0] for name, value in zip(names, session.run(None, inputs))}
    network, size = tuple(before["image_size"]), (image.height, image.width)
    absent = float(found["no_target_score"])
    result = {"no_target": absent > 0.5, "no_target_score": absent}
    result.update(boxes=[], scores=[], points=[])
    parts, kept = [], []
    if "scores" in found:
        scale = [network[1] / content[1] * size[1], network[0] / content[0] * size[0]]
        center, half = found["boxes"][:, :2], found["boxes"][:, 2:] / 2
        boxes = np.concatenate([center - half, center + half], axis=1) * (scale * 2)
        boxes = np.clip(boxes, 0, [size[1], size[0]] * 2)
        scores = found["scores"]
        if after["nms_thresh"] < 1:
            scores = suppress(boxes, scores, after["nms_thresh"])
        kept = [i for i in np.argsort(-scores, kind="stable") if scores[i] >= after["score_thresh"]]
        result.update(boxes=boxes[kept].tolist(), scores=scores[kept].tolist(), no_target=not kept)
        result.update(points=(found["points"] * scale)[kept].tolist())
    if "union_mask" in found and after["output_mask"] != "instance":
        parts.append(found["union_mask"][None])
    if "masks" in found and (after["output_mask"] == "merge" or not parts):
        parts.append(found["masks"][kept])
    mask = np.zeros(size, bool)
    if parts and not result["no_target"]:
        mask = to_masks(np.concatenate(parts), after, network, content, size).any(axis=0)
    return result, mask


def main(argv=None):
    """Answer one question."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="ONNX file of tools/export.py")
    parser.add_argument("image", help="file to look at")
    parser.add_argument("expression", help="what to look for")
    parser.add_argument("--tokenizer", default="", help="beit3.spm, unless the model has its words")
    parser.add_argument("--output", help="image to write, with mask and boxes")
    args = parser.parse_args(argv)
    session = load(args.model)
    try:
        image = read(args.image)
        result, mask = answer(session, image, args.expression, args.tokenizer)
        print(json.dumps({**result, "mask_pixels": int(mask.sum())}, indent=2))
        if args.output:
            color = Image.new("RGB", image.size, "red")
            image.paste(color, mask=Image.fromarray(mask.astype(np.uint8) * 128))
            for box in result["boxes"]:
                ImageDraw.Draw(image).rectangle(box, outline="white", width=2)
            image.save(args.output)
    except (OSError, ValueError, ImportError, Image.DecompressionBombError) as error:
        raise SystemExit(printable(f"onnx_demo.py: {error}"))


if __name__ == "__main__":
    main()

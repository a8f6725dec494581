"""An endless stream of Shapes scenes with one expression each, drawn on the fly."""

from dataclasses import dataclass, replace
from typing import Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from igvg_d2.data.synthetic.generator import SPLITS, generate_image
from igvg_d2.data.synthetic.render import SHAPES
from igvg_d2.data.synthetic.scene import COLORS, SIZES

# Part of the seed of a scene; the splits of the data set use 1 to 4.
STREAM_INDEX = 1000
# Slots for objects; a scene of the training split has at most 9.
MAX_OBJECTS = 9
# A scene is flipped in four ways and has about three expressions, so it is drawn this often.
VISITS = 12
# Expressions whose targets take more than to compare attributes are drawn more often than in the
# data set.
KIND_SHARES = {
    **{"attribute": 0.12, "plural": 0.08, "count": 0.06, "coordination": 0.1},
    **{"order": 0.26, "relation": 0.26, "exclusion": 0.12},
}
# Paint of hidden pixels: no object and no background has it.
HIDDEN_COLOR = (255, 105, 180)
BACKGROUND = MAX_OBJECTS
# Tasks, in the order of their shares; what is left of the samples stays as it is.
HIDDEN_OBJECTS, MASKED_WORDS, MASKED_CAPTION = range(3)
# What an object is to the next one of a caption: by the axis (x, y) of their larger distance, and
# whether the next one lies further along it.
_RELATIONS = {
    (0, True): ["left", "of"],
    (0, False): ["right", "of"],
    (1, True): ["above"],
    (1, False): ["below"],
}
_MIRRORED = (
    {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"},
    {
        **{"top": "bottom", "bottom": "top", "topmost": "bottommost", "bottommost": "topmost"},
        **{"above": "below", "below": "above", "over": "under", "under": "over"},
        **{"upper": "lower", "lower": "upper", "highest": "lowest", "lowest": "highest"},
    },
)


@dataclass
class PreparedScene:
    """A scene at the size of the network input.

    Attributes:
        image: uint8 (H, W, 3).
        objects: uint8 (H, W), index of the visible object, ``BACKGROUND`` elsewhere.
        attributes: int64 (MAX_OBJECTS, 3), indices into SHAPES, COLORS and SIZES; -1 unused.
        expressions: (words, indices of the targets) each.
    """

    image: np.ndarray
    objects: np.ndarray
    attributes: np.ndarray
    expressions: List[Tuple[List[str], Tuple[int, ...]]]


def prepare_scene(seed: int, index: int, size: Tuple[int, int]) -> PreparedScene:
    """Draw scene ``index`` of the stream and resize it to (height, width) ``size``."""
    split = replace(SPLITS[0], name="pretraining", index=STREAM_INDEX, kind_shares=KIND_SHARES)
    scene, image, expressions = generate_image(seed, split, index)
    objects = np.full((scene.height, scene.width), BACKGROUND, dtype=np.uint8)
    attributes = np.full((MAX_OBJECTS, 3), -1, dtype=np.int64)
    for k, (item, mask) in enumerate(zip(scene.objects, scene.masks)):
        objects[mask] = k
        attributes[k] = SHAPES.index(item.shape), COLORS.index(item.color), SIZES.index(item.size)
    height, width = size
    rows = (np.arange(height) + 0.5) * scene.height // height
    columns = (np.arange(width) + 0.5) * scene.width // width
    return PreparedScene(
        np.asarray(Image.fromarray(image).resize((width, height), Image.BILINEAR)),
        objects[rows.astype(int)[:, None], columns.astype(int)],
        attributes,
        [(text.replace(",", " ").split(), e.targets) for e in expressions for text in e.sentences],
    )


def flip(
    rng: np.random.Generator, image: np.ndarray, objects: np.ndarray, words: List[str]
) -> Tuple[np.ndarray, np.ndarray, List[str]]:
    """Mirror image and object map at random, each way half of the time, and the words with them."""
    for axis, mirrored in zip((1, 0), _MIRRORED):
        if rng.random() < 0.5:
            image, objects = np.flip(image, axis), np.flip(objects, axis)
            words = [mirrored.get(word, word) for word in words]
    return image, objects, words


def caption(
    rng: np.random.Generator, objects: np.ndarray, attributes: np.ndarray
) -> Tuple[List[str], Tuple[int, ...]]:
    """A true sentence about up to three objects, "small red star left of large blue ring".

    Args:
        rng: the only source of randomness.
        objects: as in :class:`PreparedScene`, after flips.
        attributes: as in :class:`PreparedScene`.

    Returns:
        words, and the indices of the objects.
    """
    there = [int(k) for k in np.unique(objects) if k != BACKGROUND]
    chosen = rng.permutation(there)[: int(rng.integers(1, 4))]
    words: List[str] = []
    last = None
    for k in chosen:
        rows, columns = np.nonzero(objects == k)
        position = np.array([columns.mean(), rows.mean()])
        if last is not None:
            offset = position - last
            axis = int(np.abs(offset).argmax())
            words += _RELATIONS[axis, bool(offset[axis] >= 0)]
        shape, color, size = attributes[k]
        words += [SIZES[size], COLORS[color], SHAPES[shape]]
        last = position
    return words, tuple(sorted(int(k) for k in chosen))


class PretrainingScenes(IterableDataset):
    """Samples of masked data modelling (BEiT-3, Section 3.2).

    * Hidden objects: objects of the image are painted over, their colour or their patches
      altogether, and the text names the colour or shape of the objects it speaks of.
    * Masked words of an expression, restored if what it says is true.
    * Masked words of a caption, which says what some objects are and how they lie to each other.
    * Otherwise image and expression as they are.
    """

    def __init__(
        self,
        tokenizer,
        size: Tuple[int, int],
        patch_size: int,
        seed: int,
        mask_id: int,
        task_shares: Tuple[float, float, float] = (0.55, 0.3, 0.0),
        first_scene: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pool: int = 128,
    ):
        """
        Args:
            tokenizer: ``ShapesTokenizer``.
            size: (height, width) of the network input in pixels.
            patch_size: side of a patch in pixels.
            seed: of the stream.
            mask_id: token id of a masked word.
            task_shares: of samples with hidden objects, masked expressions and masked captions.
            first_scene: where the stream begins, for a run that is resumed.
            rank, world_size: of the process; every process and loader worker draws its own scenes.
            pool: scenes that samples are drawn from at a time.
        """
        self.tokenizer = tokenizer
        self.size = size
        self.patch_size = patch_size
        self.seed = seed
        self.mask_id = mask_id
        self.task_limits = np.cumsum(task_shares)
        self.first_scene = first_scene
        self.rank = rank
        self.world_size = world_size
        self.pool = pool
        visual = set(SHAPES) | set(COLORS) | set(SIZES)
        visual |= {side for table in _MIRRORED for side in table}
        visual |= set("two three four first second third fourth stars circles squares".split())
        visual |= set("triangles rings crosses largest smallest biggest tiniest big little".split())
        self._visual_words = visual

    def __iter__(self) -> Iterator[Dict[str, torch.Tensor]]:
        """Samples without end; keys as :class:`BEiT3Pretraining` reads them."""
        worker = get_worker_info()
        workers = 1 if worker is None else worker.num_workers
        stride = self.world_size * workers
        index = self.first_scene + self.rank * workers + (0 if worker is None else worker.id)
        rng = np.random.default_rng((self.seed, STREAM_INDEX, index))
        scenes: List[Tuple[PreparedScene, int]] = []
        while True:
            while len(scenes) < self.pool:
                scenes.append((prepare_scene(self.seed, index, self.size), VISITS))
                index += stride
                if len(scenes) > 8 and rng.random() < 0.5:
                    break  # samples begin to flow before the pool is full
            k = int(rng.integers(len(scenes)))
            scene, left = scenes[k]
            yield self.draw(scene, rng)
            scenes[k] = (scene, left - 1)
            if left == 1:
                scenes[k] = scenes[-1]
                scenes.pop()

    def draw(self, scene: PreparedScene, rng: np.random.Generator) -> Dict[str, torch.Tensor]:
        """One sample of a scene."""
        words, targets = scene.expressions[rng.integers(len(scene.expressions))]
        image, objects, words = flip(rng, scene.image, scene.objects, words)
        image = image.copy()
        hidden = np.zeros(MAX_OBJECTS, dtype=bool)
        task = int(np.searchsorted(self.task_limits, rng.random(), side="right"))
        suffix = self._named_attribute(scene, targets, rng) if task == HIDDEN_OBJECTS else None
        if suffix is not None:
            hidden = self._hide(image, objects, scene, targets, rng)
            words = words + suffix
        if task == MASKED_CAPTION:
            words, targets = caption(rng, objects, scene.attributes)
        ids = np.array(self.tokenizer(" ".join(words)), dtype=np.int64)
        labels = np.full_like(ids, -1)
        masked = task in (MASKED_WORDS, MASKED_CAPTION)
        if masked:
            self._mask_words(ids, labels, words, rng)
            if not targets:
                # Nothing to restore, but a mask must not tell that something is there.
                labels[:] = -1
        referred = np.zeros(MAX_OBJECTS, dtype=bool)
        referred[list(targets)] = True
        sample = {
            "image": image.transpose(2, 0, 1).copy(),
            "objects": objects.copy(),
            "attributes": scene.attributes,
            "text_ids": ids,
            "word_labels": labels,
            "hidden": hidden,
            "referred": referred,
            # Whether image and expression are whole, so that the expression decides what is meant.
            "whole": np.array(not masked and suffix is None),
        }
        return {key: torch.from_numpy(value) for key, value in sample.items()}

    def _named_attribute(
        self, scene: PreparedScene, targets: Tuple[int, ...], rng: np.random.Generator
    ) -> Optional[List[str]]:
        """A clause, "is red" or "are stars", true of all targets; None if there is none."""
        if not targets:
            return None
        shapes, colors, _ = scene.attributes[list(targets)].T
        verb = "is" if len(targets) == 1 else "are"
        if len(set(colors)) == 1 and (rng.random() < 0.7 or len(set(shapes)) > 1):
            return [verb, COLORS[colors[0]]]
        if len(set(shapes)) == 1:
            return [verb, SHAPES[shapes[0]]]
        return None

    def _hide(
        self,
        image: np.ndarray,
        objects: np.ndarray,
        scene: PreparedScene,
        targets: Tuple[int, ...],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Paint over the targets and some other objects; returns which, bool (MAX_OBJECTS,)."""
        hidden = rng.random(MAX_OBJECTS) < rng.choice((0.3, 0.6, 1.0))
        hidden &= scene.attributes[:, 0] >= 0
        hidden[list(targets)] = True
        colors = set(scene.attributes[list(targets), 1])
        if rng.random() < 0.5:
            # Others of another colour: painting all that is hidden with the named one does not pay.
            hidden |= (scene.attributes[:, 0] >= 0) & ~np.isin(scene.attributes[:, 1], list(colors))
        pixels = np.append(hidden, False)[objects]
        if rng.random() < 0.5:
            # Whole patches: the shape is not seen, either.
            p = self.patch_size
            grid = pixels.reshape(image.shape[0] // p, p, image.shape[1] // p, p).any(axis=(1, 3))
            pixels = grid.repeat(p, axis=0).repeat(p, axis=1)
        image[pixels] = HIDDEN_COLOR
        return hidden

    def _mask_words(
        self, ids: np.ndarray, labels: np.ndarray, words: List[str], rng: np.random.Generator
    ) -> None:
        """Mask words in place, those about what is seen more often; one at least."""
        rates = [0.45 if word in self._visual_words else 0.1 for word in words[: len(ids) - 2]]
        chosen = np.flatnonzero(rng.random(len(rates)) < rates)
        if len(chosen) == 0:
            chosen = rng.integers(len(rates), size=1)
        labels[chosen + 1] = ids[chosen + 1]
        ids[chosen + 1] = self.mask_id

"""The Shapes data set: its splits, and one image with its expressions at a time."""

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import numpy as np

from .expressions import KINDS, ExpressionPlan, sample_plan
from .grammar import Meaning, verbalize
from .proposals import realize
from .render import render_scene
from .scene import Scene, sample_scene

# Part of statistics.json: data sets of different versions are not comparable.
GENERATOR_VERSION = 1

NO_TARGET_SHARE = 0.29
MAX_SCENES = 40  # then the plans that do not fit are given up

_EVEN_SHARES = dict(zip(KINDS, (0.24, 0.14, 0.08, 0.18, 0.16, 0.11, 0.09)))
_PLURAL_SHARES = dict(zip(KINDS, (0.03, 0.24, 0.13, 0.10, 0.15, 0.20, 0.15)))


@dataclass(frozen=True)
class SplitConfig:
    """What makes a split.

    Attributes:
        name: name of the split in the annotation file.
        index: its place in the random seed and in the image ids; never reused.
        num_images: at scale 1.
        num_objects: smallest and largest number of objects in a scene.
        kind_shares: relative frequency of the kinds of expression.
        plural_share: probability that a relation speaks of several objects.
        held_out_share: share of objects with a (colour, shape) pair that training never shows.
        novel_share: share of expressions about such a pair.
    """

    name: str
    index: int
    num_images: int
    num_objects: Tuple[int, int]
    kind_shares: Dict[str, float]
    plural_share: float = 0.25
    held_out_share: float = 0.0
    novel_share: float = 0.0


SPLITS = (
    SplitConfig("train", 1, 5600, (2, 9), _EVEN_SHARES),
    SplitConfig("val", 2, 420, (2, 9), _EVEN_SHARES),
    SplitConfig("testA", 3, 420, (4, 9), _PLURAL_SHARES, plural_share=0.75),
    SplitConfig("testB", 4, 420, (6, 9), _EVEN_SHARES, held_out_share=0.6, novel_share=0.8),
)


@dataclass(frozen=True)
class SceneExpression:
    """One expression of a scene.

    Attributes:
        plan: how it was meant to look.
        meaning: what it says.
        targets: indices into ``Scene.objects``; () means no target.
        sentences: one text, or two paraphrases of the same meaning.
    """

    plan: ExpressionPlan
    meaning: Meaning
    targets: Tuple[int, ...]
    sentences: Tuple[str, ...]


def _realize_all(
    plans: List[ExpressionPlan], scene: Scene, rng: np.random.Generator, held_out: bool
) -> List[Tuple[ExpressionPlan, Meaning, Tuple[int, ...]]]:
    """Realize as many plans as the scene allows, no meaning twice."""
    done: List[Tuple[ExpressionPlan, Meaning, Tuple[int, ...]]] = []
    for plan in plans:
        found = realize(plan, scene, rng, held_out=held_out)
        if found is not None and all(found[0] != meaning for _, meaning, _ in done):
            done.append((plan, *found))
    return done


def generate_scene(
    seed: int, split: SplitConfig, index: int
) -> Tuple[Scene, List[SceneExpression], np.random.Generator]:
    """Draw scene ``index`` of a split; it depends on nothing but the arguments.

    The expressions are planned first and scenes are drawn until one supports them all. Dropping
    the plans that a scene cannot fulfil instead would make hard forms rare among expressions with
    targets, and the form would then betray no-target expressions.

    Returns:
        the scene, at least one expression, and the generator that its image is to be drawn with.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, split.index, index)))
    plans = [
        sample_plan(
            rng,
            split.kind_shares,
            no_target_share=NO_TARGET_SHARE,
            plural_share=split.plural_share,
            novel_share=split.novel_share,
        )
        for _ in range(rng.integers(3, 5))
    ]
    best: Optional[Tuple[Scene, list]] = None
    attempts = 0
    while best is None or not best[1] or (len(best[1]) < len(plans) and attempts < MAX_SCENES):
        scene = sample_scene(
            rng, num_objects=split.num_objects, held_out_share=split.held_out_share
        )
        done = _realize_all(plans, scene, rng, split.held_out_share > 0)
        if best is None or len(done) > len(best[1]):
            best = scene, done
        attempts += 1
    scene, done = best
    expressions = []
    for plan, meaning, targets in done:
        texts = [verbalize(meaning, rng)]
        if rng.random() < 0.1:
            texts.append(verbalize(meaning, rng))
        sentences = tuple(dict.fromkeys(texts))
        expressions.append(SceneExpression(plan, meaning, targets, sentences))
    return scene, expressions, rng


def generate_image(
    seed: int, split: SplitConfig, index: int
) -> Tuple[Scene, np.ndarray, List[SceneExpression]]:
    """Draw image ``index`` of a split, see :func:`generate_scene`.

    Returns:
        the scene, its image uint8 (height, width, 3) RGB, and at least one expression.
    """
    scene, expressions, rng = generate_scene(seed, split, index)
    return scene, render_scene(scene, rng), expressions

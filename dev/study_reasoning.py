#!/usr/bin/env python3
"""How well does the role reasoner understand Shapes if it need not see?

    python dev/study_reasoning.py --samples 48000 --muon-lr 0.01

Trains igvg_d2.modeling.backbone.role_reasoning alone: objects come as attributes and positions
instead of pixels, so a few minutes on one core show what a change of its design or rates does.
Prints the share of validation expressions (percent, by kind) for which exactly the right set of
objects is chosen; "T" and "N" are those with and without a target.
"""

import argparse
import math
import time
from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from igvg_d2.data.directions import swap_direction_words
from igvg_d2.data.synthetic.generator import SPLITS, generate_scene
from igvg_d2.data.synthetic.render import SHAPES
from igvg_d2.data.synthetic.scene import COLORS, SIZES
from igvg_d2.data.tokenizer import ShapesTokenizer
from igvg_d2.modeling.backbone.build import SceneObjects
from igvg_d2.modeling.backbone.embedding import TextEmbedding
from igvg_d2.modeling.backbone.multiway import TextLayer
from igvg_d2.modeling.backbone.role_reasoning import RoleReasoner
from igvg_d2.solver.muon import Muon, split_matrices

MAX_OBJECTS = 9
# Similarities begin with about the size they have in the model.
SIMILARITY = 4.0


class Study(nn.Module):
    """Text, attributes and the reasoner between them."""

    def __init__(self, vocab_size: int, dim: int, roles: int, text_layers: int):
        super().__init__()
        self.text_embed = TextEmbedding(vocab_size, dim, 48, 0.3)
        self.text_layers = nn.ModuleList(TextLayer(dim, 4, 2 * dim) for _ in range(text_layers))
        num_attributes = len(SHAPES) + len(COLORS) + len(SIZES)
        self.attributes = nn.Linear(num_attributes, dim, bias=False)
        self.reasoner = RoleReasoner(dim, roles)

    def forward(self, attributes, positions, exists, ids, padding):
        """float (N, K, A), (N, K, 2), bool (N, K), int64 and bool (N, L) -> float (N, K) logits."""
        words, text = self.text_embed(ids, padding)
        for layer in self.text_layers:
            text = layer(text, padding)
        seen = self.attributes(attributes)
        nothing = seen.new_zeros(0)
        objects = SceneObjects(
            *(nothing, nothing, nothing, nothing),
            positions=positions,
            exists_logits=torch.where(exists, 20.0, -20.0),
            assignment=nothing,
            features=seen,
        )
        similarity = seen @ words.transpose(1, 2) * (SIMILARITY * seen.shape[-1] ** -0.5)
        return self.reasoner(objects, similarity, text, padding)[0].target_logits


def load(split, share):
    """Samples of a split of seed 0: (attributes, positions, expression, targets, kind)."""
    samples = []
    for index in range(int(split.num_images * share)):
        scene, expressions, _ = generate_scene(0, split, index)
        attributes = [
            (
                SHAPES.index(item.shape),
                len(SHAPES) + COLORS.index(item.color),
                len(SHAPES) + len(COLORS) + SIZES.index(item.size),
            )
            for item in scene.objects
        ]
        size = np.array([scene.width, scene.height], np.float32)
        positions = np.array([item.position for item in scene.objects], np.float32) / size
        for expression in expressions:
            for text in expression.sentences:
                kind = expression.meaning.kind
                samples.append((attributes, positions, text, expression.targets, kind))
    return samples


def collate(samples, tokenizer, rng=None):
    """Tensors of a batch; with ``rng``, scenes and expressions are flipped at random."""
    n = len(samples)
    attributes = torch.zeros(n, MAX_OBJECTS, len(SHAPES) + len(COLORS) + len(SIZES))
    positions = torch.zeros(n, MAX_OBJECTS, 2)
    exists = torch.zeros(n, MAX_OBJECTS, dtype=torch.bool)
    wanted = torch.zeros(n, MAX_OBJECTS)
    texts = []
    for i, (items, places, text, targets, _) in enumerate(samples):
        for axis, name in enumerate(("horizontal", "vertical")):
            if rng is not None and rng.random() < 0.5:
                text = swap_direction_words(text, name)
                places = places.copy()
                places[:, axis] = 1 - places[:, axis]
        for k, ones in enumerate(items):
            attributes[i, k, list(ones)] = 1
        positions[i, : len(items)] = torch.from_numpy(places)
        exists[i, : len(items)] = True
        wanted[i, list(targets)] = 1
        texts.append(torch.tensor(tokenizer(text)))
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=1)
    lengths = torch.tensor([len(text) for text in texts])
    padding = torch.arange(ids.shape[1]) >= lengths[:, None]
    return (attributes, positions, exists, ids, padding), wanted


@torch.no_grad()
def evaluate(model, samples, tokenizer):
    """Percent of exactly right sets: kind -> number, and "ALL", "T", "N"."""
    right = defaultdict(list)
    for start in range(0, len(samples), 256):
        part = samples[start : start + 256]
        inputs, wanted = collate(part, tokenizer)
        chosen = (model(*inputs) > 0) & inputs[2]
        for sample, ok in zip(part, (chosen == (wanted > 0)).all(dim=1).tolist()):
            for key in ("ALL", "T" if sample[3] else "N", sample[4]):
                right[key].append(ok)
    return {key: round(100 * float(np.mean(values)), 1) for key, values in sorted(right.items())}


def main():
    """Train, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=48000, help="expressions to train on")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--muon-lr", type=float, default=0.01, help="of weight matrices")
    parser.add_argument("--lr", type=float, default=0.002, help="of everything else")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--roles", type=int, default=4)
    parser.add_argument("--text-layers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of weights and order")
    parser.add_argument("--share", type=float, default=1.0, help="of the scenes of each split")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    train, val = (load(split, args.share) for split in SPLITS[:2])
    tokenizer = ShapesTokenizer(max_tokens=40)
    model = Study(tokenizer.vocab_size, args.dim, args.roles, args.text_layers)
    groups = [{"params": list(model.parameters()), "lr": args.lr}]
    groups = split_matrices(groups, model, args.muon_lr, args.lr)
    optimizer = Muon(groups, args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    steps = args.samples // args.batch
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: min(1, (t + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * min(1, t / steps))),
    )
    start, losses, order = time.process_time(), [], []
    for step in range(1, steps + 1):
        if len(order) < args.batch:
            order = rng.permutation(len(train)).tolist()
        batch = [train[order.pop()] for _ in range(args.batch)]
        inputs, wanted = collate(batch, tokenizer, rng)
        loss = F.binary_cross_entropy_with_logits(model(*inputs)[inputs[2]], wanted[inputs[2]])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
        if step % max(1, steps // 4) == 0:
            seconds = time.process_time() - start
            mean = float(torch.stack(losses[-100:]).mean())
            print(f"{step * args.batch} samples, {seconds:.0f} CPU s, loss {mean:.4f}")
            print("   ", evaluate(model, val, tokenizer), flush=True)


if __name__ == "__main__":
    main()

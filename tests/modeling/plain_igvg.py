"""The released model and its losses once more, in plain steps, for comparison with the real ones.

Written from the specification of the release alone, one sample, head, query and point at a time
where that is plainest, in whatever precision the weights have. Texts stay padded and padded tokens
run through every layer, as in the release. Nothing of ``igvg_d2`` is used but parameter names.
"""

import math

import torch
import torch.nn.functional as F

from tests.modeling.plain_parts import (
    bilinear,
    detection_losses,
    match_queries,
    segmentation_losses,
    sine_positions,
    to_centers,
)


class PlainIGVG:
    """Forward pass in training mode, without dropout, and the losses.

    Args:
        weights: parameters by name.
        depth, heads: of the encoder.
        head_heads: heads of the attentions behind the encoder.
        decoder_layers: of the deformable decoder.
        num_queries: N_q.
    """

    def __init__(self, weights, depth, heads, head_heads, decoder_layers, num_queries):
        self.w = weights
        self.depth, self.heads, self.head_heads = depth, heads, head_heads
        self.decoder_layers, self.num_queries = decoder_layers, num_queries
        self.points, self.matches = [], []

    def losses(self, images, text_ids, padding, boxes, masks):
        """Total loss of a batch.

        Args:
            images: (N, 3, S, S), normalised.
            text_ids, padding: (N, L) and True = padding.
            boxes: per sample (T, 4), pixels, XYXY.
            masks: per sample (T, S, S), 0 and 1.
        """
        side = images.shape[-1]
        image, text = self.encoder(images, text_ids, padding)
        grid = side // 16
        tokens = image[:, 1:] @ self.w["image_projection.weight"][:, :, 0, 0].T
        text = text @ self.w["text_projection.weight"].T
        fmap = tokens.transpose(1, 2).reshape(len(images), -1, grid, grid)
        levels = self.neck(fmap)
        features = self.unet(levels)
        union = torch.stack([(m.sum(0) > 0).to(images.dtype) for m in masks])
        total = self.global_losses(features, union, [len(b) == 0 for b in boxes], side)
        queries, points, heat = self.queries(text, padding, tokens, grid)
        target = union[:, :: side // grid, :: side // grid]
        total = total + 0.1 * sum(segmentation_losses(list(heat), list(target)))
        total = total + self.instances(queries, points, levels, features, boxes, masks, side)
        return total

    # Layers.

    def linear(self, name, x):
        """x W^T + b."""
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name, x, eps=1e-5):
        """LayerNorm over the last dimension."""
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def mlp(self, name, x):
        """Three linear layers with ReLU between."""
        x = self.linear(f"{name}.layers.0", x).clamp(min=0)
        x = self.linear(f"{name}.layers.1", x).clamp(min=0)
        return self.linear(f"{name}.layers.2", x)

    @staticmethod
    def attend(q, k, v, heads, hidden=None):
        """Softmax attention (S, C) of one sample; the result and the weights (heads, S, S')."""
        outputs, maps = [], []
        for q_h, k_h, v_h in zip(*(x.chunk(heads, dim=-1) for x in (q, k, v))):
            scores = (q_h * q_h.shape[-1] ** -0.5) @ k_h.T
            if hidden is not None:
                scores = scores.masked_fill(hidden[None], float("-inf"))
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            outputs.append(weights @ v_h)
            maps.append(weights)
        return torch.cat(outputs, dim=-1), torch.stack(maps)

    # Encoder.

    def encoder(self, images, text_ids, padding):
        """BEiT-3: tokens of the image, CLS first, and of the text."""
        name, n = "backbone.vision_embed", len(images)
        kernel = self.w[f"{name}.proj.weight"].flatten(1)
        patches = F.unfold(images, kernel_size=16, stride=16).transpose(1, 2)
        patches = patches @ kernel.T + self.w[f"{name}.proj.bias"] + self.w[f"{name}.positions"]
        cls = self.w[f"{name}.cls_token"] + self.w[f"{name}.cls_position"]
        image = torch.cat([cls.expand(n, -1, -1), patches], dim=1)
        text = self.w["backbone.text_embed.tokens.weight"][text_ids]
        text = text + self.w["backbone.text_embed.positions"][:, : text_ids.shape[1]]
        text = text * (~padding)[..., None]
        hidden = torch.cat([torch.zeros(image.shape[:2], dtype=torch.bool), padding], dim=1)
        for layer in range(self.depth):
            image, text = self.encoder_layer(
                f"backbone.encoder.layers.{layer}", image, text, hidden
            )
        name = "backbone.encoder"
        return self.norm(f"{name}.vision_norm", image), self.norm(f"{name}.text_norm", text)

    def encoder_layer(self, name, image, text, hidden):
        """Pre-norm, with LayerNorms inside both branches; weights of their own per modality."""
        parts = []
        for expert, x in (("vision", image), ("text", text)):
            normed = self.norm(f"{name}.{expert}.attn_norm", x)
            parts.append(self.linear(f"{name}.{expert}.qkv", normed))
        q, k, v = torch.cat(parts, dim=1).chunk(3, dim=-1)
        attended = [self.attend(q[i], k[i], v[i], self.heads, hidden[i])[0] for i in range(len(q))]
        attended = torch.stack(attended)
        split = image.shape[1]
        results = []
        for expert, x, heads in (
            ("vision", image, attended[:, :split]),
            ("text", text, attended[:, split:]),
        ):
            name_e = f"{name}.{expert}"
            x = x + self.linear(f"{name_e}.out_proj", self.norm(f"{name_e}.inner_norm", heads))
            y = self.linear(f"{name_e}.fc1", self.norm(f"{name_e}.ffn_norm", x))
            y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
            x = x + self.linear(f"{name_e}.fc2", self.norm(f"{name_e}.ffn_inner_norm", y))
            results.append(x)
        return results

    # Dense branch.

    def channel_norm(self, name, x):
        """LayerNorm over the channels of every pixel."""
        return self.norm(name, x.permute(0, 2, 3, 1), eps=1e-6).permute(0, 3, 1, 2)

    def double(self, name, x):
        """2 x 2 transposed convolution: every pixel becomes four."""
        weight, (n, _, h, w) = self.w[f"{name}.weight"], x.shape
        out = torch.einsum("ncij,coab->noiajb", x, weight).reshape(n, -1, 2 * h, 2 * w)
        return out + self.w[f"{name}.bias"][:, None, None]

    def neck(self, fmap):
        """Four levels, fine to coarse."""
        p2 = self.channel_norm("neck.scale_p2.1", self.double("neck.scale_p2.0", fmap))
        p2 = self.double("neck.scale_p2.3", 0.5 * p2 * (1 + torch.erf(p2 / math.sqrt(2))))
        p3 = self.double("neck.scale_p3", fmap)
        n, c, h, w = fmap.shape
        p5 = fmap.reshape(n, c, h // 2, 2, w // 2, 2).amax(dim=(3, 5))
        levels = []
        for level, x in enumerate((p2, p3, fmap, p5)):
            for part, padding in (("lateral", 0), ("output", 1)):
                name = f"neck.{part}.{level}"
                x = F.conv2d(x, self.w[f"{name}.weight"], padding=padding)
                x = self.channel_norm(f"{name}.norm", x)
            levels.append(x)
        return levels

    def unet(self, levels):
        """Coarse to fine: upsample, concatenate, two convolutions with batch statistics."""
        x = levels[3]
        for stage, skip in enumerate((levels[2], levels[1], levels[0])):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
            x = torch.cat([x, skip], dim=1)
            for conv in range(2):
                name = f"pixel_decoder.stages.{stage}.{conv}"
                x = F.conv2d(x, self.w[f"{name}.weight"], padding=1)
                x = x - x.mean(dim=(0, 2, 3), keepdim=True)
                x = x / (x.pow(2).mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()
                x = x * self.w[f"{name}.norm.weight"][:, None, None]
                x = (x + self.w[f"{name}.norm.bias"][:, None, None]).clamp(min=0)
        return x

    def global_losses(self, features, union, empty, side):
        """Union mask, weight 1, and existence, weight 0.2 with class weights 0.9 and 1.1."""
        name = "global_head.predictor"
        logits = torch.einsum("nchw,c->nhw", features, self.w[f"{name}.weight"][0, :, 0, 0])
        logits = self.full_size((logits + self.w[f"{name}.bias"])[:, None], side)[:, 0]
        loss = sum(segmentation_losses(list(logits), list(union)))
        exist = self.mlp("global_head.no_target", features.permute(0, 2, 3, 1)).mean(dim=(1, 2))
        logs = exist - exist.exp().sum(-1, keepdim=True).log()
        weights = [1.1 if is_empty else 0.9 for is_empty in empty]
        terms = [-w * logs[i, int(e)] for i, (w, e) in enumerate(zip(weights, empty))]
        return loss + 0.2 * sum(terms) / sum(weights)

    @staticmethod
    def full_size(masks, side):
        """To the image, corners aligned."""
        return F.interpolate(masks, size=(side, side), mode="bilinear", align_corners=True)

    # Queries.

    def queries(self, text, padding, tokens, grid):
        """Queries (N, Q, D), points (N, Q, 2) and the pooled attention (N, grid, grid)."""
        name = "query_generator.attention"
        constant = self.linear(f"{name}.self_out_proj", self.w[f"{name}.self_value_bias"])
        constant = self.norm(f"{name}.self_norm", constant)
        position = sine_positions(grid, tokens.shape[-1]).to(tokens)
        queries, points, maps = [], [], []
        for words, pads, cells in zip(text, padding, tokens):
            chosen, valid = self.select_words(words, int((~pads).sum()))
            q = self.linear(f"{name}.query_proj", constant + chosen)
            k = self.linear(f"{name}.key_proj", cells + position)
            v = self.linear(f"{name}.value_proj", cells)
            y, weights = self.attend(q, k, v, self.head_heads)
            y = self.norm(f"{name}.norm", constant + self.linear(f"{name}.out_proj", y))
            y = self.feed_forward(f"{name}.ffn", y)
            y = self.norm(f"{name}.final_norm", y)
            heat = weights.mean(0)[:valid].max(0).values
            picked = self.select_cells(heat.detach(), grid)
            self.points.append(picked)
            y = torch.cat([y, torch.stack([cells[cell] for cell in picked])], dim=-1)
            queries.append(self.mlp("query_generator.mlp", y))
            centers = [((c % grid + 0.5) / grid, (c // grid + 0.5) / grid) for c in picked]
            points.append(torch.tensor(centers).to(tokens))
            maps.append(heat.reshape(grid, grid))
        return torch.stack(queries), torch.stack(points), torch.stack(maps)

    def select_words(self, words, length):
        """The best words by mean channel, or the first ones and zeros; and how many are real."""
        if length >= self.num_queries:
            order = words[:length].mean(-1).argsort(descending=True)[: self.num_queries]
            return words[order], self.num_queries
        first = words[: self.num_queries]
        zeros = words.new_zeros(self.num_queries - len(first), words.shape[-1])
        first = torch.cat([first, zeros])
        return first * (torch.arange(self.num_queries) < length)[:, None], length

    def select_cells(self, heat, grid):
        """Greedy: attention, plus 0.003 x distance to the chosen cells in grid diagonals."""
        scores = (1 / (1 + (-heat).exp())).tolist()
        chosen = [max(range(len(scores)), key=scores.__getitem__)]
        while len(chosen) < self.num_queries:
            best, best_value = -1, -math.inf
            for cell, score in enumerate(scores):
                if cell in chosen:
                    continue
                distances = [
                    math.hypot(cell // grid - c // grid, cell % grid - c % grid) for c in chosen
                ]
                value = score + 0.003 * min(distances) / math.hypot(grid, grid)
                if value > best_value:
                    best, best_value = cell, value
            chosen.append(best)
        return chosen

    def feed_forward(self, name, x):
        """Post-norm, ReLU."""
        y = self.linear(f"{name}.linear2", self.linear(f"{name}.linear1", x).clamp(min=0))
        return self.norm(f"{name}.norm", x + y)

    # Decoder and its losses.

    def instances(self, queries, points, levels, features, boxes, masks, side):
        """Detection losses of every layer, mask losses of the last one."""
        name = "grounding_head"
        position = self.linear(f"{name}.query_pos", points)
        shift = self.linear(f"{name}.reference.shift", position)
        reference = points + 1 / (1 + (-shift).exp())
        inside = reference.clamp(0, 1)
        anchor = inside.clamp(min=1e-3).log() - (1 - inside).clamp(min=1e-3).log()
        num_boxes = max(1, sum(map(len, boxes)))
        total, state = 0.0, queries
        for layer in range(self.decoder_layers):
            state = torch.stack(
                [
                    self.decoder_layer(layer, state[i], position[i], reference[i], levels, i)
                    for i in range(len(state))
                ]
            )
            logits = self.linear(f"{name}.predictor.class_embed", state)
            raw = self.mlp(f"{name}.predictor.box_embed", state)
            raw = torch.cat([raw[..., :2] + anchor, raw[..., 2:]], dim=-1)
            predicted = 1 / (1 + (-raw).exp())
            targets = [to_centers(b) / side for b in boxes]
            matches = [match_queries(*sample) for sample in zip(logits, predicted, points, targets)]
            self.matches.append(matches)
            weights = (1, 5, 2) if layer == self.decoder_layers - 1 else (1, 1, 1)
            terms = detection_losses(logits, predicted, targets, matches, num_boxes)
            total = total + 0.1 * sum(w * term for w, term in zip(weights, terms))
        return total + self.instance_masks(state, features, matches, masks, side)

    def decoder_layer(self, layer, x, position, reference, levels, sample):
        """Self-attention, deformable attention, feed-forward of one sample (Q, D)."""
        name = f"grounding_head.decoder.layers.{layer}"
        packed = f"{name}.self_attn.attn"
        kernels = self.w[f"{packed}.in_proj_weight"].chunk(3)
        biases = self.w[f"{packed}.in_proj_bias"].chunk(3)
        inputs = (x + position, x + position, x)
        q, k, v = (y @ kernel.T + bias for y, kernel, bias in zip(inputs, kernels, biases))
        y = self.linear(f"{packed}.out_proj", self.attend(q, k, v, self.head_heads)[0])
        x = self.norm(f"{name}.self_attn.norm", x + y)
        y = self.deformable(f"{name}.cross_attn", x + position, reference, levels, sample)
        return self.feed_forward(f"{name}.ffn", self.norm(f"{name}.norm", x + y))

    def deformable(self, name, query, reference, levels, sample):
        """Every head of every query looks at a few points of every level."""
        heads, num_levels = self.head_heads, len(levels)
        values = [
            self.linear(f"{name}.value_proj", level[sample].flatten(1).T).T.reshape(
                heads, -1, *level.shape[-2:]
            )
            for level in levels
        ]
        offsets = self.linear(f"{name}.sampling_offsets", query)
        offsets = offsets.reshape(len(query), heads, num_levels, -1, 2)
        scores = self.linear(f"{name}.attention_weights", query).reshape(len(query), heads, -1)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        weights = weights.reshape(offsets.shape[:-1])
        rows = []
        for q in range(len(query)):
            parts = []
            for h in range(heads):
                seen = 0.0
                for level in range(num_levels):
                    height, width = levels[level].shape[-2:]
                    size = offsets.new_tensor([width, height])
                    for point in range(offsets.shape[3]):
                        pixel = reference[q] * size + offsets[q, h, level, point] - 0.5
                        value = bilinear(values[level][h], pixel)
                        seen = seen + weights[q, h, level, point] * value
                parts.append(seen)
            rows.append(torch.cat(parts))
        return self.linear(f"{name}.output_proj", torch.stack(rows))

    def instance_masks(self, state, features, matches, masks, side):
        """Matched queries against their masks, all others, weight 0.2, against nothing."""
        predicted = torch.einsum("nqc,nchw->nqhw", state, features)
        predicted = self.full_size(predicted, side)
        positive, negative = ([], []), ([], [])
        for sample, pairs in enumerate(matches):
            matched = dict(pairs)
            for q, mask in enumerate(predicted[sample]):
                side_of = positive if q in matched else negative
                side_of[0].append(mask)
                empty = torch.zeros_like(mask)
                side_of[1].append(masks[sample][matched[q]] if q in matched else empty)
        return sum(segmentation_losses(*positive)) + 0.2 * sum(segmentation_losses(*negative))

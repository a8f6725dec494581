"""IGVG: instance-aware generalized multi-task visual grounding, the wiring (Fig. 2)."""

from typing import Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage
from torch import nn

from ..backbone import VisionLanguageBackbone, VLFeatures, build_vl_backbone
from ..batch import answer_batch, pad_texts
from ..global_head import GlobalHead
from ..grounding_head import build_grounding_head
from ..neck import build_neck
from ..pixel_decoder import build_pixel_decoder
from ..postprocessing import PostprocessOptions, grounding_postprocess
from ..query_generator import build_query_generator
from ..targets import BatchTotals, GroundingTargets
from ..training_options import freeze_parameters, replace_sync_batch_norm
from ..transfer import to_device
from .inference import optimize_for_inference


@META_ARCH_REGISTRY.register()
class IGVG(nn.Module):
    """Ground an expression in an image as points, boxes, instance masks and a union mask."""

    @configurable
    def __init__(
        self,
        *,
        backbone: VisionLanguageBackbone,
        hidden_dim: int,
        neck: nn.Module,
        pixel_decoder: nn.Module,
        global_head: GlobalHead,
        query_generator: Optional[nn.Module],
        grounding_head: Optional[nn.Module],
        pixel_mean: Tuple[float, ...],
        pixel_std: Tuple[float, ...],
        mask_loss_resolution: str,
        postprocess: PostprocessOptions,
        input_format: str = "RGB",
        vis_period: int = 0,
        freeze: Sequence[str] = (),
    ):
        """
        Args:
            backbone: fused encoder.
            hidden_dim: D, width after the image and text projections.
            neck, pixel_decoder, global_head: the dense branch.
            query_generator, grounding_head: PIPH; both None for a model with global masks only.
            pixel_mean, pixel_std: per channel, in the scale of the input image.
            mask_loss_resolution: "image", "feature" or "points".
            postprocess: thresholds and modes at inference.
            input_format: order of the channels, for what ``vis_period`` draws only.
            vis_period: iterations between training images; 0 = none.
            freeze: beginnings of names of parameters that are not trained.

        Raises:
            ValueError: only one of query generator and grounding head, an unknown resolution, or
                nothing to freeze under a name.
        """
        super().__init__()
        if (query_generator is None) != (grounding_head is None):
            raise ValueError(
                "MODEL.QUERY_GENERATOR.NAME and MODEL.GROUNDING_HEAD.NAME must both be set, or "
                "both be empty for a model with the global branch only."
            )
        if mask_loss_resolution not in ("image", "feature", "points"):
            raise ValueError(
                "MODEL.IGVG.MASK_LOSS_RESOLUTION must be 'image', 'feature' or 'points', got "
                f"{mask_loss_resolution!r}."
            )
        self.backbone = backbone
        width = backbone.embed_dim
        self.image_projection = nn.Conv2d(width, hidden_dim, kernel_size=1, bias=False)
        self.text_projection = None
        if query_generator is not None:
            self.text_projection = nn.Linear(width, hidden_dim, bias=False)
        self.neck = neck
        self.pixel_decoder = pixel_decoder
        self.global_head = global_head
        self.query_generator = query_generator
        self.grounding_head = grounding_head
        self.mask_loss_resolution = mask_loss_resolution
        self.postprocess = postprocess
        self.input_format = input_format
        self.vis_period = vis_period
        for name, value in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)
        replace_sync_batch_norm(self)
        # A tuple, so that it is not registered a second time as a part of the model.
        self._resting = tuple(freeze_parameters(self, freeze))
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_vl_backbone(cfg)
        hidden_dim = cfg.MODEL.IGVG.HIDDEN_DIM
        shapes = backbone.output_shape()
        token_shape = shapes["last_feat"]
        projected = ShapeSpec(channels=hidden_dim, stride=token_shape.stride)
        neck = build_neck(cfg, {**shapes, "last_feat": projected})
        pixel_decoder = build_pixel_decoder(cfg, neck.output_shape())
        mask_dim = pixel_decoder.output_shape().channels
        return {
            "backbone": backbone,
            "hidden_dim": hidden_dim,
            "neck": neck,
            "pixel_decoder": pixel_decoder,
            "global_head": GlobalHead(cfg, mask_dim, backbone.embed_dim),
            "query_generator": build_query_generator(cfg),
            "grounding_head": build_grounding_head(cfg, neck.output_shape(), mask_dim),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "mask_loss_resolution": cfg.MODEL.IGVG.MASK_LOSS_RESOLUTION,
            "postprocess": PostprocessOptions.from_config(cfg),
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "freeze": cfg.MODEL.FREEZE,
        }

    def train(self, mode: bool = True) -> "IGVG":
        """As ``nn.Module.train``; BatchNorm of frozen parts stays in evaluation mode."""
        super().train(mode)
        for module in self._resting:
            module.eval()
        return self

    def optimize_for_inference(self) -> "IGVG":
        """See :func:`igvg_d2.modeling.meta_arch.inference.optimize_for_inference`; returns self."""
        return optimize_for_inference(self)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: List[Dict]):
        """
        Args:
            batched_inputs: one dict per expression with

                * "image": uint8 or float (3, H, W), one size for the batch;
                * "text_ids": int64 (L,), "text_padding_mask": bool (L,), True = padding;
                * "instances" (training): ``Instances`` with gt_boxes, gt_masks, network frame;
                * "batch_totals" (training, optional): :class:`BatchTotals` of the effective batch
                  that the samples belong to; default: one such micro-batch per process;
                * "height", "width" (inference): size of the output, default (H, W);
                * "content_size" (inference): (rows, columns) of the image in the top left corner
                  of a padded input, default (H, W);
                * "frame_sizes" (inference): sides of square frames in which the union mask is
                  wanted too, default none;
                * "defer_masks" (inference): True for {"ranked": ``RankedOutput``} as the output,
                  of which masks can be made later; the same for the whole batch.

        Returns:
            In training, a dict of weighted scalar losses with constant keys. At inference, a list
            of dicts, see :func:`answer_batch`.
        """
        images = self.preprocess_image(batched_inputs)
        text_ids, text_padding_mask, has_padding = self.preprocess_text(batched_inputs)
        targets = None
        if self.training:
            targets = GroundingTargets.from_instances(
                [x["instances"] for x in batched_inputs], self.device
            )
            targets.totals = batched_inputs[0].get("batch_totals") or BatchTotals.count(
                [batched_inputs], self.device
            )
        vl_features = self.backbone(images, text_ids, text_padding_mask, has_padding)
        outputs, losses = self.predict(vl_features, targets)
        if self.training:
            losses.update(self.backbone.losses(vl_features, batched_inputs, targets))
            self._put_image(batched_inputs, outputs, images.shape[-2:])
            return losses
        return answer_batch(batched_inputs, outputs, images.shape[-2:], self.postprocess)

    def predict(
        self, vl_features: VLFeatures, targets: Optional[GroundingTargets] = None
    ) -> Tuple[Dict[str, Optional[torch.Tensor]], Dict[str, torch.Tensor]]:
        """Everything after the backbone.

        Args:
            vl_features: the backbone's output.
            targets: ground truth in training, None at inference.

        Returns:
            outputs for :func:`grounding_postprocess` and weighted losses (empty without targets).
        """
        projected = self._project(vl_features)
        features = self.neck(projected.image)
        mask_features = self.pixel_decoder(features)
        mask_targets = targets
        if targets is not None and self.mask_loss_resolution == "feature":
            mask_targets = targets.resize_masks(mask_features.shape[-2:])
        outputs, losses = self.global_head(mask_features, vl_features.pooled, mask_targets)
        if self.query_generator is not None:
            queries, query_losses = self.query_generator(projected, targets)
            head_outputs, head_losses = self.grounding_head(
                queries, features, mask_features, mask_targets
            )
            outputs = {**outputs, **head_outputs, "attention_map": queries.attention_map}
            losses = {**losses, **query_losses, **head_losses}
        elif targets is not None:
            # Nobody reads the text here, and DDP wants all parameters in the graph.
            losses["loss_no_target"] = losses["loss_no_target"] + 0.0 * projected.text.float().sum()
        return outputs, losses

    def preprocess_image(self, batched_inputs: List[Dict]) -> torch.Tensor:
        """Normalise and stack: float (N, 3, H, W) on the model's device.

        Raises:
            ValueError: images of different sizes, or sides that are no multiples of the patch size.
        """
        images = [x["image"] for x in batched_inputs]
        sizes = {tuple(image.shape[-2:]) for image in images}
        if len(sizes) > 1:
            raise ValueError(
                f"IGVG batches images of one size, found {sorted(sizes)}; the mapper resizes to "
                "INPUT.IMAGE_SIZE."
            )
        self.check_size(*sizes.pop())
        batch = to_device(torch.stack(images), self.device)
        batch = (batch.float() - self.pixel_mean) / self.pixel_std
        # Convolutions keep this layout, and LayerNorm2d then needs no copies.
        return batch.contiguous(memory_format=torch.channels_last)

    def check_size(self, height: int, width: int) -> None:
        """Refuse, by ValueError, a network input whose sides are no multiples of the patch size."""
        divisor = self.backbone.size_divisibility
        if height % divisor or width % divisor:
            raise ValueError(
                f"The network input is {height} x {width} pixels; both must be multiples of "
                f"{divisor}. Change INPUT.IMAGE_SIZE."
            )

    def preprocess_text(
        self, batched_inputs: List[Dict]
    ) -> Tuple[torch.Tensor, torch.Tensor, bool]:
        """Pad the texts to the longest one of the batch.

        Returns:
            text_ids int64 (N, L), text_padding_mask bool (N, L), and whether anything is padding.
        """
        text_ids, text_padding_mask, has_padding = pad_texts(batched_inputs)
        return (
            to_device(text_ids, self.device),
            to_device(text_padding_mask, self.device),
            has_padding,
        )

    def _project(self, vl_features: VLFeatures) -> VLFeatures:
        """Image and text projections (IP, TP) to D channels."""
        last_feat = self.image_projection(vl_features.image["last_feat"])
        text = vl_features.text
        if self.text_projection is not None:
            text = self.text_projection(text)
        return VLFeatures(
            image={**vl_features.image, "last_feat": last_feat},
            text=text,
            text_padding_mask=vl_features.text_padding_mask,
            pooled=vl_features.pooled,
        )

    @torch.no_grad()
    def _put_image(self, batched_inputs, outputs, network_size) -> None:
        """Every ``vis_period`` iterations, one training sample to the event storage."""
        if self.vis_period <= 0:
            return
        storage = get_event_storage()
        if storage.iter % self.vis_period:
            return
        # The only use of the visualizer in the package's model code, as in rcnn.py: lazily.
        from igvg_d2.visualization import GroundingVisualizer

        first = {k: v[:1] for k, v in outputs.items() if v is not None}
        first = {"sem_seg": None, "pred_masks": None, **first}
        if "pred_logits" not in outputs:
            first.pop("pred_masks")
        results = grounding_postprocess(
            first, tuple(network_size), [tuple(network_size)], self.postprocess
        )
        image = GroundingVisualizer().draw_model_input(
            batched_inputs[0], self.input_format, results[0]
        )
        storage.put_image("training sample: ground truth and prediction", image.transpose(2, 0, 1))

"""Models. Letters used for shapes throughout:

N images (= expressions); L text tokens, special ones included; Q queries; T targets of a sample;
C backbone channels; D hidden dimension; M attention heads; P sampling points; S levels; Hi, Wi size
of a level; Hm, Wm of the mask features; H, W network input; height, width original image.

Points and boxes are x before y; sizes (height, width). Normalised means divided by the network
input's (W, H). Coordinates are continuous, pixel centers at +0.5. Padding masks: True = padding.
"""

from .backbone import BEiT3, VisionLanguageBackbone, VLFeatures, build_vl_backbone
from .global_head import GlobalHead
from .grounding_head import GROUNDING_HEAD_REGISTRY, build_grounding_head
from .meta_arch import IGVG
from .neck import NECK_REGISTRY, build_neck
from .pixel_decoder import PIXEL_DECODER_REGISTRY, build_pixel_decoder
from .query_generator import QUERY_GENERATOR_REGISTRY, GroundingQueries, build_query_generator
from .targets import GroundingTargets
from .transformer import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder

__all__ = [
    "BEiT3",
    "GROUNDING_HEAD_REGISTRY",
    "GlobalHead",
    "GroundingQueries",
    "GroundingTargets",
    "IGVG",
    "NECK_REGISTRY",
    "PIXEL_DECODER_REGISTRY",
    "QUERY_GENERATOR_REGISTRY",
    "TRANSFORMER_DECODER_REGISTRY",
    "VLFeatures",
    "VisionLanguageBackbone",
    "build_grounding_head",
    "build_neck",
    "build_pixel_decoder",
    "build_query_generator",
    "build_transformer_decoder",
    "build_vl_backbone",
]

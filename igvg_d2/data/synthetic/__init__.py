"""Shapes: a generated data set in the files of gRefCOCO."""

from .generator import GENERATOR_VERSION, SPLITS, SplitConfig, generate_image
from .render import SHAPES, render_scene
from .scene import COLORS, HELD_OUT_PAIRS, SIZES, Scene, SceneObject, sample_scene
from .words import vocabulary_words
from .writers import STATISTICS_FILE, count_expressions, mask_to_polygons, write_shapes

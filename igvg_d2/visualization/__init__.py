"""Pictures of grounding and the HTML report of a run."""

from .grounding_items import GroundingItems, Verdict, items_from_annotations, judge_prediction
from .layout import render_grid
from .report import build_report
from .visualizer import GroundingVisualizer, draw_training_batch

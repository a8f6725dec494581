"""Drawings of grounding and the HTML report of a run."""

from .report import build_report
from .visualizer import GroundingVisualizer, Verdict, judge_prediction

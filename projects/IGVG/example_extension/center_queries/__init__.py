"""Queries at predicted object centers; importing the package registers the generator."""

from .config import add_center_queries_config
from .query_generator import CenterQueryGenerator

__all__ = ["CenterQueryGenerator", "add_center_queries_config"]

"""Options of the extension, beside those of the library."""

from detectron2.config import CfgNode as CN


def add_center_queries_config(cfg: CN) -> None:
    """Add ``MODEL.CENTER_QUERIES`` to a config that already has IGVG's keys, in place."""
    cfg.MODEL.CENTER_QUERIES = CN()
    # Weight of the focal loss on the map of centers.
    cfg.MODEL.CENTER_QUERIES.LOSS_WEIGHT = 1.0

"""Files that every room reads and writes: JSON, run-length masks, images, atomic writes.

The modules are imported by name (``from igvg_d2.io.rle import check_rle``), because not all of them
need torch or PIL. They know nothing of the rooms above.
"""

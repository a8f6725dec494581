"""Where ``to_rle`` was before it moved below the rooms; scripts still import it from here."""

from igvg_d2.io.rle import to_rle

__all__ = ["to_rle"]

"""Named protocols: whose rules are applied, and in which frame masks are compared."""

from dataclasses import dataclass
from typing import Dict, Optional, Sequence, Tuple, Union

from igvg_d2.config import PROTOCOL_SIZES


@dataclass(frozen=True)
class Protocol:
    """How predictions are compared with the ground truth.

    Attributes:
        name: what `TEST.PROTOCOLS` and `--protocol` call it.
        rules: "official" (the benchmark authors' code, oddities included), "native" (the same
            definitions, every rate without a case NaN, targets the union of their parts) or
            "released" (the evaluation the paper's authors released).
        size: side in pixels of the square frame masks are compared in; None is the original frame.
        description: one line for log and files.
    """

    name: str
    rules: str
    size: Optional[int]
    description: str

    @property
    def suffix(self) -> str:
        """What is appended to the names of tasks: "gres" is native, "gres_official" is not."""
        return "" if self.name == "native" else f"_{self.name}"

    @property
    def resolution(self) -> str:
        """The frame in words, "480x480" or "original"."""
        return "original" if self.size is None else f"{self.size}x{self.size}"


_DESCRIPTIONS: Dict[str, Tuple[str, str]] = {
    "native": ("native", "original resolution"),
    "official": ("official", "rules and resolution of the benchmark's authors"),
    "released": ("released", "the evaluation released by the paper's authors"),
    "official_native": ("official", "rules of the benchmark's authors, original resolution"),
    "released_native": ("released", "rules of the paper's authors, original resolution"),
}

PROTOCOLS: Dict[str, Protocol] = {
    name: Protocol(name, rules, PROTOCOL_SIZES[name], f"{name}: {text}")
    for name, (rules, text) in _DESCRIPTIONS.items()
}


def parse_protocols(names: Union[str, Sequence[str]]) -> Tuple[Protocol, ...]:
    """Protocols by name, each once, in the given order.

    Args:
        names: a sequence, or one text with commas as on a command line.

    Raises:
        ValueError: an unknown name, or none.
    """
    if isinstance(names, str):
        names = names.split(",")
    names = [name.strip() for name in names if name.strip()]
    unknown = [name for name in names if name not in PROTOCOLS]
    if unknown or not names:
        raise ValueError(
            f"protocols (TEST.PROTOCOLS, --protocol): expected one or more of {list(PROTOCOLS)}, "
            f"found {unknown or 'none'}"
        )
    return tuple(PROTOCOLS[name] for name in dict.fromkeys(names))

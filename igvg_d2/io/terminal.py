"""Text from files on its way to a terminal or a log: nothing in it acts on either.

Ids, expressions, names of files and keys of weights are anybody's. An escape sequence among them
could clear the screen, set a title or forge a line of the log.
"""

import logging
import re
import sys
import traceback
from typing import Any

# Control characters but line feed and tab, the marks that turn the direction of text, further line
# ends, and surrogates, which no encoding can write.
_ACTIVE = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
# Detectron2 and fvcore color their own messages; colors alone do no harm.
_ACTIVE_BUT_COLORS = r"(?!\x1b\[[0-9;]*m)" + _ACTIVE
_PATTERNS = {"igvg_d2": _ACTIVE, **dict.fromkeys(("detectron2", "fvcore"), _ACTIVE_BUT_COLORS)}


def printable(value: Any, pattern: str = _ACTIVE) -> str:
    """``str(value)`` with each character that acts on a terminal as Python writes it, ``\\x1b``.

    Line feeds and tabs stay: a message may have lines.
    """
    return re.sub(pattern, lambda found: ascii(found[0])[1:-1], str(value))


def is_printable(text: str) -> bool:
    """Whether a name of one line holds nothing that acts on a terminal."""
    return printable(text) == text and not {"\n", "\t"} & set(text)


def escape_messages() -> None:
    """From now on log records and uncaught errors of this process are printable.

    Of the records those of this package, Detectron2 and fvcore. ``import igvg_d2`` calls it, so
    that no message has to think of it. What a script prints goes through :func:`printable`.
    """
    make_record, show = logging.getLogRecordFactory(), sys.excepthook

    def make_printable(*args, **kwargs):
        record = make_record(*args, **kwargs)
        pattern = _PATTERNS.get(record.name.partition(".")[0])
        if pattern is None:
            return record
        # With its arguments put in, because these are what comes from files.
        record.msg, record.args = printable(record.getMessage(), pattern), ()
        if record.exc_info and record.exc_info[0] is not None:
            # Formatters use this text where it is there.
            record.exc_text = printable("".join(traceback.format_exception(*record.exc_info))[:-1])
        return record

    def show_printable(kind, error, trace):
        text = "".join(traceback.format_exception(kind, error, trace))
        if printable(text) == text:
            show(kind, error, trace)
        else:
            sys.stderr.write(printable(text))

    logging.setLogRecordFactory(make_printable)
    sys.excepthook = show_printable

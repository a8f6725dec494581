"""Annotation files: JSON, and pickles read without running what is in them."""

import hashlib
import io
import json
import logging
import pickle
from typing import Any, Dict, List

from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

# What a pickle of records may name; lists, dicts, numbers and strings need no name.
_SAFE_PICKLE_TYPES = {"set", "frozenset"}


class _RecordUnpickler(pickle.Unpickler):
    """Reads plain records only: a pickle that names a class or function is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        """Called by pickle for everything that is not a plain value."""
        if module in ("builtins", "__builtin__") and name in _SAFE_PICKLE_TYPES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"it refers to {module}.{name}, but records hold only lists, dicts, numbers and strings"
        )


def read_refs(path: str) -> List[Dict[str, Any]]:
    """Reads referring records: ``.json``, or the refer API's pickle of Python 2 or 3.

    Args:
        path: annotation file; the suffix ``.json`` decides the format.

    Returns:
        The list of records as stored.
    """
    content = _read_bytes(path)
    refs = _parse_json(content, path) if path.endswith(".json") else _parse_pickle(content, path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{path}: expected a list of records (dicts), found {describe(refs)}")
    logger.info("%s: %d records, sha256 %s", path, len(refs), hashlib.sha256(content).hexdigest())
    return refs


def _parse_pickle(content: bytes, path: str) -> Any:
    """Restricted unpickling; byte strings of Python 2 are text in UTF-8 or else Latin-1."""
    for encoding in ("utf-8", "latin1"):
        try:
            return _RecordUnpickler(io.BytesIO(content), encoding=encoding).load()
        except UnicodeDecodeError:
            continue
        except Exception as error:  # a damaged pickle may raise almost anything
            raise ValueError(f"{path}: refused as pickle of referring records: {error}") from error
    raise ValueError(f"{path}: its strings are neither UTF-8 nor Latin-1")


def read_json(path: str) -> Any:
    """Reads a JSON file; a syntax error names the file."""
    return _parse_json(_read_bytes(path), path)


def _parse_json(content: bytes, path: str) -> Any:
    """JSON content of a file whose name goes into the error."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); download or write it again") from error


def _read_bytes(path: str) -> bytes:
    with PathManager.open(path, "rb") as f:
        return f.read()


def describe(value: Any) -> str:
    """Type and, for a dict, the first keys of a value, for error messages."""
    keys = f" with keys {list(value)[:8]}" if isinstance(value, dict) else ""
    return f"{type(value).__name__}{keys}"

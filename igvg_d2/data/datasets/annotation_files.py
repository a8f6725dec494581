"""Annotation files: JSON item by item, and pickles."""

import contextlib
import gc
import importlib
import json
import logging
import os
import re
from typing import Any, Iterator, List, Sequence, Tuple

from detectron2.utils.file_io import PathManager

from igvg_d2.io.hub import file_sha256
from igvg_d2.io.json_stream import (
    JSONReader,
    WrongContentError,
    describe,
    iterate_lists,
    without_repetition,
)

from .pickles import loads_plain

logger = logging.getLogger(__name__)

_LIST = "a list of records (dicts)"


def iterate_refs(path: str) -> Iterator[Any]:
    """The items of a list of referring records, whatever they are.

    Args:
        path: annotation file; ``.json``, ``.parquet`` (rows without the column "image"; of a name
            such as "val-00000-of-00002.parquet" all parts), or else the refer API's pickle.

    Raises:
        ValueError: names the file; a pickle that holds more than plain values is refused.
    """
    number = 0
    readers = {".json": _iterate_json_list, ".parquet": _iterate_parquet}
    items = readers.get(os.path.splitext(path)[1], _unpickle_list)(path)
    for number, item in enumerate(items, start=1):
        yield item
    logger.info("%s: %d records, sha256 %s", path, number, file_sha256(path))


def _unpickle_list(path: str) -> List[Any]:
    _check_regular(path)
    with PathManager.open(path, "rb") as file:
        items = loads_plain(file.read(), path)
    if not isinstance(items, list):
        raise ValueError(f"{path}: expected {_LIST}, found {describe(items)}")
    return items


def _iterate_parquet(path: str) -> Iterator[Any]:
    """Rows of all parts of a file; images inside would fill the memory, and lie elsewhere."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError(f"{path}: parquet files need 'pip install pyarrow'") from error
    part = re.fullmatch(r"(.*-)\d{5}(-of-(\d{5})\.parquet)", path)
    numbers = range(int(part[3])) if part else ()
    for name in [f"{part[1]}{i:05d}{part[2]}" for i in numbers] or [path]:
        _check_regular(name)
        try:
            with PathManager.open(name, "rb") as file:
                table = parquet.ParquetFile(file)
                columns = [column for column in table.schema_arrow.names if column != "image"]
                for batch in table.iter_batches(columns=columns):
                    yield from batch.to_pylist()
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}: no whole parquet file ({error}); download again") from error


def _iterate_json_list(path: str) -> Iterator[Any]:
    with _open_json(path, _LIST) as file:
        reader = JSONReader(file)
        if reader.peek() != "[":
            raise WrongContentError(describe(reader.value()))
        yield from reader.items()
        reader.end()


def iterate_json(
    path: str, keys: Sequence[str], kind: str = "a JSON object", optional: Sequence[str] = ()
) -> Iterator[Tuple[str, Any]]:
    """(key, item) of the lists under these keys of a JSON object, in the order of the file.

    Lists under the `optional` keys need not be there.

    Raises:
        ValueError: names the file; a syntax error, it is not of this kind, or a key is missing.
    """
    with _open_json(path, f"{kind} with {' and '.join(map(repr, keys))}") as file:
        yield from iterate_lists(file, keys, optional)


def read_json(path: str) -> Any:
    """Reads a JSON file; a syntax error names the file."""
    with _open_json(path, "JSON") as file:
        return json.load(file, object_pairs_hook=without_repetition)


def _check_regular(path: str) -> None:
    """A pipe would be waited for without end, and a device has no end."""
    local = PathManager.get_local_path(path)
    if os.path.exists(local) and not os.path.isfile(local):
        raise ValueError(f"{path}: expected a file, found a folder, pipe or device")


@contextlib.contextmanager
def _open_json(path: str, expected: str) -> Iterator[Any]:
    """An open text file; errors of what reads it name the file."""
    _check_regular(path)
    try:
        with PathManager.open(path, "r", encoding="utf-8-sig") as file:
            yield file
    except WrongContentError as error:
        raise ValueError(f"{path}: expected {expected}, found {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); download or write it again") from error


@contextlib.contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Without the cyclic collector, which would walk over all records again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

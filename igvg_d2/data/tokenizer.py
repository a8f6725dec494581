"""Tokenizers: from an expression to the token ids of the text branch."""

import bisect
import functools
import logging
import os
import re
import reprlib
import string
import tempfile
from typing import Any, Callable, List, Sequence

from detectron2.config import CfgNode, configurable
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from detectron2.utils.registry import Registry

from igvg_d2.io.hub import BEIT3_TOKENIZER

logger = logging.getLogger(__name__)

TOKENIZER_REGISTRY = Registry("TOKENIZER")
TOKENIZER_REGISTRY.__doc__ = """
Registry of tokenizers. The registered class is called as ``cls(cfg)`` and gives an object with

* ``tokenizer(expression: str) -> list[int]``: ids that begin and end with the encoder's own begin
  and end token (here BOS 0 and EOS 2), at most ``cfg.INPUT.TOKENIZER.MAX_TOKENS`` of them and no
  padding; see :func:`add_special_ids`. Raises ValueError when the expression has no token between
  the two. Called by :func:`tokenize`, never with half characters (lone surrogates).
* ``vocab_size: int``: every id is below it.
* ``unk_id: int``: id of the unknown token (here 3), -1 if there is none.
* ``path: str``: local file of its vocabulary, if it has one; an exported graph carries its SHA-256,
  and is not run with another one.

The object must be picklable, since data loader workers receive a copy.
"""

BOS_ID, PAD_ID, EOS_ID, UNK_ID = 0, 1, 2, 3

# BEiT-3's sentencepiece model: 64,000 pieces, and <pad> and <mask> of the XLM-RoBERTa layout.
_BEIT3_VOCAB_SIZE = 64002
_PROBE_TEXT = "the second person from the left in a white shirt"
_VOCAB_FILE_NAME = "sentencepiece.bpe.model"  # the name that XLMRobertaTokenizer looks for

# Text cleaning of the release: these characters are deleted, "-" and "/" become spaces.
_CLEANING = str.maketrans({**{c: None for c in ".,'!?\"()*#:;"}, "-": " ", "/": " "})
_SURROGATE = re.compile("[\ud800-\udfff]")
# Expressions, evenly spread, that are looked at for unknown words: seconds, not minutes.
_LOOKED_AT = 2000
# Characters of a text that is cut, on either side of the cut, that a message shows.
_SHOWN = 60
_PUNCTUATION_TO_SPACE = str.maketrans({character: " " for character in string.punctuation})


def build_tokenizer(cfg: CfgNode) -> Any:
    """Build the tokenizer named by ``cfg.INPUT.TOKENIZER.NAME``; see `TOKENIZER_REGISTRY`."""
    return TOKENIZER_REGISTRY.get(cfg.INPUT.TOKENIZER.NAME)(cfg)


def has_lone_surrogate(text: str) -> bool:
    """Whether a text has half a character, which JSON can hold and UTF-8 cannot."""
    return _SURROGATE.search(text) is not None


def tokenize(tokenizer: Any, expression: str) -> List[int]:
    """Token ids of an expression.

    Raises:
        ValueError: it has no token, or half a character.
    """
    if has_lone_surrogate(expression):
        raise ValueError(f"{expression!r} has half a character (a surrogate); write it again")
    return tokenizer(expression)


def is_mostly_unknown(tokenizer: Any, expression: str) -> bool:
    """Whether half of the tokens of an expression, or more, are unknown; raises as `tokenize`.

    Half: BEiT-3's tokenizer puts a known one, the beginning of a word, before every unknown one.
    """
    ids = tokenize(tokenizer, expression)
    return 2 * sum(index == tokenizer.unk_id for index in ids) >= len(ids) - 2


def unknown_words(tokenizer: Any, expression: str) -> List[str]:
    """Words, each once and in order, that a tokenizer does not know: all alike to the model.

    Raises:
        ValueError: see :func:`tokenize`.
    """
    if tokenizer.unk_id not in tokenize(tokenizer, expression):
        return []
    found = []
    for word in dict.fromkeys(expression.split()):
        try:
            if tokenizer.unk_id in tokenize(tokenizer, word):
                found.append(word.strip(string.punctuation) or word)
        except ValueError:
            # Punctuation alone has no token.
            continue
    return found


def warn_of_unknown_words_in(tokenizer: Any, expression: str) -> None:
    """Log, once per text, which words of a question are unknown; raises as :func:`tokenize`."""
    unknown = unknown_words(tokenizer, expression)
    if unknown:
        text = ", ".join(map(repr, unknown[:10])) + ", ..." * (len(unknown) > 10)
        log_first_n(
            logging.WARNING,
            f"{text} in {reprlib.repr(expression)}: unknown to the tokenizer, and all unknown "
            "words are alike to the model",
            name=__name__,
            key="message",
        )


def warn_of_unknown_words(
    tokenizer: Callable[[str], List[int]], expressions: Sequence[str]
) -> None:
    """Log how many expressions a tokenizer cannot tell from each other, with examples.

    Args:
        tokenizer: see `TOKENIZER_REGISTRY`.
        expressions: of a training set; of many, an even choice is looked at.
    """
    chosen = expressions[:: -(-len(expressions) // _LOOKED_AT) or 1]
    unknown = []
    for expression in chosen:
        try:
            if is_mostly_unknown(tokenizer, expression):
                unknown.append(expression)
        except ValueError:
            # No token at all: the mapper refuses the sample, with its name.
            continue
    if unknown:
        logger.warning(
            "%d of %d expressions looked at have words of which %s knows half or fewer, such as "
            "%s: unknown words are all alike to the model. For English use configs/Photos or "
            "INPUT.TOKENIZER.NAME BEiT3Tokenizer",
            *(len(unknown), len(chosen), type(tokenizer).__name__),
            ", ".join(map(repr, unknown[:3])),
        )


def add_special_ids(
    ids_of: Callable[[str], Sequence[int]],
    expression: str,
    max_tokens: int,
    bos_id: int = BOS_ID,
    eos_id: int = EOS_ID,
) -> List[int]:
    """Ids between the begin and the end token; the tail is cut off, which is said once per text.

    Args:
        ids_of: text -> ids without the two; a longer text has no fewer.
        expression: to be read.
        max_tokens: largest number of ids, begin and end token included.
        bos_id, eos_id: ids of the two.

    Raises:
        ValueError: the expression has no token, or ``max_tokens`` no room for one.
    """
    ids, room = ids_of(expression), _check_max_tokens(max_tokens) - 2
    if not ids:
        raise ValueError(
            f"the expression {expression!r} has no token; remove the sample or give it words"
        )
    if len(ids) > room:
        words = expression.split()
        read = bisect.bisect(
            range(1, len(words) + 1), room, key=lambda count: len(ids_of(" ".join(words[:count])))
        )
        log_first_n(
            logging.WARNING,
            f"an expression has {len(ids)} tokens and is cut after {room} "
            f"(INPUT.TOKENIZER.MAX_TOKENS {max_tokens}): "
            f"'{_ellipsis(words[:read], -_SHOWN)}' is read, "
            f"'{_ellipsis(words[read:], _SHOWN)}' is not",
            name=__name__,
            key="message",
        )
    return [bos_id, *ids[:room], eos_id]


def _ellipsis(words: Sequence[str], length: int) -> str:
    """A text shortened to its first ``length`` characters, or its last if that is negative."""
    text = " ".join(words)
    if len(text) <= abs(length):
        return text
    return f"{text[:length]}..." if length > 0 else f"...{text[length:]}"


def _check_max_tokens(max_tokens: int) -> int:
    """Room for BOS, one token and EOS."""
    if max_tokens < 3:
        raise ValueError(f"INPUT.TOKENIZER.MAX_TOKENS: expected 3 or more, got {max_tokens}")
    return max_tokens


@functools.lru_cache(maxsize=2)
def _load_xlm_roberta(path: str) -> Any:
    """Load a sentencepiece file once per process as an XLM-RoBERTa tokenizer and check it."""
    # Late: transformers takes seconds and only this tokenizer needs it.
    from transformers import XLMRobertaTokenizer

    problem = None
    # transformers 5 given the file itself as `vocab_file` returns a tokenizer of 5 tokens that
    # knows no word, without a warning. It reads the model only from a folder and by this name.
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(os.path.abspath(path), os.path.join(folder, _VOCAB_FILE_NAME))
        try:
            tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
        except ImportError:
            raise
        # Depending on the version, a damaged file ends in any of OSError, RuntimeError, TypeError,
        # ValueError and protobuf's DecodeError, none of which names the file.
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
    if problem is None:
        size, probe = len(tokenizer), tokenizer(_PROBE_TEXT)["input_ids"]
        if size == _BEIT3_VOCAB_SIZE and UNK_ID not in probe and len(probe) > 2:
            return tokenizer
        problem = f"{size} tokens, {probe.count(UNK_ID)} unknown in {_PROBE_TEXT!r}"
    raise ValueError(
        f"INPUT.TOKENIZER.FILE: {path} ({os.path.getsize(path):,} bytes) is not BEiT-3's "
        f"sentencepiece model. Expected {_BEIT3_VOCAB_SIZE} tokens and no unknown one in a plain "
        f"text, found {problem}. Download beit3.spm again (1,356,293 bytes)."
    )


@TOKENIZER_REGISTRY.register()
class BEiT3Tokenizer:
    """BEiT-3's sentencepiece tokenizer in the id layout of XLM-RoBERTa.

    The loaded model is shared by all instances of a process and is not pickled.
    """

    unk_id = UNK_ID

    @configurable
    def __init__(self, *, file: str, max_tokens: int = 50, clean_text: bool = False) -> None:
        """
        Args:
            file: path of ``beit3.spm``.
            max_tokens: largest number of ids, BOS and EOS included.
            clean_text: clean as the published model does: lower-case, delete punctuation, turn
                hyphens and slashes into spaces.
        """
        path = PathManager.get_local_path(file) if file else ""
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"INPUT.TOKENIZER.FILE: expected BEiT-3's sentencepiece model beit3.spm, found no "
                f"file at {file!r}. Get it (1,356,293 bytes) from the BEiT-3 release page "
                f"(github.com/microsoft/unilm, folder beit3, 'Text Tokenizer') and put it at "
                f"{os.path.abspath(file or 'beit3.spm')}, or set INPUT.TOKENIZER.FILE to its path "
                f"or to {BEIT3_TOKENIZER}, which is downloaded."
            )
        self.path = path
        self.max_tokens = _check_max_tokens(max_tokens)
        self.clean_text = clean_text
        self.vocab_size = len(_load_xlm_roberta(path))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Read ``INPUT.TOKENIZER``."""
        return {
            "file": cfg.INPUT.TOKENIZER.FILE,
            "max_tokens": cfg.INPUT.TOKENIZER.MAX_TOKENS,
            "clean_text": cfg.INPUT.TOKENIZER.CLEAN_TEXT,
        }

    def __call__(self, expression: str) -> List[int]:
        """Token ids of an expression, length 3 to ``max_tokens``, BOS first and EOS last."""
        return add_special_ids(self._ids_of, expression, self.max_tokens)

    def _ids_of(self, expression: str) -> List[int]:
        text = expression.lower().translate(_CLEANING) if self.clean_text else expression
        return _load_xlm_roberta(self.path)(text, add_special_tokens=False)["input_ids"]


@TOKENIZER_REGISTRY.register()
class ShapesTokenizer:
    """Word-level tokenizer of the generated Shapes data; needs no file.

    Words of the Shapes grammar have the ids 4 and up in alphabetical order, any other word is
    unknown (3).
    """

    unk_id = UNK_ID

    @configurable
    def __init__(self, *, max_tokens: int = 50) -> None:
        """
        Args:
            max_tokens: largest number of ids, BOS and EOS included.
        """
        # Late, so that a user of real data does not load the generator.
        from .synthetic import vocabulary_words

        self.max_tokens = _check_max_tokens(max_tokens)
        self.word_ids = {word: index for index, word in enumerate(vocabulary_words(), UNK_ID + 1)}
        self.vocab_size = UNK_ID + 1 + len(self.word_ids)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Read ``INPUT.TOKENIZER``."""
        return {"max_tokens": cfg.INPUT.TOKENIZER.MAX_TOKENS}

    def __call__(self, expression: str) -> List[int]:
        """Token ids of an expression, length 3 to ``max_tokens``, BOS first and EOS last."""
        return add_special_ids(self._ids_of, expression, self.max_tokens)

    def _ids_of(self, expression: str) -> List[int]:
        separated = expression.lower().translate(_PUNCTUATION_TO_SPACE)
        return [self.word_ids.get(word, UNK_ID) for word in separated.split()]

"""Token ids of both tokenizers, and what they say about wrong input."""

import json
import os
import pickle
import re

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch.utils.data import DataLoader, Dataset

import igvg_d2.data.tokenizer as tokenizer_module
from igvg_d2.data import build_grounding_train_loader
from igvg_d2.data.tokenizer import (
    TOKENIZER_REGISTRY,
    BEiT3Tokenizer,
    ShapesTokenizer,
    add_special_ids,
    build_tokenizer,
    is_mostly_unknown,
    tokenize,
    unknown_words,
    warn_of_unknown_words,
)
from igvg_d2.engine import setup_config


def make_cfg(name, file="", max_tokens=50, clean_text=False):
    """Only the keys a tokenizer reads."""
    keys = {"NAME": name, "FILE": file, "MAX_TOKENS": max_tokens, "CLEAN_TEXT": clean_text}
    return CfgNode({"INPUT": {"TOKENIZER": keys}})


@pytest.fixture(scope="module")
def beit3_file(shared_dir):
    """Path of BEiT-3's sentencepiece model."""
    path = shared_dir / "data" / "beit3_spm" / "beit3.spm"
    if not path.is_file():
        pytest.skip(f"not found: {path}")
    return path


@pytest.fixture
def any_tokenizer(request):
    """A tokenizer by its registered name, with at most six tokens."""
    file = ""
    if request.param == "BEiT3Tokenizer":
        file = str(request.getfixturevalue("beit3_file"))
    return build_tokenizer(make_cfg(request.param, file, max_tokens=6))


both = pytest.mark.parametrize(
    "any_tokenizer", ["ShapesTokenizer", "BEiT3Tokenizer"], indirect=True
)


def test_registry_names():
    assert {name for name, _ in TOKENIZER_REGISTRY} == {"BEiT3Tokenizer", "ShapesTokenizer"}
    assert isinstance(build_tokenizer(make_cfg("ShapesTokenizer")), ShapesTokenizer)


@both
def test_contract(any_tokenizer):
    ids = any_tokenizer("the second red star from the left of the blue ring")
    assert all(isinstance(index, int) and index < any_tokenizer.vocab_size for index in ids)
    assert len(ids) == 6 and ids[0] == 0 and ids[-1] == 2
    assert not {0, 1, 2, 3} & set(ids[1:-1])
    short = any_tokenizer("star")
    assert short[0] == 0 and short[-1] == 2 and 3 <= len(short) < 6
    assert pickle.loads(pickle.dumps(any_tokenizer))("the red star") == any_tokenizer(
        "the red star"
    )
    with pytest.raises(ValueError, match="'  ' has no token"):
        any_tokenizer("  ")


def test_shapes_words():
    tokenizer = ShapesTokenizer()
    ids = tokenizer("The red star, in the PICTURE!")
    assert ids == tokenizer("the red star in the picture") and len(ids) == 8
    assert ids[1] == ids[5] and len(set(ids)) == 7
    assert tokenizer("the elephant") == [0, ids[1], 3, 2]
    assert tokenizer("left-right") == [0, *tokenizer("left right")[1:]]
    assert sorted(tokenizer.word_ids.values()) == list(range(4, tokenizer.vocab_size))
    assert ids[2] == tokenizer.word_ids["red"] >= 4
    with pytest.raises(ValueError, match=r"'\.\.\.' has no token"):
        tokenizer("...")


def test_max_tokens_leaves_room_for_a_word():
    assert len(ShapesTokenizer(max_tokens=3)("the red star")) == 3
    with pytest.raises(ValueError, match="MAX_TOKENS: expected 3 or more, got 2"):
        ShapesTokenizer(max_tokens=2)


def test_beit3_golden_ids(beit3_file):
    tokenizer = BEiT3Tokenizer(file=str(beit3_file), max_tokens=1000)
    golden = json.loads((beit3_file.parent / "golden_tokens.json").read_text(encoding="utf-8"))
    assert tokenizer.vocab_size == golden["vocab_size"] == 64002
    compared = 0
    for case in golden["cases"]:
        if len(case["input_ids"]) == 2:
            with pytest.raises(ValueError, match="has no token"):
                tokenizer(case["text"])
        else:
            assert tokenizer(case["text"]) == case["input_ids"], case["text"]
            compared += 1
    assert compared > 100


def test_beit3_cleaning_is_that_of_the_release(beit3_file):
    cfg = make_cfg("BEiT3Tokenizer", str(beit3_file), clean_text=True)
    cleaned = build_tokenizer(cfg)
    plain = BEiT3Tokenizer(file=str(beit3_file))
    assert cleaned("Left-hand Man's hat, (red/blue)!") == plain("left hand mans hat red blue")
    assert plain("Man") != plain("man")
    with pytest.raises(ValueError, match="has no token"):
        cleaned("?!")


@pytest.mark.parametrize(
    "text, cleaned",
    [
        # Every character that is deleted, and the two that become spaces; nothing else changes.
        (".,'!?\"()*#:;A", "a"),
        ("A-B/C", "a b c"),
        ("man's T-shirt (#2)", "mans t shirt 2"),
        ("50% off & more_[x]", "50% off & more_[x]"),
        ("  two  spaces ", "  two  spaces "),
    ],
)
def test_cleaning_by_hand(beit3_file, text, cleaned):
    tokenizer = BEiT3Tokenizer(file=str(beit3_file), clean_text=True)
    assert tokenizer(text) == BEiT3Tokenizer(file=str(beit3_file))(cleaned)


def test_truncation_cuts_the_tail_only(beit3_file):
    """The release: BOS, the first MAX_TOKENS - 2 pieces, EOS; 20 tokens for RefCOCO."""
    text = "the man in the white shirt " * 10
    whole = BEiT3Tokenizer(file=str(beit3_file), max_tokens=1000)(text)
    for max_tokens in (3, 20, 50, len(whole) - 1, len(whole)):
        ids = BEiT3Tokenizer(file=str(beit3_file), max_tokens=max_tokens)(text)
        assert ids == [*whole[: max_tokens - 1], 2] and len(ids) == max_tokens


def test_file_is_read_once_per_process(beit3_file):
    tokenizer_module._load_xlm_roberta.cache_clear()
    for _ in range(3):
        BEiT3Tokenizer(file=str(beit3_file))("the man")
    assert tokenizer_module._load_xlm_roberta.cache_info().misses == 1
    # A copy for a worker holds the path, not the model.
    assert len(pickle.dumps(BEiT3Tokenizer(file=str(beit3_file)))) < 1000


class Tokenized(Dataset):
    """Token ids of a few texts, and how often the worker has read the file."""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts = tokenizer, texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        ids = self.tokenizer(self.texts[index])
        return os.getpid(), ids, tokenizer_module._load_xlm_roberta.cache_info().misses


def test_data_loader_workers_give_the_same_ids(beit3_file):
    """Each worker reads the file once, for itself; the parent has not read it when they start."""
    tokenizer = BEiT3Tokenizer(file=str(beit3_file), clean_text=True)
    texts = ["Left man", "the red-haired woman", "2nd dog from right", "no one", "sky", "a car"]
    expected = [tokenizer(text) for text in texts]
    tokenizer_module._load_xlm_roberta.cache_clear()
    loader = DataLoader(Tokenized(tokenizer, texts), batch_size=None, num_workers=2)
    workers, ids, reads = zip(*loader)
    assert list(ids) == expected and set(reads) == {1}
    assert len(set(workers)) == 2 and os.getpid() not in workers


@pytest.mark.parametrize("file", ["", "missing/beit3.spm"])
def test_beit3_missing_file(file):
    """It says where the file is obtained, and where to put it."""
    with pytest.raises(FileNotFoundError) as error:
        build_tokenizer(make_cfg("BEiT3Tokenizer", file))
    place = os.path.abspath(file or "beit3.spm")
    for part in ("INPUT.TOKENIZER.FILE", "beit3.spm", repr(file), "microsoft/unilm", place):
        assert part in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_beit3_wrong_file(beit3_file, tmp_path, damage):
    """Never a tokenizer that silently knows no word."""
    content = {
        "truncated": beit3_file.read_bytes()[:786432],
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\n",
    }
    path = tmp_path / "beit3.spm"
    path.write_bytes(content[damage])
    with pytest.raises(ValueError, match="INPUT.TOKENIZER.FILE: .*64002 tokens"):
        BEiT3Tokenizer(file=str(path))


def test_a_cut_is_said_once_per_expression(caplog):
    tokenizer = ShapesTokenizer(max_tokens=5)
    for _ in range(2):
        tokenizer("the red star and the blue ring of this test")
    tokenizer("the red star")
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    text = caplog.text
    assert "10 tokens and is cut after 3" in text and "MAX_TOKENS 5" in text
    assert "'the red star' is read, 'and the blue ring of this test' is not" in text
    tokenizer(f"the red star, {'x' * 99} {'y' * 99}")
    assert f"'the red star,' is read, '{'x' * 60}...' is not" in caplog.text


def test_a_cut_is_said_where_a_word_has_several_tokens(caplog, beit3_file):
    text = "a brachiosaurus and the pterodactyl on the left " * 3
    tokenizer = BEiT3Tokenizer(file=str(beit3_file), max_tokens=12)
    ids = tokenizer(text)
    read, lost = re.findall("'([^']*)'", caplog.text)
    whole = BEiT3Tokenizer(file=str(beit3_file))(read)
    assert ids[: len(whole) - 1] == whole[:-1] and len(whole) <= 12 == len(ids)
    assert read and text.startswith(f"{read} {lost[:60]}") and lost.endswith("...")


def test_unknown_words_are_named(beit3_file):
    shapes = ShapesTokenizer()
    assert unknown_words(shapes, "the red Zebra, the red zebra-cross ... zebra?") == [
        *("Zebra", "zebra-cross", "zebra"),
    ]
    assert unknown_words(shapes, "The red star!") == []
    assert unknown_words(BEiT3Tokenizer(file=str(beit3_file)), "the zebra \u732b") == ["\u732b"]
    with pytest.raises(ValueError, match="no token"):
        unknown_words(shapes, "...")


def test_a_tokenizer_may_have_other_special_ids_or_none(caplog):
    class Bytes:
        """As of a language model: no unknown token."""

        unk_id, vocab_size = -1, 258

        def __call__(self, expression):
            return add_special_ids(lambda text: list(text.encode()), expression, 8, 256, 257)

    assert Bytes()("red") == [256, 114, 101, 100, 257]
    assert Bytes()("the red star") == [256, *b"the re", 257]
    assert "12 tokens and is cut after 6" in caplog.text
    # 3, the unknown token of others, is one of its letters.
    assert unknown_words(Bytes(), "\x03") == [] and not is_mostly_unknown(Bytes(), "\x03")
    with pytest.raises(ValueError, match="has no token"):
        Bytes()("")


def test_unknown_words_are_told_with_counts(caplog, beit3_file):
    english = [
        "the zebra near a fence",
        "man in a jacket",
        "the red star",
        "?!",
        "red zebra",
    ] * 3000
    with caplog.at_level("WARNING", logger="igvg_d2"):
        warn_of_unknown_words(ShapesTokenizer(), english)
        # An even choice; of the last kind half is unknown. "?!" is for the mapper to refuse.
        (record,) = caplog.records
        text = record.getMessage()
        assert " of 1875 expressions looked at" in text and "ShapesTokenizer knows half" in text
        assert "'the zebra near a fence'" in text and "BEiT3Tokenizer" in text
        caplog.clear()
        warn_of_unknown_words(ShapesTokenizer(), ["the red star"] * 5)
        warn_of_unknown_words(ShapesTokenizer(), [])
        warn_of_unknown_words(BEiT3Tokenizer(file=str(beit3_file)), english[:5])
        assert not caplog.records
        chinese = ["\u5de6\u8fb9\u7684\u72d7"]
        warn_of_unknown_words(BEiT3Tokenizer(file=str(beit3_file)), chinese)
        assert "1 of 1 expressions looked at" in caplog.text


@both
def test_half_characters_never_reach_a_tokenizer(any_tokenizer):
    with pytest.raises(ValueError, match=r"'the .ud800 star' has half a character"):
        tokenize(any_tokenizer, "the \ud800 star")
    assert tokenize(any_tokenizer, "the star") == any_tokenizer("the star")


def test_a_training_run_begins_with_the_unknown_words(image_samples, caplog):
    """Shapes' tokenizer and English: every expression would be the same to the model."""
    english = {"expression": "woman wearing jeans", "ref_id": 1}
    samples = [{**sample, **english} for sample in image_samples(40)]
    DatasetCatalog.register("test_english", lambda: samples)
    opts = ["DATASETS.TRAIN", ("test_english",), "DATALOADER.NUM_WORKERS", 0]
    for unit in ("expression", "object"):
        caplog.clear()
        more = ["INPUT.TOKENIZER.NAME", "ShapesTokenizer", "DATALOADER.SAMPLE_UNIT", unit]
        cfg = setup_config("", [*opts, *more, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False])
        with caplog.at_level("WARNING", logger="igvg_d2"):
            build_grounding_train_loader(cfg)
        assert "40 of 40 expressions looked at have words of which ShapesTokenizer" in caplog.text
        assert "'woman wearing jeans'" in caplog.text

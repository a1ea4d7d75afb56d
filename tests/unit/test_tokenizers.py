"""Models joined with a tokenizer: the tokens are those of the library `tokenizers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from clockwork.errors import InvalidModel
from clockwork.models import samples
from clockwork.models.onnx_import import metadata_of
from clockwork.models.runtime import ModelSession, RunError
from clockwork.models.tokenizers import TextFlags, probes, with_texts
from tests.unit import texts
from tests.unit.models_onnx import model_of, value

PLAIN = TextFlags()


def tokens_model(length: int | str = "tokens", dtype: int = TensorProto.INT64) -> onnx.ModelProto:
    """`input_ids`, `attention_mask` and `token_type_ids` to the same three."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return model_of(
        [helper.make_node("Identity", [name], [f"same_{name}"]) for name in names],
        [value(name, ["N", length], dtype) for name in names],
        [value(f"same_{name}", ["N", length], dtype) for name in names],
    )


def strings(*given: str | bytes) -> np.ndarray:
    array = np.empty(len(given), object)
    array[:] = given
    return array


def joined(directory: Path, flags: TextFlags = PLAIN, **model: Any) -> ModelSession:
    return ModelSession(
        with_texts(tokens_model(**model), directory, flags).SerializeToString(), optimise=True
    )


NORMALISERS = [
    {"lowercase": True},
    {"lowercase": False},
    {"lowercase": True, "strip_accents": False},
    {"lowercase": True, "handle_chinese_chars": False, "clean_text": False},
]


@pytest.mark.parametrize(
    "normaliser",
    [NORMALISERS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in NORMALISERS[1:])],
    ids=str,
)
@pytest.mark.slow
def test_tokens_are_those_of_the_library(tmp_path: Path, normaliser: dict[str, Any]) -> None:
    tokenizer = texts.word_pieces(**normaliser)
    session = joined(texts.save(tokenizer, tmp_path, model_max_length=10_000))
    known = 0
    for text in (*texts.CORPUS, *probes()):
        expected = tokenizer.encode(text)
        ids, mask, types = session.run([strings(text)])
        assert ids[0].tolist() == expected.ids, text
        assert mask.all()
        assert not types.any()
        known += sum(number > 4 for number in expected.ids)
    assert known > 1_500  # the tokens are not merely unknown words


@pytest.mark.parametrize("form", [{}, {"prefix_space": True}, {"is_roberta": True}], ids=str)
@pytest.mark.slow
def test_byte_level_tokens_are_those_of_the_library(tmp_path: Path, form: dict[str, bool]) -> None:
    tokenizer = texts.byte_pairs(**form)
    session = joined(texts.save(tokenizer, tmp_path, model_max_length=10_000, pad_token="<pad>"))
    hard = (
        "can't  we'll I'M they've'd",
        "a  b   c ",
        "\n\n x\t\t",
        "12ab34 ½²",
        " <mask> x<mask>\u00a0<mask> ",
        "<s></s>",
        "\0nul",
    )
    for text in (*texts.CORPUS, *probes(), *hard, "deadline" * 500):
        expected = tokenizer.encode(text)
        ids, mask, types = session.run([strings(text.encode() if "\0" in text else text)])
        assert ids[0].tolist() == expected.ids, text
        assert mask.all()
        assert not types.any()


def test_special_tokens_may_take_the_spaces_around_them(tmp_path: Path) -> None:
    tokenizer = texts.word_pieces()
    tokenizer.add_special_tokens([texts.tokenizers.AddedToken("<mask>", lstrip=True, rstrip=True)])
    session = joined(texts.save(tokenizer, tmp_path, model_max_length=20))
    for text in ("the <mask> fox", "<mask><mask> ", " the<mask>"):
        assert session.run([strings(text)])[0][0].tolist() == tokenizer.encode(text).ids


def test_rows_are_padded_to_the_longest_or_to_what_the_model_takes(tmp_path: Path) -> None:
    tokenizer = texts.word_pieces()
    directory = texts.save(tokenizer, tmp_path, model_max_length=12, pad_token="[PAD]")
    batch = strings("the fox", "the quick brown fox")
    lengths = [len(tokenizer.encode(text).ids) for text in batch]
    ids, mask, _ = joined(directory).run([batch])
    assert (ids.shape, mask.sum(1).tolist()) == ((2, max(lengths)), lengths)
    assert not ids[0, lengths[0] :].any()
    ids, mask, types = joined(directory, length=10, dtype=TensorProto.INT32).run([batch])
    assert (ids.shape, mask.sum(1).tolist(), ids.dtype) == ((2, 10), lengths, np.int32)
    assert not types.any()


def test_a_longer_text_is_refused_or_cut(tmp_path: Path) -> None:
    tokenizer = texts.word_pieces()
    directory = texts.save(tokenizer, tmp_path, model_max_length=8)
    long = "the fox " * 20
    with pytest.raises(RunError, match=r"\[input\] text 1 has more than the 8 tokens that the model takes"):
        joined(directory).run([strings("the fox", long)])
    (ids, _, _) = joined(directory, TextFlags(truncates=True)).run([strings(long)])
    tokenizer.enable_truncation(8)
    assert ids[0].tolist() == tokenizer.encode(long).ids
    (ids, _, _) = joined(directory, TextFlags(tokens_max=50)).run([strings(long)])
    assert ids.shape == (1, 42)


@pytest.mark.parametrize(
    "text", [b"\xff", b"abc\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe2\x82"], ids=repr
)
def test_what_is_not_utf8_is_refused(tmp_path: Path, text: bytes) -> None:
    session = joined(texts.save(texts.word_pieces(), tmp_path, model_max_length=8))
    with pytest.raises(RunError, match=r"\[input\] text 0 is not UTF-8 at byte \d"):
        session.run([strings(text)])


def test_what_is_joined_says_that_it_reads_texts(tmp_path: Path) -> None:
    model = with_texts(
        tokens_model(), texts.save(texts.word_pieces(), tmp_path, model_max_length=8), TextFlags()
    )
    assert [one.name for one in model.graph.input] == ["text"]
    assert samples.contents_of(metadata_of(model)) == {"text": "text"}


def refusal(model: onnx.ModelProto, directory: Path, flags: TextFlags = PLAIN) -> str:
    with pytest.raises(InvalidModel) as caught:
        with_texts(model, directory, flags)
    return str(caught.value)


@pytest.mark.slow
def test_tokenizers_that_are_not_served_are_refused(tmp_path: Path) -> None:
    library = texts.tokenizers
    pairs = library.Tokenizer(library.models.BPE())
    assert "of BPE tokenizers those are served that work" in refusal(
        tokens_model(), texts.save(pairs, tmp_path / "bpe")
    )
    words = library.Tokenizer(library.models.Unigram())
    assert "of type Unigram is not served" in refusal(tokens_model(), texts.save(words, tmp_path / "unigram"))
    normalising = texts.byte_pairs()
    normalising.normalizer = library.normalizers.NFC()
    assert "and normalise nothing" in refusal(tokens_model(), texts.save(normalising, tmp_path / "nfc-bpe"))
    within = texts.word_pieces()
    within.add_special_tokens([library.AddedToken("<word>", single_word=True)])
    said = refusal(tokens_model(), texts.save(within, tmp_path / "within"))
    assert "'<word>' is found by rules that are not served" in said
    composing = texts.word_pieces(lowercase=False)
    composing.normalizer = library.normalizers.NFC()  # the form of a character depends on its neighbour
    said = refusal(tokens_model(), texts.save(composing, tmp_path / "nfc"), TextFlags(tokens_max=8))
    assert "the tokenizer is not of a served kind: of " in said
    assert "cannot be read" in refusal(tokens_model(), tmp_path / "nowhere")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{}")
    assert "holds no tokenizer" in refusal(tokens_model(), tmp_path / "bad")


def test_models_that_take_no_tokens_are_refused(tmp_path: Path) -> None:
    directory = texts.save(texts.word_pieces(), tmp_path)
    node = helper.make_node("Identity", ["x"], ["y"])
    plain = model_of([node], [value("x", ["N", 4])], [value("y", ["N", 4])])
    assert "the model's input 'x' is none that a tokenizer gives: input_ids" in refusal(plain, directory)
    assert "nothing says how many tokens the model takes: --max-tokens" in refusal(tokens_model(), directory)
    assert "'input_ids' is not of int64 or int32" in refusal(tokens_model(dtype=TensorProto.FLOAT), directory)

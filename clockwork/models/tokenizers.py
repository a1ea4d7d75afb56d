"""Put a tokenizer of Hugging Face's library `tokenizers` before a model, as an operator of its graph.

WordPiece tokenizers (as in BERT) and byte-level BPE tokenizers (as in GPT-2) become Clockwork's operators.
Their Unicode rules are queried from the library, character by character, and become tables in the operator's
attributes. The library and the operator then tokenize texts of many kinds; if their tokens differ, the
tokenizer is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from clockwork.config.models import TOKENIZER_PROBES
from clockwork.device.operators import DOMAIN
from clockwork.errors import ConfigError, InvalidModel
from clockwork.models import samples
from clockwork.models.compose import join
from clockwork.models.onnx_import import free_names, real_inputs
from clockwork.models.runtime import ModelSession, RunError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

INPUT_NAMES = {
    "ids": ("input_ids", "ids", "token_ids", "input_ids:0"),
    "mask": ("attention_mask", "mask", "input_mask"),
    "types": ("token_type_ids", "segment_ids", "type_ids"),
}
"""By output of the operator: names of the model's input that it feeds."""

_SURROGATES = range(0xD800, 0xE000)


@dataclasses.dataclass(frozen=True, slots=True)
class TextFlags:
    """Command-line flags about texts, which complete the tokenizer's files. tokens_max 0: as in the files."""

    tokens_max: int = 0  # largest number of tokens of a text, including special tokens
    truncates: bool = False  # a longer text is cut, not refused


def require_library() -> None:
    """Raise ConfigError if `tokenizers` is not installed."""
    if importlib.util.find_spec("tokenizers") is None:
        raise ConfigError("--tokenizer needs `tokenizers`: pip install 'clockwork-serving[text]'")


def with_texts(model: onnx.ModelProto, directory: Path, flags: TextFlags) -> onnx.ModelProto:
    """Return the model with texts as input, which a tokenizer reads. directory: of tokenizer.json.

    Raises InvalidModel, or ConfigError if `tokenizers` is not installed.
    """
    tokenizer, spec, config = _read(directory)
    roles = _roles(model)
    fixed = _fixed_length(model, roles)
    operator, attributes = _attributes(tokenizer, spec)
    tokens_max = flags.tokens_max or _tokens_max(spec, config) or fixed
    if not tokens_max:
        raise InvalidModel("nothing says how many tokens the model takes: --max-tokens")
    if fixed and tokens_max > fixed:
        tokens_max = fixed
    attributes |= {"tokens_max": tokens_max, "truncates": int(flags.truncates), "length": fixed}
    attributes["padding"] = _padding(tokenizer, config)
    _verify(tokenizer, operator, attributes, spec["model"]["vocab"])

    names = free_names(model, "text", "ids", "mask", "types", "ids_cast", "mask_cast", "types_cast")
    rows = _rows(model)
    nodes = [
        helper.make_node(
            operator,
            [names["text"]],
            [names["ids"], names["mask"], names["types"]],
            domain=DOMAIN,
            **attributes,
        )
    ]
    outputs, joined = [], {}
    for role, value in roles.items():
        made, dtype = names[role], value.type.tensor_type.elem_type
        if dtype != TensorProto.INT64:
            nodes.append(helper.make_node("Cast", [made], [names[f"{role}_cast"]], to=dtype))
            made = names[f"{role}_cast"]
        outputs.append(helper.make_tensor_value_info(made, dtype, [rows, fixed or "tokens"]))
        joined[made] = value.name
    text = helper.make_tensor_value_info(names["text"], TensorProto.STRING, [rows])
    before = helper.make_graph(nodes, "texts", [text], outputs)
    return join(model, before, joined, {names["text"]: samples.TEXT})


# ----- the tokenizer's files -----------------------------------------------------------------------


def _read(directory: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Load a tokenizer. Return it with the content of tokenizer.json and, if present, of
    tokenizer_config.json."""
    require_library()
    import tokenizers

    path = directory / TOKENIZER_FILE if directory.is_dir() else directory
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except OSError as error:
        raise InvalidModel(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # the library raises Exception itself
        raise InvalidModel(f"{path} holds no tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config: dict[str, Any] = {}
    beside = path.with_name(CONFIG_FILE)
    if beside.is_file():
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InvalidModel(f"{beside} is not JSON: {error}") from None
    return tokenizer, spec, config


def _tokens_max(spec: dict[str, Any], config: dict[str, Any]) -> int:
    truncation = spec.get("truncation") or {}
    said = truncation.get("max_length") or config.get("model_max_length") or 0
    return int(said) if 0 < said < 1 << 20 else 0  # the library transformers writes 1e30 for "no limit"


def _padding(tokenizer: Any, config: dict[str, Any]) -> int:
    token = config.get("pad_token") or "[PAD]"
    found = tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token)
    return 0 if found is None else int(found)


def _attributes(tokenizer: Any, spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a tokenizer's operator and attributes: vocabulary, special tokens, tables of characters."""
    model = spec["model"]
    kind = model.get("type") or ("WordPiece" if "continuing_subword_prefix" in model else "BPE")
    if kind not in ("WordPiece", "BPE"):
        raise InvalidModel(f"a tokenizer of type {kind} is not served; WordPiece and byte-level BPE are")
    operator, made = _word_pieces(spec) if kind == "WordPiece" else _byte_pairs(spec)
    specials = []
    for number, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        if token.single_word or token.normalized:
            raise InvalidModel(
                f"the tokenizer's token {token.content!r} is found by rules that are not served"
            )
        if any(character in token.content for character in "\n\t"):
            raise InvalidModel(f"the tokenizer's token {token.content!r} has white space in it")
        specials.append(f"{token.content}\t{number}\t{'l' * token.lstrip}{'r' * token.rstrip}")
    inner = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a")
    at = next((at for at in range(len(whole.ids)) if whole.ids[at : at + len(inner)] == inner), 0)
    if any(whole.type_ids):
        raise InvalidModel("the tokenizer gives the first text another type than 0")
    return operator, {
        "specials": "\n".join(specials),
        "before": ",".join(map(str, whole.ids[:at])),
        "after": ",".join(map(str, whole.ids[at + len(inner) :])),
        **made,
    }


def _word_pieces(spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    model = spec["model"]
    vocabulary = sorted(model["vocab"].items(), key=lambda item: item[1])
    if [number for _, number in vocabulary] != list(range(len(vocabulary))):
        raise InvalidModel("the ids of the tokenizer's vocabulary have gaps")
    if any("\n" in token for token, _ in vocabulary):
        raise InvalidModel("a token of the tokenizer's has a line break in it")
    return "WordPiece", {
        "vocabulary": "\n".join(token for token, _ in vocabulary),
        "prefix": model.get("continuing_subword_prefix", "##"),
        "unknown": model["vocab"][model["unk_token"]],
        "word_max": model.get("max_input_chars_per_word", 100),
        **_tables(json.dumps([spec.get("normalizer"), spec.get("pre_tokenizer")])),
    }


def _byte_pairs(spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    model, before = spec["model"], spec.get("pre_tokenizer") or {}
    if before.get("type") != "ByteLevel" or not before.get("use_regex", True) or spec.get("normalizer"):
        raise InvalidModel(
            "of BPE tokenizers those are served that work on bytes as GPT-2's does, and normalise nothing"
        )
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", "dropout"):
        if model.get(name):
            raise InvalidModel(f"a BPE tokenizer with {name} is not served")
    ids = model["vocab"]
    if missing := [byte for byte, character in enumerate(_byte_characters()) if character not in ids]:
        raise InvalidModel(f"the tokenizer's vocabulary lacks bytes: {missing[:5]}")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return "BytePairs", {
        "bytes": ",".join(str(ids[character]) for character in _byte_characters()),
        "merges": "\n".join(f"{ids[left]},{ids[right]},{ids[left + right]}" for left, right in merges),
        "begins_with_space": int(before.get("add_prefix_space", True)),
        **_classes(),
    }


@functools.cache
def _byte_characters() -> list[str]:
    """Return the character that stands for each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in range(256)]


# ----- the tables of characters ---------------------------------------------------------------------


@functools.lru_cache(4)
def _tables(parts: str) -> dict[str, str]:
    """Return tables of normalised and removed characters, spaces, and characters that are a word by
    themselves.

    parts: a tokenizer's normalizer and pre_tokenizer, as JSON. Results are cached, because they take 2 s, and
    most tokenizers of BERT's kind have the same parts.
    """
    from tokenizers import Tokenizer

    normalizer, pre_tokenizer = json.loads(parts)
    empty = {
        "type": "WordPiece",
        "vocab": {"": 0},
        "unk_token": "",
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 1,
    }
    bare = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": empty,
    }
    tokenizer = Tokenizer.from_str(json.dumps(bare))
    points = _points()
    normalise: Callable[[str], str] = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    removed, changed = [], []
    spaces, alone = _kinds_of(tokenizer, points)
    has_spaces = ord(" ") in spaces
    for point, becomes in _normalised(normalise, points):
        character = chr(point)
        if not becomes:
            removed.append(point)
        elif (
            becomes == f" {character} " and has_spaces
        ):  # e.g. Chinese characters in BERT; the same tokens, with tables smaller by 0.5 MB
            alone.append(point)
        elif becomes != character:
            changed.append((point, becomes))
    alone = sorted(set(alone))
    lines = (f"{point:x}\t{becomes}" for point, becomes in changed)
    return {
        "normalised": "\n".join(lines),
        "removed": _ranges(removed),
        "spaces": _ranges(spaces),
        "alone": _ranges(alone),
    }


@functools.cache
def _classes() -> dict[str, str]:
    """Return tables of the characters that the library counts as letters, numbers and white space."""
    from tokenizers import Regex, pre_tokenizers

    text = "".join(map(chr, _points()))
    found = {}
    for name, pattern in (("letters", r"\p{L}"), ("numbers", r"\p{N}"), ("spaces", r"\s")):
        runs = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed").pre_tokenize_str(text)
        others = {place for _, (begin, end) in runs for place in range(begin, end)}
        found[name] = _ranges([point for place, point in enumerate(_points()) if place not in others])
    return found


@functools.cache
def _points() -> list[int]:
    return [point for point in range(sys.maxunicode + 1) if point not in _SURROGATES]


def _normalised(normalise: Callable[[str], str], points: list[int]) -> Iterator[tuple[int, str]]:
    """Yield each character with its normalised form. Batches of 256 are ten times as fast."""
    for begin in range(0, len(points), 256):
        some = points[begin : begin + 256]
        pieces = normalise("a" + "a".join(map(chr, some)) + "a").split("a")
        if len(pieces) == len(some) + 2:
            yield from zip(some, pieces[1:-1])
        else:
            yield from ((point, normalise(chr(point))) for point in some)


def _kinds_of(tokenizer: Any, points: list[int]) -> tuple[list[int], list[int]]:
    """Return the characters that separate words and vanish, and those that are words by themselves."""
    if tokenizer.pre_tokenizer is None:
        return [], []
    spaces, alone = [], []
    text = "a" + "a".join(map(chr, points)) + "a"
    begins, ends = set(), set()
    for _, (begin, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text):
        begins.add(begin)
        ends.add(end)
    for index, point in enumerate(points):
        place = 2 * index + 1
        if place in begins and place + 1 in ends:
            alone.append(point)
        elif place in ends and place not in begins:
            spaces.append(point)
    return spaces, alone


def _ranges(points: list[int]) -> str:
    """Format sorted numbers as ranges "first-last" in hex, separated by commas."""

    def runs() -> Iterator[tuple[int, int]]:
        first = last = points[0]
        for point in points[1:]:
            if point != last + 1:
                yield first, last
                first = point
            last = point
        yield first, last

    return ",".join(f"{first:x}-{last:x}" for first, last in runs()) if points else ""


# ----- whether it is the same -----------------------------------------------------------------------


def _verify(tokenizer: Any, operator: str, attributes: dict[str, Any], vocabulary: dict[str, int]) -> None:
    """Raise InvalidModel if the operator tokenizes one of many texts differently from the library."""
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "T"])
        for name in ("ids", "mask", "types")
    ]
    names = [output.name for output in outputs]
    unbound = {**attributes, "tokens_max": 1 << 20, "length": 0}
    graph = helper.make_graph(
        [helper.make_node(operator, ["text"], names, domain=DOMAIN, **unbound)],
        "tokenizer",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["N"])],
        outputs,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    try:
        session = ModelSession(
            helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString(), optimise=False
        )
        texts = [*probes(), *_known(list(vocabulary))]
        for line in attributes["specials"].split("\n"):
            special = line.partition("\t")[0]
            texts += [f"a {special} b", f"a{special}b", f"  {special}\t{special} "]
        ids, mask, _ = session.run([np.array(texts, object)])
    except RunError as error:
        raise InvalidModel(f"the tokenizer does not run: {error}") from None
    for text, row, count in zip(texts, ids.tolist(), mask.sum(1)):
        expected, found = tokenizer.encode(text).ids, row[:count]
        if found != expected:
            raise InvalidModel(
                f"the tokenizer is not of a served kind: of {text!r} it makes {expected[:20]}, not {found[:20]}"
            )


def _known(vocabulary: list[str]) -> Iterable[str]:
    """Yield texts that consist of tokens of the vocabulary."""
    tokens = [token.removeprefix("##").replace("\u0120", " ") for token in vocabulary]
    rng = np.random.default_rng(2)
    for _ in range(TOKENIZER_PROBES):
        yield "".join(
            tokens[index] + (" " if rng.random() < 0.3 else "")
            for index in rng.integers(len(tokens), size=20)
        )


def probes() -> Iterable[str]:
    """Yield texts of many kinds, equal in every call."""
    yield from (
        "", " ", "a", "The quick brown fox.", "Crème brûlée, naïve café", "don't stop!!", "tab\tnew\nline\r\n",
        "数据处理 hello 世界", "안녕하세요 세계", "Привет, мир", "שלום עולם", "नमस्ते दुनिया", "สวัสดี", "😀👍🏽 emoji", "e\u0301 o\u0308",
        "[MASK] [CLS][SEP] [UNK]", "x" * 99, "x" * 100, "x" * 101, "1234567890" * 15, "\u200bzero\u00adwidth\ufeff", "nbsp\u00a0x",
        "\ufffd \x07 \x7f", "ǅ ŉ ẞ ß İ \u0131 ﬁ \u017f", "—“quotes”…", "$100 + 5% = ~105^2 `code` <b>|</b>",
    )  # fmt: skip
    rng = np.random.default_rng(1)
    ranges = [
        (32, 127),
        (160, 600),
        (0x370, 0x530),
        (0x590, 0x1000),
        (0x2000, 0x2C00),
        (0x3000, 0xD7FF),
        (0xF900, 0x10FFFF),
    ]
    for _ in range(TOKENIZER_PROBES):
        low, high = ranges[rng.integers(len(ranges))]
        characters = [chr(point) for point in rng.integers(low, high, 30) if point not in _SURROGATES]
        words = samples.text(40, int(rng.integers(1 << 30)))
        yield "".join(characters[:15]) + words + "".join(characters[15:])


# ----- the model -------------------------------------------------------------------------------------


def _roles(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Return the inputs of the model by role: ids, mask, types."""
    found = {}
    for value in real_inputs(model):
        role = next((role for role, names in INPUT_NAMES.items() if value.name in names), None)
        if role is None or role in found:
            known = ", ".join(name for names in INPUT_NAMES.values() for name in names)
            raise InvalidModel(f"the model's input {value.name!r} is none that a tokenizer gives: {known}")
        if value.type.tensor_type.elem_type not in (TensorProto.INT64, TensorProto.INT32):
            raise InvalidModel(f"the model's input {value.name!r} is not of int64 or int32")
        found[role] = value
    if "ids" not in found:
        raise InvalidModel(f"the model has no input of token ids: {', '.join(INPUT_NAMES['ids'])}")
    return found


def _fixed_length(model: onnx.ModelProto, roles: dict[str, onnx.ValueInfoProto]) -> int:
    """Return the number of tokens that the model requires; 0 if the number is open."""
    shape = roles["ids"].type.tensor_type.shape.dim
    if len(shape) != 2:
        raise InvalidModel(
            f"the model's input {roles['ids'].name!r} has {len(shape)} dimensions, not 2: rows, tokens"
        )
    return int(shape[1].dim_value) if shape[1].HasField("dim_value") else 0


def _rows(model: onnx.ModelProto) -> str | int:
    dim = real_inputs(model)[0].type.tensor_type.shape.dim[0]
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "N"

"""A language model of known answers, in the file format of llama.cpp.

It is a Markov chain over tokens: the last token of the prompt alone decides about the answer. A token can be a long
text, so `the end of the prompt` and `the whole answer` are one token each. All weights of attention are zero.

The format of the file is GGUF, version 3, as described in the documentation of ggml (`docs/gguf.md`).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping
from pathlib import Path

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
"""Kinds of values, and of tokens."""
_ALIGNMENT = 32
_HEAD = 8
"""The size of the attention head: the smaller, the faster are long prompts."""
_END = 2
"""The token that ends an answer."""
_SURE = 30.0
"""The logit of the next token, with 0 for all others: no sampling selects another."""


def write(path: Path, answers: Mapping[str, str], words: frozenset[str] = frozenset(), window: int = 1 << 17) -> None:
    """Write a model that answers a prompt that ends in a key with its value.

    Of several keys that match, the longest counts; without a match, the answer is empty. `words` are one token each, so
    that a prompt has fewer tokens; other characters are a token for each byte. `window` is in tokens.
    """
    pieces = [*answers, *sorted({*answers.values()} - {*answers})]
    pieces += sorted(words - {*pieces})
    tokens = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
    tokens += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
    first = len(tokens)
    tokens += [(piece, _USER_DEFINED) for piece in pieces]
    number = {piece: first + index for index, piece in enumerate(pieces)}
    # The first dimension is that of all tokens without an answer; each key has a dimension of its own.
    width = _aligned(1 + len(answers))
    embedding, output = _Matrix(len(tokens), width), _Matrix(len(tokens), width)
    for token in range(len(tokens)):
        embedding.put(token, 0, 1.0)
    output.put(_END, 0, _SURE)
    for index, (key, answer) in enumerate(answers.items(), 1):
        embedding.put(number[key], 0, 0.0)
        embedding.put(number[key], index, 1.0)
        output.put(number[answer], index, _SURE)
    ones = array("f", [1.0] * width).tobytes()
    tensors = [
        ("token_embd.weight", (width, len(tokens)), embedding.cells.tobytes()),
        ("output_norm.weight", (width,), ones),
        ("output.weight", (width, len(tokens)), output.cells.tobytes()),
        ("blk.0.attn_norm.weight", (width,), ones),
        ("blk.0.ffn_norm.weight", (width,), ones),
    ]
    for name, columns, rows in (
        *((f"attn_{name}", width, _HEAD) for name in "qkv"),
        ("attn_output", _HEAD, width),
        ("ffn_gate", width, _ALIGNMENT),
        ("ffn_up", width, _ALIGNMENT),
        ("ffn_down", _ALIGNMENT, width),
    ):
        tensors.append((f"blk.0.{name}.weight", (columns, rows), bytes(4 * columns * rows)))
    values = [
        _value("general.architecture", _STRING, _text("llama")),
        *(
            _value(f"llama.{name}", _UINT32, struct.pack("<I", size))
            for name, size in {
                "context_length": window,
                "embedding_length": width,
                "block_count": 1,
                "feed_forward_length": _ALIGNMENT,
                "attention.head_count": 1,
                "attention.head_count_kv": 1,
                "attention.key_length": _HEAD,
                "attention.value_length": _HEAD,
                "rope.dimension_count": _HEAD,
                "vocab_size": len(tokens),
            }.items()
        ),
        _value("llama.attention.layer_norm_rms_epsilon", _FLOAT32, struct.pack("<f", 1e-5)),
        _value("tokenizer.ggml.model", _STRING, _text("llama")),
        _array("tokenizer.ggml.tokens", _STRING, [_text(text) for text, _ in tokens]),
        _array("tokenizer.ggml.scores", _FLOAT32, [struct.pack("<f", 0.0)] * len(tokens)),
        _array("tokenizer.ggml.token_type", _INT32, [struct.pack("<i", kind) for _, kind in tokens]),
        _value("tokenizer.ggml.bos_token_id", _UINT32, struct.pack("<I", 1)),
        _value("tokenizer.ggml.eos_token_id", _UINT32, struct.pack("<I", _END)),
        _value("tokenizer.ggml.add_space_prefix", _BOOL, b"\0"),
    ]
    header, data = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values)), *values], bytearray()
    for name, dimensions, cells in tensors:
        shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        header.append(_text(name) + shape + struct.pack("<IQ", 0, len(data)))
        data += _padded(cells)
    path.write_bytes(_padded(b"".join(header)) + data)


class _Matrix:
    """Rows of 32-bit numbers, all 0 at first."""

    def __init__(self, rows: int, columns: int) -> None:
        self.cells = array("f", bytes(4 * rows * columns))
        self._columns = columns

    def put(self, row: int, column: int, number: float) -> None:
        self.cells[row * self._columns + column] = number


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _padded(raw: bytes) -> bytes:
    return raw + bytes(_aligned(len(raw)) - len(raw))


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, kind: int, packed: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + packed


def _array(key: str, kind: int, items: list[bytes]) -> bytes:
    return _value(key, _ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(items))

"""CLIP's tokens: those of the small model in the package, and the words that are a single token."""

from __future__ import annotations

import gzip
import importlib.util
import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedpgp.core.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor

PAD, UNKNOWN, START = 0, 1, 2
"""The first token ids of the small model. End-of-text has the last and thus highest id, as in CLIP."""
BYTES = 256
"""CLIP's first tokens are the bytes, from `!` on, then the bytes at the end of a word, then the merges."""
MERGES = 49408 - 2 * BYTES - 2
WORD_END = "</w>"
"""How the byte-pair encoding marks the end of a word."""
TABLE = "bpe_simple_vocab_16e6.txt.gz"


def words() -> dict[int, str]:
    """The words of lower-case letters that are a single token of CLIP, by token; open_clip is not imported for them."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise BackboneError("open_clip is not installed; install fedpgp again")
    with gzip.open(Path(package.origin).with_name(TABLE), "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 1 + MERGES]  # below a title
    found = {BYTES + ord(letter) - ord("!"): letter for letter in string.ascii_lowercase}
    for token, merge in enumerate(merges, start=2 * BYTES):
        piece = merge.replace(" ", "")
        word = piece.removesuffix(WORD_END)
        if word != piece and word.isascii() and word.isalpha() and word.islower():
            found[token] = word
    return found


def reduced_ids(folder: Path) -> dict[int, int]:
    """The tokens of CLIP that the model in a folder was trained with, and the ids that they have there."""
    kept = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    return {token: START + 1 + index for index, token in enumerate(kept)}


class ReducedTokenizer:
    """CLIP's byte-pair encoding, reduced to the tokens that the model was trained with.

    Args:
        ids: the id of each kept token of CLIP, from START + 1 on. All other tokens become `UNKNOWN`, which the model
            was not trained on.
        context_length: length of the rows; longer texts are cut.
    """

    def __init__(self, ids: Mapping[int, int], context_length: int) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._bpe = SimpleTokenizer(context_length=context_length)
        self.ids = ids
        self.vocab_size = START + 1 + len(ids) + 1
        self.end = self.vocab_size - 1
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokenize texts to int64 (n, context length): start, tokens, end, then padding."""
        import torch

        rows = torch.full((len(texts), self.context_length), PAD)
        for row, text in zip(rows, texts, strict=True):
            tokens = [self.ids.get(token, UNKNOWN) for token in self._bpe.encode(text)]
            tokens = [START, *tokens[: self.context_length - 2], self.end]
            row[: len(tokens)] = torch.tensor(tokens)
        return rows

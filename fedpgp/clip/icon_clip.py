"""The small CLIP model in the package: its files and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NAME = "icon-clip"
FOLDER = Path(__file__).parent.parent / "assets" / NAME
CONFIG = FOLDER / "open_clip_config.json"
WEIGHTS = FOLDER / "open_clip_model.safetensors"
VOCABULARY = FOLDER / "vocabulary.json"

PAD, UNKNOWN, START = 0, 1, 2
"""The first ids. End-of-text has the last and thus highest id, as in CLIP."""


def read_config() -> dict[str, Any]:
    """Read open_clip's description of the model: `model_cfg` and `preprocess_cfg`."""
    config: dict[str, Any] = json.loads(CONFIG.read_text(encoding="utf-8"))
    return config


class ReducedTokenizer:
    """CLIP's byte-pair encoding, reduced to the tokens that the model was trained with.

    Args:
        bpe_ids: CLIP's ids of the kept tokens; the token at index i gets the id START + 1 + i. All other tokens become
            `UNKNOWN`, which the model was not trained on.
        context_length: length of the rows; longer texts are cut.
    """

    def __init__(self, bpe_ids: Sequence[int], context_length: int) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._bpe = SimpleTokenizer(context_length=context_length)
        self.ids = {token: START + 1 + index for index, token in enumerate(bpe_ids)}
        self.vocab_size = START + 1 + len(bpe_ids) + 1
        self.end = self.vocab_size - 1
        self.context_length = context_length

    @classmethod
    def shipped(cls) -> ReducedTokenizer:
        """Create the tokenizer of the model in the package."""
        bpe_ids = json.loads(VOCABULARY.read_text(encoding="utf-8"))
        return cls(bpe_ids, read_config()["model_cfg"]["text_cfg"]["context_length"])

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokenize texts to int64 (n, context length): start, tokens, end, then padding."""
        import torch

        rows = torch.full((len(texts), self.context_length), PAD)
        for row, text in zip(rows, texts, strict=True):
            tokens = [self.ids.get(token, UNKNOWN) for token in self._bpe.encode(text)]
            tokens = [START, *tokens[: self.context_length - 2], self.end]
            row[: len(tokens)] = torch.tensor(tokens)
        return rows

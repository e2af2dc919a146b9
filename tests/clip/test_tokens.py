"""CLIP's words without open_clip's tokenizer are those of open_clip's tokenizer."""

from __future__ import annotations

from open_clip.tokenizer import SimpleTokenizer

from fedpgp.clip import model, tokens


def test_the_words_are_those_of_open_clip():
    pieces = {
        token: piece.removesuffix("</w>") for piece, token in SimpleTokenizer().encoder.items() if "</w>" in piece
    }
    wanted = {token: word for token, word in pieces.items() if word.isascii() and word.isalpha() and word.islower()}
    assert tokens.words() == wanted
    assert list(tokens.words()) == list(wanted)


def test_the_small_model_numbers_its_tokens_from_behind_the_start():
    kept = tokens.reduced_ids(model.ICON_CLIP_FOLDER)
    assert list(kept.values()) == list(range(3, 3 + len(kept)))

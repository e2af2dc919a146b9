"""The registry: what another method keeps of the settings."""

from textwrap import dedent

import pytest

from fedpgp import methods


@pytest.mark.parametrize(
    ("old", "new", "given", "kept", "text"),
    [
        ("fedpgp", "promptfl", {"n_ctx": 4, "rank": 2}, {"n_ctx": 4}, "rank=2 (which it does not take)"),
        ("fedpgp", "fedotp", {"num_prompts": 3, "position": "front"}, {"num_prompts": 3, "position": "front"}, ""),
        ("fedpgp", "fedotp", {"num_prompts": 1}, {}, "num_prompts=1 (its default is 2)"),
        ("fedpgp", "fedmaple", {"n_ctx": 16, "ctx_init": "a"}, {"ctx_init": "a"}, "n_ctx=16 (its default is 2)"),
        ("promptfl", "fedpgp", {"n_ctx": 16, "class_specific": False}, {"n_ctx": 16}, ""),
        ("fedlora", "fedpgp", {"rank": 2, "targets": ["q", "v"]}, {"rank": 2}, ""),
        ("fedpgp", "no_such_method", {"rank": 2}, {"rank": 2}, ""),
        ("no_such_method", "fedpgp", {"rank": 8, "x": None}, {"rank": 8}, "x=null (which it does not take)"),
    ],
)
def test_another_method_keeps_what_it_takes(old, new, given, kept, text):
    assert methods.carry(old, new, given) == (kept, text)


PLUGIN = dedent('''
    from typing import ClassVar, Literal

    from fedpgp.config import Settings
    from fedpgp.methods.fedpgp import FedPGP, FedPGPSettings


    class OwnSettings(FedPGPSettings):
        """Settings."""

        init: Literal["own", "lora"] = "own"
        sparsity: float = 0.5


    class Own(FedPGP):
        """A method of mine."""

        name = "own"
        settings_type: ClassVar[type[Settings]] = OwnSettings
''')


def test_a_method_in_a_file_keeps_and_gives_settings_too(tmp_path, monkeypatch):
    (tmp_path / "own_method_of_mine.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    own = "own_method_of_mine:Own"
    given = {"n_ctx": 4, "rank": 2, "init": "lora"}
    assert methods.carry("fedpgp", own, given) == (given, "")
    back = {"n_ctx": 4, "init": "own", "sparsity": 0.1}
    assert methods.carry(own, "fedpgp", back) == (
        {"n_ctx": 4},
        "sparsity=0.1 (which it does not take), init=own (its default is normal)",
    )
    assert methods.carry(own, "fedpgp", {"init": "bad"}) == ({}, "init=bad (which it does not take)")

"""Pages about methods and server rules."""

from __future__ import annotations

import re

import pytest
import torch
from rich.console import Console

from fedpgp import methods, server_rules
from fedpgp.analysis.report import pages
from fedpgp.core import plugins
from fedpgp.core.docstrings import DEPARTURES, SUMMARY
from fedpgp.core.errors import BackboneError, ConfigError
from fedpgp.methods.base import Phase
from fedpgp.methods.promptfl import PromptFL
from fedpgp.methods.size import REFERENCE, sizes_of
from fedpgp.server_rules.base import BaseRule, RuleSettings


def printed(page):
    console = Console(width=110, record=True)
    with console.capture() as capture:
        console.print(page)
    return capture.get()


def page(name, sizes=REFERENCE, **settings):
    return printed(pages.method_page(name, methods.create(name, settings), sizes))


def fact(text, label):
    """What a page says of something, on one line."""
    (found,) = re.findall(rf"^  {label}  +(.*(?:\n   +.*)*)", text, re.MULTILINE)
    return " ".join(found.split())


@pytest.mark.parametrize("name", methods.METHODS)
def test_the_page_of_a_method_has_its_sections(name):
    text = page(name)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == f"{name}: {methods.find(name).paper}"
    headings = [line for line in lines if line in (SUMMARY, "Legend", "Shared", DEPARTURES, "At work")]
    assert headings == [SUMMARY, "Legend", "Shared", DEPARTURES, "At work"]
    for key, field in methods.find(name).settings_type.model_fields.items():
        (row,) = [line for line in lines[lines.index("Settings") :] if line.startswith(f"{key} ")]
        assert field.description.split()[0] in row
    assert "  sent up  " in text


@pytest.mark.parametrize(
    ("name", "up", "stays"),
    [
        ("promptfl", 16 * 512 * 4, None),
        ("coop", 0, 16 * 512 * 4),
        ("fedcocoop", (16 * 512 + 512 * 32 + 32 + 32 * 512 + 512) * 4, None),
        ("fedmaple", 9 * (2 * 512 + 512 * 768 + 768) * 4, None),
        ("fedotp", 16 * 512 * 4, 16 * 512 * 4),
        ("fedpgp", 16 * 512 * 4, (16 * 8 + 8 * 512) * 4),
        ("kgcoop", 16 * 512 * 4, None),
        ("promptfolio", 16 * 512 * 4, 16 * 512 * 4),
        ("fedtpg", 4_206_080 * 4, None),
        ("fedmgp", 2 * 2 * (512 + 768) * 4, 5 * 2 * (512 + 768) * 4 + 2 * 2 * 8),
    ],
)
def test_bytes_by_hand(name, up, stays):
    text = page(name)
    for label in ("sent up", "sent down"):
        assert fact(text, label).startswith(f"{pages._size(up)} per client and round" if up else "nothing")
    assert fact(text, "stays with the client").startswith(pages._size(stays) if stays else "nothing")


def test_promptfl_sends_32_kib_each_way():
    text = page("promptfl")
    assert fact(text, "sent up") == "32.0 KiB (32,768 bytes) per client and round: ctx"
    assert fact(text, "sent down") == "32.0 KiB (32,768 bytes) per client and round"
    assert "extends coop" in text
    assert re.search(r"ctx +16 x 512 +sent, trained +32,768", text)


def test_bytes_on_another_backbone():
    """ViT-L-14's text tower is 768 wide, its image tower 1024: nine couplings of 768 x 1024 + 1024, 9 x 2 x 768."""
    assert "16 x 768" in page("promptfl", sizes_of("ViT-L-14"))
    up = 4 * 9 * (768 * 1024 + 1024 + 2 * 768)
    assert fact(page("fedmaple", sizes_of("ViT-L-14")), "sent up").startswith(pages._size(up))
    assert "4 x 64" in page("promptfl", sizes_of("tiny"), n_ctx=4)


def test_backbones_that_do_not_fit_are_refused():
    assert fact(page("promptfl", sizes_of("RN50")), "sent up").startswith("32.0 KiB")
    with pytest.raises(BackboneError, match=r"backbone\.name: RN50 does not fit method fedmaple: it needs a plain ViT"):
        page("fedmaple", sizes_of("RN50"))
    with pytest.raises(BackboneError, match="coca_ViT-B-32 cannot be prompted"):
        sizes_of("coca_ViT-B-32")
    with pytest.raises(BackboneError, match="did you mean ViT-B-16"):
        sizes_of("ViT-B-166")
    with pytest.raises(ConfigError, match="method fedmaple: depth: 9 is more than the 2 layers"):
        page("fedmaple", sizes_of("tiny"))


def test_what_a_method_needs_and_trains():
    text = page("pfedpt")
    assert fact(text, "trained") == (
        "down, left, right, up; learning rate 1 of down, left, right, up; epochs 5; momentum 0.5; weight decay 0 base.*"
    )
    assert fact(text, "unseen classes").startswith("no")
    assert fact(text, "own classes") == "no: its network has an output for each of them"
    assert fact(text, "clients in one batch") == "at most 1"
    assert "Parameters of one client, with" in text  # on no backbone
    assert fact(page("fedotp"), "images").startswith("the features of all patches")
    assert fact(page("fedmaple"), "frozen towers") == "image, text of CLIP"
    assert fact(page("fedpgp", personal_lr=0.1), "trained") == "U, V, ctx; learning rate 0.1 of U, V"
    assert fact(page("fedpgp", contrast="none"), "own classes") == "yes, with protocol.train_classes=own"


def test_pfedmoap_receives_the_prompts_of_nine_others_from_round_two():
    text = page("pfedmoap")
    assert fact(text, "sent up").startswith("32.0 KiB (32,768 bytes) per client and round")
    assert fact(text, "sent down").startswith(
        "32.0 KiB (32,768 bytes) per client in round 1, 320.0 KiB (327,680 bytes) in later ones"
    )
    assert fact(text, "stays with the client").startswith(pages._size(4 * 4 * (128 * 128 + 128)))
    assert fact(text, "trained").startswith("ctx, gate_k.*, gate_o.*, gate_q.*, gate_v.*; learning rate 0.01 of gate_k")


class Pool(BaseRule):
    """Sends to each client the last prompts of all others."""

    name, paper, uploads = "pool", "", "stack"

    def init(self, shared, num_clients):
        return {"pool": torch.zeros(1, 16, 512)}

    def broadcast(self, server, shared, clients):
        return shared, {"others": server["pool"][1:].expand(len(clients), -1, -1, -1)}

    def aggregate(self, server, shared, received):
        return {"pool": received.stack["ctx"]}, shared


class Pooled(PromptFL):
    """PromptFL with a rule of its own."""

    name = "pooled"
    phases = (Phase(frozenset({"ctx"}), decay=0.5, lr={"ctx": 0.25}),)

    def server_rule(self, federation):
        return Pool(RuleSettings())


def test_a_rule_of_the_methods_own_says_what_travels_later():
    """Nine prompts of the others, beside the shared one."""
    text = printed(pages.method_page("pooled", Pooled(Pooled.settings_type()), REFERENCE))
    assert fact(text, "sent up").startswith("32.0 KiB")
    assert fact(text, "sent down") == (
        "32.0 KiB (32,768 bytes) per client in round 1, 320.0 KiB (327,680 bytes) in later ones (10 clients, all in "
        "each round)"
    )
    assert fact(text, "server's rule") == "its own"
    assert fact(text, "trained") == "ctx; learning rate 0.25 of ctx; learning rates x 0.5 per round"


def test_the_page_of_a_plug_in(tmp_path, monkeypatch):
    (tmp_path / "page_method.py").write_text(
        "from fedpgp.methods.fedpgp import FedPGP\n\n\nclass Mine(FedPGP):\n    name = 'mine'\n\n\n"
        "class Broken(FedPGP):\n    def init(self, frozen, generator):\n        return frozen.nothing\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        text = page("page_method:Mine")
        assert text.splitlines()[:3] == ["page_method:Mine: Cui et al., ICML 2024", "page_method.Mine", EXTENDS]
        assert "There is no docstring." in text
        with pytest.raises(
            ConfigError, match="method page_method:Broken: init raised AttributeError: 'ClassSet' object"
        ):
            page("page_method:Broken")
    finally:
        plugins.forget("page_method")


EXTENDS = "extends fedpgp, which has a page of its own"


@pytest.mark.parametrize("name", server_rules.REGISTRY.built_in)
def test_the_page_of_a_rule(name):
    rule = server_rules.create(name, {})
    text = printed(pages.rule_page(name, rule))
    assert text.startswith(f"{name}: {rule.paper}\n")
    assert fact(text, "fewest updates") == str(rule.fewest)
    assert "server learning rate" in text

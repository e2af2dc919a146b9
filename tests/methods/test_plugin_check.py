"""A method from outside the package that cannot work is refused in one line, before any image is read."""

from __future__ import annotations

import pytest
import torch

from fedpgp import config
from fedpgp.core.errors import ConfigError
from fedpgp.experiments import planning

HEAD = """
import torch
from fedpgp.methods.base import Phase
from fedpgp.methods.pfedmoap import PFedMoAP
from fedpgp.methods.promptfl import PromptFL
from fedpgp.server_rules.base import BaseRule, RuleSettings


class Short(BaseRule):
    name = "short"
    paper = "none"

    def aggregate(self, server, shared, received):
        return server, {"ctx": shared["ctx"][:1]}
"""
BROKEN = {
    "returns no parts": ("def loss(self, params, received, frozen, batch):\n        return params['ctx'].sum()",
        "loss returns shape (), not a tensor (K,) and a dict of its parts"),
    "one loss for all clients": (
        "def loss(self, *given):\n        loss, parts = super().loss(*given)\n        return loss.sum(), parts",
        "loss has shape (), not (K,) = (2,)"),
    "a part of another shape": (
        "def loss(self, *given):\n        loss, _ = super().loss(*given)\n        return loss, {'all': loss.sum()}",
        "part 'all' of the loss has shape (), not (K,) = (2,)"),
    "not finite": (
        "def loss(self, *given):\n        loss, parts = super().loss(*given)\n        return loss / 0, parts",
        "loss is not finite"),
    "raises": ("def loss(self, *given):\n        raise KeyError('ctxx')", "loss raised KeyError: 'ctxx' ("),
    "shares what it has not": ("shared_keys = frozenset({'ctxt'})",
        "shared_keys has ctxt, which init does not produce (it produces ctx)"),
    "trains what it has not": (
        "@property\n    def phases(self):\n        return (Phase(frozenset({'nothing'})),)",
        "phases[0].keys has nothing, which init does not produce"),
    "logits of another shape": (
        "def loss(self, params, *rest):\n        return params['ctx'].flatten(1).sum(1), {}\n\n"
        "    def classifier(self, params, frozen):\n        return lambda features: features[..., :1, 0]",
        "classifier gives shape (2, 1), not logits (K, B, C) = (2, 3, "),
    "depends on nothing": (
        "def loss(self, params, received, frozen, batch):\n"
        "        return torch.zeros(2, requires_grad=True) * 1, {}",
        "loss does not depend on 'ctx', which a phase trains"),
    "draws that are no tensors": ("def draws(self, frozen, generator):\n        return {'noise': 1}",
        "draws is a dict, not a dict of tensors"),
    "prepares something that is not of each client": (
        "def server_rule(self, federation):\n"
        "        return PFedMoAP(PFedMoAP.settings_type()).server_rule(federation)\n\n"
        "    def prepare(self, received, frozen):\n        return {'all': received['expert_ids'].sum()}",
        "prepare: 'all' has shape (), not (K, ...) with K = 2, although the server sends something to each client"),
    "a server rule that cannot be made": ("def server_rule(self, federation):\n        raise KeyError('rule')",
        "server_rule raised KeyError: 'rule' ("),
    "a server rule that is none": ("def server_rule(self, federation):\n        return None",
        "server_rule gives a NoneType, which is no server rule: missing name, paper, "),
    "a server rule that gives another shape": (
        "def server_rule(self, federation):\n        return Short(RuleSettings())",
        "the shared parameters from aggregate: 'ctx' has shape and type ((1, 64), "),
    "cannot prepare a round": ("def prepare(self, received, frozen):\n        raise KeyError('more')",
        "prepare raised KeyError: 'more' ("),
    "prepares no tensors": ("def prepare(self, received, frozen):\n        return {'more': 1}",
        "prepare is a dict, not a dict of tensors"),
    "sends another shape after training": (
        "def after_training(self, params, *rest):\n        return {'ctx': params['ctx'][:, :1]}",
        "after_training: 'ctx' has shape and type ((2, 1, 64), "),
    "changes what it has not": (
        "def after_aggregation(self, personal, shared):\n        return shared",
        "after_aggregation has the keys ctx, not none"),
    "clients of another shape": (
        "shared_keys = frozenset()\n\n"
        "    def personal_of(self, client, personal):\n        return {'ctx': personal['ctx'][:1]}",
        "personal_of: 'ctx' has shape and type ((1, 64), "),
    "a need that is no text": ("needs_all_classes = True", "needs_all_classes is True, not a string"),
    "a need that raises": ("@property\n    def needs_all_classes(self):\n        raise KeyError('need')",
        "a member raised KeyError: 'need' ("),
    "an image tower without pixels": ("required_towers = frozenset({'text', 'image'})",
        "required_towers has image, and a cache of pooled features has no pixels for that tower; give image_inputs"),
    "inputs of no kind": ("image_inputs = 'words'", "image_inputs is 'words', not one of pooled, patches, pixels"),
}  # fmt: skip


def planned(folder, body, kind="Own", bases="(PromptFL)"):
    (folder / "broken_method.py").write_text(f"{HEAD}\n\nclass Own{bases}:\n    {body}\n")
    tree = {
        "data": {"name": "shapes"}, "backbone": {"name": "tiny", "weights": "random"}, "protocol": {"shots": 1},
        "partition": {"clients": 2}, "method": {"name": f"broken_method:{kind}"},
        "storage": {"root": str(folder / "store")},
    }  # fmt: skip
    return planning.plan(config.parse(tree))


@pytest.mark.parametrize("fault", BROKEN)
def test_what_cannot_work_is_refused_in_a_line(fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body, message = BROKEN[fault]
    with pytest.raises(ConfigError) as refused:
        planned(tmp_path, body)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "store").exists()


def test_all_missing_members_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        planned(tmp_path, "name = 'own'", bases="")
    assert "broken_method:Own is not a method: missing " in str(refused.value)
    for member in ("init", "loss", "classifier", "shared_keys", "phases", "settings_type", "image_inputs"):
        assert member in str(refused.value)


def test_the_dry_call_changes_no_random_draw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    planned(tmp_path, "pass")
    torch.testing.assert_close(torch.rand(3), expected, atol=0, rtol=0)


def test_the_dry_call_has_what_the_server_rule_sends_and_the_method_prepares(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert planned(tmp_path, "pass", bases="(PFedMoAP)").rule.name == "pfedmoap"


def test_the_dry_call_has_the_random_numbers_of_a_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = """def draws(self, frozen, generator):
        return {"noise": torch.randn(frozen.width, generator=generator)}

    def loss(self, params, received, frozen, batch):
        loss, parts = super().loss(params, received, frozen, batch)
        return loss + (params["ctx"][:, 0] * batch.draws["noise"]).sum(1), parts
    """
    assert planned(tmp_path, body).method.name == "promptfl"

"""The tables of methods and server rules."""

from __future__ import annotations

from types import SimpleNamespace

from pydantic import BaseModel

from fedpgp import server_rules
from fedpgp.analysis.report import listings


def cells(table):
    return {row[0].text.split("\n")[0]: [cell.text for cell in row] for row in table.rows}


def test_methods_list_shared_and_personal_parameters():
    class Settings(BaseModel):
        rank: int = 8
        words: str | None = None

    class Method:
        name, paper, settings_type = "mine", "Someone, 2030", Settings
        shared_keys = frozenset({"ctx"})
        phases = (SimpleNamespace(keys=frozenset({"ctx", "v"})), SimpleNamespace(keys=frozenset({"u"})))

        def __init__(self, settings):
            self.settings = settings

    methods = [("mine", "package own", Method), ("other", "package bad", ValueError("no module bad"))]
    found = cells(listings.method_table(methods, lambda method: (1024, method.settings.rank), "ViT-B/16"))
    assert found["mine"] == ["mine\nSomeone, 2030\n", "package own", "ctx (1,024)", "u, v (8)", "rank: 8\nwords: null"]
    assert found["other"] == ["other\n\n", "package bad", "-", "-", "cannot be used: no module bad"]


def test_rules_list_what_they_need_and_their_settings():
    found = cells(listings.rule_table([*server_rules.available(), ("other", "package bad", ValueError("no module"))]))
    assert list(found) == [*server_rules.REGISTRY.built_in, "other"]
    assert found["fedavg"] == ["fedavg\nMcMahan et al., AISTATS 2017\n", "built in", "a sum", "images", "lr: 1.0"]
    assert found["multi_krum"][2:] == ["every update", "equal", "lr: 1.0\nf: 1\nm: null"]
    assert found["scaffold"][2] == "a sum, and a part of every client's own"
    assert found["other"][1:] == ["package bad", "-", "-", "cannot be used: no module"]

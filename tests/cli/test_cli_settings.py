"""`fedpgp config`: the file that it writes is the defaults with their comments, and the schema takes what we take."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
import yaml

from fedpgp import config, server_rules
from fedpgp.config import Experiment
from fedpgp.core.errors import ConfigError
from fedpgp.data import sources
from fedpgp.experiments import planning
from fedpgp.methods import METHODS

RULES = server_rules.REGISTRY.built_in
SHIPPED = sorted(path.stem for path in (config.shipped_configs() / "experiments").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator():
    kinds = ({name: kind.settings_type for name, kind in built_in.items()} for built_in in (METHODS, RULES))
    tree = config.schema(*kinds, sources.names())
    jsonschema.Draft202012Validator.check_schema(tree)
    return jsonschema.Draft202012Validator(tree)


def keys(tree, prefix=""):
    for key, value in tree.items():
        yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


@pytest.mark.parametrize(
    ("method", "rule"), [*((method, "fedavg") for method in METHODS), *(("promptfl", rule) for rule in RULES)]
)
def test_init_writes_every_key_with_a_comment_and_reads_back_to_the_defaults(fedpgp, tmp_path, method, rule):
    file = tmp_path / "mine.yaml"
    code, out, _ = fedpgp("config", "init", file, f"method.name={method}", f"federation.server.name={rule}")
    assert (code, out) == (0, f"settings: {file}\n")
    tree = {"method": {"name": method}, "federation": {"server": {"name": rule}}}
    complete, _ = planning.settle(config.parse(tree))
    assert config.load(str(file)) == complete
    text = file.read_text(encoding="utf-8")
    assert list(keys(yaml.safe_load(text))) == list(keys(complete.model_dump(mode="json")))
    settings = [line for line in text.splitlines() if re.match(r" *\w+: ", line)]
    values = [line for line in settings if re.match(r" *\w+: \S", line)]  # the others begin a section of a section
    assert len(values) == len(list(keys(yaml.safe_load(text))))
    assert [line for line in settings if not re.search(r"  # \S", line)] == []


def test_what_init_writes_without_a_name_can_be_run(fedpgp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fedpgp("config", "init")[:2] == (0, "settings: experiment.yaml\n")
    written, default = planning.plan(config.load("experiment.yaml")), planning.plan(Experiment())
    assert written.digest == default.digest
    assert "# Run it with: fedpgp run experiment.yaml\n" in (tmp_path / "experiment.yaml").read_text(encoding="utf-8")


def test_init_writes_over_a_file_only_if_told(fedpgp, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\n", encoding="utf-8")
    code, out, err = fedpgp("config", "init", file)
    assert (code, out) == (2, "")
    assert f"{file}: exists; give another name, or --force" in err
    assert file.read_text(encoding="utf-8") == "name: mine\n"
    assert fedpgp("config", "init", file, "--force", "seed=7")[0] == 0
    assert config.load(str(file)).seed == 7


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["HERE/none/mine.yaml"], "HERE/none/mine.yaml: cannot be written (No such file or directory)"),
        (["method.name=coop"], "method.name=coop: a setting; give the file first, then settings"),
        (["HERE/mine.yaml", "method.rnk=3"], "method fedpgp: rnk: unknown key; did you mean rank?"),
    ],
)
def test_init_refuses_what_it_cannot_use_and_writes_nothing(fedpgp, tmp_path, given, told):
    code, _, err = fedpgp("config", "init", *(item.replace("HERE", str(tmp_path)) for item in given))
    assert code == 2
    assert told.replace("HERE", str(tmp_path)) in err
    assert list(tmp_path.iterdir()) == []


def test_schema_prints_it(fedpgp, validator):
    code, out, _ = fedpgp("config", "schema")
    assert code == 0
    assert json.loads(out) == validator.schema


@pytest.mark.parametrize("name", SHIPPED)
def test_the_schema_takes_the_shipped_files(validator, name):
    assert list(validator.iter_errors(config.read_yaml(name))) == []


@pytest.mark.parametrize(
    "given",
    [
        {"fedaration": {}},
        {"federation": {"rounds": 0}},
        {"federation": {"rounds": "many"}},
        {"method": {"name": "fedpg"}},
        {"method": {"name": "coop", "rank": 4}},
        {"method": {"n_ctx": 0}},
        {"federation": {"server": {"name": "krumm"}}},
        {"federation": {"server": {"name": "trimmed_mean", "trim": 0.5}}},
        {"federation": {"server": {"trim": 0.1}}},
        {"data": {"name": "imagnet"}},
        {"storage": {"uri": 3}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_we_refuse(validator, given):
    assert list(validator.iter_errors(given))
    with pytest.raises(ConfigError):
        planning.settle(config.parse(given))


@pytest.mark.parametrize(
    "given",
    [
        {"method": {"name": "my:M", "x": 1}},
        {"data": {"name": "my:D"}},
        {"federation": {"server": {"name": "my:R", "x": 1}}},
    ],
    ids=str,
)
def test_the_schema_takes_classes_from_outside(validator, given):
    validator.validate(given)


def test_every_key_of_the_schema_has_a_comment(validator):
    kinds = validator.schema["$defs"]
    chosen = {
        f"{section} {one['title']}": one
        for section in ("MethodSettings", "ServerSettings")
        for one in kinds.pop(section)["anyOf"]
    }
    assert set(chosen) == {f"MethodSettings {name}" for name in (*METHODS, "MODULE:CLASS")} | {
        f"ServerSettings {name}" for name in (*RULES, "MODULE:CLASS")
    }
    bare = [
        f"{kind}.{key}"
        for kind, tree in {**kinds, **chosen}.items()
        for key, field in tree["properties"].items()
        if not field.get("description")
    ]
    assert bare == []

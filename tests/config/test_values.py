"""Values of overrides: text stands as it is, numbers are read alike everywhere, and nothing is lost silently."""

from pathlib import Path

import pytest
import yaml

from fedpgp import config
from fedpgp.config.reading import read_override
from fedpgp.config.values import Loader, dump_yaml
from fedpgp.core.errors import ConfigError
from fedpgp.experiments.sweeps import sweep_settings


@pytest.mark.parametrize(
    "text",
    [
        "set #2", "2024", "2024-11-28", "yes", "12:30", "0x10", "~", "[old] pets", "!new", "%x", "{x", "a: b", "#",
        "a # b", "*x", "&x y", "- x", "@x", "`x`", "'x", 'say "x"', "True", "1e-4", "x ",
        "{}", "{} #1", "{a: b}", "${HOME}/x", "a=b,c", "C:\\x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["data.root", "storage.root", "tracking.experiment", "data.template", "method.name"])
def test_text_stands_as_it_is(key, text):
    assert read_override(f"{key}={text}") == (key, text)


def test_a_folder_of_any_name_is_the_root():
    for name in ("set #2", "2024", "yes"):
        assert config.load("shapes", [f"data.root=/data/{name}"]).data.root == Path(f"/data/{name}")
        assert config.load("shapes", [f"data.root={name}"]).data.root == Path(name)


def test_quotes_null_and_search_terms_keep_their_meaning():
    assert read_override("data.root='set #2'") == ("data.root", "set #2")
    assert read_override('data.root="a\\tb"') == ("data.root", "a\tb")
    assert read_override("data.root=null") == ("data.root", None)
    assert read_override("data.root=") == ("data.root", None)
    terms = read_override("data.root={grid_search: [2024, 'set #2']}")
    assert terms == ("data.root", {"grid_search": ["2024", "set #2"]})


def test_lists_of_names_consist_of_text():
    assert read_override("data.class_names=[1, yes, 2024-11-28, ~]")[1] == ["1", "yes", "2024-11-28", "~"]
    assert read_override('data.class_names=["a #1", b]')[1] == ["a #1", "b"]


@pytest.mark.parametrize(
    "item",
    ["federation.rounds=5 # x", "method.ctx_init=a photo of a # b", "data.class_names=[a] #1", "seed=# 3",
     "data.root={choice: [a] } # b", "method.ctx_init='a' # b"],
)  # fmt: skip
def test_what_a_comment_would_swallow_is_refused(item):
    with pytest.raises(ConfigError, match="what follows # would be lost") as caught:
        read_override(item)
    assert repr(item) in str(caught.value)


def test_a_number_is_a_number_everywhere(tmp_path):
    for text in ("1e-4", "1.0e-4", "0.0001", "1E-4", "1.e-4", "+1e-4"):
        assert read_override(f"federation.lr={text}") == ("federation.lr", 1e-4)
        assert read_override(f"method.mu={{uniform: [{text}, 1e2]}}")[1] == {"uniform": [1e-4, 100.0]}
        path = tmp_path / "experiment.yaml"
        path.write_text(f"federation: {{lr: {text}}}\nmethod: {{name: fedpgp, mu: {text}}}\n")
        loaded = config.load(str(path))
        assert loaded.federation.lr == loaded.method.settings["mu"] == 1e-4
    for text in ("e4", "1e", "1e-4x", "v1e4", "1-e4", "-e4"):
        assert read_override(f"method.ctx_init={text}") == ("method.ctx_init", text)


@pytest.mark.parametrize("name", ["1e5", "12E3", "1e-4", "5.e1"])
def test_text_that_looks_like_a_number_is_read_as_it_was_written(name, tmp_path):
    written = config.parse({"name": name, "data": {"class_names": {name: "a", "b": name}}})
    assert config.load_yaml(config.dump(written)) == written.model_dump(mode="json")
    path = tmp_path / "experiment.yaml"
    path.write_text(config.dump(written))
    assert config.load(str(path)) == written


@pytest.mark.parametrize("given", ["2024", "0x10", "1e4", "010", "true"])
def test_a_file_is_told_to_quote_text_that_yaml_reads_as_something_else(tmp_path, given):
    path = tmp_path / "experiment.yaml"
    path.write_text(f"data: {{name: folder, root: {given}}}\ntracking: {{experiment: {given}}}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(str(path))
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}: data.root: Input should be a valid string (given: ")
    assert second.startswith(f"{path}: tracking.experiment: Input should be a valid string (given: ")
    assert first.endswith("; in a file, write it in quotes")
    path.write_text(f"data: {{name: folder, root: '{given}'}}\n")
    assert config.load(str(path)).data.root == Path(given)


@pytest.mark.parametrize("given", ["2024-11-28", "2024-13-45", "yes", "no", "on", "12:30", "1:30:15", "N"])
def test_text_of_yaml_1_2_is_text_in_a_file(tmp_path, given):
    """YAML 1.1 reads dates, truth values and numbers to base 60; the last two were numbers of rounds without a word."""
    path = tmp_path / "experiment.yaml"
    path.write_text(f"data: {{name: folder, root: {given}, class_names: [a, {given}]}}\n")
    data = config.load(str(path)).data
    assert (data.root, data.class_names) == (Path(given), ("a", given))
    for number in ("federation.rounds", "federation.lr", "seed"):
        with pytest.raises(ConfigError, match=f"{number}: Input should be a valid .*given: '{given}'"):
            config.load("shapes", [f"{number}={given}"])


@pytest.mark.parametrize(
    ("text", "number"), [("010", 10), ("08", 8), ("0o10", 8), ("0x10", 16), ("0b11", 3), ("1_000", 1000), ("+7", 7)]
)
def test_a_leading_zero_does_not_make_a_number_octal(tmp_path, text, number):
    path = tmp_path / "experiment.yaml"
    path.write_text(f"federation: {{rounds: {text}, lr: {text}}}\n")
    loaded = config.load(str(path)).federation
    assert (loaded.rounds, loaded.lr) == (number, number)
    assert read_override(f"seed={text}") == ("seed", number)


@pytest.mark.parametrize(
    "text", ["yes", "on", "1e-4", "010", "0o17", "12:30", "2024-11-28", "null", "~", "true", "a # b", "", "1_0", "<<"]
)
def test_text_that_is_written_is_read_as_text_by_any_loader(text):
    written = dump_yaml({"text": text, text: [text, None, True, 1e-4, 10]})
    expected = {"text": text, text: [text, None, True, 1e-4, 10]}
    assert yaml.load(written, Loader) == expected
    assert yaml.safe_load(written) == expected


@pytest.mark.parametrize("text", ["!!int x", "!!timestamp 2024-13-45", "!!float x", "[" * 5000])
def test_an_explicit_type_that_does_not_fit_is_refused(tmp_path, text):
    path = tmp_path / "experiment.yaml"
    path.write_text(f"federation:\n  rounds: {text}\n")
    with pytest.raises(ConfigError, match=r"experiment\.yaml: not readable as YAML: "):
        config.load(str(path))
    with pytest.raises(ConfigError, match="the value is not readable as YAML"):
        read_override(f"federation.rounds={text}")


def test_a_setting_that_is_given_twice_is_said(caplog):
    loaded = config.load("shapes", ["federation.rounds=1", "seed=2", "federation.rounds=3", "seed=2"])
    assert loaded.federation.rounds == 3
    assert caplog.messages == ["federation.rounds=1: not used, because federation.rounds=3 is given later"]
    caplog.clear()
    sweep, _ = sweep_settings.load("shapes", ["method.rank=1", "base.method.rank=2"])
    assert sweep.base["method"]["rank"] == 2
    assert caplog.messages == ["method.rank=1: not used, because base.method.rank=2 is given later"]

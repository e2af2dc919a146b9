"""Every command and Python example of the README runs: here, scaled down, or in a test that is named below."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PROGRAMS = ("fedpgp", "make", "mlflow", "ray")
LINES = [line.split("  #")[0].strip() for _, block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.split(" ")[0] in PROGRAMS]

SMALL = (
    "protocol.shots=1 partition.clients=2 method.n_ctx=1 federation.rounds=1 federation.local_epochs=1 "
    "resources.backend=serial tracking.mlflow=false"
)
HERE = {
    "fedpgp run icons": f"fedpgp run icons {SMALL} data.name=shapes backbone.name=tiny backbone.weights=random",
    "fedpgp config init my.yaml": "fedpgp config init fresh.yaml",
    "fedpgp run my.yaml federation.rounds=25 method.rank=4": "fedpgp run my.yaml federation.rounds=1 method.rank=4",
    "fedpgp run my.yaml --resume": "",
    "fedpgp features my.yaml [--dry-run]": "fedpgp features my.yaml --dry-run",
    "fedpgp compare RUN_A RUN_B": "",
    "fedpgp methods [--server]": "fedpgp methods --server",
    "fedpgp methods --notes pfedmoap": "",
    "fedpgp runs": "",
    "fedpgp doctor [my.yaml]": "fedpgp doctor my.yaml",
    "fedpgp sweep rank_mu_tau_shots --dry-run": "",
    "fedpgp sweep rank_mu_tau_shots method.tau=0.5 protocol.shots=16": (
        "fedpgp sweep rank_mu_tau_shots method.tau=0.5 protocol.shots=16 --dry-run"
    ),
    "fedpgp report fedpgp-store/sweeps/demo-* --out report": "fedpgp report RUN_A RUN_B --out report --format md",
    "fedpgp data check dtd --root /data/dtd": "fedpgp data check folder --root photos",
    "fedpgp data show my.yaml": "",
    "fedpgp export RUN_DIR --client 3 --out bedroom": "fedpgp export RUN_A --client 1 --out bedroom",
    'fedpgp predict --prompt bedroom/prompt.safetensors photo.png [--classes "rocket,plane,train"]': (
        'fedpgp predict --prompt bedroom/prompt.safetensors photo.png --classes "rocket,plane,train"'
    ),
    "fedpgp check-upload": "fedpgp check-upload photos",
}
"""A command, and the same scaled down ("": unchanged), run in this order in a folder with `my.yaml` and photos."""

ELSEWHERE = {
    "fedpgp reproduce --list": "analysis/reproduce/test_cli_reproduce.py::test_the_list_needs_no_table_and_no_data",
    "make demo": "the file Makefile, and experiments/sweeps/test_shipped_sweeps.py::test_it_runs",
    "make test": "the file Makefile",
    "fedpgp reproduce table1 --root /data": (
        "analysis/reproduce/test_reproduce_planning.py::test_every_table_is_planned_as_shipped"
    ),
    "fedpgp reproduce table4 --root /data --out table4": (
        "analysis/reproduce/test_cli_reproduce.py::test_table_4_on_the_folders_of_its_data_set"
    ),
    "fedpgp reproduce table5 --smoke": (
        "analysis/reproduce/test_cli_reproduce.py::test_the_smoke_of_every_table_ends_with_all_its_cells"
    ),
    "fedpgp report fedpgp-store/sweeps/demo-* --baseline PromptFL": "cli/test_cli_report.py",
    "fedpgp data prepare dtd --root /data/dtd": "data/test_prepare.py",
    "mlflow models predict": "export/test_exporting.py::test_mlflow_predicts_with_names_that_are_given_with_the_images",
    "fedpgp run my.yaml --detach resources.address=auto": (
        "cluster/test_jobs.py::test_a_detached_run_is_left_attached_and_stopped"
    ),
    "fedpgp attach DRIVER": "cluster/test_jobs.py::test_a_detached_run_is_left_attached_and_stopped",
    "fedpgp stop DRIVER": "cluster/test_jobs.py::test_a_detached_run_is_left_attached_and_stopped",
    "ray start --head": "cluster/test_jobs.py::head",
    "ray start --address": "federation/backends/test_nodes.py::nodes",
    "ray job submit": "cluster/test_jobs.py::test_a_submitted_sweep_is_followed_and_mirrored",
    "ray submit": "test_pipelines.py::test_the_cluster_file_is_one_that_ray_takes",
    "fedpgp ui": "tracking/test_views.py::test_the_newest_sweep_comes_first_with_its_trials_best_first",
}
"""The beginning of a command, and the test or fixture that runs it or an equivalent."""

PYTHON = {
    '"icons", "method.rank=4", "federation.rounds=10"': '"my.yaml"',
    "client=3": "client=1",
    '"rank_mu_tau_shots"': '"sweep.yaml"',
    'baseline="promptfl"': 'baseline="fedpgp"',
}
"""Parts of the Python examples, and what replaces them to scale the examples down."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small experiment, a small sweep and some photos."""
    settings = {
        "data": {"name": "shapes"}, "backbone": {"name": "tiny", "weights": "random"}, "partition": {"clients": 2},
        "protocol": {"shots": 1}, "method": {"name": "fedpgp", "n_ctx": 4, "rank": 1},
        "federation": {"rounds": 1, "local_epochs": 1}, "resources": {"backend": "serial"},
        "tracking": {"mlflow": False},
    }  # fmt: skip
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"base": "my.yaml", "space": {"method.mu": {"grid_search": [0.5]}}})
    )
    for label, name in enumerate(("cat", "dog", "emu", "fox")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8), (60 * label, 12 * number, 99)).save(tmp_path / "photos" / name / f"{number}.png")
    Image.new("RGB", (40, 30), (200, 100, 0)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def functions(file):
    """The names of the functions in a file below `tests`."""
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_test_runs_the_command(command):
    by = [test for start, test in ELSEWHERE.items() if command.startswith(start)]
    assert command in HERE or by, f"no test runs `{command}`: scale it down in HERE, or name a test in ELSEWHERE"
    for test in by[:1]:
        file, _, name = test.partition("::")
        if not file.startswith("the file"):
            assert not name or name in functions(file)


def test_every_mapped_command_is_in_the_readme():
    assert set(HERE) <= set(COMMANDS)
    assert [start for start in ELSEWHERE if not any(command.startswith(start) for command in COMMANDS)] == []


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(folder, fedpgp):
    made = []
    for command, small in HERE.items():
        line = small or command
        for name, run in zip(("RUN_A", "RUN_B"), made, strict=False):
            line = line.replace(name, run)
        code, out, err = fedpgp(*shlex.split(line)[1:])
        assert code == 0, f"{line}\n{out}{err}"
        made += [str(run) for run in sorted((folder / "fedpgp-store" / "runs").glob("*")) if str(run) not in made]
    assert (folder / "report").is_dir()
    assert (folder / "bedroom" / "prompt.safetensors").is_file()


@pytest.mark.slow
def test_the_python_examples_run(folder, ray_cluster):
    code = "\n".join(
        block for language, block in BLOCKS if language == "python" and "fedpgp." in block and "class " not in block
    )
    for given, small in PYTHON.items():
        assert given in code
        code = code.replace(given, small)
    names = {}
    exec(code, names)
    assert len(names["run"].rounds) == 1
    assert [run.state for run in names["runs"]] == ["finished"]
    assert list(folder.glob("report/report.html"))


def test_the_tests_named_in_the_benchmarks_exist():
    named = re.findall(r"`([\w/]+\.py)?::(\w+)`", (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8"))
    file, missing = "", []
    for given, name in named:
        file = given or file
        missing += [name] if name not in functions(file) else []
    assert len(named) > 10
    assert missing == []


def test_it_is_short():
    assert len(README.splitlines()) <= 300


@pytest.mark.parametrize("name", ["README.md", "pipelines/README.md", "CONTRIBUTING.md", "BENCHMARKS.md"])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or ((ROOT / name).parent / target).exists(), target


def test_sections_that_are_referred_to_exist():
    headings = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)", README, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings

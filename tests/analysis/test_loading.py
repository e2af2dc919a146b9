"""Runs on disk become groups; runs that do not compare are refused or marked."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pytest

from fedpgp.analysis import loading
from fedpgp.analysis.comparison import repeated_over
from fedpgp.analysis.loading import Entry, compare, find, pair, read
from fedpgp.analysis.report import comparison_figures as figures_of_groups
from fedpgp.analysis.report import comparison_tables, figures
from fedpgp.core.errors import RunError, UserError
from fedpgp.federation.metrics import CLIENT_SCHEMA
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold, FoldRun, Result, SweepFolder, TrialSpec

HM = {"test_hm": [50, 60]}
PROMPTFL = ["method.name=promptfl"]


def strict(*paths):
    return [Entry(path, strict=True) for path in paths]


def test_a_run_is_read_from_its_rows(made_run):
    run = read(made_run("seed=3", "data.root=/anywhere", "resources.actors=7", test_hm=[50, 60], val_local=[70, 65]))
    assert run.fold == Fold(3, None)
    assert run.metrics["test/hm"] == {"last": 60.0, "mean_last_5": 55.0, "max": 60.0}
    assert run.metrics["val/local"] == {"last": 65.0, "mean_last_5": 67.5, "max": 70.0}
    assert run.settings["method.name"] == "fedpgp"
    hidden = {"seed", "data.root", "protocol.held_out", "backbone.weights", "resources.actors", "name"}
    assert not hidden & run.settings.keys()


def test_runs_on_different_data_are_refused_with_the_differences(made_run):
    paths = [made_run(**HM), made_run(*PROMPTFL, "partition.clients=5", **HM)]
    with pytest.raises(RunError, match=r"partition\.clients is 10 and 5; `--allow-mismatch` compares them, marked"):
        compare(strict(*paths))
    found = compare(strict(*paths), allow_mismatch=True)
    assert [one.marks for one in found.groups] == [(), ("another partition than fedpgp, clients=10",)]
    assert found.labels == ["fedpgp, clients=10", "promptfl, clients=5"]
    assert len(found.scenarios) == 1


def test_equal_settings_with_another_partition_are_refused(made_run):
    paths = [made_run(**HM), made_run(*PROMPTFL, partition="other", **HM)]
    with pytest.raises(RunError, match="different partitions, p1 and other"):
        compare(strict(*paths))
    assert compare(strict(*paths), allow_mismatch=True).groups[1].marks == ("another partition than fedpgp",)


@pytest.mark.parametrize(("state", "told"), [("failed", "failed: disk full"), ("running", "running")])
def test_a_run_that_has_not_finished_is_refused_left_out_or_marked(made_run, state, told):
    done, other = made_run(**HM), made_run(*PROMPTFL, state=state, **HM)
    with pytest.raises(RunError, match=rf"has not finished \({told}\); `--allow-mismatch`"):
        compare(strict(done, other))
    left = compare([Entry(done), Entry(other)])
    assert (left.labels, left.notes) == (["fedpgp"], (f"left out: {other.name} ({told})",))
    marked = compare(strict(done, other), allow_mismatch=True)
    assert marked.groups[1].marks == (f"seed 1: {state}",)


def test_a_run_without_an_evaluation_is_always_refused(made_run):
    empty = made_run(state="running")
    with pytest.raises(RunError, match="no evaluation"):
        compare(strict(empty), allow_mismatch=True)
    with pytest.raises(RunError, match="no finished run to compare; left out"):
        compare([Entry(empty)])


def test_runs_of_different_versions_are_refused_or_marked(made_run):
    paths = [made_run(**HM), made_run(*PROMPTFL, version="0.9", **HM)]
    with pytest.raises(RunError, match=r"different versions of fedpgp, 1 and 0\.9"):
        compare(strict(*paths))
    assert compare(strict(*paths), allow_mismatch=True).groups[1].marks == ("fedpgp 0.9 and 1",)


def test_a_run_of_a_version_with_other_settings_is_refused(made_run):
    path = made_run(version="0.2", **HM)
    (path / "config.yaml").write_text("federation: {gossip: true}\n")
    with pytest.raises(RunError, match=r"made by fedpgp 0\.2.*federation\.gossip: unknown key"):
        compare(strict(path), allow_mismatch=True)


def test_the_newer_of_two_equal_runs_counts_and_the_same_folder_counts_once(made_run):
    old, new = made_run(test_hm=[50]), made_run(test_hm=[60])
    found = compare(strict(old, new, new))
    assert found.groups[0].statistic("hm").by_seed == {1: 60.0}
    assert found.notes == (f"left out: {old.name}, since {new.name} is newer",)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        compare(strict(tmp_path))


def on_splits(made_run, *given, splits=(1, 2), seeds=(1,), more=None, **hm):
    """Runs on several splits of the same data, by default with HM 50 + seed + 10 split."""
    return [
        made_run(
            f"seed={seed}", f"data.split_seed={split}", *given, name=f"x{seed}-{split}", partition=f"p{seed}-{split}",
            more={"manifest_digest": f"m{split}", **(more or {})}, test_hm=[hm.get("hm", 50) + seed + 10 * split],
        )
        for seed in seeds
        for split in splits
    ]  # fmt: skip


def test_runs_on_several_splits_form_a_group_and_are_paired_by_seed_and_split(made_run):
    ours = on_splits(made_run, seeds=(1, 2))
    theirs = on_splits(made_run, *PROMPTFL, seeds=(1, 2), splits=(2, 1), hm=40)
    found = compare(strict(*ours, *theirs))
    assert found.notes == ()
    first, second = found.groups
    assert list(first.runs) == [Fold(1, None, 1), Fold(1, None, 2), Fold(2, None, 1), Fold(2, None, 2)]
    assert first.statistic("hm").by_seed == {(1, 1): 61, (1, 2): 71, (2, 1): 62, (2, 2): 72}
    assert (first.scenario, first.seeds) == ("", [(1, 1), (1, 2), (2, 1), (2, 2)])
    assert not {"data.split_seed", "data.digest"} & first.settings.keys()
    assert found.difference(first, "promptfl", "hm").by_seed == dict.fromkeys(first.seeds, 10)
    assert second.label == "promptfl"
    assert "deviation over seeds and splits (ddof 1)" in comparison_tables.accuracies(found, "").caption
    assert "deviation over seeds and splits" in figures_of_groups.bars(found.groups, ["hm"]).axes[0].get_title()
    assert repeated_over(compare(strict(*on_splits(made_run))).groups) == "splits"


def test_a_missing_split_is_named(made_run):
    found = compare([Entry(path) for path in [*on_splits(made_run), *on_splits(made_run, *PROMPTFL, splits=(1,))]])
    assert found.missing() == ["promptfl: no run of seed 1, split 2"]


def test_runs_on_one_split_have_no_split(made_run):
    (group,) = compare(strict(*on_splits(made_run, splits=(2,), seeds=(1, 2)))).groups
    assert group.seeds == [1, 2]
    assert group.settings["data.split_seed"] == 2


@pytest.mark.parametrize(
    "more",
    [
        {"manifest_digest": "m"},  # a split of their own: the runs are the same
        None,  # other settings of the data
    ],
)
def test_other_data_are_no_other_split(made_run, more):
    given = [] if more else ["data.val_fraction=0.1"]
    (one,) = on_splits(made_run, splits=(1,), more=more)
    (two,) = on_splits(made_run, *given, splits=(2,), more=more)
    with pytest.raises(RunError, match=r"differ in data, partition or protocol: .*data\.split_seed is 1 and 2"):
        compare(strict(one, two))


def test_replaced_images_are_no_other_split(made_run):
    (one,) = on_splits(made_run, splits=(1,), more={"content_digest": "then"})
    (two,) = on_splits(made_run, splits=(2,), more={"content_digest": "now"})
    with pytest.raises(RunError, match="differ in data"):
        compare(strict(one, two))


def test_splits_of_the_parts_of_a_union(made_run):
    def on(*splits):
        parts = [{"name": "shapes", "title": name, "split_seed": one} for name, one in zip("ab", splits, strict=True)]
        return made_run(
            "data.name=union", f"data.parts={json.dumps(parts)}", name="u" + "".join(map(str, splits)), test_hm=[50],
            partition=str(splits), more={"manifest_digest": str(splits)},
        )  # fmt: skip

    (group,) = compare(strict(on(1, 1), on(2, 2))).groups
    assert group.seeds == [(1, 1), (1, 2)]
    with pytest.raises(RunError, match="differ in data"):
        compare(strict(on(1, 1), on(1, 2)))


def test_a_pair_on_different_splits_is_refused(made_run):
    with pytest.raises(RunError, match=r"different partitions \(seed 1, split 1 and seed 1, split 2\)"):
        pair(*on_splits(made_run))


@pytest.fixture
def sweep(made_run, tmp_path):
    """Two variants by two ranks, seeds 1 and 2: one trial has not run, one failed in its second fold."""
    folds = (Fold(1), Fold(2))
    settings = [("A", 1), ("A", 2), ("A and more", 1), ("A and more", 2)]
    trials = [
        TrialSpec(f"t{n}", f"{name}, rank={rank}", {"method.rank": rank}, folds)
        for n, (name, rank) in enumerate(settings)
    ]
    folder = SweepFolder.create(
        tmp_path / "store",
        "s",
        "d",
        "variants: {A: {}, A and more: {federation.lr: 0.5}}\n",
        Objectives(("val/hm",)),
        trials,
    )
    for number, seeds in ((0, (1, 2)), (1, (1, 2)), (2, (1,))):
        name, rank = settings[number]
        given = [f"method.rank={rank}", f"name=n{number}", f"federation.lr={1 + len(name)}"]
        runs = [FoldRun(seed, None, made_run(f"seed={seed}", *given, **HM).name) for seed in seeds]
        state = "finished" if len(seeds) == 2 else "failed"
        folder.record(Result(f"t{number}", state, 1.0, tuple(runs), "loss is nan" if state == "failed" else None))
    return folder.path


def test_a_sweep_is_called_by_its_variants_and_what_it_lacks_is_named(sweep):
    found = find([sweep]).compare()
    assert [(one.label, one.seeds) for one in found.groups] == [
        ("A, rank=1", [1, 2]),
        ("A, rank=2", [1, 2]),
        ("A and more", [1]),
    ]
    assert found.selected == ("val/hm",)
    assert found.notes == (
        "trial A and more, rank=1: failed: loss is nan",
        "trial A and more, rank=1: no run of seed 2",
        "trial A and more, rank=2: has not run",
    )
    assert found.missing() == ["A and more: no run of seed 2"]


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("trials.json", "[]", "trials.json: damaged or not written by fedpgp"),
        ("trials.json", '{"trials": ["t0"]}', "trials.json: damaged or not written by fedpgp: trials: 0: "),
        ("trials/t0.json", "{}", "t0.json: damaged or not written by fedpgp: state: "),
        ("trials/t0.json", "{", "t0.json: damaged or not written by fedpgp: Invalid JSON"),
        ("sweep.yaml", "- 1", "sweep.yaml: expected a mapping"),
        ("sweep.yaml", "a: {", "sweep.yaml: not readable as YAML"),
    ],
)
def test_a_damaged_sweep_is_refused_by_name(sweep, file, content, told):
    (sweep / file).write_text(content)
    with pytest.raises(UserError, match=re.escape(told)):
        find([sweep])


def test_a_storage_root_gives_its_runs_in_the_order_in_which_they_were_made(made_run, tmp_path):
    first = made_run("name=zz", **HM)
    made_run("name=aa", *PROMPTFL, **HM)
    found = find([tmp_path / "store"])
    assert found.entries[0].path == first
    assert [entry.strict for entry in found.entries] == [False, False]
    with pytest.raises(RunError, match="not a run folder or a sweep folder, nor a storage root"):
        find([tmp_path])


def test_a_pair_must_hold_the_same_images(made_run):
    a, b, other = made_run(**HM), made_run(*PROMPTFL, **HM), made_run("seed=2", **HM)
    ours, theirs, marks = pair(a, b)
    assert (ours.path, theirs.path, marks) == (a, b, [])
    with pytest.raises(RunError, match=r"different partitions \(seed 1 and seed 2\)"):
        pair(a, other)
    assert len(pair(a, other, allow_mismatch=True)[2]) == 1


def says(key, value):
    """Change a key of identity.json."""

    def damage(run):
        path = run / "identity.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return damage


def lacks_created_ms(run):
    path = run / "identity.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "created_ms"})
    )


WRONG = "identity.json: damaged or not written by fedpgp: "
DAMAGE = {
    f"{WRONG}client_names: ": says("client_names", 3),
    f"{WRONG}client_names: 0: ": says("client_names", [["anna"]]),
    f"{WRONG}versions: ": says("versions", ["1"]),
    f"{WRONG}created_ms: ": says("created_ms", None),
    f"{WRONG}Input should be an object": lambda run: (run / "identity.json").write_text("[]"),
    f"{WRONG}Invalid JSON": lambda run: (run / "identity.json").write_bytes(b"\xff\xfe"),
    "identity.json: damaged or not written by fedpgp: missing key 'created_ms'": lacks_created_ms,
    "status.json: damaged or not written by fedpgp: state: ": lambda run: (run / "status.json").write_text("{}"),
    "status.json: cannot be read (No such file or directory)": lambda run: (run / "status.json").unlink(),
    "config.yaml: no such file": lambda run: (run / "config.yaml").unlink(),
    "config.yaml: not readable as YAML": lambda run: (run / "config.yaml").write_text("a: {b"),
    "config.yaml: cannot be read as UTF-8": lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("told", DAMAGE)
def test_a_damaged_run_is_refused_by_name_and_hides_no_other_in_a_folder(made_run, tmp_path, told):
    good, bad = made_run(**HM), made_run(*PROMPTFL, **HM)
    DAMAGE[told](bad)
    if DAMAGE[told] is not lacks_created_ms:  # which only the order of runs in a folder needs
        with pytest.raises(RunError, match=re.escape(told)):
            compare(strict(good, bad))
    found = find([tmp_path / "store"]).compare()
    assert found.labels == ["fedpgp"]
    assert [note for note in found.notes if told in note and note.startswith("left out: ")]


def test_rows_of_unknown_clients_are_refused(made_run):
    row = {"round": 1, "client": 2, "split": "test", "metric": "local", "correct": 1, "total": 2}
    run = made_run(state="running", test_local=[50], clients=pa.Table.from_pylist([row], CLIENT_SCHEMA))
    with pytest.raises(RunError, match=r"has rows of more clients than the 2 named in identity\.json"):
        RunFolder.open(run).clients()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a,b\n1,2\n", "Column 'client'"),
        ("client,split,class,domain,images\nanna,train,cat,x,many\n", "many"),
        ("", "Empty CSV"),
    ],
)
def test_a_damaged_partition_table_is_refused(made_run, content, told):
    run = made_run(**HM)
    (run / "partition.csv").write_text(content)
    with pytest.raises(RunError, match=rf"partition\.csv: cannot be read .*{told}"):
        _ = RunFolder.open(run).partition


def test_a_curve_is_the_mean_over_runs_in_the_rounds_that_all_have(made_run):
    paths = [made_run("seed=1", test_hm=[50, 60, 70]), made_run("seed=2", test_hm=[52, 64])]
    (group,) = compare([Entry(path) for path in paths]).groups
    curve = loading.curve(group, "hm")
    assert (curve.rounds, curve.mean, curve.megabytes) == ([1, 2], [51.0, 62.0], [3.0, 6.0])  # 1 up and 2 down a round
    assert curve.std == pytest.approx([2**0.5, 8**0.5])
    assert loading.curve(group, "novel") is None


def test_clients_by_name(made_run, counts):
    run = made_run(test_local=[65], clients=counts(local=[6, 7], held_out=[None, 3]))
    assert loading.client_accuracies(run, "local") == {"anna": 60.0, "ben": 70.0}
    assert loading.client_accuracies(run, "held_out") == {"ben": 30.0}
    assert loading.client_accuracies(run, "novel") == {}


def test_the_held_out_matrix_is_the_mean_over_seeds(made_run, counts):
    lodo = ["protocol.name=leave_one_domain_out", "partition.scheme=domain", "partition.clients=null"]
    entries = []
    for domain, seed, both in (("photo", 1, [2, 4]), ("photo", 2, [4, 4]), ("art", 1, [None, 9])):
        fold = [*lodo, f"protocol.held_out={domain}", f"seed={seed}"]
        entries.append(Entry(made_run(*fold, test_held_out=[1], clients=counts(held_out=both))))
    (group,) = compare(entries).groups
    assert loading.held_out_accuracies(group) == {"photo": {"anna": 30.0, "ben": 40.0}, "art": {"ben": 90.0}}
    assert figures._pooled_clients([group], "held_out") == {group.label: [90.0, 20.0, 40.0, 40.0, 40.0]}


def recorded(path, **identity):
    """The run, with more in its identity."""
    file = path / "identity.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **identity}))
    return path


def test_runs_on_replaced_images_are_runs_on_other_data(made_run):
    first, second = (recorded(made_run(name=name, **HM), content_digest=name) for name in ("one", "two"))
    with pytest.raises(RunError, match=r"differ in data, partition or protocol: data\.content is one and two"):
        compare(strict(first, second))
    with pytest.raises(RunError, match=r"data\.content is one and two"):
        pair(first, second)
    found = compare([Entry(first), Entry(second)])
    assert list(found.scenarios) == ["content=one", "content=two"]
    marked = compare(strict(first, second), allow_mismatch=True)
    assert marked.groups[1].marks == (f"other images than {marked.groups[0].label}",)


def test_runs_that_recorded_no_images_compare_as_before(made_run):
    """Only where two are recorded for the same data, a run without one may be on either."""
    old, one = made_run(*PROMPTFL, **HM), recorded(made_run(**HM), content_digest="one")
    found = compare(strict(old, one))
    assert [group.scenario for group in found.groups] == ["", ""]
    two = recorded(made_run("method.name=coop", **HM), content_digest="two")
    assert list(compare([Entry(path) for path in (old, one, two)]).scenarios) == [
        "content=null", "content=one", "content=two",
    ]  # fmt: skip


def test_other_versions_and_rounds_made_with_them_are_noted(made_run):
    one = recorded(made_run(*PROMPTFL, test_hm=[1, 2, 3]), versions={"fedpgp": "1", "torch": "2.3"})
    two = recorded(made_run(test_hm=[1, 2, 3]), versions={"fedpgp": "1", "torch": "2.3"})
    assert compare(strict(one, two)).notes == ()
    RunFolder.open(two).continue_with(3, {"versions": {"torch": "2.5"}})
    expected = (
        "made with different torch (2.3, 2.5), which may change a number a little",
        f"{two.name}: rounds 1-2: torch 2.3; rounds 3-3: torch 2.5",
    )
    assert compare(strict(one, two)).notes == expected
    assert pair(one, two)[2] == list(expected)

"""Invalid inputs and the error message of each, compared with the recorded list in `BAD_INPUTS.md`.

After an intended change of a message, `make bad-inputs` regenerates the list. Text that comes from another library
(pydantic, PyYAML, pyarrow, ...) is recorded as `...`, which matches anything: a new version of it changes no test.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

LIST = Path(__file__).with_name("BAD_INPUTS.md")
REWRITE = "FEDPGP_REWRITE_BAD_INPUTS"
FOREIGN = [
    r"(Input|String|Tuple|List|Value) should .*?(?= \(given: )",  # pydantic
    r"while (parsing|scanning) a .*",  # PyYAML
    r"could not determine a constructor .*",
    r"'utf-8' codec .*?(?=\))",  # Python
    r"Parquet magic bytes .*?(?=\);)",  # pyarrow
    r"Unrecognized filesystem type .*?(?=;)",
    r"(?<=, more than )\d+",  # Pillow
    r"Error while deserializing .*?(?=\))",  # safetensors
    r"(?<=\()No such file or directory",  # the operating system
    r"(?<=\(tags: ).*(?=\))",  # open_clip: its models and their settings
    r"ViT-B-16 or ViT-.*(?=\?)",
    r"hf_tokenizer_name=.*?(?=\))",
    r"(?<=missing: )positional_embedding.*?(?=;)",
    r"(?<=SHA-256 )[0-9a-f]{64}",  # of a file that torch writes
]
"""What other libraries say in our messages, by its beginning."""
SMALL = (
    "protocol.shots=1 partition.clients=2 method.n_ctx=1 method.rank=1 federation.rounds=1 federation.local_epochs=1 "
    "resources.backend=serial tracking.mlflow=false storage.root=HERE/store"
)
RUN = f"run shapes {SMALL}"
NOISY = "privacy.level=client privacy.noise_multiplier=1"
TINY = "backbone.name=tiny backbone.activation=gelu"
OIL = "protocol.name=leave_one_domain_out partition.scheme=domain partition.clients=null protocol.held_out=oil"
PHOTOS = "data.name=folder data.root=HERE"
UNION = 'data.name=union data.parts=[{"name":"shapes"},{"name":"folder","title":"own"'
PARTS = f'{UNION},"root":"HERE/photos"}}]'
CROSS = f"{PARTS} protocol.name=cross_data"

CASES = {
    "Settings": [
        "run nothing",
        "run HERE/binary.yaml",
        "run HERE/list.yaml",
        "run HERE/torn.yaml",
        "run HERE/twice.yaml",
        "run HERE/python.yaml",
        f"{RUN} federation.round=3",
        f"{RUN} fedaration.rounds=3",
        f"{RUN} rounds",
        f"{RUN} =3",
        f"{RUN} method.rank=[1",
        f"{RUN} federation.rounds=-1",
        f"{RUN} federation.rounds=many",
        f"{RUN} federation.rounds=2.5",
        f"{RUN} federation.lr=.nan",
        f"{RUN} federation.participation=2",
        f"{RUN} federation=fast",
        f"{RUN} federation.lr_step_rounds=3",
        f"{RUN} federation.lr_schedule_per=step",
        f"{RUN} federation.lr_warmup_rounds=2",
        f"{RUN} federation.straggler=0.5",
        f"{RUN} federation.dropout_keeps_personal=false",
        f"{RUN} federation.dropout=1",
        f"{RUN} federation.new_client_epochs=2",
        f"{RUN} federation.attack=sign_flip",
        f"{RUN} federation.attack.kind=sign_flip",
        f"{RUN} federation.attack.kind=flip federation.attack.fraction=0.2",
        f"{RUN} federation.attack.kind=label_flip federation.attack.fraction=0.2 federation.attack.scale=2",
        f"{RUN} federation.attack.kind=gaussian federation.attack.fraction=0.2 federation.attack.start_round=2",
        f"{RUN} federation.attack.kind=gaussian federation.attack.fraction=0.2 partition.clients=1",
        f"{RUN} partition.unseen_clients=0.2 partition.clients=1",
        f"{RUN} partition.unseen_clients=0.5 method.name=coop".replace(" method.rank=1", ""),
        f"{RUN} seed=-1",
        f"{RUN} name=a/b",
        f"{RUN} name=../up",
        f"{RUN} method.name=fedpg",
        f"{RUN} method.rnk=3",
        f"{RUN} method.rank=0",
        f"{RUN} method.rank=100000",
        f"{RUN} method.n_ctx=100",
        f"{RUN} method.mu=-1",
        f"{RUN} federation.server.name=krumm",
        f"{RUN} federation.server.name=trimmed_mean federation.server.trim=0.5",
        f"{RUN} federation.server.trim=0.2",
        f"{RUN} federation.server.name=krum",
        f"{RUN} federation.server.name=multi_krum federation.server.f=0 federation.server.m=2",
        "run pfedpt_cifar10 federation.server.name=scaffold storage.root=HERE/store",
        f"{RUN} federation.server.name=none:MyRule",
        f"{RUN} protocol.shots=0",
        f"{RUN} protocol.held_out=clipart",
        f"{RUN} protocol.name=leave_one_domain_out",
        f"{RUN} partition.scheme=domain",
        f"{RUN} partition.beta=0",
        f"{RUN} partition.label_skew=true",
        f"{RUN} partition.clients=16",
        f"{RUN} data.train_fraction=0.9",
        f"{RUN} data.template=photo",
        f"{RUN} resources.gpus_per_actor=1.5",
        f"{RUN} resources.backend=threads",
        f"{RUN} resources.personal_memory=lots",
    ],
    "Privacy": [
        f"{RUN} privacy.level=client",
        f"{RUN} privacy.level=client privacy.epsilon=2",
        f"{RUN} privacy.noise_multiplier=1",
        f"{RUN} {NOISY} federation.server.name=scaffold",
        f"run shapes {NOISY} method.name=zero_shot storage.root=HERE/store",
        f"{RUN} {NOISY} privacy.accounting=poisson",
        f"{RUN} {NOISY} federation.everyone_first=true federation.participation=0.5",
        f"{RUN} federation.sampling=poisson federation.everyone_first=true",
        f"{RUN} {NOISY} federation.max_update_norm=1",
        f"{RUN} {NOISY} privacy.where=client federation.dropout=0.1",
        f"{RUN} {NOISY} privacy.where=client federation.sampling=poisson federation.participation=0.5",
        f"{RUN} {NOISY} privacy.delta=0.5",
        f"{RUN} {NOISY} privacy.epsilon=1 privacy.delta=0.01",
    ],
    "Data": [
        f"{RUN} data.name=folder",
        f"{RUN} data.name=imagnet",
        f"{RUN} {PHOTOS}/none",
        f"{RUN} {PHOTOS}/empty",
        f"{RUN} {PHOTOS}/empty_class",
        f"{RUN} {PHOTOS}/hollow_image",
        f"{RUN} {PHOTOS}/link",
        f"{RUN} {PHOTOS}/bad_image",
        f"{RUN} {PHOTOS}/postscript",
        f"{RUN} {PHOTOS}/bomb",
        f"{RUN} {PHOTOS}/photos data.class_names=[cat,dog]",
        f"{RUN} {PHOTOS}/photos data.class_names=[cat,cat,dog,emu]",
        f"{RUN} {PHOTOS}/photos data.class_names=[cat,dog,emu,{'y_' * 80}]",
        f"{RUN} data.name=domain_folder data.root=HERE/photos",
        f"{RUN} data.name=cifar10 data.root=HERE/cifar",
        f"{RUN} data.name=cifar10 data.root=HERE/photos",
        f"{RUN} data.name=parquet data.root=HERE/parquet",
        f"{RUN} data.name=dtd data.root=HERE/photos",
        f"{RUN} data.name=imagenet_r data.root=HERE/photos",
        f"{RUN} data.name=office_home data.root=HERE/photos",
        f"{RUN} data.name=stanford_cars data.root=HERE/photos",
        "data check dtd --root HERE/none",
        "data check nothing --root HERE/photos",
        "data prepare nothing --root HERE/photos",
    ],
    "Unions": [
        f"{RUN} data.name=union",
        f'{RUN} data.name=union data.parts=[{{"name":"shapes"}}]',
        f'{RUN} data.name=union data.parts=[{{"name":"shapes"}},{{"name":"shapes"}}]',
        f'{RUN} data.name=union data.parts=[{{"name":"shapes"}},{{"name":"foldr"}}]',
        f'{RUN} data.name=union data.parts=[{{"name":"shapes"}},{{"nme":"icons"}}]',
        f"{RUN} {UNION}}}]",
        f'{RUN} {UNION},"root":"HERE/none"}}]',
        f'{RUN} {UNION},"root":"HERE/one_class"}}]',
        f'{RUN} {PARTS} partition.clients={{"own":2}}',
        f'{RUN} {PARTS} partition.clients={{"own":0,"shapes":2}}',
        f'{RUN} {PARTS} partition.clients={{"owm":2,"shapes":2}}',
        f"{RUN} {PARTS} partition.clients=3",
        f"run shapes {PARTS} partition.clients=2 method.name=coop method.class_specific=true storage.root=HERE/store",
        f"run shapes {PARTS} partition.clients=2 method.name=pfedpt storage.root=HERE/store",
        f"{RUN} protocol.train_classes=own",
        f"{RUN} {CROSS}",
        f"{RUN} {CROSS} protocol.source=owm",
        f"{RUN} {PARTS} {OIL}",
        f"{RUN} protocol.name=cross_data protocol.source=shapes",
    ],
    "Domains": [
        f"{RUN} {OIL}",
    ],
    "Backbones": [
        f"{RUN} backbone.name=ViT-B-61",
        f"{RUN} backbone.name=ViT-B-16-SigLIP backbone.weights=webli",
        f"{RUN} backbone.name=ViT-B-16 backbone.weights=opnai",
        f"{RUN} backbone.name=icon-clip backbone.weights=random",
        f"{RUN} {TINY} backbone.weights=HERE/none.pt",
        f"{RUN} backbone.name=tiny backbone.weights=HERE/other.safetensors backbone.activation=null",
        f"{RUN} {TINY} backbone.weights=HERE/other.safetensors",
        f"{RUN} {TINY} backbone.weights=HERE/code.pt",
        f"{RUN} {TINY} backbone.weights=HERE/script.pt",
        f"{RUN} {TINY} backbone.weights=HERE/torn.safetensors",
    ],
    "Locations": [
        f"{RUN} storage.root=HERE/file",
        f"{RUN} storage.uri=HERE/store",
        f"{RUN} storage.uri=nowhere://me:SECRET@host/x",
        f"{RUN} --detach",
        "check-upload HERE/none",
        "ui HERE/empty",
        "runs HERE/none",
        "runs nowhere://me:SECRET@host/x",
        "runs file://HERE/none",
        "report file://HERE/photos",
        "track sync HERE/empty",
    ],
    "Sweeps": [
        "sweep nothing",
        "sweep file://HERE/none --resume",
        "sweep HERE/no_base.yaml",
        "sweep HERE/misspelt.yaml",
        "sweep HERE/code.yaml",
        "sweep HERE/seeds.yaml",
        f'sweep HERE/sweep.yaml {SMALL} method.rank={{"grid_serch":[1]}}',
        f'sweep HERE/sweep.yaml {SMALL} method.rank={{"grid_search":[]}}',
        f'sweep HERE/sweep.yaml {SMALL} method.mu={{"uniform":[1,0]}}',
        f'sweep HERE/sweep.yaml {SMALL} method.rank={{"grid_search":[0,1]}} --dry-run',
        f"sweep HERE/sweep.yaml {SMALL} tune.scheduler=hyperbnd",
        f"sweep HERE/sweep.yaml {SMALL} tune.search=bayes",
        f"sweep HERE/sweep.yaml {SMALL} tune.metric=val/hmm",
        f"sweep HERE/sweep.yaml {SMALL} tune.metric=new_client/hm",
        f"sweep HERE/sweep.yaml {SMALL} tune.metric=[val/local,val/novell]",
        f"sweep HERE/sweep.yaml {SMALL} tune.metric=[val/local,val/base,val/novel]",
        f"sweep HERE/sweep.yaml {SMALL} tune.metric=[val/local,val/novel] tune.scheduler=asha",
        f"sweep HERE/sweep.yaml {SMALL} tune.metric=[val/local,val/base_ece] tune.mode=[max,min]",
        f"sweep HERE/sweep.yaml {SMALL} tune.metric=[val/local,val/novel] tune.mode=[max]",
        f"sweep HERE/sweep.yaml {SMALL} tune.metric=[val/local,val/novel] tune.best=largest",
        f"sweep HERE/best.yaml {SMALL}",
        f"sweep HERE/best.yaml {SMALL} tune.metric=val/local",
        f'sweep HERE/sweep.yaml {SMALL} tune.points_to_try=[{{"method.rank":2}}]',
        f'sweep HERE/sweep.yaml {SMALL} tune.search=optuna tune.points_to_try=[{{"method.rnak":2}}]',
        f'sweep HERE/sweep.yaml {SMALL} tune.search=optuna tune.points_to_try=[{{"method.mu":7}}] '
        'method.mu={"uniform":[0,1]}',
        f'sweep HERE/sweep.yaml {SMALL} tune.search=optuna method.rank={{"grid_search":[1,0]}}',
        f"sweep HERE/sweep.yaml {SMALL} tune.search=hyperopt",
        f"sweep HERE/sweep.yaml {SMALL} folds.seeds=[]",
        f"sweep HERE/sweep.yaml {SMALL} folds.seeds=[1,1]",
        f"sweep HERE/sweep.yaml {SMALL} folds.splits=[2,2]",
        f"sweep HERE/sweep.yaml {SMALL} data.name=folder data.root=HERE/divided folds.splits=[1,2]",
        f'sweep HERE/sweep.yaml {SMALL} data.split_seed={{"grid_search":[1,2]}}',
        f'sweep HERE/sweep.yaml {SMALL} method.mu={{"grid_search":[1,2],"when":{{"method.name":"promptfl"}}}}',
        f'sweep HERE/sweep.yaml {SMALL} method.mu={{"grid_search":[1,2],"when":{{"method.nme":"fedpgp"}}}}',
        f'sweep HERE/sweep.yaml {SMALL} method.mu={{"grid_search":[1,2],"when":{{"method.mu":1}}}}',
        f'sweep HERE/sweep.yaml {SMALL} method.name={{"grid_search":["coop","fedpgp"]}} method.mu={{"choice":[1,2]}}',
        f'sweep HERE/sweep.yaml {SMALL} resources.threads_per_actor={{"grid_search":[1,2]}}',
        f"sweep HERE/sweep.yaml {SMALL} tune.num_samples=3",
        f"sweep HERE/sweep.yaml {SMALL} tune.metric=val/local_global",
        f"sweep HERE/sweep.yaml {SMALL} tune.metric=train/con",
    ],
    "Results": [
        "report HERE/empty",
        "report HERE/none",
        "report RUN --baseline nobody --out HERE/report",
        "report RUN --out HERE/file",
        "compare RUN HERE/empty",
        "export RUN --client 7 --out HERE/out",
        "export RUN --client 0 --round 3 --out HERE/out",
        "export RUN --client 0 --out HERE/file/below",
        "export HERE/empty --client 0 --out HERE/out",
        "predict HERE/photos/cat/0.png --prompt HERE/other.safetensors",
        "predict HERE/photos/cat/0.png --prompt HERE/code.pt",
        "predict HERE/none.png --prompt HERE/prompt/prompt.safetensors",
        "predict HERE/bad_image/cat/0.png --prompt HERE/prompt/prompt.safetensors",
        "reproduce table9",
        "reproduce table1",
        "reproduce table4 --root HERE/none",
    ],
}  # fmt: skip


def photos(root, classes=("cat", "dog", "emu", "fox")):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (60 * label, 40 * number, 99)).save(root / name / f"{number}.png")
    return root / "cat" / "0.png"


class Code:
    """A pickled object that runs a command when it is loaded."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with all invalid files."""
    root = tmp_path_factory.mktemp("bad")
    photos(root / "photos")
    for split in ("train", "test"):
        photos(root / "divided" / split)
    (root / "empty").mkdir()
    (root / "file").write_text("")
    photos(root / "one_class", ("cat",))
    photos(root / "empty_class")
    (root / "empty_class" / "gnu").mkdir()
    photos(root / "hollow_image").write_bytes(b"")
    photos(root / "bad_image").write_bytes(b"<html>404</html>")
    link = photos(root / "link")
    link.unlink()
    link.symlink_to(root / "file")
    postscript = io.BytesIO()
    Image.new("RGB", (8, 8)).save(postscript, "EPS")
    photos(root / "postscript").write_bytes(postscript.getvalue())
    Image.new("1", (11000, 9000)).save(photos(root / "bomb"))
    for name in ("cifar", "parquet"):
        (root / name).mkdir()
    names = [
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
        "batches.meta",
    ]
    for name in names:
        (root / "cifar" / name).write_bytes(pickle.dumps({"label_names": Code(), "data": np.zeros(3)}))
    (root / "parquet" / "train.parquet").write_bytes(b"PAR1 and then nothing")
    (root / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (root / "list.yaml").write_text("- 1\n")
    (root / "torn.yaml").write_text("method: {name: coop\n")
    (root / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (root / "python.yaml").write_text("name: !!python/object/apply:os.system [touch ran]\n")
    (root / "sweep.yaml").write_text(yaml.safe_dump({"base": "shapes", "tune": {"metric": "val/hm"}}))
    rule = {"metric": ["val/local", "val/novel"], "best": "val/local where val/base >= 70"}
    (root / "best.yaml").write_text(yaml.safe_dump({"base": "shapes", "tune": rule}))
    (root / "no_base.yaml").write_text("space: {}\n")
    (root / "misspelt.yaml").write_text("base: shapes\nspcae: {}\n")
    (root / "code.yaml").write_text("base: shapes\nspace: {method.mu: {sample_from: 'lambda spec: 1'}}\n")
    (root / "seeds.yaml").write_text("base: shapes\nspace: {seed: {grid_search: [1, 2]}}\n")
    save_file({"visual.proj": torch.zeros(3, 3)}, root / "other.safetensors")
    (root / "torn.safetensors").write_bytes((root / "other.safetensors").read_bytes()[:-1])
    torch.save({"state_dict": Code()}, root / "code.pt")
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(root / "script.pt"))
    return root


def test_each_bad_input_gets_its_recorded_message(here, fedpgp, monkeypatch):
    """Exit code 2, a message in lines that start with `error`, no traceback, and no code is run."""
    monkeypatch.chdir(here)
    code, out, err = fedpgp(*RUN.replace("HERE", str(here)).split())
    assert code == 0, err
    run = out.rsplit("run: ", 1)[1].strip()
    assert fedpgp("export", run, "--client", "0", "--out", here / "prompt")[0] == 0
    found = {}
    for case in [case for cases in CASES.values() for case in cases]:
        code, out, err = fedpgp(*case.replace("HERE", str(here)).replace("RUN", run).split())
        said = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, bool(said)) == (2, True), f"fedpgp {case}\n{out}{err}"
        assert "Traceback" not in err
        assert "SECRET" not in err
        message = "\n".join(err[err.index("error: ") :].splitlines()).replace("error: ", "")
        found[command(case)] = message.replace(run, "RUN").replace(str(here), "HERE").rstrip()
    assert not (here / "ran").exists()
    if os.environ.get(REWRITE):
        LIST.write_text(as_markdown(found), encoding="utf-8")
    recorded = dict(re.findall(r"^`(fedpgp [^\n]*)`\n```\n(.*?)\n```$", LIST.read_text(encoding="utf-8"), re.M | re.S))
    expected = {case: found[case] if matches(said, found.get(case, "")) else said for case, said in recorded.items()}
    assert found == expected, "if that is intended: make bad-inputs"


@pytest.mark.parametrize(
    ("recorded", "message", "fits"),
    [
        ("seed: ... (given: -1)", "seed: Input should be at least 0 (given: -1)", True),
        ("seed: ... (given: -1)", "seed: Input should be at least 0 (given: -2)", False),
        ("seed: ...", "seed: not a number\nsecond line", False),
        ("[a.b] (c)", "[a.b] (c)", True),
        ("[a.b] (c)", "[axb] (c)", False),
    ],
)
def test_an_ellipsis_matches_anything_within_a_line(recorded, message, fits):
    assert matches(recorded, message) is fits


def command(case):
    return f"fedpgp {case.replace(SMALL, '...')}"


def matches(recorded, message):
    """Whether a message is the recorded one, in which `...` stands for any text within a line."""
    return re.fullmatch(".*".join(map(re.escape, recorded.split("..."))), message) is not None


def as_markdown(messages):
    """The list, with `...` for what other libraries say."""
    lines = [
        "# Invalid inputs",
        "",
        "Commands with invalid input, and their error messages. All exit with code 2. Written by `make bad-inputs`.",
        "`...` stands for shared settings in a command, and for another library's text in a message.",
    ]
    for title, cases in CASES.items():
        lines += ["", f"## {title}"]
        for case in cases:
            message = messages[command(case)]
            for text in FOREIGN:
                message = re.sub(text, "...", message)
            lines += ["", f"`{command(case)}`", "```", message, "```"]
    return "\n".join(lines) + "\n"

"""The manifest has the fields that KubeRay defines, and the image has what the manifest asks of it."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

ROOT = Path(__file__).parents[1]
PIPELINES = ROOT / "pipelines"
TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def mapping(required=(), **properties):
    """A schema of a mapping that has no other keys."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def listing(**properties):
    return {"type": "array", "minItems": 1, "items": mapping(properties, **properties)}


QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = mapping(
    ("name", "image", "resources", "volumeMounts"), name=TEXT, image=TEXT,
    ports=listing(containerPort=COUNT, name=TEXT), resources=mapping(requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=listing(name=TEXT, mountPath=TEXT),
)  # fmt: skip
VOLUME = mapping(
    ("name",), name=TEXT, persistentVolumeClaim=mapping(("claimName",), claimName=TEXT),
    emptyDir=mapping(medium={"enum": ["Memory"]}, sizeLimit=QUANTITY),
)  # fmt: skip
POD = mapping(
    ("spec",),
    spec=mapping(
        ("containers", "volumes"), containers={"type": "array", "items": CONTAINER},
        volumes={"type": "array", "items": VOLUME},
        securityContext=mapping(runAsUser=COUNT, runAsNonRoot=FLAG, fsGroup=COUNT),
    ),
)  # fmt: skip
WORKERS = mapping(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"), groupName=TEXT, replicas=COUNT,
    minReplicas=COUNT, maxReplicas=COUNT, rayStartParams=TEXTS, template=POD,
)  # fmt: skip
CLUSTER = mapping(
    ("headGroupSpec",), rayVersion=TEXT, enableInTreeAutoscaling=FLAG,
    authOptions=mapping(("mode",), mode={"enum": ["token", "disabled"]}, secretName=TEXT),
    autoscalerOptions=mapping(idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Conservative"]}),
    headGroupSpec=mapping(("rayStartParams", "template"), rayStartParams=TEXTS, template=POD),
    workerGroupSpecs={"type": "array", "items": WORKERS},
)  # fmt: skip
JOB = mapping(("entrypoint", "clusterSelector"), entrypoint=TEXT, clusterSelector=TEXTS)
CLAIM = mapping(
    ("accessModes", "resources"), accessModes={"type": "array", "items": TEXT}, storageClassName=TEXT,
    resources=mapping(("requests",), requests=QUANTITIES),
)  # fmt: skip
SCHEMAS = {"RayCluster": CLUSTER, "RayJob": JOB, "PersistentVolumeClaim": CLAIM}
"""The fields of KubeRay's and Kubernetes' definitions that the manifest uses, and no others."""


@pytest.fixture(scope="module")
def manifest():
    """The specs by kind."""
    documents = list(yaml.safe_load_all((PIPELINES / "kuberay.yaml").read_text(encoding="utf-8")))
    assert {one["apiVersion"] for one in documents} == {"v1", "ray.io/v1"}
    return {one["kind"]: one["spec"] for one in documents}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_each_document_has_the_fields_of_its_definition(manifest, kind):
    jsonschema.validate(manifest[kind], SCHEMAS[kind])


def test_ray_reads_its_autoscaling_from_it(manifest):
    cluster = {"metadata": {"name": "fedpgp", "namespace": "default"}, "spec": manifest["RayCluster"]}
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert (types["gpu"]["resources"]["CPU"], types["gpu"]["resources"]["GPU"]) == (8, 1)
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 4)


def test_pods_share_one_volume_and_the_job_writes_to_it(manifest):
    assert manifest["PersistentVolumeClaim"]["accessModes"] == ["ReadWriteMany"]
    cluster = manifest["RayCluster"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert all({"name": "shared", "mountPath": "/shared"} in pod["containers"][0]["volumeMounts"] for pod in pods)
    assert all({one["name"] for one in pod["volumes"]} == {"shared", "shm"} for pod in pods)
    assert {pod["containers"][0]["image"] for pod in pods} == {"REGISTRY/fedpgp:1"}
    assert manifest["RayJob"]["clusterSelector"] == {"ray.io/cluster": "fedpgp"}
    assert "storage.root=/shared/" in manifest["RayJob"]["entrypoint"]


def test_the_image_has_the_versions_the_user_and_the_script_of_the_manifest(manifest):
    image = (PIPELINES / "Dockerfile").read_text(encoding="utf-8")
    pods = manifest["RayCluster"]["headGroupSpec"]["template"]["spec"]
    assert f"--uid {pods['securityContext']['runAsUser']} " in image
    assert image.rindex("USER ray") > image.rindex("RUN ")
    assert f"ray=={manifest['RayCluster']['rayVersion']}\n" in (PIPELINES / "constraints.txt").read_text(
        encoding="utf-8"
    )
    script = re.search(r"python /home/ray/(pipelines/\w+\.py) ", manifest["RayJob"]["entrypoint"])
    assert script is not None
    assert (ROOT / script[1]).is_file()
    for sources in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", image, re.MULTILINE):
        assert all(list(ROOT.glob(source)) for source in sources.split())


def test_the_pinned_versions_are_those_installed_and_satisfy_the_package():
    lines = (PIPELINES / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    pinned = dict(line.split("==") for line in lines)
    settings = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    wanted = settings[settings.index("install_requires") : settings.index("[options.extras_require]")].splitlines()[1:]
    for requirement in map(Requirement, filter(None, map(str.strip, wanted))):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])
    for name in ("ray", "mlflow", "torch", "pydantic"):
        assert version(name).partition("+")[0] == pinned[name]


def needed(name, extras, found):
    """Add the names of the installed packages that a package needs, to the last; `found`: names and extras seen."""
    if (canonicalize_name(name), extras) in found:
        return
    try:
        requirements = [Requirement(line) for line in requires(name) or ()]
    except PackageNotFoundError:  # the package of another build of PyTorch, as one without CUDA
        return
    found.add((canonicalize_name(name), extras))
    for one in requirements:
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            needed(one.name, frozenset(one.extras), found)


def test_all_that_the_image_installs_is_pinned():
    image = (PIPELINES / "Dockerfile").read_text(encoding="utf-8")
    source = re.search(r'"/build/source\[(.+)\]"', image)
    assert source is not None
    found = set()
    needed("fedpgp", frozenset(source[1].split(",")), found)
    pinned = set(re.findall("^(.+)==", (PIPELINES / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert {name for name, _ in found} - pinned == {"fedpgp"}


def test_the_image_is_built_with_bytecode_for_login_shells_and_with_the_commit():
    comments, steps = [], []
    for line in (PIPELINES / "Dockerfile").read_text(encoding="utf-8").splitlines():
        (comments if line.startswith("#") else steps).append(line)
    image = "\n".join(steps)
    compiled = re.search(
        "^RUN .* -m compileall .*--invalidation-mode unchecked-hash /opt/fedpgp/lib", image, re.MULTILINE
    )
    assert compiled is not None
    assert image.index("pip install") < compiled.start() < image.index("COPY --from=build")
    path = re.search(r"^ENV PATH=(\S+):\$PATH ", image, re.MULTILINE)
    assert path is not None
    assert f"echo 'PATH={path[1]}:$PATH' > /etc/profile.d/" in image
    for argument in re.findall(r"^ARG (\w+)", image, re.MULTILINE):
        assert f" --build-arg {argument}=" in "\n".join(comments)


def test_the_readme_has_the_commands_of_the_manifest():
    def commands(path):
        lines = [line.strip("# ") for line in path.read_text().splitlines()]
        return [re.split(r"\s{2,}#", line)[0] for line in lines if line.startswith("kubectl ")]

    assert commands(ROOT / "README.md") == commands(PIPELINES / "kuberay.yaml")
    assert len(commands(ROOT / "README.md")) == 5

"""The settings of an experiment: frozen models with defaults, bounds and comments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from fedpgp.config.base import Named, Settings
from fedpgp.config.federation import FederationSettings, PrivacySettings
from fedpgp.core.uris import CACHE, cache_name, is_uri

UNION = "union"
"""`data.name` of several data sets."""

Uri = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://.")]
"""A remote location."""


class DataSettings(Settings):
    """Images, class names and splits."""

    name: str = "icons"
    """icons (in the package) | shapes (drawn on the fly, for tests) | folder (class/...) | domain_folder
    (domain/class/...) | parquet (Hugging Face style) | a downloaded data set by name, see
    `fedpgp data check NAME --root FOLDER` | MODULE:CLASS, a source in a file of yours | union (several of these in one
    federation, see parts)"""
    root: Uri | Path | None = None
    """folder of the data set, or for Parquet a `pyarrow.fs` URI (s3://..., gs://...); `icons` and `shapes` need none"""
    class_names: tuple[str, ...] | dict[str, str] | None = None
    """all names, in label order 0, 1, ...; or new names by those found: {"10": ten}; null: from the source (folders:
    sorted, numbers as numbers)"""
    template: str | None = None
    """hand-written prompt of zero-shot CLIP and of FedPGP's anchor; {} is the class name; null: the data set's own"""
    train_fraction: float = Field(0.5, gt=0, lt=1)
    """share of a class's images for training, if the source has no split"""
    val_fraction: float = Field(0.2, ge=0, lt=1)
    """share for validation, if the source has no split; 0: none, see protocol.val_shots"""
    split_seed: int = 1
    """seed of that split, and of the one of icons (by drawing); the run's seed never moves an image between train and
    test"""
    views: int = Field(1, ge=1)
    """1: the evaluation transform; K > 1: K seeded random-crop-and-flip views of each training image"""
    parts: tuple[PartSettings, ...] | None = None
    """union: the data sets, each with its settings and, if two have one name, a `title`; null: this is one data set"""

    @field_validator("class_names", mode="before")
    @classmethod
    def _text_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and (numbers := [key for key in value if not isinstance(key, str)]):
            raise ValueError(f"the name {numbers[0]!r} is not text; write it in quotes")
        if isinstance(value, str):
            raise ValueError("give all names as a list, or new names by those found")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        if self.train_fraction + self.val_fraction >= 1:
            raise ValueError("train_fraction + val_fraction must stay below 1, or no test image is left")
        if self.template is not None and self.template.count("{}") != 1:
            raise ValueError("template needs exactly one {} for the class name")
        if (self.name == UNION) != (self.parts is not None):
            raise ValueError(f"parts are for name={UNION}, which needs them: a list of data sets")
        if self.parts is not None:
            self._check_parts(self.parts)
        return self

    def _check_parts(self, parts: Sequence[PartSettings]) -> None:
        if len(parts) < 2:
            raise ValueError(f"{UNION} needs two parts or more; give the one data set as data.name")
        titles = [part.title_or_name for part in parts]
        if twice := next((title for title in titles if titles.count(title) > 1), None):
            raise ValueError(f"two parts have the title {twice}; give one of them another title")
        for key in ("root", "class_names", "template"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} belongs to a part of the {UNION}")

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def prompt(self) -> str:
        """The template; `data.sources.complete` fills it in if it is null."""
        if self.template is None:
            raise ValueError(f"the template of {self.name} is not filled in")
        return self.template

    @property
    def members(self) -> tuple[DataSettings, ...]:
        """The data sets: the parts of a union, or this one."""
        return self.parts or (self,)

    @property
    def split(self) -> int | None:
        """The seed of the split, in a union that of all parts; None: they have different ones."""
        seeds = {one.split_seed for one in self.members}
        return seeds.pop() if len(seeds) == 1 else None

    def with_split(self, seed: int) -> Self:
        """The data with this seed of the split, in a union with this one in every part."""
        if self.parts is None:
            return self.model_copy(update={"split_seed": seed})
        return self.model_copy(update={"parts": tuple(part.with_split(seed) for part in self.parts)})


class PartSettings(DataSettings):
    """One data set of a union."""

    title: str | None = Field(None, pattern=r"^[A-Za-z0-9._ -]+$")
    """its name in the union, in results and in partition.clients; null: its name"""

    @property
    def title_or_name(self) -> str:
        """What it is called in the union."""
        return self.title or self.name

    @model_validator(mode="after")
    def _is_one(self) -> PartSettings:
        if self.parts is not None:
            raise ValueError(f"a part of a {UNION} is one data set")
        if self.views != 1:
            raise ValueError("views belongs to the union: data.views")
        return self


FOR_ALL, BY_PART = "one number", "a number for each part"
"""The two forms of `partition.clients`, which pydantic adds to the path of a wrong one."""
Count = Annotated[int, Field(ge=1)]
Clients = Annotated[
    Annotated[Count, Tag(FOR_ALL)] | Annotated[dict[str, Count], Tag(BY_PART)],
    Discriminator(lambda given: BY_PART if isinstance(given, Mapping) else FOR_ALL),
]


class PartitionSettings(Settings):
    """Division of the images among clients."""

    scheme: Literal["pathological", "authors_2023", "iid", "domain", "dirichlet"] = "pathological"
    """pathological (disjoint classes) | authors_2023 (the disjoint classes of the authors' code, for every seed) | iid
    | domain (each client belongs to a domain) | dirichlet"""
    clients: Clients | None = 10
    """number of clients; in a union that of each part, or {PART: number, ...}; null with `domain`, where the data
    determine it"""
    classes_per_client: int | None = Field(None, ge=1)
    """pathological: number of classes per client, which may then overlap; null: disjoint, all assigned"""
    clients_per_domain: int = Field(1, ge=1)
    """domain: number of clients that share the images of a domain"""
    label_skew: bool = False
    """domain: true: divide the classes of a domain by Dirichlet(beta); false: divide the domain evenly"""
    beta: float = Field(0.3, gt=0)
    """dirichlet, and domain with label_skew: concentration; smaller is more skewed"""
    min_per_client: int = Field(2, ge=1)
    """dirichlet, and domain with label_skew: minimum number of training images per client"""
    authors: bool = False
    """dirichlet: true: draw like the authors' code, which limits clients to an equal share and rounds down"""
    unseen_clients: float = Field(0.0, ge=0, lt=1)
    """share of clients that never train and test what the others have learned (`new_client/*`): rounded to the nearest
    number, at least one, and never all; 0: none"""

    @model_validator(mode="after")
    def _used(self) -> PartitionSettings:
        owner = {"classes_per_client": "pathological", "clients_per_domain": "domain", "label_skew": "domain"}
        for key, scheme in {**owner, "authors": "dirichlet"}.items():
            if self.scheme != scheme and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is for scheme {scheme}; it has no effect with scheme {self.scheme}")
        if self.label_skew and self.clients_per_domain == 1:
            raise ValueError("label_skew needs clients_per_domain=2 or more")
        return self


class ProtocolSettings(Settings):
    """Training and test images."""

    name: Literal["base_to_novel", "all_classes", "leave_one_domain_out", "cross_data"] = "base_to_novel"
    """base_to_novel (train on the first half of the labels, test on both) | all_classes | leave_one_domain_out (train
    on all domains but one, also test on that one) | cross_data (of a union: train on some data sets with all classes,
    also test on the others, see held_out and source)"""
    held_out: str | None = None
    """leave_one_domain_out: the held-out domain; cross_data: the held-out data set, while all others train; `all`: each
    in turn, as folds of a sweep"""
    source: str | None = None
    """cross_data: the only data set that trains, while all others are held out"""
    shots: int | None = Field(16, ge=1)
    """training images per client and class; null: all. Nested: the 4-shot set contains the 2-shot set"""
    train_classes: Literal["task", "own"] = "task"
    """classes among which a client trains: all of the task | its own alone, those that its images have; with `own` its
    model is also tested among these on its own images (`local_own`)"""
    val_shots: int = Field(4, ge=1)
    """validation images per class and domain taken from train, if the data have no validation split"""

    @model_validator(mode="after")
    def _held_out_given(self) -> ProtocolSettings:
        if self.name == "cross_data":
            if (self.held_out is None) == (self.source is None):
                raise ValueError("name=cross_data needs held_out=PART or all, or source=PART")
        elif self.source is not None:
            raise ValueError("source is for name=cross_data")
        elif (self.held_out is None) == (self.name == "leave_one_domain_out"):
            raise ValueError("held_out must be a domain or all with name=leave_one_domain_out, and null otherwise")
        return self


class BackboneSettings(Settings):
    """The frozen model."""

    name: str = "icon-clip"
    """`icon-clip` (in the package), open_clip model name, `hf-hub:OWNER/MODEL`, or `tiny` (a few layers, for tests)"""
    weights: str | None = None
    """open_clip tag, path of a checkpoint file, `random` (seeded, for tests), or null for `icon-clip` and a hub id,
    which include weights"""
    weights_key: str | None = None
    """which model of a checkpoint file that has several: keys and prefix of its names, with dots; null: the only one"""
    activation: Literal["gelu", "quick_gelu"] | None = None
    """activation that the weights were trained with; required for a checkpoint file without it"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the frozen towers; prompts and losses stay in float32"""
    class_chunk: int | None = Field(None, ge=1)
    """maximum number of classes encoded at once, to limit memory; null: all"""


class MethodSettings(Named):
    """The method: its name and its keys."""

    name: str = "fedpgp"
    """see `fedpgp methods`, or MODULE:CLASS, a method in a file of yours"""


class ResourceSettings(Settings):
    """Compute resources. They do not change results, given equal threads."""

    backend: Literal["auto", "ray", "serial"] = "auto"
    """auto (serial where it is as fast, else ray; a run says which) | ray (client actors) | serial (in one process)"""
    actors: int = Field(2, ge=1)
    """client actors"""
    cpus_per_actor: float = Field(1.0, gt=0)
    """CPU cores reserved per actor"""
    gpus_per_actor: float = Field(0.0, ge=0)
    """GPUs reserved per actor; fractions share a device; above 1 only whole numbers"""
    threads_per_actor: int | None = Field(None, ge=1)
    """torch threads of an actor; null: its cores, at least 1"""
    address: str | None = None
    """address of a running Ray; null: RAY_ADDRESS if set, else a local one"""
    ready_timeout: float = Field(120.0, gt=0)
    """seconds in which all actors must start"""
    block_timeout: float | None = Field(None, gt=0)
    """seconds after which a block is sent to another actor; null: never"""

    @model_validator(mode="after")
    def _whole_gpus(self) -> ResourceSettings:
        if self.gpus_per_actor > 1 and self.gpus_per_actor != int(self.gpus_per_actor):
            raise ValueError("gpus_per_actor above 1 must be a whole number")
        return self

    @property
    def workers(self) -> int:
        """Number of processes that train clients."""
        return 1 if self.backend == "serial" else self.actors

    @property
    def threads(self) -> int:
        """Torch threads per actor."""
        return self.threads_per_actor or max(1, int(self.cpus_per_actor))


class TrackingSettings(Settings):
    """MLflow, which mirrors the rows on disk."""

    mlflow: bool = True
    """false: rows on disk only"""
    uri: str | None = None
    """sqlite:///FILE, http://HOST:PORT or another tracking URI; null: MLFLOW_TRACKING_URI if set, else a SQLite store
    under storage.root. Passwords are not stored: give `fedpgp track sync` --uri, or set MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD"""
    experiment: str | None = None
    """MLflow experiment; null: MLFLOW_EXPERIMENT_NAME if set, else fedpgp"""


class StorageSettings(Settings):
    """Location of runs, caches and the default MLflow store."""

    root: Path = Path("fedpgp-store")
    """folder of everything; must be absolute on a cluster of several nodes. A URI is used as `uri`, with a root under
    ~/.cache/fedpgp"""
    uri: str | None = None
    """additional location of runs and sweeps, as a `pyarrow.fs` URI (s3://..., gs://..., file:///...). A round is
    stored there before it is reported, so --resume works on another machine. Features and the default MLflow store stay
    in root"""

    @model_validator(mode="before")
    @classmethod
    def _uri_as_root(cls, given: Any) -> Any:
        root = given.get("root") if isinstance(given, Mapping) else None
        if not is_uri(root):
            return given
        if given.get("uri") not in (None, root):
            raise ValueError("root and uri are different URIs; give a folder and a URI, or one URI")
        return {**given, "root": Path.home() / CACHE / cache_name(root), "uri": root}

    @field_validator("uri")
    @classmethod
    def _is_uri(cls, uri: str | None) -> str | None:
        if uri is not None and not is_uri(uri):
            raise ValueError("uri must look like s3://BUCKET/FOLDER; give a local folder as root")
        return uri


class Experiment(Settings):
    """A complete federated experiment."""

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9._-]+$")
    """short name, first part of the run folder's name"""
    seed: int = Field(1, ge=0)
    """seed of every random draw"""
    data: DataSettings = DataSettings()
    partition: PartitionSettings = PartitionSettings()
    protocol: ProtocolSettings = ProtocolSettings()
    backbone: BackboneSettings = BackboneSettings()
    method: MethodSettings = MethodSettings()
    federation: FederationSettings = FederationSettings()
    privacy: PrivacySettings = PrivacySettings()
    resources: ResourceSettings = ResourceSettings()
    tracking: TrackingSettings = TrackingSettings()
    storage: StorageSettings = StorageSettings()

    @model_validator(mode="after")
    def _clients_given(self) -> Experiment:
        if (self.partition.clients is None) != (self.partition.scheme == "domain"):
            raise ValueError("partition.clients is the number of clients, or null with partition.scheme=domain")
        if self.protocol.name == "leave_one_domain_out" and self.partition.scheme != "domain":
            raise ValueError(
                "protocol.name=leave_one_domain_out needs partition.scheme=domain partition.clients=null "
                "(several clients of a domain: partition.clients_per_domain)"
            )
        if self.protocol.name == "cross_data" and self.data.parts is None:
            raise ValueError(f"protocol.name=cross_data needs several data sets: data.name={UNION} and data.parts")
        if isinstance(clients := self.partition.clients, dict):
            titles = {part.title_or_name for part in self.data.parts or ()}
            if unknown := sorted(clients.keys() - titles):
                known = ", ".join(sorted(titles)) or f"none, because data.name is not {UNION}"
                raise ValueError(f"partition.clients: no part {unknown[0]} (parts: {known})")
        epochs = type(self.federation).model_fields["new_client_epochs"].default
        if not self.partition.unseen_clients and self.federation.new_client_epochs != epochs:
            raise ValueError("federation.new_client_epochs has no effect; it needs partition.unseen_clients above 0")
        if self.partition.scheme == "domain" and self.data.name == "folder":
            raise ValueError("partition.scheme=domain needs data with domains, for example data.name=domain_folder")
        return self

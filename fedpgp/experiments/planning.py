"""Plan an experiment: complete and check settings, hash and partition the data, load the model; decode no image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from fedpgp import config, methods, server_rules
from fedpgp.clip import model
from fedpgp.clip.images import check_patches
from fedpgp.clip.model import Backbone, ImageSpec
from fedpgp.clip.text_backbone import FrozenText, freeze, names_only
from fedpgp.config import (
    DataSettings,
    Experiment,
    MethodSettings,
    ResourceSettings,
    ServerSettings,
    StorageSettings,
    TrackingSettings,
    tracking_uri,
)
from fedpgp.config.settings import UNION
from fedpgp.config.values import load_yaml
from fedpgp.core.errors import AccessError, BackboneError, ConfigError, FedPGPError, RunError
from fedpgp.core.files import denied, in_the_way
from fedpgp.core.plugins import code_keys
from fedpgp.core.seeding import torch_generator
from fedpgp.core.text import first_of
from fedpgp.core.tree import ParamTree, select
from fedpgp.data import content, protocol, sources
from fedpgp.data import manifest as manifests
from fedpgp.data.federated import FederatedData
from fedpgp.data.manifest import Manifest
from fedpgp.experiments import privacy_planning
from fedpgp.federation import rule_needs
from fedpgp.federation.privacy import Mechanism
from fedpgp.methods.base import BringsNetwork, HasGlobalModel, Method, NeedsAllClasses
from fedpgp.server_rules.base import ServerRule
from fedpgp.storage.object_store import ObjectStore, before_work
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.run_index import RunIndex

log = logging.getLogger(__name__)

DRY_CLASSES = 3
"""Classes with which a method from outside the package is called once before any work."""


@dataclass(frozen=True)
class Plan:
    """A checked experiment with its data and model."""

    experiment: Experiment
    method: Method
    rule: ServerRule
    manifest: Manifest
    data: FederatedData
    backbone: Backbone | None
    """None: the method brings its own network"""
    privacy: Mechanism | None
    """None: without differential privacy"""
    image: ImageSpec
    text: FrozenText
    weights: str
    """fingerprint of the frozen weights, or `none`"""
    content: str | None
    """`data.content.Hashes.digest`: the images, which are not part of `digest`"""
    digest: str
    plugins: Mapping[str, Mapping[str, str]]
    """name and digest of the code of method, server rule and data, where they are from outside the package"""

    @property
    def unhashed(self) -> bool:
        """Whether the images are files whose content is not known, so that features that exist may count as missing."""
        return self.content is None and self.manifest.table["size"].null_count < len(self.manifest)

    def without_text(self) -> Plan:
        """Drop the text side, which takes memory and is not needed to extract features."""
        return replace(self, text=names_only(self.manifest.texts, _templates(self.experiment, self.manifest)))


def settle(experiment: Experiment) -> tuple[Experiment, Method]:
    """Fill in every setting of the method and the server rule; raise `ConfigError` for an unknown name or setting."""
    method = methods.create(experiment.method.name, experiment.method.settings)
    of_method = MethodSettings(name=experiment.method.name, **method.settings.model_dump(mode="json"))
    name = experiment.federation.server.name
    of_rule = server_rules.create(name, experiment.federation.server.settings).settings
    server = ServerSettings(name=name, **of_rule.model_dump(mode="json"))
    privacy_planning.check_fit(experiment, method, rule_needs.rule_of(method, experiment.federation))
    _check_classes(experiment, method)
    _check_union(experiment, method)
    sources.check(experiment.data)
    federation = experiment.federation.model_copy(update={"server": server})
    return experiment.model_copy(update={"method": of_method, "federation": federation}), method


def settings_types(experiment: Experiment) -> dict[str, type[BaseModel]]:
    """The settings class of the method and of the server rule, by section."""
    return {
        "method": methods.find(experiment.method.name).settings_type,
        "federation.server": server_rules.find(experiment.federation.server.name).settings_type,
    }


class Library:
    """Cache for several plans of one process: data by their settings, the last backbone, and the last text side.

    `hashing`: whether images that the storage root does not know are hashed; else their digest is not known.
    """

    def __init__(self, hashing: bool = True) -> None:
        self._hashing = hashing
        self._manifests: dict[DataSettings, Manifest] = {}
        self._contents: dict[tuple[DataSettings, Path], str | None] = {}
        self._last: dict[str, tuple[Any, Any]] = {}

    def manifest(self, settings: DataSettings) -> Manifest:
        """Build the manifest once for equal settings."""
        if settings not in self._manifests:
            built = manifests.build(settings)
            built.check_not_empty()
            self._manifests[settings] = built
        return self._manifests[settings]

    def content(self, settings: DataSettings, root: Path) -> str | None:
        """Hash the images once for equal settings; `root` is the storage root. See `data.content.Hashes.digest`."""
        if (key := (settings, root)) not in self._contents:
            manifest = self.manifest(settings)
            found = content.digest(manifest, root) if self._hashing else content.of(manifest, root).digest
            self._contents[key] = found
        return self._contents[key]

    def once(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for consecutive plans with the same key; one of each kind is in memory."""
        if kind not in self._last or self._last[kind][0] != key:
            self._last.pop(kind, None)
            self._last[kind] = (key, make())
        return self._last[kind][1]


def plan(experiment: Experiment, library: Library | None = None) -> Plan:
    """Plan an experiment; raise `UserError` if what can be checked without decoding images is invalid."""
    library = library or Library()
    experiment, method = settle(sources.complete(experiment))
    rule = rule_needs.rule_of(method, experiment.federation)
    manifest = library.manifest(experiment.data)
    data = protocol.build(manifest, experiment.partition, experiment.protocol, experiment.seed)
    privacy = privacy_planning.mechanism(experiment, len(data.training_clients))
    if isinstance(method, BringsNetwork):
        backbone, image, weights = None, method.image, "none"
        text = names_only(manifest.texts, _templates(experiment, manifest))
    else:
        loaded: Backbone = library.once("backbone", experiment.backbone, lambda: model.load(experiment.backbone))
        backbone, image, weights = loaded, loaded.image, loaded.fingerprint
        used = method.extra_texts, method.required_towers, method.image_inputs
        key = (experiment.backbone, _templates(experiment, manifest), manifest.texts, used)
        text = library.once("text", key, lambda: _frozen(experiment, method, loaded, manifest))
    if methods.plugin(experiment.method.name):
        few = text.on(data.class_sets[data.train_set][:DRY_CLASSES])
        methods.plugin_check.dry_run(experiment.method.name, method, few, image, rule)
    trees = {
        name: method.init(text.on(classes), torch_generator(experiment.seed, "init"))  # raises if they do not fit
        for name, classes in data.class_sets.items()
        if name == data.train_set or method.supports_unseen_classes
    }
    _check_clients(experiment, method, data, trees[data.train_set])
    _check_rule(experiment, method, rule, data, trees[data.train_set])
    _check_storage(experiment.storage)
    _check_tracking(experiment.tracking)
    found = plugins_of(experiment)
    digest = config.digest(experiment, manifest=manifest.digest, weights=weights, **code_keys(found))
    images = library.content(experiment.data, experiment.storage.root)
    return Plan(
        experiment, method, rule, manifest, data, backbone, privacy, image, text, weights, images, digest, found
    )


def _check_classes(experiment: Experiment, method: Method) -> None:
    """Raise `ConfigError` if the method needs more classes than a client trains among."""
    needed = method.needs_all_classes if isinstance(method, NeedsAllClasses) else ""
    if experiment.protocol.train_classes == "own" and needed:
        raise ConfigError(
            f"protocol.train_classes=own: method {method.name} needs all classes of the task ({needed}); give "
            "train_classes=task, or another method"
        )


def _check_union(experiment: Experiment, method: Method) -> None:
    """Raise `ConfigError` if one model cannot serve the class sets of several data sets."""
    if experiment.data.parts is not None and not method.supports_unseen_classes:
        raise ConfigError(
            f"data.name={UNION}: method {method.name} is made for one set of classes, and each part has its own; give "
            "another method, or one data set"
        )


def _check_clients(experiment: Experiment, method: Method, data: FederatedData, tree: ParamTree) -> None:
    """Raise `ConfigError` if nobody can be attacked, or if there is no model for the clients that never train."""
    if experiment.federation.attack is not None and len(data.training_clients) < 2:
        raise ConfigError("federation.attack: one client trains; give more clients, so that one of them is honest")
    personal = sorted(tree.keys() - method.shared_keys)
    if data.unseen_clients and personal and not isinstance(method, HasGlobalModel):
        raise ConfigError(
            f"partition.unseen_clients={experiment.partition.unseen_clients:g}: method {method.name} has no model "
            f"for a client that never trains, because {first_of(personal, 5)} stay with each client; give another "
            "method, or 0"
        )


def _check_rule(experiment: Experiment, method: Method, rule: ServerRule, data: FederatedData, tree: ParamTree) -> None:
    """Raise `ConfigError` if the server rule cannot aggregate what the clients share, or keep what they keep."""
    shared, name = select(tree, method.shared_keys), experiment.federation.server.name
    if server_rules.plugin(name):
        private = experiment.privacy.level != "none"
        server_rules.plugin_check.dry_run(name, rule, shared, private)
    rule_needs.check_momentum(method, experiment.federation, data.num_clients, tree)
    if shared and method.phases:
        rule_needs.check(rule, experiment.federation, len(data.training_clients), shared)


def plugins_of(experiment: Experiment) -> dict[str, dict[str, str]]:
    """Name and digest of the code of method, server rule and data, where they are from outside the package."""
    server = experiment.federation.server.name
    found = {
        "method": methods.plugin(experiment.method.name),
        "federation.server": server_rules.plugin(server),
        **sources.plugins_of(experiment.data),
    }
    return {section: plugin.identity for section, plugin in found.items() if plugin}


def _templates(experiment: Experiment, manifest: Manifest) -> tuple[str, ...]:
    """The hand-written prompt of each class."""
    parts = zip(experiment.data.members, manifest.members, strict=True)
    return tuple(settings.prompt for settings, part in parts for _ in part.class_names)


def _frozen(experiment: Experiment, method: Method, backbone: Backbone, manifest: Manifest) -> FrozenText:
    """Freeze what the method needs of the backbone."""
    try:
        if method.image_inputs == "patches":
            check_patches(backbone.model.visual)  # type: ignore[arg-type]
        text = freeze(
            backbone,
            manifest.texts,
            _templates(experiment, manifest),
            method.extra_texts,
            experiment.backbone.class_chunk,
            visual="image" in method.required_towers,
        )
    except BackboneError as error:
        raise BackboneError(f"backbone.name: {backbone.name} does not fit method {method.name}: {error}") from None
    first = 0
    duplicate_names = list[str]()
    for part in manifest.members:
        duplicate_names += text.on(range(first, first + len(part.class_names))).duplicate_names()
        first += len(part.class_names)
    if duplicate_names:
        log.warning(
            "%d of %d classes have the same tokens as another for backbone %s (%s), so a shared prompt cannot tell "
            "them apart; rename them, or use a backbone whose tokenizer knows the words",
            len(duplicate_names),
            len(text.class_names),
            backbone.name,
            first_of(duplicate_names, 5),
        )
    return text


def _check_storage(storage: StorageSettings) -> None:
    problem = denied(storage.root, writing=True) or denied(storage.root / "runs", writing=True)
    if problem is not None:
        raise AccessError(f"storage.root: {problem}, or set storage.root=FOLDER")
    if (found := in_the_way(storage.root)) is not None:
        raise RunError(f"storage.root: {found} is not a writable folder; set storage.root=FOLDER")
    if "?" in str(storage.root.absolute()):
        raise RunError(f"storage.root: {storage.root.absolute()}: MLflow supports no ? in a path; use another folder")
    if storage.uri:
        with before_work("storage.uri: "):
            ObjectStore.at(storage.uri).once().make()


def _check_tracking(settings: TrackingSettings) -> None:
    uri = settings.uri or ""
    path = tracking_uri.local_path(uri) if settings.mlflow and uri.startswith("sqlite") else None
    if path is not None and path.is_dir():
        raise ConfigError(f"tracking.uri: {path} is a folder; give the file of a database, as sqlite:///FILE")
    if path is not None and (found := in_the_way(path.parent)) is not None:
        raise ConfigError(f"tracking.uri: {found} is not a writable folder; give another place, as sqlite:///FILE")


def refuse_edited(plan: Plan) -> None:
    """Raise `ConfigError` if an unfinished run here has the plan's name, seed and held-out domain, but other settings.

    Other images count as another setting. Call it if no run has exactly the settings and the images of the plan.
    """
    experiment = plan.experiment
    now = config.dotted(experiment, manifest=plan.manifest.digest, weights=plan.weights, plugins=plan.plugins)
    now |= {"data.content": plan.content}
    for store, then in sorted(_unfinished(experiment), key=lambda found: -found[0].identity["created_ms"]):
        if all(then[key] == now[key] for key in ("seed", "protocol.held_out")):
            then = {**then, "data.content": store.identity.get("content_digest", plan.content)}
            edited = [f"  {key}: was {then.get(key)}, is {now.get(key)}" for key in config.differing([then, now])]
            what = "settings" if then["data.content"] == plan.content else "settings and images (data.content)"
            raise ConfigError(
                f"--resume: no run has exactly these {what}; {store.path} ({store.state}) has others:\n"
                + "\n".join(edited)
                + f"\nrestore its {what} to continue it, or start a new run without --resume"
            )


def _unfinished(experiment: Experiment) -> Iterator[tuple[RunFolder, Mapping[str, Any]]]:
    """Runs of this name without a writer, with their settings; skips those that this version cannot read."""
    for path in RunIndex(experiment.storage.root).find(experiment.name):
        with suppress(FedPGPError, yaml.YAMLError):
            store = RunFolder.open(path)
            if store.state in ("interrupted", "stopped", "failed"):
                settings = sources.complete(config.parse(load_yaml(store.config_yaml)))
                manifest, weights = (store.identity.get(key) for key in ("manifest_digest", "weights_fingerprint"))
                plugins = store.identity.get("plugins")
                yield store, config.dotted(settings, manifest=manifest, weights=weights, plugins=plugins)


def describe_resources(resources: ResourceSettings) -> str:
    """`2 actors x (1 CPU, 0 GPU)`; `1 process (1 CPU, 0 GPU)` if serial; `at most 2 actors x ...` if not yet chosen."""
    each = f"({resources.cpus_per_actor:g} CPU, {resources.gpus_per_actor:g} GPU)"
    at_most = "at most " if resources.backend == "auto" else ""
    return f"1 process {each}" if resources.backend == "serial" else f"{at_most}{resources.actors} actors x {each}"

"""Register an exported prompt in the model registry of its run's MLflow store."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fedpgp.analysis.report.tables import Table
from fedpgp.config.tracking_uri import local_path
from fedpgp.config.values import load_yaml
from fedpgp.core.errors import ConfigError, RunError
from fedpgp.core.text import first_of, one_line, redacted
from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import connection
from fedpgp.tracking.mirror import checked_store, sync_run
from fedpgp.tracking.names import RUN_TAG

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ALIAS = "best"
MAX_DESCRIPTION = 5000
"""Longest description of a model in MLflow's registry."""
FORBIDDEN = "/:"
"""Signs that the name of a registered model may not have: they separate it from its version in `models:/NAME/1`."""


@dataclass(frozen=True)
class Registration:
    """A name in the registry of the store in which a run is mirrored. Made before the export, by `prepare`."""

    store: RunFolder
    uri: str
    name: str

    @classmethod
    def prepare(cls, run: Path, name: str) -> Self:
        """Check that the model can be registered. Registers nothing.

        Raises:
            ConfigError: MLflow does not accept the name, can never open the store, or has no registry in it.
            RunError: the run's settings turn MLflow off, and it was not sent there by `fedpgp track sync`.
            FedPGPError: MLflow cannot be reached.
        """
        if not name.strip() or any(sign in name for sign in FORBIDDEN):
            raise ConfigError(f"--register: {name!r}: a model's name has at least one letter, and no / and no :")
        store = RunFolder.open(run)
        uri = checked_store(store)
        path = local_path(uri)
        missing = path is not None and not path.exists()
        found = cls(store, uri, name)
        if not load_yaml(store.config_yaml)["tracking"]["mlflow"] and (missing or not found._mirrored()):
            raise RunError(
                f"{store.path}: tracking.mlflow is false and MLflow does not have this run; to register its model, "
                f"first run `fedpgp track sync {shlex.quote(str(store.path))}`"
            )
        if not missing:
            found._check_registry()
        return found

    def add(self, model: Path, card: Mapping[str, Any]) -> str:
        """Upload the MLflow model in a folder, and register it as the next version; return its URI and version.

        The version gets the alias `best`, which an earlier one loses, and the card as its description.
        """
        from mlflow.entities import LoggedModelOutput

        run_id = sync_run(self.store.path, self.uri)
        with connection.mlflow_errors(self.uri):
            client = self._client()
            experiment, about = client.get_run(run_id).info.experiment_id, described(card)
            logged = client.create_logged_model(experiment, self.name, run_id, model_type=card["method"]["name"])
            client.log_model_artifacts(logged.model_id, str(model))
            client.finalize_logged_model(logged.model_id, "READY")
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, card["round"]["number"])])
            if not self._exists(client):
                client.create_registered_model(self.name)
            version = client.create_model_version(
                self.name, logged.artifact_location, run_id, description=about, model_id=logged.model_id
            ).version
            client.update_registered_model(self.name, about)
            client.set_registered_model_alias(self.name, ALIAS, version)
        return f"models:/{self.name}@{ALIAS} (version {version}) in {redacted(self.uri)}"

    def _client(self) -> MlflowClient:
        from mlflow.tracking import MlflowClient

        connection.connect(self.uri)  # checks the file, and sets the environment of MLflow
        return MlflowClient(self.uri, self.uri)

    def _mirrored(self) -> bool:
        """Whether the run is in the store."""
        with connection.mlflow_errors(self.uri):
            client = self._client()
            experiments = [one.experiment_id for one in client.search_experiments()]
            condition = f"tags.`{RUN_TAG}` = '{self.store.identity['id']}'"
            return bool(client.search_runs(experiments, condition, max_results=1))

    def _exists(self, client: MlflowClient) -> bool:
        """Whether the registry has a model of this name."""
        from mlflow.exceptions import MlflowException

        try:
            client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _check_registry(self) -> None:
        """Raise `ConfigError` unless the store has a registry that accepts the name."""
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

        with connection.mlflow_errors(self.uri):
            try:
                self._exists(self._client())
            except UnsupportedModelRegistryStoreURIException:
                raise ConfigError(f"--register: MLflow at {redacted(self.uri)} has no model registry") from None
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                raise ConfigError(f"--register: {self.name!r}: {one_line(error)}") from None


def described(card: Mapping[str, Any]) -> str:
    """The card of a prompt in Markdown: what it is, what it was trained on and with, and its accuracies."""
    trained, backbone, method = card["trained_on"], card["backbone"], card["method"]
    paper = f" ({method['paper']})" if method.get("paper") else ""
    facts = {
        "method": f"{method['name']}{paper}",
        "backbone": f"{backbone['name']}, weights {backbone['weights'] or 'none'}; licence: {backbone['licence']}",
        "trained on": f"{trained['data']}, {trained['protocol']['name']}",
        "round": f"{card['round']['number']} of {card['round']['of']} ({card['round']['chosen']})",
        "classes": first_of(card["class_names"], 20),
        "other class names": "yes" if card["takes_other_names"] else "no",
        "run": f"{card['run']['name']}, seed {card['run']['seed']}, settings {card['run']['config_digest']}",
    }
    if (clients := trained.get("clients")) is not None:
        facts["trained on"] += f", {trained['images']} images of {clients} client{'' if clients == 1 else 's'}"
    accuracies = [(name, f"{value:.2f}") for name, value in card["metrics"].items()]
    tables = [Table("", ["", ""], list(facts.items())).markdown()]
    tables += [Table("", ["metric", "percent"], accuracies).markdown()] if accuracies else []
    return "\n\n".join([f"**{card['what']}**", *tables])[:MAX_DESCRIPTION]

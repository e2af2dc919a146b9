"""Tags and inputs of MLflow runs: code, versions, hardware and data. Parents have what their folds have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedpgp.tracking.mlflow_runs import SOURCE, flat

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

COMMIT_TAG = "mlflow.source.git.commit"
UNTAGGED = ("client_names", "class_names", "num_examples")
"""Parts of the identity that are long lists; the artifacts contain them."""
OWN = ("id", "name", "created_ms", "config_digest")
"""Parts of the identity that belong to a single run, not to its trial."""


def tags_of(identity: Mapping[str, Any]) -> dict[str, str]:
    """The identity of a run as tags `fedpgp.method` and so on, and the commit in the tag that MLflow shows."""
    shown = {key: value for key, value in identity.items() if key not in UNTAGGED and value is not None}
    commit = {COMMIT_TAG: identity["git_commit"]} if "git_commit" in shown else {}
    return {**dict(flat(shown, "fedpgp.")), **commit}


def share(client: MlflowClient, run_id: str, identities: Sequence[Mapping[str, Any]]) -> None:
    """Set on a parent the tags that all its folds have in common, and all their data sets.

    Args:
        identities: of the folds. A tag on which they no longer agree is deleted.
    """
    from mlflow.entities import RunTag

    if not identities:
        return
    folds = [
        tags_of({key: value for key, value in identity.items() if key not in OWN}).items() for identity in identities
    ]
    agreed = dict(set(folds[0]).intersection(*folds[1:]))
    run = client.get_run(run_id)
    names = {name for fold in folds for name, _ in fold}
    for name in sorted((names - agreed.keys()) & run.data.tags.keys()):
        client.delete_tag(run_id, name)
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in sorted(agreed.items())])
    add_data(client, run, identities)


def add_data(client: MlflowClient, run: Run, identities: Sequence[Mapping[str, Any]]) -> None:
    """Add the data sets, identified by name and digest, that are not yet inputs of an MLflow run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    used = {(one["data"], one["manifest_digest"]) for one in identities if "manifest_digest" in one}
    inputs = run.inputs.dataset_inputs if run.inputs else ()
    known = {(one.dataset.name, one.dataset.digest) for one in inputs}
    missing = [
        DatasetInput(
            Dataset(name, digest, source_type="code", source=json.dumps({"tags": SOURCE})),
            [InputTag("mlflow.data.context", "training")],
        )
        for name, digest in sorted(used - known)
    ]
    if not missing:
        return
    try:
        client.log_inputs(run.info.run_id, datasets=missing)
    except MlflowException:  # another process has just stored the same data set; the second attempt finds it
        client.log_inputs(run.info.run_id, datasets=missing)

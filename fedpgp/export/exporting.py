"""Export the prompt that a client or the server of a finished run has learned, with its card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from fedpgp import __version__, config, methods
from fedpgp.clip.model import ICON_CLIP
from fedpgp.config import Experiment
from fedpgp.core.errors import RunError
from fedpgp.core.text import first_of
from fedpgp.core.tree import ParamTree, repeated, select
from fedpgp.data import sources
from fedpgp.data.protocol import divide_classes
from fedpgp.data.sources.base import Source
from fedpgp.export.prompt_file import Prompt
from fedpgp.federation import rule_needs
from fedpgp.federation.metrics import per_client_table
from fedpgp.federation.state import State
from fedpgp.methods.base import DiffersByClient, HasGlobalModel, Method
from fedpgp.storage.run_folder import RunFolder

GLOBAL = "global"
FILE = "prompt.safetensors"
Which = Literal["last", "best"]

LICENCES = {
    "openai": "MIT (as OpenAI's repository CLIP states for its code and model)",
    "random": "none: random weights",
}
"""By open_clip's tag: only what is known."""
ICON_CLIP_LICENCE = (
    "that of the fedpgp package, with the notices in fedpgp/assets/NOTICE.md (trained on open icon sets)"
)
UNKNOWN_LICENCE = "unknown: see the source of the weights"


def learned_prompt(run: Path, client: str, which: Which = "last") -> Prompt:
    """The prompt of a client, or of the server, with its card.

    Args:
        run: folder of a finished run.
        client: a client's number or name, or `global`: what the server could hand to a new client.
        which: the last round, or the one with the best score on validation images.

    Raises:
        RunError: the run has not finished, or was made by another version; its method has nothing that stands in front
            of CLIP's text tower; there is no such client, or it never trained; no global model, or no such round.
    """
    store = RunFolder.open(run)
    experiment, method = _checked(store)
    round, number = _round(store, which), None if client == GLOBAL else _number(store, client)
    personal_of = method.personal_of if isinstance(method, DiffersByClient) else None
    state = store.state_at(round, personal_of=personal_of, clients=np.array([number or 0]))
    if number is None:
        params = _global(state, method)
    else:
        rule = rule_needs.rule_of(method, experiment.federation)
        common, sent = rule.broadcast(state.server, state.shared, np.array([number]))
        own = {key: value[0] for key, value in _of_client(state, number).items()}
        params = select(common, state.shared) | own | {key: value[0] for key, value in sent.items()}
    weights = experiment.backbone.weights
    there = weights if weights and Path(weights).is_file() else None
    return Prompt(params, _card(store, experiment, method, state, which, number), there)


def prompts_text(method: Method) -> bool:
    """Whether what a method learns works through CLIP's frozen text tower, so that tower and parameters classify."""
    return "text" in method.required_towers and bool(method.phases)


def _checked(store: RunFolder) -> tuple[Experiment, Method]:
    if (state := store.state) != "finished":
        hint = "wait for it" if state == "running" else "finish it with `fedpgp run ... --resume`"
        raise RunError(f"{store.path}: the run is {state}, only a finished one is exported; {hint}")
    made_by = store.identity.get("versions", {}).get("fedpgp")
    if made_by != __version__:
        raise RunError(f"{store.path}: made by fedpgp {made_by}, this is {__version__}; export it with that version")
    experiment = sources.complete(config.load(str(store.config_path)))
    plugin = store.identity.get("plugins", {}).get("method")
    method = methods.create(experiment.method.name, experiment.method.settings, plugin and plugin["digest"])
    if not prompts_text(method):
        able = ", ".join(name for name, kind in methods.METHODS.items() if prompts_text(kind(kind.settings_type())))
        raise RunError(f"{store.path}: {method.name} learns no prompt, there is nothing to export (of these: {able})")
    return experiment, method


def _round(store: RunFolder, which: Which) -> int:
    if which == "last":
        if not (rounds := store.rounds()):
            raise RunError(f"{store.path}: has no round, there is nothing to export")
        return rounds[-1].round
    if store.best is None:
        raise RunError(f"{store.path}: no round was validated, so there is no best one; give --round last")
    return store.best


def _number(store: RunFolder, client: str) -> int:
    names: list[str] = store.identity["client_names"]
    if client in names:
        number = names.index(client)
    elif client.isdecimal() and int(client) < len(names):
        number = int(client)
    else:
        raise RunError(
            f"{store.path}: has no client {client!r}; give one of {first_of(names, 20)}, a number from 0, or {GLOBAL}"
        )
    if number in store.identity.get("unseen_clients", ()):
        raise RunError(f"{store.path}: {names[number]} never trained; give --client {GLOBAL}")
    return number


def _global(state: State, method: Method) -> ParamTree:
    """What the server has without any client's own part."""
    if state.shared and not state.personal:
        return state.shared
    if not state.shared or not isinstance(method, HasGlobalModel):
        why = "all of it stays with the clients" if not state.shared else "its shared part is no model by itself"
        raise RunError(f"{method.name} has no global model: {why}; give --client ID")
    model = method.global_model(repeated(state.shared, 1) | _of_client(state, 0))
    return {key: value[0] for key, value in model.items()}


def _of_client(state: State, client: int) -> ParamTree:
    """The personal parameters of one client (1, ...)."""
    import torch

    return {key: torch.from_numpy(value) for key, value in state.personal.of(np.array([client])).items()}


def _card(
    store: RunFolder, experiment: Experiment, method: Method, state: State, which: Which, number: int | None
) -> dict[str, Any]:
    identity = store.identity
    whose = GLOBAL if number is None else identity["client_names"][number]
    trained, others, template = _classes(identity, experiment, whose)
    backbone = experiment.backbone
    otherwise = ICON_CLIP_LICENCE if backbone.name == ICON_CLIP else UNKNOWN_LICENCE
    when = f"after round {state.round} of {store.path.name}"
    return {
        "what": f"{method.name} prompt for {identity['backbone']}, {whose}, {when}",
        "whose": whose,
        "method": {
            "name": experiment.method.name,
            "paper": method.paper,
            "settings": method.settings.model_dump(mode="json"),
            **({"code": identity["plugins"]["method"]["digest"]} if "method" in identity.get("plugins", {}) else {}),
        },
        "template": template,
        "class_names": trained,
        "unseen_class_names": others,
        "takes_other_names": method.supports_unseen_classes,
        "backbone": {
            "name": backbone.name,
            "weights": Path(backbone.weights).name if backbone.weights else None,
            "activation": backbone.activation,
            "dtype": backbone.dtype,
            "fingerprint": identity["weights_fingerprint"],
            "licence": LICENCES.get(backbone.weights or "", otherwise),
        },
        "trained_on": {
            "data": experiment.data.name,
            "protocol": experiment.protocol.model_dump(mode="json"),
            **_images(store, number),
            **{key: identity[key] for key in ("manifest_digest", "partition_digest")},
        },
        "round": {"number": state.round, "chosen": which, "of": experiment.federation.rounds},
        "metrics": _metrics(store, state, number),
        "run": {key: identity[key] for key in ("name", "id", "seed", "config_digest", "versions")},
    }


def _classes(identity: Mapping[str, Any], experiment: Experiment, whose: str) -> tuple[list[str], list[str], str]:
    """The classes of training, those of the same data that are not trained on, and the hand-written prompt.

    In a union they are those of the client's data set, and for the server those of all data sets that train, each
    name once; if their hand-written prompts differ, its prompt is the plain one.
    """
    only = {"class_names": identity["class_names"], "clients": identity["client_names"]}
    parts = identity["parts"].values() if experiment.data.parts else [only]
    trained, others, templates = dict[str, None](), dict[str, None](), set()
    for settings, part in zip(experiment.data.members, parts, strict=True):
        names = part["class_names"]
        if not part["clients"] or whose not in (GLOBAL, *part["clients"]):
            continue
        training, *rest = divide_classes(len(names), experiment.protocol).values()
        trained |= dict.fromkeys(names[label] for label in training)
        others |= dict.fromkeys(names[label] for labels in rest for label in labels)
        templates.add(settings.prompt)
    template = templates.pop() if len(templates) == 1 else Source.template
    return list(trained), [name for name in others if name not in trained], template


def _images(store: RunFolder, number: int | None) -> Mapping[str, Any]:
    """Whose images it learned from: of the client, or of all that ever train."""
    table, names = store.partition, store.identity["client_names"]
    if table is None:
        return {}
    unseen = store.identity.get("unseen_clients", ())
    clients = [name for one, name in enumerate(names) if (one not in unseen if number is None else one == number)]
    held = table.filter((pc.field("split") == "train") & pc.field("client").isin(clients))
    texts = [name for part in store.identity.get("parts", {}).values() for name in part["class_names"]]
    named = dict(zip(store.identity["class_names"], texts or store.identity["class_names"], strict=True))
    classes = dict.fromkeys(named[name] for name in held["class"].unique().to_pylist())
    return {"images": pc.sum(held["images"]).as_py(), "clients": len(clients), "own_classes": list(classes)}


def _metrics(store: RunFolder, state: State, number: int | None) -> dict[str, float]:
    """Accuracies in percent at that round: the client's, or of the server's model where it was tested by itself.

    Without those of new clients after adaptation (`_adapted`), which are of copies that are gone.
    """
    if number is None:
        metrics = store.rounds(after=state.round - 1)[0].metrics
        return {
            key: value
            for key, value in metrics.items()
            if not key.endswith("_adapted") and (not state.personal or key.endswith("_global"))
        }
    return {
        f"{row['split']}/{name}": value
        for row in per_client_table(store.clients(), state.round).to_pylist()
        for name, value in row.items()
        if row["client"] == number and name not in ("client", "split") and value is not None
    }

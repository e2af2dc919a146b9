"""Averaging and whole federated trajectories, equal to the authors' code where it is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agreement import same_logits, same_params

from fedpgp import methods
from fedpgp.federation.aggregate import average, weighted_sum
from fedpgp.federation.client import LocalData, Optimizer, local_update
from fedpgp.tree import stack

FEDPGP = {"ctx": "sigma", "U": "U", "V": "V"}
PROMPTFL = {"ctx": "ctx"}


@pytest.mark.parametrize("case", ["all", "permuted", "partial"])
def test_average_over_those_who_trained(golden, case):
    arrays = golden("aggregation")
    chosen = torch.from_numpy(arrays[f"idxs_{case}"])
    shared = {"ctx": torch.from_numpy(arrays["sigma"])[chosen]}
    counts = torch.from_numpy(arrays["data_counts"])[chosen]
    like = {"ctx": shared["ctx"][0]}
    same_params(average([weighted_sum(shared, counts)], float(counts.sum()), like)["ctx"], arrays[f"avg_{case}"])
    halves = [weighted_sum({"ctx": shared["ctx"][part]}, counts[part]) for part in (slice(1), slice(1, None))]
    same_params(average(halves, float(counts.sum()), like)["ctx"], arrays[f"avg_{case}"])


def test_average_of_a_dictionary(golden):
    arrays = golden("aggregation")
    shared, counts = {"ctx": torch.from_numpy(arrays["sigma"])[:, 0]}, torch.from_numpy(arrays["data_counts"])
    ours = average([weighted_sum(shared, counts)], float(counts.sum()), {"ctx": shared["ctx"][0]})
    same_params(ours["ctx"], arrays["avg_dict_all_ctx"])


def client_data(arrays, clients):
    features = [torch.from_numpy(arrays[f"client{client}/image_features"]) for client in clients]
    labels = [torch.from_numpy(arrays[f"client{client}/labels"]) for client in clients]
    counts = np.array([len(part) for part in labels])
    return LocalData(torch.cat(features), torch.cat(labels), np.cumsum(counts) - counts), counts


def stored_order(arrays, counts):
    """The batches of the authors' run: stored order, the last one may be smaller."""
    size, epochs = int(arrays["batch_size"]), int(arrays["local_epochs"])
    return [[np.arange(start, min(start + size, n)) for start in range(0, n, size)] * epochs for n in counts]


def golden_tree(arrays, prefix, names):
    squeeze = "sigma" in names.values()
    tree = {key: torch.from_numpy(arrays[f"{prefix}{theirs}"]) for key, theirs in names.items()}
    return {key: value[0] if squeeze else value for key, value in tree.items()}


def run(arrays, method, frozen, names):
    """Our federation on their data; yields (round, participants, trained, losses, shared, personal)."""
    clients = len(arrays["data_counts"])
    init = golden_tree(arrays, "init/", names)
    shared = {key: value for key, value in init.items() if key in method.shared_keys}
    personal = stack({key: value for key, value in init.items() if key not in method.shared_keys}, clients)
    sgd = Optimizer(float(arrays["lr"]), float(arrays["momentum"]), float(arrays["weight_decay"]))
    for number in range(int(arrays["rounds"])):
        block = np.sort(arrays[f"round{number}/participants"])
        data, counts = client_data(arrays, block)
        params = {**stack(shared, len(block)), **{key: value[block] for key, value in personal.items()}}
        update = local_update(method, frozen, params, shared, data, [stored_order(arrays, counts)], sgd)
        for key in personal:
            personal[key][block] = update.params[key]
        trained = {key: update.params[key] for key in shared}
        weights = torch.from_numpy(counts)
        shared = average([weighted_sum(trained, weights)], float(counts.sum()), shared)
        yield number, block, update, shared, personal


@pytest.mark.parametrize(
    ("trajectory", "name", "names"),
    [
        ("traj_fedpgp_plain", "fedpgp", FEDPGP),
        ("traj_fedpgp_partial", "fedpgp", FEDPGP),
        ("traj_fedpgp_sgd_reset", "fedpgp", FEDPGP),
        ("traj_promptfl_fedavg", "promptfl", PROMPTFL),
    ],
)
def test_trajectory(golden, class_set, settings, trajectory, name, names):
    arrays = golden(trajectory)
    frozen, method = class_set(arrays["classnames"]), create(name, arrays, settings)
    for number, block, update, shared, personal in run(arrays, method, frozen, names):
        for place, client in enumerate(block):
            prefix = f"round{number}/client{client}"
            same_logits(update.loss[place], arrays[f"{prefix}/losses"].mean())
            for key, value in golden_tree(arrays, f"{prefix}/trained/", names).items():
                same_params(update.params[key][place], value.numpy())
        stored = arrays[f"round{number}/global"]
        same_params(shared["ctx"], stored[0] if name == "fedpgp" else stored)
        clients = len(arrays["data_counts"])
        classifier = method.classifier({**stack(shared, clients), **personal}, frozen)
        for client in range(clients):
            features = torch.from_numpy(arrays[f"client{client}/image_features_eval"])
            logits = classifier(features[None])[client]
            same_logits(logits, arrays[f"round{number}/client{client}/logits_eval"])


def test_momentum_does_not_travel_between_clients(golden, class_set, settings):
    """A departure on purpose: the authors' one optimizer carries a client's momentum to the next client."""
    arrays = golden("traj_fedpgp_official_sgd")
    frozen, method = class_set(arrays["classnames"]), create("fedpgp", arrays, settings)
    last = int(arrays["rounds"]) - 1
    ours = {number: shared["ctx"].clone() for number, _, _, shared, _ in run(arrays, method, frozen, FEDPGP)}[last]
    assert np.abs(ours.numpy() - arrays[f"round{last}/global"][0]).max() > 1e-2
    same_params(ours, golden("traj_fedpgp_sgd_reset")[f"round{last}/global"][0])


def create(name, arrays, settings):
    if name == "promptfl":
        return methods.create(name, {})
    rank = arrays["init/U"].shape[-1]
    given = {"rank": rank, "mu": settings["mu"], "tau": settings["temp"], "anchor": "placeholder"}
    return methods.create(name, given)

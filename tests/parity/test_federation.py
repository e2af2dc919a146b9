"""Averaging and whole federated trajectories, equal to the authors' code where it is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agreement import same_logits, same_params

from fedpgp import methods
from fedpgp.core.tree import stack
from fedpgp.federation.client import LocalData, Optimizer, local_update
from fedpgp.federation.state import average, weighted_sum

FEDPGP = {"ctx": ("sigma", ...), "U": ("U", ...), "V": ("V", ...)}
PROMPTFL = {"ctx": ("ctx", ...)}
FEDOTP = {"ctx": ("ctx", 0), "local": ("ctx", slice(1, None))}
PROMPTFOLIO = {"ctx": ("ctx", 0), "local": ("ctx", 1)}
FEDPHA = {"ctx": ("ctx_global", 0), "local": ("ctx_local", 0)}
"""Location of each parameter in the reference: the name of the array, and the part of it."""


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
    actual = average([weighted_sum(shared, counts)], float(counts.sum()), {"ctx": shared["ctx"][0]})
    same_params(actual["ctx"], arrays["avg_dict_all_ctx"])


def client_data(arrays, clients):
    features = [torch.from_numpy(arrays[f"client{client}/image_features"]) for client in clients]
    labels = [torch.from_numpy(arrays[f"client{client}/labels"]) for client in clients]
    counts = np.array([len(part) for part in labels])
    return LocalData(torch.cat(features), torch.cat(labels), np.cumsum(counts) - counts), counts


def stored_order(arrays, counts):
    """The batches of the authors' run: stored order, the last one may be smaller."""
    size, epochs = int(arrays.get("batch_size", max(counts))), int(arrays["local_epochs"])
    return [[np.arange(start, min(start + size, n)) for start in range(0, n, size)] * epochs for n in counts]


def golden_tree(arrays, prefix, names):
    return {key: torch.from_numpy(arrays[f"{prefix}{name}"][part]) for key, (name, part) in names.items()}


def run(arrays, method, frozen, names):
    """Run the federation on the authors' data; yields (round, participants, trained, losses, shared, personal)."""
    clients = len(arrays["data_counts"])
    init = golden_tree(arrays, "init/", names)
    shared = {key: value for key, value in init.items() if key in method.shared_keys}
    personal = stack({key: value for key, value in init.items() if key not in method.shared_keys}, clients)
    sgd = Optimizer(float(arrays["lr"]), float(arrays["momentum"]), float(arrays["weight_decay"]))
    for number in range(int(arrays["rounds"])):
        block = np.sort(arrays.get(f"round{number}/participants", np.arange(clients)))
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
        ("traj_fedotp", "fedotp", FEDOTP),
        ("promptfolio_traj", "promptfolio", PROMPTFOLIO),
        ("fedpha_traj plain", "fedpha", FEDPHA),
        ("fedpha_traj momentum", "fedpha", FEDPHA),
    ],
)
def test_trajectory(golden, class_set, settings, trajectory, name, names):
    arrays = variant_of(golden, trajectory)
    frozen, method = class_set(arrays["classnames"]), create(name, arrays, settings)
    for number, block, update, shared, personal in run(arrays, method, frozen, names):
        for place, client in enumerate(block):
            prefix = f"round{number}/client{client}"
            same_logits(update.loss[place], arrays[f"{prefix}/losses"].mean())
            for key, value in golden_tree(arrays, f"{prefix}/trained/", names).items():
                same_params(update.params[key][place], value.numpy())
        same_params(shared["ctx"], arrays[f"round{number}/global"][names["ctx"][1]])
        clients = len(arrays["data_counts"])
        classifier = method.classifier({**stack(shared, clients), **personal}, frozen)
        for client in range(clients):
            features = torch.from_numpy(arrays[f"client{client}/image_features_eval"])
            logits = classifier(features[None])[client]
            same_logits(logits, arrays[f"round{number}/client{client}/logits_eval"])
            if (alone := arrays.get(f"round{number}/client{client}/logits_eval_global_only")) is not None:
                model = method.global_model({**stack(shared, clients), **personal})
                same_logits(method.classifier(model, frozen)(features[None])[client], alone)


def variant_of(golden, trajectory):
    """The arrays of a trajectory; of one that has variants, those of the variant that is named after it."""
    name, *variant = trajectory.split()
    arrays = golden(name)
    own = {key.removeprefix(f"{part}/"): value for part in variant for key, value in arrays.items()}
    return {**(golden("fedpha") if name == "fedpha_traj" else {}), **arrays, **own}


def test_momentum_does_not_travel_between_clients(golden, class_set, settings):
    """A deliberate departure: the authors' single optimizer carries a client's momentum to the next client."""
    arrays = golden("traj_fedpgp_official_sgd")
    frozen, method = class_set(arrays["classnames"]), create("fedpgp", arrays, settings)
    last = int(arrays["rounds"]) - 1
    actual = {number: shared["ctx"].clone() for number, _, _, shared, _ in run(arrays, method, frozen, FEDPGP)}[last]
    assert np.abs(actual.numpy() - arrays[f"round{last}/global"]).max() > 1e-2
    same_params(actual, golden("traj_fedpgp_sgd_reset")[f"round{last}/global"])


def create(name, arrays, settings):
    if name == "promptfl":
        return methods.create(name, {})
    if name == "fedotp":
        return methods.create(name, {**settings["ot"], "num_prompts": len(arrays["init/ctx"]), "stop": "batch"})
    if name == "promptfolio":
        return methods.create(name, {"theta": float(arrays["theta"])})
    if name == "fedpha":
        n_ctx, given = arrays["init/ctx_global"].shape[1], {"ratio": arrays["ratio"], "margin": arrays["alpha"]}
        return methods.create(name, {"n_ctx": n_ctx, **{key: float(value) for key, value in given.items()}})
    sets, n_ctx, rank = arrays["init/U"].shape
    given = {"mu": settings["mu"], "tau": settings["temp"], "anchor": "placeholder"}
    return methods.create(name, given | {"num_prompts": sets, "n_ctx": n_ctx, "rank": rank})


def test_the_proximal_term_has_a_gradient(golden, class_set):
    """A deliberate departure: the authors' term is detached, so their FedProx trains like FedAvg.

    In the first round their second loss differs from FedAvg's by prox / 2 ||c1 - c0||^2, from which prox is read.
    Both losses are equal here, and the gradient moves the second step by -lr prox (c1 - c0).
    """
    plain, arrays = golden("traj_promptfl_fedavg"), golden("traj_promptfl_fedprox")
    frozen, init = class_set(arrays["classnames"]), {"ctx": torch.from_numpy(arrays["init/ctx"])}
    block = np.sort(arrays["round0/participants"])
    data, counts = client_data(arrays, block)
    sgd = Optimizer(float(arrays["lr"]), 0.0, 0.0)

    def train(name, given, steps):
        orders = [[np.arange(n)] * steps for n in counts]
        return local_update(methods.create(name, given), frozen, stack(init, len(block)), init, data, [orders], sgd)

    moved = train("promptfl", {}, 1).params["ctx"] - init["ctx"]
    stored = [[which[f"round0/client{client}/losses"][:2] for client in block] for which in (plain, arrays)]
    excess = torch.from_numpy(np.array(stored[1])[:, 1] - np.array(stored[0])[:, 1])
    prox = float((2 * excess / moved.double().square().sum((1, 2))).mean())
    assert prox > 0.1
    actual = train("prompt_prox", {"prox": prox}, 2)
    same_logits(actual.loss, np.array(stored[1]).mean(1))
    detached = train("promptfl", {}, 2).params["ctx"]
    for place, client in enumerate(block):
        same_params(detached[place], arrays[f"round0/client{client}/trained/ctx"])
    expected = -sgd.lr * prox * moved
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(actual.params["ctx"] - detached, expected, atol=5e-7, rtol=1e-2)


def test_prox_0_is_promptfl_bit_for_bit(golden, class_set):
    arrays = golden("traj_promptfl_fedprox")
    frozen = class_set(arrays["classnames"])
    runs = [
        [shared["ctx"] for _, _, _, shared, _ in run(arrays, methods.create(name, given), frozen, PROMPTFL)]
        for name, given in (("promptfl", {}), ("prompt_prox", {"prox": 0}))
    ]
    assert all(torch.equal(left, right) for left, right in zip(*runs, strict=True))
    same_params(runs[0][-1], arrays[f"round{len(runs[0]) - 1}/global"])

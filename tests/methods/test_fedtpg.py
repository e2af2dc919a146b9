"""A context from class names: against torch's own layers, one client at a time, and with each client's own names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from three_clients import NAMES, batch, distinct_params, gradients, learned
from torch import nn

from fedpgp import methods
from fedpgp.core.errors import ConfigError
from fedpgp.core.tree import select, stack, without
from fedpgp.federation.client import LocalData, Optimizer, local_update

METHOD = methods.create("fedtpg", {"n_ctx": 3})
DEEP = methods.create("fedtpg", {"n_ctx": 3, "depth": 2, "heads": 2})


def trained(method, frozen, seed=2):
    """Parameters of three clients, each of which has moved by itself."""
    params, _ = distinct_params(method, frozen)
    generator = torch.Generator().manual_seed(seed)
    return {key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in params.items()}


def by_torch(method, frozen, params, names):
    """The context of one client, by torch's modules."""

    def norm(name, x):
        return nn.functional.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"])

    def attend(name, queries, inputs):
        module = nn.MultiheadAttention(queries.shape[-1], method.settings.heads, kdim=inputs.shape[-1],
                                       vdim=inputs.shape[-1], batch_first=True)  # fmt: skip
        state = {"in_proj_bias": torch.cat([params[f"{name}.{part}.bias"] for part in "qkv"])}
        weights = {part: params[f"{name}.{part}.weight"] for part in "qkv"}
        if queries.shape[-1] == inputs.shape[-1]:
            state["in_proj_weight"] = torch.cat(list(weights.values()))
        else:
            state |= {f"{part}_proj_weight": weight for part, weight in weights.items()}
        state |= {f"out_proj.{kind}": params[f"{name}.out.{kind}"] for kind in ("weight", "bias")}
        module.load_state_dict(state)
        return module(queries[None], inputs[None], inputs[None])[0][0]

    def feed(name, x):
        hidden = nn.functional.linear(norm(f"{name}.norm", x), params[f"{name}.in.weight"], params[f"{name}.in.bias"])
        u, w = hidden.chunk(2, -1)
        return nn.functional.linear(u * nn.functional.gelu(w), params[f"{name}.out.weight"], params[f"{name}.out.bias"])

    x = attend("cross", norm("cross.norm", params["queries"]), norm("cross.norm_names", names))
    x = x + feed("feed", x)
    for number in range(method.settings.depth):
        y = norm(f"block_{number}.norm", x)
        x = x + attend(f"block_{number}", y, y)
        x = x + feed(f"block_{number}.feed", x)
    return x


@pytest.mark.parametrize("method", [METHOD, DEEP])
@torch.no_grad()
def test_contexts_of_all_clients_equal_torch_modules_one_by_one(bind, method):
    frozen = bind(method)
    params, names = trained(method, frozen), nn.functional.normalize(frozen.bare_names(), dim=-1)
    contexts = method.context(params, frozen)
    for client, context in enumerate(contexts):
        own = {key: value[client] for key, value in params.items()}
        torch.testing.assert_close(context, by_torch(method, frozen, own, names), atol=2e-5, rtol=1e-5)


def test_features_of_bare_names_have_no_context_and_no_full_stop(bind):
    """The text tower's features of start, name and end; in an experiment whose template is the name they are its."""
    frozen = bind(METHOD)
    start, end = frozen._frozen.bounds
    rows = [[start, *frozen.token_ids(name), end] for name in frozen.names]
    with torch.no_grad():
        expected = frozen._encoder(rows).encode(torch.empty(1, 0, frozen.width))[0]
    assert torch.equal(frozen.bare_names(), expected)
    assert not torch.allclose(frozen.bare_names(), frozen.template(), atol=1e-2)


@torch.no_grad()
def test_the_context_depends_on_the_names_and_not_on_their_order(bind):
    orders = [NAMES, NAMES[::-1], NAMES[:3]]
    params = trained(DEEP, bind(DEEP))
    first, reversed_names, fewer = (DEEP.context(params, bind(DEEP, names)) for names in orders)
    torch.testing.assert_close(first, reversed_names, atol=1e-5, rtol=0)
    assert (first - fewer).abs().max() > 1e-2


@torch.no_grad()
def test_blocks_that_add_nothing_are_neutral(bind):
    """A block whose two last layers are 0 leaves the context of depth 0, bit for bit."""
    frozen = bind(METHOD)
    params = trained(DEEP, frozen)
    plain = methods.create("fedtpg", {"n_ctx": 3, "heads": 2})
    neutral = {
        key: torch.zeros_like(value) if key.startswith("block_") and ".out." in key else value
        for key, value in params.items()
    }
    base = select(params, plain.shared_keys)
    assert torch.equal(DEEP.context(neutral, frozen), plain.context(base, frozen))
    assert not torch.allclose(DEEP.context(params, frozen), plain.context(base, frozen), atol=1e-2)


OWN = ([0, 1, 2, 3, 4], [1, 3], [0, 2, 4])  # the classes of each client; the first has all of the chunk


@pytest.mark.parametrize("method", [METHOD, DEEP])
def test_clients_with_own_classes_equal_each_alone(bind, features, method):
    """Loss, gradient and three steps with momentum: others' names are neither keys of the attention nor columns."""
    frozen = bind(method)
    counts, images = np.array([6, 4, 9]), features["pooled"]
    places = [torch.arange(int(count)) % len(own) for count, own in zip(counts, OWN, strict=True)]
    labels = torch.cat([torch.tensor(own)[place] for own, place in zip(OWN, places, strict=True)])
    counted = torch.tensor([[label in own for label in range(len(NAMES))] for own in OWN])
    sgd, orders = Optimizer(0.01, 0.9, 5e-4), [[np.arange(count)] * 3 for count in counts]
    params, received = trained(method, frozen), {}
    together = local_update(
        method, frozen, params, received,
        LocalData(images, labels, np.cumsum(counts) - counts, counted), [orders], sgd,
    )  # fmt: skip
    step = batch(images, labels)
    step = type(step)(step.features, step.labels, step.mask, counted)
    own_params = learned(params)
    slopes = gradients(method.loss(own_params, received, frozen, step)[0], own_params)
    for client, own in enumerate(OWN):
        few = bind(method, [NAMES[label] for label in own])
        one = {key: value[client : client + 1] for key, value in params.items()}
        data = LocalData(images.split(counts.tolist())[client], places[client], np.zeros(1, np.int64))
        alone = local_update(method, few, one, received, data, [[orders[client]]], sgd)
        torch.testing.assert_close(together.loss[client], alone.loss[0], atol=2e-5, rtol=0)
        for key, value in alone.params.items():
            torch.testing.assert_close(together.params[key][client], value[0], atol=1e-5, rtol=0)
        leaves = learned(one)
        single = type(step)(data.features[None], places[client][None], torch.ones(1, len(places[client])) > 0)
        for key, value in gradients(method.loss(leaves, received, few, single)[0], leaves).items():
            torch.testing.assert_close(slopes[key][client], value[0], atol=3e-5, rtol=1e-4)


def test_the_start_is_that_of_torch(bind):
    """Of each kind the largest value, next to the bound that torch's own layers have; norms and biases as there."""
    method = methods.create("fedtpg", {"depth": 1})
    frozen = bind(method)
    width, joint = frozen.width, frozen.joint_width
    tree = method.init(frozen, torch.Generator().manual_seed(0))
    assert tree["queries"].shape == (4, width)
    assert tree["queries"].std().item() == pytest.approx(0.02, rel=0.15)
    torch.manual_seed(0)
    cross = nn.MultiheadAttention(width, 4, kdim=joint, vdim=joint)
    block = nn.MultiheadAttention(width, 4)
    wide, narrow = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)
    separate = {"q": cross.q_proj_weight, "k": cross.k_proj_weight, "v": cross.v_proj_weight}
    if width == joint:
        separate = dict(zip("qkv", cross.in_proj_weight.chunk(3), strict=True))
    pairs = {f"cross.{part}.weight": weight for part, weight in separate.items()}
    pairs |= {f"block_0.{part}.weight": w for part, w in zip("qkv", block.in_proj_weight.chunk(3), strict=True)}
    pairs |= {f"{name}.out.weight": cross.out_proj.weight for name in ("cross", "block_0")}
    for name in ("feed", "block_0.feed"):
        pairs |= {f"{name}.in.weight": wide.weight, f"{name}.out.weight": narrow.weight}
        pairs |= {f"{name}.in.bias": wide.bias, f"{name}.out.bias": narrow.bias}
    for key, theirs in pairs.items():
        assert tree[key].shape == theirs.shape
        assert tree[key].abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.06), key
    for key, value in without(tree, [*pairs, "queries"]).items():
        assert torch.equal(value, torch.full_like(value, float("norm" in key and key.endswith("weight")))), key


def test_heads_that_do_not_divide_the_width_are_refused(bind):
    method = methods.create("fedtpg", {"heads": 3})
    with pytest.raises(ConfigError, match="heads: 3 do not divide the 64 values of a context token; give a divisor"):
        method.init(bind(method), torch.Generator())


def test_a_stack_of_equal_networks_gives_equal_contexts(bind):
    tree = METHOD.init(bind(METHOD), torch.Generator().manual_seed(5))
    with torch.no_grad():
        first, second = METHOD.context(stack(tree, 2), bind(METHOD))
    torch.testing.assert_close(first, second, atol=0, rtol=0)

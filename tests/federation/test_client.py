"""Local training: hand-worked numbers on one weight, torch's SGD, and a block of clients against each alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpgp.core.errors import ConfigError
from fedpgp.federation.client import LocalData, Optimizer, Update, batches, local_update, travel
from fedpgp.methods.base import Phase


class OneWeight:
    """loss = mean over the images of (w - x)^2 / 2; its gradient is w - mean(x)."""

    phases = (Phase(frozenset({"w"})),)

    def loss(self, params, received, frozen, batch):
        squared = (params["w"][:, :1] - batch.features[..., 0]).square() / 2
        return (squared * batch.mask).sum(1) / batch.mask.sum(1).clamp(min=1), {}


class TwoParts:
    """loss = ce + con: ce as `OneWeight`, con = w / 2; its gradient is w - mean(x) + 1 / 2."""

    name = "two_parts"
    phases = (Phase(frozenset({"w"})),)

    def loss(self, params, received, frozen, batch):
        ce, _ = OneWeight().loss(params, received, frozen, batch)
        con = params["w"][:, 0] / 2
        return ce + con, {"ce": ce, "con": con}


class Linear:
    """Cross-entropy of a bilinear classifier: gradients that depend on everything."""

    phases = (Phase(frozenset({"weight", "bias"}), lr={"bias": 0.01}),)

    def loss(self, params, received, frozen, batch):
        logits = batch.features @ params["weight"] + params["bias"].unsqueeze(1)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
        return (losses.view_as(batch.mask) * batch.mask).sum(1) / batch.mask.sum(1).clamp(min=1), {}


def one_weight(images, start, orders, optimizer, method=None):
    counts = [len(own) for own in images]
    features = torch.tensor([x for own in images for x in own]).unsqueeze(1)
    data = LocalData(features, torch.zeros(len(features), dtype=torch.long), np.cumsum(counts) - counts)
    params = {"w": torch.tensor(start).unsqueeze(1)}
    return local_update(method or OneWeight(), None, params, {}, data, [orders], optimizer)


def test_two_steps_with_momentum_and_decay_by_hand():
    """w = 1, x = 3, lr 0.5, momentum 0.5, decay 0.25.

    Step 1: gradient 1 - 3 + 0.25 = -1.75, w = 1 + 0.875 = 1.875, loss 2.
    Step 2: gradient 1.875 - 3 + 0.46875 = -0.65625, velocity -0.875 - 0.65625 = -1.53125, w = 2.640625;
    loss 1.125^2 / 2 = 0.6328125.
    """
    order = [np.array([0])] * 2
    update = one_weight([[3.0]], [1.0], [order], Optimizer(lr=0.5, momentum=0.5, weight_decay=0.25))
    assert update.params["w"].item() == 2.640625
    assert update.loss.item() == (2 + 0.6328125) / 2


def test_parts_of_the_loss_are_means_over_the_clients_own_steps():
    """w = 1, lr 0.5. With x = 3, step 1: ce 2, con 0.5, gradient -1.5, w = 1.75; step 2: ce 1.25^2 / 2, con 0.875.

    With x = -1 and a single step: ce 2, con 0.5.
    """
    orders = [[np.array([0])] * 2, [np.array([0])]]
    update = one_weight([[3.0], [-1.0]], [1.0, 1.0], orders, Optimizer(0.5, 0.0, 0.0), TwoParts())
    parts = {name: value.tolist() for name, value in update.parts.items()}
    assert parts == {"ce": [(2 + 0.78125) / 2, 2.0], "con": [(0.5 + 0.875) / 2, 0.5]}
    assert update.loss.tolist() == [(2.5 + 1.65625) / 2, 2.5]
    both = Update.concatenate([update, update])
    assert both.parts["con"].tolist() == [0.6875, 0.5] * 2


def test_parts_belong_to_the_phase_that_the_loss_belongs_to():
    """A second phase of the same step, lr 0.5: w = 1, then 1.75; the client at 1e30 fails in the first phase."""

    class Twice(TwoParts):
        phases = (Phase(frozenset({"w"})), Phase(frozenset({"w"})))

    data = LocalData(torch.tensor([[3.0], [1e30]]), torch.zeros(2, dtype=torch.long), np.array([0, 1]))
    once, params = [[np.array([0])]] * 2, {"w": torch.ones(2, 1)}
    update = local_update(Twice(), None, params, {}, data, [once, once], Optimizer(0.5, 0.0, 0.0))
    assert update.parts["ce"].tolist() == [0.78125, float("inf")]
    assert update.parts["con"].tolist() == [0.875, 0.5]


@pytest.mark.parametrize("name", ["loss", "train"])
def test_a_part_cannot_have_the_name_of_the_loss(name):
    class Named(TwoParts):
        def loss(self, *arguments):
            loss, parts = super().loss(*arguments)
            return loss, {name: parts["ce"]}

    with pytest.raises(ConfigError, match=f"method two_parts: rename the part '{name}' of its loss"):
        one_weight([[3.0]], [1.0], [[np.array([0])]], Optimizer(0.5, 0.0, 0.0), Named())


def test_no_step_reads_a_value_from_the_device():
    """Tensors of the meta device have no values, so reading one raises."""
    data, params, orders = linear_block([6, 4, 9])
    on_meta = LocalData(data.features.to("meta"), data.labels.to("meta"), data.starts)
    params = {key: value.to("meta") for key, value in params.items()}
    with pytest.raises(RuntimeError):
        bool(params["weight"].any())
    update = local_update(Linear(), None, params, {}, on_meta, [orders], Optimizer(0.1, 0.9, 5e-4))
    assert {key: tuple(value.shape) for key, value in update.params.items()} == {"weight": (3, 6, 4), "bias": (3, 4)}


def test_all_indices_reach_the_device_before_the_first_step(monkeypatch):
    data, params, orders = linear_block([6, 4, 9])
    copied, steps, from_numpy = [], [], torch.from_numpy

    class Watched(Linear):
        def loss(self, *arguments):
            steps.append(len(copied))
            return super().loss(*arguments)

    monkeypatch.setattr(torch, "from_numpy", lambda array: copied.append(array) or from_numpy(array))
    local_update(Watched(), None, params, {}, data, [orders], Optimizer(0.1, 0.9, 5e-4))
    assert steps == [2] * 6  # two arrays, of indices and of masks; 9 images in batches of 3, twice


def test_the_settings_of_a_phase_override_the_federations():
    """In round 3 both rates are a quarter of the first; settings that the phase leaves open are the federation's."""
    phase = Phase(frozenset({"a", "b"}), lr={"a": 2.0}, decay=0.5, momentum=0.0, weight_decay=0.0)
    assert Optimizer(0.8, 0.9, 0.1).within(phase, 3) == Optimizer(0.2, 0.0, 0.0, {"a": 0.5})
    assert Optimizer(0.8, 0.9, 0.1).within(Phase(frozenset("a")), 3) == Optimizer(0.8, 0.9, 0.1)


def test_a_client_out_of_batches_stays_unchanged():
    """The first has one batch: neither momentum nor decay changes it while the second continues."""
    orders = [[np.array([0])], [np.array([0])] * 3]
    settings = Optimizer(lr=0.5, momentum=0.9, weight_decay=0.1)
    block = one_weight([[3.0], [5.0]], [1.0, 1.0], orders, settings)
    for client, (image, order) in enumerate(zip([[3.0], [5.0]], orders, strict=True)):
        alone = one_weight([image], [1.0], [order], settings)
        assert torch.equal(block.params["w"][client], alone.params["w"][0])
        assert torch.equal(block.loss[client], alone.loss[0])


def linear_block(counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(sum(counts), 6, generator=generator)
    labels = torch.randint(4, (sum(counts),), generator=generator)
    params = {
        "weight": torch.randn(len(counts), 6, 4, generator=generator),
        "bias": torch.zeros(len(counts), 4),
    }
    orders = [
        batches(n, views=1, batch_size=3, epochs=2, drop_last=False, generator=np.random.default_rng(client))
        for client, n in enumerate(counts)
    ]
    return LocalData(features, labels, np.cumsum(counts) - counts), params, orders


def test_equals_torch_sgd():
    data, params, orders = linear_block([7])
    actual = local_update(Linear(), None, params, {}, data, [orders], Optimizer(0.1, 0.9, 5e-4)).params
    weight, bias = (params[key][0].clone().requires_grad_() for key in ("weight", "bias"))
    sgd = torch.optim.SGD([{"params": [weight]}, {"params": [bias], "lr": 0.01}], 0.1, momentum=0.9, weight_decay=5e-4)
    for rows in orders[0]:
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(data.features[rows] @ weight + bias, data.labels[rows]).backward()
        sgd.step()
    torch.testing.assert_close(actual["weight"][0], weight.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(actual["bias"][0], bias.detach(), atol=1e-6, rtol=0)


def test_a_block_equals_each_client_alone():
    counts = [6, 4, 9]
    data, params, orders = linear_block(counts)
    block = local_update(Linear(), None, params, {}, data, [orders], Optimizer(0.1, 0.9, 5e-4))
    for client, start in enumerate(data.starts):
        rows = slice(start, start + counts[client])
        own = LocalData(data.features[rows], data.labels[rows], np.zeros(1, dtype=np.int64))
        one = {key: value[client : client + 1] for key, value in params.items()}
        alone = local_update(Linear(), None, one, {}, own, [[orders[client]]], Optimizer(0.1, 0.9, 5e-4))
        for key, value in alone.params.items():
            torch.testing.assert_close(block.params[key][client], value[0], atol=1e-5, rtol=0)


def test_the_given_parameters_are_not_changed():
    data, params, orders = linear_block([5])
    before = {key: value.clone() for key, value in params.items()}
    local_update(Linear(), None, params, {}, data, [orders], Optimizer(0.1, 0.0, 0.0))
    assert all(torch.equal(params[key], before[key]) for key in before)


def test_a_client_whose_loss_is_not_finite_stays_unchanged_and_is_marked():
    orders, settings = [[np.array([0])] * 2] * 2, Optimizer(0.1, 0.0, 0.0)
    update = one_weight([[1.0], [1e30]], [0.0, 0.0], orders, settings)
    assert update.finite.tolist() == [True, False]
    assert update.params["w"][1].item() == 0.0
    alone = one_weight([[1.0]], [0.0], orders[:1], settings)
    assert torch.equal(update.params["w"][0], alone.params["w"][0])


def test_a_client_that_fails_in_an_earlier_phase_keeps_that_loss():
    class Twice(OneWeight):
        phases = (Phase(frozenset({"w"})), Phase(frozenset({"w"})))

    data = LocalData(torch.tensor([[1e30], [3.0]]), torch.zeros(2, dtype=torch.long), np.array([0, 1]))
    once = [[np.array([0])]] * 2
    settings = Optimizer(0.5, 0.0, 0.0)
    update = local_update(Twice(), None, {"w": torch.zeros(2, 1)}, {}, data, [once, once], settings)
    assert update.finite.tolist() == [False, True]
    assert update.loss.tolist() == [float("inf"), 1.5**2 / 2]  # the loss of its last phase


def order(count, **changes):
    settings = {"views": 1, "batch_size": 4, "epochs": 2, "drop_last": False, **changes}
    return batches(count, **settings, generator=np.random.default_rng(0))


def test_every_epoch_sees_every_image_once():
    first, second = order(10)[:3], order(10)[3:]
    assert [len(part) for part in first] == [4, 4, 2]
    assert sorted(np.concatenate(first)) == sorted(np.concatenate(second)) == list(range(10))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))


def test_drop_last_keeps_a_client_with_less_than_a_batch():
    assert [len(part) for part in order(10, drop_last=True)] == [4, 4, 4, 4]
    assert [len(part) for part in order(3, drop_last=True)] == [3, 3]
    assert [len(part) for part in order(8, drop_last=True)] == [4, 4, 4, 4]


def test_views_address_the_rows_of_an_image():
    rows = np.concatenate(order(10, views=3, epochs=1))
    assert sorted(rows // 3) == list(range(10))
    assert len(set(rows % 3)) > 1


def test_travel_is_how_far_a_constant_gradient_moves_a_weight():
    """Velocities 1, 1.5, 1.75 with momentum 0.5, of which a client with one step has the first; times a factor."""
    steps = np.array([1, 3])
    assert travel(steps, 1.0, 0.0).tolist() == [1, 3]
    assert travel(steps, 1.0, 0.5).tolist() == [1, 4.25]
    by_step = np.array([[1.0, 1.0], [0.0, 0.5], [0.0, 2.0]])
    assert travel(steps, by_step, 0.5).tolist() == [1, 1 + 0.75 + 3.5]

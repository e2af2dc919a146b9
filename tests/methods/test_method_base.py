"""Helpers that methods share: a loss with gradients of its own, and means over real images."""

from __future__ import annotations

import math

import pytest
import torch

from fedpgp.methods.base import Batch, cross_entropy, image_mean, with_gradients

PARAMS = {"a": torch.tensor([[1.0, -2.0], [3.0, 0.1]]), "b": torch.tensor([[[5.0]], [[7.0]]])}
GRADIENTS = {"a": torch.tensor([[0.1, 1e-30], [-3e4, 0.7]]), "b": torch.tensor([[[0.3]], [[-0.0]]])}


def test_value_and_gradients_are_exactly_those_given():
    own = {key: value.clone().requires_grad_() for key, value in PARAMS.items()}
    value = own["a"].square().sum(1) / 3  # its own gradient does not count
    loss = with_gradients(value, own, GRADIENTS)
    assert torch.equal(loss, value)
    for key, gradient in zip(own, torch.autograd.grad(loss.sum(), list(own.values())), strict=True):
        assert torch.equal(gradient, GRADIENTS[key])


def test_a_client_that_does_not_count_has_no_gradient():
    own = {key: value.clone().requires_grad_() for key, value in PARAMS.items()}
    loss = torch.where(torch.tensor([False, True]), with_gradients(torch.ones(2), own, GRADIENTS), 0.0)
    for key, gradient in zip(own, torch.autograd.grad(loss.sum(), list(own.values())), strict=True):
        assert not gradient[0].any()
        assert torch.equal(gradient[1], GRADIENTS[key][1])


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_shows_in_the_loss_of_its_client(wrong):
    gradients = {**GRADIENTS, "a": torch.tensor([[0.0, 0.0], [wrong, 0.0]])}
    assert with_gradients(torch.ones(2), PARAMS, gradients).isfinite().tolist() == [True, False]


def test_parameters_without_a_gradient_only_give_the_value():
    assert torch.equal(with_gradients(torch.tensor([2.0, 3.0]), PARAMS, GRADIENTS), torch.tensor([2.0, 3.0]))


def test_the_mean_over_real_images():
    mask = torch.tensor([[True, True, False], [False, False, False]])
    values = torch.tensor([[1.0, 4.0, 100.0], [7.0, 7.0, 7.0]])
    assert image_mean(values, Batch(values, values, mask)).tolist() == [2.5, 0.0]


def test_the_label_of_padding_need_not_be_a_class_of_the_client():
    """Two own classes with equal logits: log 2, and gradients of -1/2 and 1/2."""
    logits = torch.tensor([[[9.0, 3.0, 3.0], [9.0, 3.0, 3.0]]], requires_grad=True)
    labels, mask = torch.tensor([[1, 0]]), torch.tensor([[True, False]])
    images = Batch(torch.empty(1, 2, 0), labels, mask, own=torch.tensor([[False, True, True]]))
    loss = cross_entropy(logits, images)
    assert loss.tolist() == pytest.approx([math.log(2)])
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.tolist() == [[[0.0, pytest.approx(-0.5), pytest.approx(0.5)], [0.0, 0.0, 0.0]]]

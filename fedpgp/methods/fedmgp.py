"""FedMGP (Bo et al., NeurIPS 2025): groups of a text and an image prompt, of which each client shares a random few."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet, readable
from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import (
    Batch,
    Classifier,
    Inputs,
    Metrics,
    Phase,
    PromptMethod,
    Tower,
    class_mean,
    cosine_logits,
    cross_entropy,
    image_mean,
)
from fedpgp.methods.coop import INIT_STD
from fedpgp.methods.fedmaple import first_vectors, fixed_tokens

Diversity = Literal["cosine", "released_l1"]

WORD_STD = 0.01  # of the noise on the words that the text prompts start from
MODALITIES = (("ctx", "global_ctx", "drawn_ctx"), ("image", "global_image", "drawn_image"))
"""Keys of text and image: all groups of a client, the prompts that are shared, and which groups were drawn."""


class FedMGPSettings(Settings):
    """Settings of FedMGP."""

    groups: int = Field(5, ge=1)
    """G, number of groups; each has a text prompt and an image prompt"""
    n_ctx: int = Field(2, ge=1)
    """L_t, number of learned tokens of a text prompt"""
    n_ctx_image: int = Field(2, ge=1)
    """L_v, number of learned tokens of an image prompt"""
    ctx_init: str | None = "a photo of a"
    """words: the first `n_ctx` tokens start each text prompt, with noise; the others stay fixed; null: N(0, 0.02)"""
    shared_groups: int = Field(2, ge=1)
    """s, number of text prompts and of image prompts that a client sends and receives in a round; at most `groups`"""
    temperature: float = Field(1.0, ge=0.01)
    """tau of the draw of these prompts; a small one prefers those that are most similar to the global prompts"""
    diversity: Diversity = "cosine"
    """term that separates the groups: cosine (the paper's) | released_l1 (the authors' code, which has the wrong sign
    and pulls them together)"""
    diversity_weight: float = Field(1.0, ge=0)
    """lambda, weight of that term; 0: none"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.shared_groups > self.groups:
            raise ValueError(f"shared_groups={self.shared_groups} is above groups={self.groups}")
        return self


class FedMGP(PromptMethod):
    """L = (1 / G) sum_g L_ce(s_g) + lambda (D_text + D_image) / 2, with s_g = scale cos(f(x; v_g), z(t_g)).

    Legend: t_g is `ctx[g]` (L_t, D), a text prompt in front of the words that stay fixed ("of a NAME." for L_t = 2);
    v_g is `image[g]` (L_v, W), an image prompt behind the patches, at the input of the image tower only; W is the width
    of its tokens. D_text is the mean of cos(z(t_g), z(t_h)) over all pairs g < h and the classes (with
    `protocol.train_classes: own` the client's), D_image that of cos(f(x; v_g), f(x; v_h)) over pairs and images; one
    group has neither. An image is classified by the mean of the s_g, also among novel classes.

    Round: a client trains all groups; then it draws s text prompts and, apart from them, s image prompts: in round 1
    any, later one by one without replacement with probabilities softmax(a / tau), where a_g is the largest cosine of
    the flattened prompt g with a global prompt of the last round. The server averages the k-th drawn prompts of the
    participants by numbers of images; the result replaces the k-th drawn prompt of each participant. The other groups
    stay with the client, and so do all of a client that does not take part.

    Shared: `global_ctx` (s, L_t, D) and `global_image` (s, L_v, W), s (L_t D + L_v W) numbers up and down; a client
    hears the result of its round as what it is sent next, counted once. Personal: all groups, and `drawn_ctx`,
    `drawn_image` (s,), the groups that were drawn last. All clients start with the same groups; the global prompts
    start as the first s of them. There is no global model: the k-th global text prompt and the k-th global image prompt
    were drawn apart, so no client has trained them as a group. Any server rule but SCAFFOLD fits, which corrects
    gradients of shared parameters: here none is learned.

    Cost: both towers run in every step for all groups, on cached pixels: G times that of MaPLe's shallow prompts.

    Departs from the authors' code: trained image prompts are kept (theirs loads the initial ones in every round and
    evaluation); D is minimised (theirs minimises a distance: `released_l1`, the mean of |f_g - f_h| over E); averages
    are weighted by images as in the paper (theirs are not); text and image are drawn with different random numbers
    (theirs mostly coincide); the image prompts' start is reproducible; optimizers are fresh in each round.
    """

    name: ClassVar[str] = "fedmgp"
    paper: ClassVar[str] = "Bo et al., NeurIPS 2025"
    settings_type: ClassVar[type[Settings]] = FedMGPSettings
    image_inputs: ClassVar[Inputs] = "pixels"
    required_towers: ClassVar[frozenset[Tower]] = frozenset({"text", "image"})
    shared_keys: ClassVar[frozenset[str]] = frozenset({"global_ctx", "global_image"})
    phases: tuple[Phase, ...] = (Phase(frozenset({"ctx", "image"})),)

    def __init__(self, settings: FedMGPSettings) -> None:
        self.settings = settings
        self.extra_texts = (readable(settings.ctx_init),) if settings.ctx_init else ()

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """Text prompts from words with N(0, 0.01), or from N(0, 0.02) like the image prompts.

        Raises `ConfigError` if `n_ctx` exceeds the tokens of the words; `DataError` if a prompt would be longer than
        the text tower allows.
        """
        given, texts = self.settings, self.extra_texts
        frozen.check_room(given.n_ctx + len(fixed_tokens(frozen, texts, given.n_ctx)))
        ctx = torch.randn(given.groups, given.n_ctx, frozen.width, generator=generator)
        ctx *= WORD_STD if texts else INIT_STD
        for words in texts:
            ctx += first_vectors(self.name, frozen, words, given.n_ctx)
        image = torch.randn(given.groups, given.n_ctx_image, frozen.visual.width, generator=generator)
        tree: ParamTree = {"ctx": ctx, "image": INIT_STD * image}
        for own, shared, drawn in MODALITIES:
            tree |= {shared: tree[own][: given.shared_groups].clone(), drawn: torch.arange(given.shared_groups)}
        return tree

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """L (K,), its cross-entropy and the mean of D_text and D_image."""
        text, images = self._text(params, frozen), self._images(params, frozen, batch.features)
        logits = cosine_logits(images, text, frozen.logit_scale)
        ce = torch.stack([cross_entropy(one, batch) for one in logits.unbind(1)]).mean(0)
        kind = self.settings.diversity
        diversity = (class_mean(closeness(text, kind), batch) + image_mean(closeness(images, kind), batch)) / 2
        return ce + self.settings.diversity_weight * diversity, {"ce": ce, "diversity": diversity}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """The mean of the groups' logits."""
        text = self._text(params, frozen)
        return lambda pixels: cosine_logits(self._images(params, frozen, pixels), text, frozen.logit_scale).mean(1)

    def after_training(
        self, params: ParamTree, received: ParamTree, round: int, generators: Sequence[torch.Generator]
    ) -> ParamTree:
        """Draw the prompts that each client sends; see `FinishesTraining`."""
        drawn = {}
        for own, shared, key in MODALITIES:
            chances = probabilities(similarity(params[own], received[shared]), self.settings.temperature)
            if round == 1:
                chances = torch.ones_like(chances)
            choices = zip(chances.cpu(), generators, strict=True)
            each = [torch.multinomial(one, self.settings.shared_groups, generator=source) for one, source in choices]
            drawn[key] = torch.stack(each).to(chances.device)
        return with_drawn(params, drawn)

    def after_aggregation(self, personal: ParamTree, shared: ParamTree) -> ParamTree:
        """Replace the drawn prompts of the participants by the global ones; see `FinishesRound`."""
        changed = dict(personal)
        for own, common, drawn in MODALITIES:
            changed[own] = personal[own].clone()
            changed[own][torch.arange(len(personal[own])).unsqueeze(1), personal[drawn]] = shared[common]
        return changed

    def _text(self, params: ParamTree, frozen: ClassSet) -> Tensor:
        """Text features (K, G, C, E) of all groups."""
        ctx, fixed = params["ctx"], fixed_tokens(frozen, self.extra_texts, self.settings.n_ctx)
        features: Tensor = frozen.encode(ctx.flatten(0, 1), before_name=fixed).unflatten(0, ctx.shape[:2])
        return features

    def _images(self, params: ParamTree, frozen: ClassSet, pixels: Tensor) -> Tensor:
        """Image features (K, G, B, E) of all groups, of pixels (K or 1, B, 3, H, W)."""
        prompts = params["image"]
        shape = (*prompts.shape[:2], pixels.shape[1])
        own = prompts.unsqueeze(2).expand(*shape, -1, -1).flatten(0, 2)
        images = pixels.unsqueeze(1).expand(*shape, -1, -1, -1).flatten(0, 2)
        features: Tensor = frozen.visual.encode(images, own.unsqueeze(1)).unflatten(0, shape)
        return features


def closeness(features: Tensor, kind: Diversity) -> Tensor:
    """Mean over all pairs of groups (K, N) of the term of a pair, of features (K, G, N, E); 0 for one group."""
    unit = F.normalize(features, dim=-1)
    pairs = torch.combinations(torch.arange(features.shape[1], device=features.device))
    first, second = unit[:, pairs[:, 0]], unit[:, pairs[:, 1]]
    terms = (first * second).sum(-1) if kind == "cosine" else (first - second).abs().mean(-1)
    return terms.sum(1) / max(len(pairs), 1)


def similarity(prompts: Tensor, shared: Tensor) -> Tensor:
    """Largest cosine (K, G) of each flattened prompt (K, G, L, D) with one of the shared prompts (s, L, D)."""
    own, common = (F.normalize(value.flatten(-2), dim=-1) for value in (prompts, shared))
    return (own @ common.mT).amax(-1)


def probabilities(similar: Tensor, temperature: float) -> Tensor:
    """softmax(similar / temperature) (K, G), in float64; also for a client whose prompts are not finite."""
    return (similar.double().nan_to_num() / temperature).softmax(-1)


def with_drawn(params: ParamTree, drawn: ParamTree) -> ParamTree:
    """The parameters (K, ...), with the `drawn` prompts (K, s) as what is shared."""
    sent = dict(params) | drawn
    for own, shared, key in MODALITIES:
        sent[shared] = params[own].take_along_dim(drawn[key][..., None, None], dim=1)
    return sent

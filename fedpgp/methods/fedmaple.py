"""Federated MaPLe (Khattak et al., CVPR 2023): deep prompts in both towers, the image's computed from the text's."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet, readable
from fedpgp.config import Settings
from fedpgp.core.errors import ConfigError
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Classifier, Inputs, Phase, PromptMethod, Tower, cosine_logits, draw_linear
from fedpgp.methods.coop import INIT_STD


class FedMaPLeSettings(Settings):
    """Settings of MaPLe."""

    n_ctx: int = Field(2, ge=1)
    """L, number of learned tokens in each tower and layer"""
    depth: int | None = Field(9, ge=1)
    """J, number of layers with learned prompts; 1: only at the input; null: 3/4 of the layers (9 of ViT-B's 12)"""
    ctx_init: str | None = "a photo of a"
    """words: the first `n_ctx` tokens start the context, the others stay fixed; null: N(0, 0.02)"""


class FedMaPLe(PromptMethod):
    """p(y = c | x) = softmax_c(s cos(f(x; F_j(P_j)), g(name_c; P_j))), j = 0 .. J - 1, trained by cross-entropy.

    Legend: the text tower g has learned prompts P_j in its layers j = 0 .. J - 1, the image tower f prompts F_j(P_j)
    computed from them; s is CLIP's logit scale. P_j is `ctx[j]` (L, D); the coupling F_j is linear,
    `coupling.weight[j]` (W, D) and `coupling.bias[j]` (W,), W the width of the image tower's tokens. P_0 precedes the
    class name, F_0(P_0) follows the patches. Before each later layer j < J they replace the outputs of the layer
    before; from layer J on they pass through like any token. With words, the tokens after the first L stay fixed in the
    prompt ("of a NAME." for L = 2).

    Shared: all of it, prompts and couplings, which travel up and down in every round and are averaged by numbers of
    images (the paper's MaPLe is not federated). Nearly all of it are the couplings.

    The image tower runs in every step, on cached pixels, so this costs far more than methods on frozen features.

    Departs from the authors' code: one precision throughout (theirs mixes fp16 and fp32); the F_j of the deeper layers
    are drawn separately (theirs start as copies of one); J above the number of layers is an error (theirs ignores it);
    so are fewer words than `n_ctx` tokens (theirs falls back to a random context).
    """

    name: ClassVar[str] = "fedmaple"
    paper: ClassVar[str] = "Khattak et al., CVPR 2023"
    settings_type: ClassVar[type[Settings]] = FedMaPLeSettings
    image_inputs: ClassVar[Inputs] = "pixels"
    required_towers: ClassVar[frozenset[Tower]] = frozenset({"text", "image"})
    shared_keys: ClassVar[frozenset[str]] = frozenset({"ctx", "coupling.weight", "coupling.bias"})
    phases: tuple[Phase, ...] = (Phase(shared_keys),)

    def __init__(self, settings: FedMaPLeSettings) -> None:
        self.settings = settings
        self.extra_texts = (readable(settings.ctx_init),) if settings.ctx_init else ()

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """Prompts from N(0, 0.02), the first one from words if given, and couplings with torch's default init.

        Raises `ConfigError` if `depth` exceeds the layers of a tower or `n_ctx` the tokens of the words; `DataError` if
        a prompt would be longer than the text tower allows.
        """
        n_ctx, depth = self.settings.n_ctx, self.settings.depth
        layers = min(frozen.layers, len(frozen.visual.blocks))
        depth = depth or max(1, 3 * layers // 4)
        if depth > layers:
            raise ConfigError(f"method fedmaple: depth: {depth} is more than the {layers} layers of the backbone")
        ctx = INIT_STD * torch.randn(depth, n_ctx, frozen.width, generator=generator)
        frozen.check_room(n_ctx + len(fixed_tokens(frozen, self.extra_texts, n_ctx)))
        for words in self.extra_texts:
            ctx[0] = first_vectors(self.name, frozen, words, n_ctx)
        couplings = [draw_linear("coupling", frozen.width, frozen.visual.width, generator) for _ in range(depth)]
        return {"ctx": ctx, **{key: torch.stack([one[key] for one in couplings]) for key in couplings[0]}}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """Scaled cosines of the prompted image features with the prompted text features."""
        ctx, fixed = params["ctx"], fixed_tokens(frozen, self.extra_texts, self.settings.n_ctx)
        text = frozen.encode(ctx[:, 0], deep=ctx[:, 1:], before_name=fixed)
        prompts = couple(params)

        def logits(pixels: Tensor) -> Tensor:
            shape = (len(prompts), pixels.shape[1])
            own = prompts.unsqueeze(1).expand(*shape, -1, -1, -1)
            images = frozen.visual.encode(pixels.expand(*shape, -1, -1, -1).flatten(0, 1), own.flatten(0, 1))
            return cosine_logits(images.unflatten(0, shape), text, frozen.logit_scale)

        return logits


def couple(params: ParamTree) -> Tensor:
    """The image prompts F_j(P_j) (K, J, L, W)."""
    return params["ctx"] @ params["coupling.weight"].mT + params["coupling.bias"].unsqueeze(2)


def first_vectors(method: str, frozen: ClassSet, words: str, n_ctx: int) -> Tensor:
    """The embeddings (L, D) of the first tokens of some words; raise `ConfigError` if they have fewer."""
    vectors = frozen.word_vectors(words)
    if n_ctx > len(vectors):
        raise ConfigError(
            f"method {method}: n_ctx: {n_ctx} is more than the {len(vectors)} tokens of ctx_init {words!r}; "
            "give method.ctx_init=null for a random context"
        )
    return vectors[:n_ctx]


def fixed_tokens(frozen: ClassSet, texts: tuple[str, ...], n_ctx: int) -> tuple[int, ...]:
    """The tokens of the words that stay fixed: those after the first `n_ctx`."""
    return tuple(token for words in texts for token in frozen.token_ids(words)[n_ctx:])

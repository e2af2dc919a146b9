"""FedPGP's local step as in the authors' code: the oracle of the benchmarks and of their tests.

Images pass through the tower at every step, prompts have 77 tokens, and four sets of them are encoded: p_i, p_G, U V
alone (unused) and the hand-written ones (constant).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.clip.model import Backbone
from fedpgp.clip.text_backbone import filled, readable
from fedpgp.core.tree import ParamTree


class ReferenceFedPGP:
    """One client's FedPGP (N = 1, context before the name) on open_clip's own modules.

    Args:
        backbone: a CLIP model with frozen weights.
        names: the C classes.
        template: hand-written prompt with one `{}` for the name.
        n_ctx: L, number of context tokens.
    """

    def __init__(self, backbone: Backbone, names: Sequence[str], template: str, n_ctx: int) -> None:
        self.model = cast(Any, backbone.model)
        self.scale = backbone.logit_scale
        placeholders = " ".join(["X"] * n_ctx)
        self.tokens = backbone.tokenize([f"{placeholders} {readable(name)}." for name in names])
        self.template_tokens = backbone.tokenize([filled(template, readable(name)) for name in names])
        embedded: Tensor = self.model.token_embedding(self.tokens)
        self.before, self.after = embedded[:, :1], embedded[:, 1 + n_ctx :]

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of normalised images (B, 3, H, W)."""
        features: Tensor = self.model.encode_image(images)
        return features

    def loss(self, params: ParamTree, images: Tensor, labels: Tensor, mu: float, tau: float) -> Tensor:
        """L_ce + mu L_con on normalised images (B, 3, H, W)."""
        ctx, low_rank = params["ctx"][0, 0], params["U"][0, 0] @ params["V"][0, 0]
        image_features = self.image_features(images)
        z_g, z_i, _ = self._text(ctx), self._text(ctx + low_rank), self._text(low_rank)
        z_c = self._encode(self.model.token_embedding(self.template_tokens), self.template_tokens)
        pair = torch.stack([F.cosine_similarity(z_g, z_c), F.cosine_similarity(z_g, z_i)], dim=1) / tau
        con = F.cross_entropy(pair, torch.zeros(len(pair), dtype=torch.long))
        return F.cross_entropy(self._logits(image_features, z_i), labels) + mu * con

    def logits(self, params: ParamTree, image_features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, E); only p_i is encoded."""
        return self._logits(image_features, self._text(params["ctx"][0, 0] + params["U"][0, 0] @ params["V"][0, 0]))

    def _logits(self, image_features: Tensor, text: Tensor) -> Tensor:
        return self.scale * F.normalize(image_features, dim=-1) @ F.normalize(text, dim=-1).t()

    def _text(self, prompt: Tensor) -> Tensor:
        """Text features (C, E) of a prompt (L, D)."""
        ctx = prompt.expand(len(self.tokens), -1, -1)
        return self._encode(torch.cat([self.before, ctx, self.after], dim=1), self.tokens)

    def _encode(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """Text features (C, E) of 77 embedded tokens (C, 77, D): CLIP's encode_text."""
        model = self.model
        x = model.transformer(embedded + model.positional_embedding, attn_mask=model.attn_mask)
        pooled: Tensor = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)] @ model.text_projection
        return pooled

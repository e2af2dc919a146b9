"""CoOp (Zhou et al., 2022): a learned context before, around or after the class name. Each client trains alone."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet, Position, readable
from fedpgp.config import Settings
from fedpgp.core.errors import ConfigError
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import Classifier, Phase, PromptMethod, cosine_logits

INIT_STD = 0.02


class ContextSettings(Settings):
    """Settings of a learned context."""

    n_ctx: int = Field(16, ge=1)
    """number of context tokens; ignored with `ctx_init`, whose tokens count"""
    ctx_init: str | None = None
    """words whose embeddings start the context, for example "a photo of a"; null: N(0, 0.02)"""
    position: Position = "end"
    """position of the class name: end (after the context) | middle | front"""

    @property
    def extra_texts(self) -> tuple[str, ...]:
        """Texts whose tokens are needed: `ctx_init` with underscores as spaces, as in CoOp."""
        return (readable(self.ctx_init),) if self.ctx_init else ()

    def draw(self, frozen: ClassSet, generator: torch.Generator) -> Tensor:
        """An initial context (L, D).

        Raises `ConfigError` if `ctx_init` has no words, `DataError` if a prompt is longer than the text tower allows.
        """
        if self.ctx_init:
            ctx = frozen.word_vectors(readable(self.ctx_init)).cpu().clone()
        else:
            ctx = INIT_STD * torch.randn(self.n_ctx, frozen.width, generator=generator)
        if not len(ctx):
            raise ConfigError(f"method.ctx_init: no word in {self.ctx_init!r}; null starts with a random context")
        frozen.check_room(len(ctx))
        return ctx


class CoOpSettings(ContextSettings):
    """Settings of CoOp and of PromptFL."""

    class_specific: bool = False
    """true: a context per class (CSC); it cannot be applied to novel classes"""


class CoOp(PromptMethod):
    """p(y = c | x) = softmax_c(s cos(f(x), g([ctx, name_c]))), trained by cross-entropy.

    Legend: f(x) is CLIP's image feature, g the frozen text tower, s CLIP's logit scale. `ctx` (L, D) is the learned
    context of the prompt [ctx, name_c], or (C, L, D), one of each class, if class-specific.

    Shared: nothing. `ctx` stays with the client: this is the local baseline.

    Departs from the paper only in the optimizer, which is the federation's (constant rate, no warm-up).
    """

    name: ClassVar[str] = "coop"
    paper: ClassVar[str] = "Zhou et al., IJCV 2022"
    settings_type: ClassVar[type[Settings]] = CoOpSettings
    shared_keys: ClassVar[frozenset[str]] = frozenset()
    phases: tuple[Phase, ...] = (Phase(frozenset({"ctx"})),)

    def __init__(self, settings: CoOpSettings) -> None:
        self.settings = settings
        self.extra_texts = settings.extra_texts
        self.supports_unseen_classes = not settings.class_specific

    @property
    def needs_all_classes(self) -> str:
        """See `NeedsAllClasses`."""
        return "a context per class" if self.settings.class_specific else ""

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """The context, from words or N(0, 0.02); if class-specific, one draw per class, or the words for all."""
        if not self.settings.class_specific:
            return {"ctx": self.settings.draw(frozen, generator)}
        return {"ctx": torch.stack([self.settings.draw(frozen, generator) for _ in frozen.names])}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """Scaled cosines with the text features of each client's prompt."""
        text = frozen.encode(params["ctx"], self.settings.position)
        return lambda features: cosine_logits(features, text, frozen.logit_scale)

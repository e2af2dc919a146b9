"""FedTPG (Qiu et al., 2024): one network for all clients turns the names of the classes into a context for them."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.errors import ConfigError
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import (
    Batch,
    Classifier,
    Metrics,
    Phase,
    PromptMethod,
    cosine_logits,
    cross_entropy,
    draw_linear,
)
from fedpgp.methods.coop import INIT_STD

CROSS, FEED = "cross", "feed"
EXPANSION = 4  # width of the feed-forward network's hidden layer divided by that of a token


class FedTPGSettings(Settings):
    """Settings of FedTPG."""

    n_ctx: int = Field(4, ge=1)
    """L, number of context tokens that the network gives"""
    depth: int = Field(0, ge=0)
    """further blocks of self-attention behind the network; 0: none, as in the released runs"""
    heads: int = Field(4, ge=1)
    """heads of each attention; they must divide the width of a context token"""


class FedTPG(PromptMethod):
    """p(y = c | x) = softmax_c(s cos(f(x), g([h(T), name_c]))), trained by cross-entropy; h is learned, not a context.

    Legend: T (C, E) are the normalised CLIP features of the bare class names, without a template, and constant. The
    network h turns them into one context (L, D), the same for all classes of the set:

        a    = Attention(LN(Q), LN(T)): multi-head, queries from LN(Q), keys and values from LN(T), softmax over the C
               names, and a linear layer; no residual connection around it, so that Q acts only through its norm;
        h(T) = a + FF(a), with FF(a) = W_out (u * GELU(w)) + b_out and (u, w) = the halves of W_in LN(a) + b_in, 4 D
               wide each (GEGLU).

    `depth` appends blocks x <- x + Attention(LN(x), LN(x)), x <- x + FF(x), with parameters of their own. `queries` is
    Q (L, D), from N(0, 0.02); all else starts as torch starts such layers. f is the image tower, g the text tower,
    s CLIP's scale. h(T) depends on which names are in the set, not on their order, and not on the image.

    Shared: all of the network; nothing is personal. It is large: 4,206,080 values for L = 4 and D = E = 512, 16.8 MB
    up and 16.8 MB down for each participant and round. One model serves every class set: for novel classes, h gets
    their names.

    With `protocol.train_classes=own`, as in the paper, a client knows only its own names: they alone are keys of its
    attention and columns of its softmax. With `task` all classes of the task are both. In evaluation, h gets all
    names of the set that is tested. The authors' local accuracy asks for the client's own names alone: `local_own`.

    Settings of the authors' code that are the federation's here: its server takes the unweighted mean of the
    participants, `federation.server.name=mean` (the default weights by images); its clients keep their momentum from
    round to round, `federation.keep_momentum=true`; its learning rate follows `lr_schedule=cosine` (there it counts a
    client's own participations, here the rounds, which is the same if all take part).

    Departs from the authors' code: float32 instead of float16 parameters; any widths D and E instead of 512; no
    contexts in deeper layers of the text tower (there off by default, and with the deeper context in the place of the
    first one if on).
    """

    name: ClassVar[str] = "fedtpg"
    paper: ClassVar[str] = "Qiu et al., ICLR 2024"
    settings_type: ClassVar[type[Settings]] = FedTPGSettings

    def __init__(self, settings: FedTPGSettings) -> None:
        self.settings = settings
        attention = [f"{part}.{kind}" for part in ("norm", "q", "k", "v", "out") for kind in ("weight", "bias")]
        feed = [f"{part}.{kind}" for part in ("norm", "in", "out") for kind in ("weight", "bias")]
        keys = ["queries", f"{CROSS}.norm_names.weight", f"{CROSS}.norm_names.bias"]
        keys += [f"{name}.{key}" for name in (CROSS, *self._blocks) for key in attention]
        keys += [f"{name}.{key}" for name in (FEED, *(f"{block}.{FEED}" for block in self._blocks)) for key in feed]
        self.shared_keys = frozenset(keys)
        self.phases = (Phase(self.shared_keys),)

    @property
    def _blocks(self) -> list[str]:
        """The names of the blocks of self-attention."""
        return [f"block_{number}" for number in range(self.settings.depth)]

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """Q from N(0, 0.02) and the network with torch's default init.

        Raises `ConfigError` if the heads do not divide D, `DataError` if a prompt is longer than the text tower allows.
        """
        width, heads = frozen.width, self.settings.heads
        if width % heads:
            raise ConfigError(
                f"method fedtpg: heads: {heads} do not divide the {width} values of a context token; give a divisor"
            )
        frozen.check_room(self.settings.n_ctx)
        tree = {
            "queries": INIT_STD * torch.randn(self.settings.n_ctx, width, generator=generator),
            **_initial_norm(f"{CROSS}.norm_names", frozen.joint_width),
            **_initial_attention(CROSS, width, frozen.joint_width, generator),
            **_initial_feed_forward(FEED, width, generator),
        }
        for block in self._blocks:
            tree |= _initial_attention(block, width, width, generator)
            tree |= _initial_feed_forward(f"{block}.{FEED}", width, generator)
        return tree

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy (K,), with the names that count for each client."""
        text = frozen.encode(self.context(params, frozen, batch.own))
        return cross_entropy(cosine_logits(batch.features, text, frozen.logit_scale), batch), {}

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """Scaled cosines with the text features of each client's prompt for the names of `frozen`."""
        text = frozen.encode(self.context(params, frozen))
        return lambda features: cosine_logits(features, text, frozen.logit_scale)

    def context(self, params: ParamTree, frozen: ClassSet, own: Tensor | None = None) -> Tensor:
        """h(T) (K, L, D) for the names of `frozen`, or for those of them that are each client's `own` (K, C)."""
        heads, queries = self.settings.heads, layer_norm(params, f"{CROSS}.norm", params["queries"])
        names = layer_norm(params, f"{CROSS}.norm_names", F.normalize(frozen.bare_names(), dim=-1))
        x = attend(params, CROSS, queries, names, heads, own)
        x = x + feed_forward(params, FEED, x)
        for block in self._blocks:
            inputs = layer_norm(params, f"{block}.norm", x)
            x = x + attend(params, block, inputs, inputs, heads)
            x = x + feed_forward(params, f"{block}.{FEED}", x)
        return x


def layer_norm(params: ParamTree, name: str, x: Tensor) -> Tensor:
    """Layer norm (K, N, W) of x (K, N, W) or, the same for all clients, (N, W)."""
    unit = F.layer_norm(x, x.shape[-1:])
    return torch.addcmul(params[f"{name}.bias"].unsqueeze(1), unit, params[f"{name}.weight"].unsqueeze(1))


def attend(
    params: ParamTree, name: str, queries: Tensor, inputs: Tensor, heads: int, own: Tensor | None = None
) -> Tensor:
    """Multi-head attention (K, L, D) of `queries` (K, L, D) to `inputs` (K, C, E); arguments as in `attention`."""
    weights = attention(params, name, queries, inputs, heads, own)
    values = _linear(params, f"{name}.v", inputs).unflatten(-1, (heads, -1)).transpose(1, 2)
    return _linear(params, f"{name}.out", (weights @ values).transpose(1, 2).flatten(2))


def attention(
    params: ParamTree, name: str, queries: Tensor, inputs: Tensor, heads: int, own: Tensor | None = None
) -> Tensor:
    """The weights (K, heads, L, C), which sum to 1 over the inputs, or over each client's `own` ones (K, C)."""
    q, k = (
        _linear(params, f"{name}.{part}", x).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part, x in (("q", queries), ("k", inputs))
    )
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if own is not None:
        scores = scores.masked_fill(~own[:, None, None], -torch.inf)
    weights: Tensor = scores.softmax(-1)
    return weights


def feed_forward(params: ParamTree, name: str, x: Tensor) -> Tensor:
    """FF(x) (K, L, D), its layer norm included."""
    values, gates = _linear(params, f"{name}.in", layer_norm(params, f"{name}.norm", x)).chunk(2, -1)
    return _linear(params, f"{name}.out", values * F.gelu(gates))


def _linear(params: ParamTree, name: str, x: Tensor) -> Tensor:
    """W x + b (K, N, O) of x (K, N, I), with each client's W (K, O, I) and b (K, O)."""
    return torch.baddbmm(params[f"{name}.bias"].unsqueeze(1), x, params[f"{name}.weight"].mT)


def _initial_norm(name: str, width: int) -> ParamTree:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def _initial_attention(name: str, width: int, inputs: int, generator: torch.Generator) -> ParamTree:
    """As torch starts it: Xavier's uniform bound, of one matrix (3 D, D) if all widths are equal, and biases of 0."""
    tree = _initial_norm(f"{name}.norm", width)
    for part, size in (("q", width), ("k", inputs), ("v", inputs)):
        bound = (6 / (4 * width if inputs == width else width + size)) ** 0.5
        tree[f"{name}.{part}.weight"] = bound * (2 * torch.rand(width, size, generator=generator) - 1)
        tree[f"{name}.{part}.bias"] = torch.zeros(width)
    return tree | draw_linear(f"{name}.out", width, width, generator) | {f"{name}.out.bias": torch.zeros(width)}


def _initial_feed_forward(name: str, width: int, generator: torch.Generator) -> ParamTree:
    hidden = EXPANSION * width
    return {
        **_initial_norm(f"{name}.norm", width),
        **draw_linear(f"{name}.in", width, 2 * hidden, generator),
        **draw_linear(f"{name}.out", hidden, width, generator),
    }

"""Pretrain the small CLIP of the package on icon families that are never federated.

One command, seeded, resumable by stage: python pipelines/icons/pretrain_icon_clip.py
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import icon_drawings as icons
import numpy as np
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
import typer
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

from fedpgp.clip.model import ReducedTokenizer
from fedpgp.config import DataSettings
from fedpgp.data import manifest
from fedpgp.data.sources import open_source

MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 160, "head_width": 32, "layers": 5},
    "text_cfg": {"context_length": 32, "vocab_size": 0, "width": 128, "heads": 4, "layers": 3},
}
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_TOP_PAD_": "1000000000",
    "OMP_WAIT_POLICY": "passive",
}
"""Read when a process starts. Without the first three, glibc returns memory at every step, which makes small models
several times slower. Without the last, waiting threads occupy the cores of a busy machine."""
PIXELS = MODEL["vision_cfg"]["image_size"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SCALE = 25.0
"""factor of the cosines in all losses, and the model's own"""

NEUTRAL = (
    "an icon of a {}.",
    "an icon of a {}.",
    "a photo of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "a sign that shows a {}.",
    "{}.",
    "the {}.",
    "an icon of {}.",
    "this is a {}.",
)
STYLED = (
    "a {style} icon of a {}.",
    "an icon of a {style} {}.",
    "a {style} picture of a {}.",
    "a {style} {}.",
    "{style}: {}.",
    "an icon, {style}, of a {}.",
    "a {style} photo of a {}.",
    "a {style} drawing of a {}.",
)
STYLE_WORDS = {
    "plain": ("plain", "upright", "normal"),
    "flip": ("flip", "flipped", "upside down"),
    "rotate": ("rotate", "rotated", "turned"),
    "negative": ("negative", "inverted", "light on dark"),
    "small": ("small", "tiny", "little"),
    "blur": ("blur", "blurred", "soft"),
}
FILLER = [
    "a",
    "an",
    "the",
    "of",
    "in",
    "on",
    "with",
    "and",
    "this",
    "that",
    "here",
    "is",
    "one",
    "some",
    "very",
    "nice",
    "good",
    "new",
    "old",
    "little",
    "clean",
    "simple",
    "small",
    "drawn",
    "picture",
    "icon",
    "image",
    "sign",
    "we",
    "see",
    "it",
    "shows",
    "made",
    "for",
    "from",
    "used",
    "by",
    "many",
    "people",
    "every",
    "day",
    "my",
    "your",
    "our",
    "their",
]


@dataclass
class Corpus:
    """Drawings with names, and how to draw from them."""

    drawings: icons.Drawings
    names: list[str]
    """concepts first, then the other names"""
    num_concepts: int
    members: list[list[np.ndarray]]
    """per name, its drawings, grouped by family"""
    rng: np.random.Generator
    torch_rng: torch.Generator
    styled_neutral: float
    """share of the pictures with neutral captions that are flipped or rotated"""
    tokens: dict[str, Tensor] = field(default_factory=dict)

    def pick_names(self, n: int, concepts: float = 0.5) -> np.ndarray:
        """Indices of names, this share of them concepts."""
        own = self.rng.random(n) < concepts
        other = self.rng.integers(self.num_concepts, len(self.names), n)
        return np.where(own, self.rng.integers(0, self.num_concepts, n), other)

    def pick_drawings(self, names: np.ndarray) -> np.ndarray:
        """A drawing for each name: first a family, then one of its drawings."""
        chosen = []
        for name in names:
            groups = self.members[name]
            group = groups[self.rng.integers(len(groups))]
            chosen.append(group[self.rng.integers(len(group))])
        return np.array(chosen)

    def pictures(self, rows: np.ndarray, styles: Tensor, spread: float) -> Tensor:
        """Normalised pictures [n, 3, PIXELS, PIXELS] of drawings in styles; colours of colour drawings vary, too."""
        look = icons.looks(styles, self.torch_rng, spread)
        layers = self.drawings.premultiplied(rows, look.ink)
        colour = torch.from_numpy(self.drawings.is_colour[rows])
        change = torch.rand(len(rows), generator=self.torch_rng)
        grey = colour & (change < 0.3)
        layers[grey, :3] = layers[grey, :3].mean(1, keepdim=True)
        mixed = colour & (change > 0.75)
        layers[mixed, :3] = layers[mixed, :3][:, torch.randperm(3, generator=self.torch_rng)]
        return normalised(icons.render(layers, look))

    def styles(self, n: int, weights: Sequence[float]) -> Tensor:
        """Random styles [n]."""
        return torch.multinomial(
            torch.tensor(weights, dtype=torch.float32), n, replacement=True, generator=self.torch_rng
        )

    def captions(self, names: np.ndarray, styles: Sequence[int | None]) -> list[str]:
        """A caption per picture: neutral, or one that names the style; in some batches behind many other words."""
        filled = self.rng.random() < 0.3
        texts = [self._caption(name, style) for name, style in zip(names, styles, strict=True)]
        if not filled:
            return texts
        return [" ".join([*self.rng.choice(FILLER, self.rng.integers(0, 15)), text]) for text in texts]

    def _caption(self, name: int, style: int | None) -> str:
        if style is None:
            text = NEUTRAL[self.rng.integers(len(NEUTRAL))].replace("{}", self.names[name])
        else:
            words = STYLE_WORDS[icons.STYLES[style]]
            text = STYLED[self.rng.integers(len(STYLED))].replace("{}", self.names[name])
            text = text.replace("{style}", words[self.rng.integers(len(words))])
        return text


def normalised(pictures: Tensor) -> Tensor:
    """Pictures [n, 3, h, h] in 0..1 as the model's transform shows them."""
    small = F.interpolate(pictures, size=PIXELS, mode="bicubic", antialias=True).clamp(0, 1)
    return (small - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def make_corpus(cache: Path, seed: int, styled_neutral: float, say: Callable[[str], None]) -> Corpus:
    """All drawings of the pretraining families, by name."""
    families = [name for name, family in icons.FAMILIES.items() if not family.federated]
    drawings = icons.load(families, cache, say)
    concepts = list(icons.concepts())
    others = Counter(drawings.stem[drawings.concept < 0])
    readable = {stem: stem.replace("-", " ") for stem in others if len(stem) > 1}
    readable = {stem: text for stem, text in readable.items() if text not in concepts}
    names = concepts + sorted(set(readable.values()))
    number = {name: index for index, name in enumerate(names)}
    grouped: dict[int, dict[str, list[int]]] = {}
    for row in range(len(drawings)):
        concept = int(drawings.concept[row])
        name = concept if concept >= 0 else number.get(readable.get(drawings.stem[row], ""), -1)
        if name >= 0:
            grouped.setdefault(name, {}).setdefault(drawings.family[row], []).append(row)
    kept = [index for index in range(len(names)) if index in grouped]
    num_concepts = sum(index < len(concepts) for index in kept)
    return Corpus(
        drawings=drawings,
        names=[names[index] for index in kept],
        num_concepts=num_concepts,
        members=[[np.array(rows) for rows in grouped[index].values()] for index in kept],
        rng=np.random.default_rng(seed),
        torch_rng=torch.Generator().manual_seed(seed),
        styled_neutral=styled_neutral,
    )


def make_vocabulary(corpus: Corpus) -> list[int]:
    """CLIP's ids of the tokens in all captions and names that occur at least twice, ascending."""
    bpe = SimpleTokenizer()
    style_words = [word for words in STYLE_WORDS.values() for word in words]
    counts = Counter(token for name in corpus.names for token in {*bpe.encode(name), *bpe.encode(f"{name}.")})
    always = [*NEUTRAL, *STYLED, *FILLER, *style_words, *icons.concepts(), *(f"{c}." for c in icons.concepts()), "X"]
    kept = {token for token, count in counts.items() if count > 1}
    return sorted(kept | {token for text in always for token in bpe.encode(text.replace("{}", " "))})


class Teacher(nn.Module):
    """A small convolutional image tower: it learns from scratch what a vision transformer of this size does not."""

    def __init__(self, width: int = 32, out: int = 128) -> None:
        super().__init__()
        plan = [(1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1)]
        layers: list[nn.Module] = []
        before = 3
        for factor, stride in plan:
            layers += [
                nn.Conv2d(before, width * factor, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width * factor),
                nn.ReLU(inplace=True),
            ]
            before = width * factor
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(before * 4, out)
        self.to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Tensor:
        """Features (n, out), not normalised."""
        with torch.autocast("cpu", torch.bfloat16):
            x = self.trunk(pictures.contiguous(memory_format=torch.channels_last))
        x = F.adaptive_avg_pool2d(x.float(), 2)
        return self.head(x.flatten(1))


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """`model.encode_text`, normalised, without computing the padding behind the longest text."""
    length = int(tokens.argmax(1).max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
        x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x.float())[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection
    return F.normalize(x, dim=-1)


def encode_image(model: CLIP, pictures: Tensor) -> Tensor:
    """`model.encode_image`, normalised; in mixed precision while training."""
    with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
        features = model.visual(pictures)
    return F.normalize(features.float(), dim=-1)


class Codes(nn.Module):
    """A learned code per name: the sum of its words' vectors."""

    def __init__(self, names: Sequence[str], out: int = 128) -> None:
        super().__init__()
        words = {word: index for index, word in enumerate(sorted({w for name in names for w in name.split()}))}
        lists = [[words[word] for word in name.split()] for name in names]
        self.words = nn.EmbeddingBag(len(words), out, mode="sum")
        self.register_buffer("flat", torch.tensor([index for row in lists for index in row]))
        self.register_buffer("starts", torch.tensor([0, *np.cumsum([len(row) for row in lists])[:-1]]))

    def forward(self) -> Tensor:
        """Normalised codes (names, out)."""
        return F.normalize(self.words(self.flat, self.starts), dim=-1)


def optimise(
    name: str,
    steps: int,
    groups: Sequence[tuple[nn.Module, float]],
    loss_of: Callable[[int], Tensor],
    log: Callable[[str], None],
    check: Callable[[], str] | None = None,
) -> None:
    """AdamW with warm-up and cosine decay; a line in the log every tenth of the way."""
    sets = [{"params": [p for p in m.parameters() if p.requires_grad], "lr": rate, "top": rate} for m, rate in groups]
    optimiser = torch.optim.AdamW(sets, weight_decay=0.02, betas=(0.9, 0.98))
    begin, total = time.time(), 0.0
    every = max(1, steps // 10)
    for step in range(steps):
        factor = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = group["top"] * factor
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in sets for p in group["params"]], 1.0)
        optimiser.step()
        total += float(loss.detach())
        if (step + 1) % every == 0:
            note = f"  {check()}" if check else ""
            log(f"{name} {step + 1}/{steps}  loss {total / every:.3f}  {time.time() - begin:.0f} s{note}")
            total = 0.0


STAGES = {
    "teacher": ("teacher", "codes"),
    "text": ("text",),
    "vit": ("visual",),
    "joint": ("visual", "text"),
    "context": ("visual", "text"),
}
"""The stages in order, with the parts that each trains."""
SHARES = (0.45, 0.2, 0.2, 0.05, 0.05, 0.05)
"""Shares of the styles where all are seen."""
KEPT = {
    stage: {"plain": 1.0, "flip": turned, "rotate": turned, "negative": 0.9, "small": 0.9, "blur": 0.9}
    for stage, turned in (("text", 0.6), ("joint", 0.6), ("context", 0.3))
}
"""How much of a name's code stays the same in a style; the rest goes through a random rotation that belongs to the
style. A code that did not change with the style, or to which the style were just added, would leave a prompt nothing to
gain: the style's part would be the same for all classes. It is turned further once the image tower is good."""


class Pretraining:
    """The stages; each starts from the files of those before it."""

    def __init__(
        self,
        corpus: Corpus,
        bpe_ids: list[int],
        folder: Path,
        steps: dict[str, int],
        log: Callable[[str], None],
        check: Callable[[CLIP], str],
        seed: int,
    ) -> None:
        self.corpus, self.folder, self.steps, self.log, self.check = corpus, folder, steps, log, check
        self.seed = seed
        self.tokenizer = ReducedTokenizer(bpe_ids, MODEL["text_cfg"]["context_length"])
        self.teacher = Teacher()
        self.codes = Codes(corpus.names)
        self.clip = CLIP(**{**MODEL, "text_cfg": {**MODEL["text_cfg"], "vocab_size": self.tokenizer.vocab_size}})
        self.text = nn.ModuleList([self.clip.token_embedding, self.clip.transformer, self.clip.ln_final])
        self.text.register_parameter("positions", self.clip.positional_embedding)
        self.text.register_parameter("projection", self.clip.text_projection)
        generator = torch.Generator().manual_seed(seed)
        size = (len(icons.STYLES), MODEL["embed_dim"], MODEL["embed_dim"])
        self.rotations = torch.linalg.qr(torch.randn(size, generator=generator))[0]
        self.kept = torch.ones(len(icons.STYLES))
        self.parts = {"teacher": self.teacher, "codes": self.codes, "text": self.text, "visual": self.clip.visual}

    def run(self, stages: Sequence[str]) -> None:
        """Run the stages that are not done, each from the files of all earlier ones."""
        for number, (stage, trained) in enumerate(STAGES.items()):
            path = self.folder / f"{number}-{stage}.pt"
            if path.is_file():
                for name, state in torch.load(path, weights_only=True).items():
                    self.parts[name].load_state_dict(state)
                continue
            if stage not in stages:
                continue
            torch.manual_seed(self.seed * 100 + number)
            self.corpus.rng = np.random.default_rng([self.seed, number])
            self.corpus.torch_rng = torch.Generator().manual_seed(self.seed * 100 + number)
            if stage in KEPT:
                self.kept = torch.tensor([KEPT[stage][style] for style in icons.STYLES])
            self.log(f"stage {stage}, {self.steps[stage]} steps")
            self.clip.train()
            for name, part in self.parts.items():
                part.train(name in trained)
            getattr(self, f"_{stage}")(self.steps[stage])
            for part in (self.clip, *self.parts.values()):
                part.eval()
            torch.save({name: self.parts[name].state_dict() for name in trained}, path)

    def _teacher(self, steps: int) -> None:
        """Image tower against the codes of all names: full softmax."""

        def loss(step: int) -> Tensor:
            names = self.corpus.pick_names(256)
            pictures = self.corpus.pictures(self.corpus.pick_drawings(names), self.corpus.styles(256, SHARES), 1.0)
            features = F.normalize(self.teacher(pictures), dim=-1)
            return F.cross_entropy(SCALE * features @ self.codes().T, torch.from_numpy(names), label_smoothing=0.05)

        optimise("teacher", steps, [(self.teacher, 3e-3), (self.codes, 1e-2)], loss, self.log)

    def _in_style(self, codes: Tensor, styles: Tensor) -> Tensor:
        """Normalised codes or features (n, E) as they are in these styles (n,)."""
        kept = self.kept[styles][:, None]
        turned = (codes[:, None] @ self.rotations[styles])[:, 0]
        return F.normalize(kept * codes + (1 - kept.square()).sqrt() * turned, dim=-1)

    def _text(self, steps: int) -> None:
        """Text tower towards the codes of the names in the style that the caption names, if it does."""
        with torch.no_grad():
            codes = self.codes()

        def loss(step: int) -> Tensor:
            names = torch.from_numpy(self.corpus.pick_names(192))
            styles = self.corpus.styles(192, (4, 2, 2, 1, 1, 1))
            texts = self.corpus.captions(names.numpy(), [style or None for style in styles.tolist()])
            features = encode_text(self.clip, self.tokenizer(texts))
            wanted = self._in_style(codes[names], styles)
            # Against the code of every name, and of every caption in the batch: same names in other styles.
            plain = styles == 0
            alike = F.cross_entropy(SCALE * features[plain] @ codes.T, names[plain])
            apart = F.cross_entropy(SCALE * features @ wanted.T, _first_equal(names * len(icons.STYLES) + styles))
            return alike + apart + 2 * (1 - (features * wanted).sum(1)).mean()

        optimise("text", steps, [(self.text, 1.5e-3)], loss, self.log)

    def _contrastive(self, step: int) -> Tensor:
        """One batch's loss: pictures against their captions, and concepts against all concepts in one wording."""
        corpus = self.corpus
        styled = corpus.rng.random() < 0.6  # the same name in several styles: the caption must match both
        if styled:
            names = np.repeat(corpus.pick_names(64, 0.65), 4)
            styles = corpus.styles(256, (0.2, 0.25, 0.25, 0.1, 0.1, 0.1))
        else:
            names = corpus.pick_names(256, 0.65)
            share = corpus.styled_neutral
            styles = corpus.styles(256, (0.85 - share, share / 2, share / 2, 0.05, 0.05, 0.05))
        spoken = [style if styled else None for style in styles.tolist()]
        pictures = corpus.pictures(corpus.pick_drawings(names), styles, 0.5)
        with torch.no_grad():
            wanted = self._in_style(F.normalize(self.teacher(pictures), dim=-1), styles)
        texts = corpus.captions(names, spoken)
        labels = torch.from_numpy(names)
        images = encode_image(self.clip, pictures)
        words = encode_text(self.clip, self.tokenizer(texts))
        key = labels * len(icons.STYLES) + (styles if styled else 0)
        same = (key[:, None] == key).float()
        target = same / same.sum(1, keepdim=True)
        logits = SCALE * images @ words.T
        both = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        loss = both + 3 * (1 - (images * wanted).sum(1)).mean()
        if step % 2:
            return loss
        chosen = labels < corpus.num_concepts
        wordings = NEUTRAL
        if styled:
            style = int(styles[corpus.rng.integers(len(styles))])
            chosen = chosen & (styles == style)
            wordings = tuple(text.replace("{style}", STYLE_WORDS[icons.STYLES[style]][0]) for text in STYLED)
        wording = wordings[corpus.rng.integers(len(wordings))]
        everything = [wording.replace("{}", name) for name in corpus.names[: corpus.num_concepts]]
        table = encode_text(self.clip, self.tokenizer(everything))
        return loss + F.cross_entropy(SCALE * images[chosen] @ table.T, labels[chosen])

    def _vit(self, steps: int) -> None:
        """Vision transformer towards the teacher's features."""

        def loss(step: int) -> Tensor:
            names = self.corpus.pick_names(256, 0.6)
            pictures = self.corpus.pictures(self.corpus.pick_drawings(names), self.corpus.styles(256, SHARES), 1.0)
            with torch.no_grad():
                wanted = F.normalize(self.teacher(pictures), dim=-1)
            features = encode_image(self.clip, pictures)
            apart = F.cross_entropy(SCALE * features @ wanted.T, torch.arange(256))
            return 4 * (1 - (features * wanted).sum(1)).mean() + 0.5 * apart

        optimise("vit", steps, [(self.clip.visual, 1e-3)], loss, self.log, self._checked)

    def _joint(self, steps: int) -> None:
        """Both towers with the contrastive loss; the image tower towards the teacher's features in the style, too."""
        groups: list[tuple[nn.Module, float]] = [(self.clip.visual, 8e-4), (self.text, 3e-4)]
        optimise("joint", steps, groups, self._contrastive, self.log, self._checked)

    def _context(self, steps: int) -> None:
        """As `_joint`, but neutral captions only have upright pictures, so that styles in captions are informative."""
        self.corpus.styled_neutral = 0.0
        groups: list[tuple[nn.Module, float]] = [(self.clip.visual, 5e-4), (self.text, 3e-4)]
        optimise("context", steps, groups, self._contrastive, self.log, self._checked)

    def _checked(self) -> str:
        self.clip.eval()
        with torch.no_grad():
            note = self.check(self.clip)
        self.clip.train()
        return note


def _first_equal(keys: Tensor) -> Tensor:
    """For each key, the position of the first equal one."""
    return (keys[:, None] == keys).int().argmax(1)


def export(clip: CLIP, bpe_ids: list[int], folder: Path) -> None:
    """Weights in half precision, open_clip's config, the reduced vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(SCALE))
    state = {name: value.half().contiguous() for name, value in clip.state_dict().items() if name != "attn_mask"}
    save_file(state, folder / "open_clip_model.safetensors")
    text = {**MODEL["text_cfg"], "vocab_size": clip.vocab_size}
    config = {
        "model_cfg": {**MODEL, "text_cfg": text},
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "vocabulary.json").write_text(json.dumps(bpe_ids, separators=(",", ":")) + "\n", encoding="utf-8")


BEGIN, END = "<!-- log: written by pipelines/icons/pretrain_icon_clip.py -->", "<!-- end of log -->"


def keep_log(log: Path, card: Path) -> None:
    """Write the log, without times of day, into the model card."""
    lines = [line[10:] for line in log.read_text(encoding="utf-8").splitlines()]
    text = card.read_text(encoding="utf-8")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    card.write_text("\n".join([head + BEGIN, "", "```", *lines, "```", "", END]) + tail, encoding="utf-8")


def zero_shot(split: str, tokenizer: ReducedTokenizer) -> Callable[[CLIP], str]:
    """Zero-shot accuracy on a split of the data set, by domain; pictures that no stage trains on."""
    settings = DataSettings(name="icons")
    data = manifest.build(settings)
    rows = data.table.filter(pc.equal(data.table["split"], split))
    names, domains = data.class_names, data.domains
    pictures = [np.asarray(picture) for picture in open_source(settings).read(rows)]
    batch = normalised(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255)
    labels = torch.tensor(rows["label"].to_numpy())
    domain_ids = torch.tensor(rows["domain"].to_numpy())
    neutral, styled = (
        tokenizer([t.format(name) for name in names]) for t in ("an icon of a {}.", "a rotate icon of a {}.")
    )

    def check(clip: CLIP) -> str:
        images = encode_image(clip, batch)
        right, right_styled = (
            (images @ encode_text(clip, tokens).T).argmax(1).eq(labels).float() * 100 for tokens in (neutral, styled)
        )
        parts = " ".join(f"{name} {right[domain_ids == i].mean():.0f}" for i, name in enumerate(domains))
        return f"zero-shot {right.mean():.1f} (style in the caption: {right_styled.mean():.1f}; {parts})"

    return check


def main(
    out: Annotated[Path, typer.Option(help="Where the model goes.")] = Path("fedpgp/assets/icon-clip"),
    card: Annotated[Path, typer.Option(help="The model card, for the log.")] = Path("fedpgp/assets/MODEL_CARD.md"),
    cache: Annotated[Path, typer.Option(help="Fetched packages and rasterised drawings.")] = icons.CACHE,
    work: Annotated[Path, typer.Option(help="Finished stages; delete it to start over.")] = icons.CACHE / "stages",
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 1,
    styled_neutral: Annotated[
        float, typer.Option(help="Share of flipped or rotated pictures with neutral captions.")
    ] = 0.1,
    steps: Annotated[str, typer.Option(help="Steps per stage.")] = "2800,800,800,1500,600",
    stages: Annotated[str, typer.Option(help="Stages to run, if they are not done.")] = ",".join(STAGES),
) -> None:
    """Pretrain and export the model."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)

    def log(line: str) -> None:
        line = f"{time.strftime('%H:%M:%S')}  {line}"
        typer.echo(line)
        with (work / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    corpus = make_corpus(cache, seed, styled_neutral, log)
    bpe_ids = make_vocabulary(corpus)
    log(
        f"{len(corpus.drawings)} drawings, {len(corpus.names)} names, {corpus.num_concepts} concepts, "
        f"{len(bpe_ids)} tokens"
    )
    counts = dict(zip(STAGES, (int(part) for part in steps.split(",")), strict=True))
    check = zero_shot("val", ReducedTokenizer(bpe_ids, MODEL["text_cfg"]["context_length"]))
    pretraining = Pretraining(corpus, bpe_ids, work, counts, log, check, seed)
    log(f"{sum(p.numel() for p in pretraining.clip.parameters()) / 1e6:.2f} M parameters")
    pretraining.run(stages.split(","))
    if "context" in stages:
        export(pretraining.clip, bpe_ids, out)
        keep_log(work / "log.txt", card)
        typer.echo(f"written to {out}; the log is in {card}; next: python pipelines/icons/icon_figures.py")


if __name__ == "__main__":
    if not ENVIRONMENT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**ENVIRONMENT, **os.environ})
    typer.run(main)

"""The starter model's words: a CLIP tokenizer of its own, and a `CLIPTextModel` for its world.

The text encoder learns before the UNet, from captions alone: at the end token and at every pad
token after it, it must know the scene's parts and which words were said. A UNet that starts from
such conditioning needs far fewer pictures than one that must learn language through noise.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdlora.starter.draw import BACKGROUNDS, COLOURS, PLACES, SIZES, THINGS, caption, random_scene
from sdlora.starter.make_loop import DEVICE, MakeStage, Plan, step_rng

TOKENS = 77
VOCABULARY = 2048  # at most; the corpus needs fewer
START, END = "<|startoftext|>", "<|endoftext|>"
# What a caption can say; 0 stands for "not said".
PARTS: dict[str, tuple[str, ...]] = {
    "thing": THINGS,
    "colour": tuple(COLOURS),
    "background": BACKGROUNDS,
    "size": tuple(SIZES),
    "place": tuple(PLACES),
}
# Words people put into prompts and trigger words, so that they are few tokens rather than letters.
COMMON_WORDS = """
impressionist style neon lighting cyberpunk architecture zibo art painting drawing photo picture
of the a an and with in on at by from to under over near beside between beautiful cute happy sad
bright dark light soft glowing shiny old new little large huge tiny tall wide round square
simple detailed masterpiece best quality high low resolution watercolor watercolour oil pencil
ink sketch cartoon anime comic pixel retro vintage modern classic minimal flat vector sticker
realistic portrait landscape city forest mountain river lake sky cloud rain sun moon stars
winter summer spring autumn morning evening day dusk dawn sunset sunrise fire water ice gold
silver glass wood metal stone paper man woman girl boy child dog bird horse dragon monster
wizard knight princess castle tower street window door garden hat scarf eye eyes face smile hair
dress coat shoe hand bad worst ugly blurry noisy text watermark signature my your his her
character style object thing ohwx sks
"""
COMMON = COMMON_WORDS.split()


def new_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer that can encode any text, cached in `folder`.

    An existing one stays: a text encoder depends on its tokenizer's token ids.
    """
    if (folder / "tokenizer.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    rng = random.Random(0)
    corpus = [caption(random_scene(rng), rng) for _ in range(4000)]
    corpus += [entry for entry in COMMON for _ in range(20)]
    # Every byte that can end a word must be a token, or a text with it could not be said: the
    # signs of ASCII, and the 64 last bytes of longer characters.
    corpus += [chr(point) for point in (*range(0x21, 0x7F), *range(0x4E00, 0x4E40)) for _ in "12"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    base = CLIPTokenizer(
        vocab={entry: number for number, entry in enumerate(vocabulary)},
        merges=[],
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=TOKENS,
    )
    trained = base.train_new_from_iterator(
        corpus, VOCABULARY, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    trained.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def tokens_of(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(B, 77) token numbers, cut and padded as Stable Diffusion does it."""
    encoded = tokenizer(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    tokens: Tensor = encoded.input_ids
    return tokens


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder: (B, 77) -> (B, 77, 128)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            projection_dim=128,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def part_labels(text: str) -> list[int]:
    """Return per part 1 + the index of the option that the caption names, or 0."""
    tokens = text.replace(",", " ").split()
    return [
        next((i for i, option in enumerate(options, 1) if option in tokens), 0)
        for options in PARTS.values()
    ]


def captions(rng: random.Random) -> Iterator[str]:
    """Endless captions, a third of them with words around that mean nothing in this world, some
    with the thing or all of it gone, as users' prompts are."""
    while True:
        scene = random_scene(rng)
        text = caption(scene, rng)
        chance = rng.random()
        if chance < 0.04:
            text = ""
        elif chance < 0.12:
            text = text.replace(f" {scene.thing}", f" {rng.choice(COMMON)}")
        elif chance < 0.18:
            text = text.replace(f"{scene.colour} ", "")
        extra = " ".join(rng.choices(COMMON, k=rng.randint(1, 3)))
        place = rng.random()
        if place < 0.2:
            text = f"{extra}, {text}"
        elif place < 0.33:
            text = f"{text}, {extra}"
        yield text


class TextTrainer(nn.Module):
    """Heads that read a hidden state (B, 128) as the parts of the scene and the tokens of the
    caption."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({k: nn.Linear(width, len(v) + 1) for k, v in PARTS.items()})
        self.token_head = nn.Linear(width, vocabulary)

    def loss(self, state: Tensor, parts: Tensor, token_targets: Tensor) -> Tensor:
        """Return the cross-entropy of each part, and of each token; `parts` (B, 5), `token_targets`
        (B, V)."""
        loss = F.binary_cross_entropy_with_logits(self.token_head(state), token_targets) * 20
        for column, head in enumerate(self.parts.values()):
            loss = loss + F.cross_entropy(head(state), parts[:, column])
        return loss


def train_text_encoder(
    folder: Path,
    tokenizer: CLIPTokenizer,
    plan: Plan,
    start: CLIPTextModel | None = None,
    seed: int = 3,
) -> CLIPTextModel:
    """The text encoder, taught by the captions of the drawn world; from `start` if there is one."""
    torch.manual_seed(seed)
    encoder = (start or new_text_encoder(tokenizer)).to(DEVICE)
    reader = TextTrainer(128, len(tokenizer)).to(DEVICE)
    stage = MakeStage("text", {"encoder": encoder, "reader": reader}, folder, plan)

    def loss_at(step: int) -> Tensor:
        source = captions(random.Random(f"{seed}-{step}"))
        texts = [next(source) for _ in range(64)]
        # Most captions are short; the far positions learn from every fourth batch.
        length = TOKENS if step % 4 == 0 else 32
        tokens = tokens_of(tokenizer, texts)[:, :length].to(DEVICE)
        parts = torch.tensor([part_labels(text) for text in texts], device=DEVICE)
        token_targets = F.one_hot(tokens, len(tokenizer)).amax(1).float()
        hidden = encoder(tokens).last_hidden_state
        end = (tokens == tokenizer.eos_token_id).int().argmax(1)  # at most length - 1
        rows = torch.arange(len(texts), device=DEVICE)
        later = torch.rand(len(texts), generator=step_rng(seed, step)).to(DEVICE)
        pad = end + (later * (length - end).clamp(min=1)).long()
        return reader.loss(hidden[rows, end], parts, token_targets) + reader.loss(
            hidden[rows, pad], parts, token_targets
        )

    stage.run(loss_at)
    return encoder

"""Models made from nothing: a Llama shape with seeded random weights and a tokenizer learnt from the training rows.

They exist so that the whole product can be tried with no download, and are the floor that a pretrained model must
beat. Evaluation rebuilds the base from (size, seed, tokenizer); called by `model.py` and `job.py`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from slmforge.contract.spec import ScratchSize

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CONTEXT_TOKENS = 4096
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Words, single digits (numbers are written as they are computed), runs of signs, white space. Class names such as
# `card_payment_fee` are cut at the underscore and share their words: on BANKING77 whole names scored 2 points less.
WORDS = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a scratch model; embeddings are tied to the output head."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    feed_forward: int


# 0.96, 5.1 and 23.5 million parameters, embeddings included. On BANKING77 a shape of 0.69 million did as well as this
# smallest one in two thirds of the time; it would not be what its name says.
SHAPES: dict[ScratchSize, Shape] = {
    "scratch-1m": Shape(vocabulary=2048, width=160, layers=2, heads=5, feed_forward=448),
    "scratch-5m": Shape(vocabulary=4096, width=256, layers=5, heads=4, feed_forward=704),
    "scratch-25m": Shape(vocabulary=8192, width=512, layers=7, heads=8, feed_forward=1408),
}


def learn_tokenizer(texts: Iterable[str], size: ScratchSize, folder: Path) -> None:
    """Learn a byte-level BPE from `texts` and save it as transformers would, chat template included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=SHAPES[size].vocabulary,
            min_frequency=2,
            special_tokens=[PAD, END, *ROLES],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "extra_special_tokens": list(ROLES),
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_TOKENS,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def build(size: ScratchSize, seed: int, tokenizer_folder: Path) -> "LlamaForCausalLM":
    """The model of `size` for that tokenizer, in float32: the same weights for the same `seed` on every machine."""
    import torch
    from transformers.models.llama import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    shape = SHAPES[size]
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.token_to_id(PAD),
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)

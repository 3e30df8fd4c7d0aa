"""A small file of questions as SQuAD has them, and tiny networks that read questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, processors
from transformers import PreTrainedTokenizerFast

from compressor.data import DataSpec, Splits, read_splits
from compressor.tasks import get_task
from tests.compressor.conftest import SPECIAL, make_wordpiece

SQUAD = Path(__file__).with_name("squad.json")
"""Questions about three texts."""
TASK = get_task("question-answering")
LONGEST = 160
_PLACES = [("[CLS]", 2), ("[SEP]", 3)]


def make_pair_tokenizer() -> PreTrainedTokenizerFast:
    """Words and letters, as BERT puts question and context together."""
    tokenizer: Tokenizer = make_wordpiece().backend_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=_PLACES,
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_network(
    folder: Path, family: str = "Bert", head: str = "ForQuestionAnswering", **more: Any
) -> Path:
    """Write a tiny random network of transformers and its tokenizer."""
    tokenizer = make_pair_tokenizer()
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST + 1}
    if family == "Roberta":
        sizes["type_vocab_size"] = 1  # as all checkpoints of it have it
    if family == "DistilBert":
        sizes |= {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    else:
        sizes |= {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
    config = getattr(transformers, family + "Config")(
        **{**sizes, "pad_token_id": 0, "initializer_range": 0.3, **more}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, family + head)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def squad_splits() -> Splits:
    """The file three times, for what only has to run."""
    spec = DataSpec(train=SQUAD, validation=SQUAD, test=SQUAD)
    return read_splits(spec, label_names=None, kind="question", labels="answers")

"""The tokenizer of SMILES strings: the tokens of `smiles_tokens` in a transformers tokenizer."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.tokenizer import BOS, EOS, PAD
from triptych.datamodules.diversify.molecules.smiles_tokens import PATTERN

UNKNOWN = "<|unknown|>"


def atomwise_tokenizer(vocabulary: Iterable[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer of atoms and bonds.

    Args:
        vocabulary: The tokens, without special ones.

    Returns:
        A tokenizer that adds no special tokens and decodes without spaces. Other tokens become
        `UNKNOWN`.
    """
    words = [BOS, EOS, PAD, UNKNOWN, *vocabulary]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )

"""A tiny recurrent prior over a handful of SMILES tokens."""

import torch

from triptych.datamodules.diversify.molecules.smiles_tokenizer import atomwise_tokenizer
from triptych.models.diversify.molecules.smiles_policy import SmilesPolicy
from triptych.models.diversify.molecules.smiles_rnn import SmilesRNN, SmilesRNNConfig

VOCABULARY = ("#", "(", ")", "=", "C", "Cl", "N", "O")


def tiny_tokenizer(vocabulary=VOCABULARY):
    return atomwise_tokenizer(vocabulary)


def tiny_rnn(cell: str = "gru", hidden_size: int = 8, seed: int = 0) -> SmilesRNN:
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    config = SmilesRNNConfig(cell, 1, embedding_size=6, hidden_size=hidden_size)
    model = SmilesRNN(config, len(tokenizer), words)
    with torch.no_grad():  # far from uniform, so that a wrong distribution shows
        model.output.weight.mul_(6)
        for silent in (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id):
            model.output.bias[silent] = -30.0
        model.output.bias[tokenizer.eos_token_id] = 0.5
    return model


def tiny_smiles_policy(cell: str = "gru", max_new_tokens: int = 12, **more) -> SmilesPolicy:
    return SmilesPolicy(tiny_rnn(cell, **more), tiny_tokenizer(), max_new_tokens)

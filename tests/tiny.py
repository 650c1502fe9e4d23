"""A real Llama architecture, tiny and random, with a real byte-level BPE tokenizer: made in a second, saved in a folder."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = [
    "The quick brown fox doesn't jump over the lazy dog, and the dogs don't mind.",
    "Ein schöner Tag im Café: l'été est fini, el niño corre.",
    "She said that they'd been running through the old streets of the city.",
    "Numbers such as 12, 345 and 6.78 occur; so do names like Anna, Berlin and Kyoto.",
] * 3


def make_tokenizer(*, bos: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def make_model(folder: Path, *, bos: bool = True, seed: int = 0, max_positions: int = 128, **overrides: object) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    settings: dict[str, object] = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 88,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_positions,
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(bos=bos), bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )
    return folder


def conllu(sentences: list[list[tuple[str, str]]], *, per_document: int = 3) -> str:
    """CoNLL-U text of (form, upos) sentences."""
    lines = []
    for number, sentence in enumerate(sentences):
        if number % per_document == 0:
            lines.append(f"# newdoc id = doc-{number // per_document}")
        lines.append(f"# sent_id = s{number}")
        lines.append("# text = " + " ".join(form for form, _ in sentence))
        lines += [
            f"{index}\t{form}\t{form.lower()}\t{upos}\t_\t_\t{index - 1}\tdep\t_\t_"
            for index, (form, upos) in enumerate(sentence, 1)
        ]
        lines.append("")
    return "\n".join(lines) + "\n"


def some_sentences(count: int) -> list[list[tuple[str, str]]]:
    """Deterministic sentences of 2 to 11 words with made-up tags."""
    words = " ".join(TEXT[:4]).split()
    result = []
    for number in range(count):
        length = 2 + number * 7 % 10
        chosen = [words[(number * 5 + index * 3) % len(words)] for index in range(length)]
        result.append([(word, "NOUN" if word[0].isupper() else "VERB" if len(word) > 4 else "DET") for word in chosen])
    return result

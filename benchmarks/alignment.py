"""Word–token alignment on every treebank at hand: are all words reached, how many tokens are shared?"""

from pathlib import Path

from benchmarks.common import corpora, keep, scratch, smollm2


def run(pattern: str = "*.conllu.gz") -> dict[str, dict[str, int]]:
    """Plan each treebank with SmolLM2's tokenizer (no forward pass) and print the counts."""
    from neuronlake.extractor import ConlluCorpus, resolve_model
    from neuronlake.extractor.plan import PlanBuilder
    from neuronlake.extractor.sequences import SequenceSettings, make_sequences
    from neuronlake.extractor.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(resolve_model(smollm2()), special_tokens=True)
    names = ("documents", "sentences", "words", "tokens", "multi", "uncovered", "words_unreached", "words_only_multi")
    print(f"| treebank | {' | '.join(name.replace('_', ' ') for name in names)} |\n|{'---|' * (len(names) + 1)}")
    result = {}
    for path in sorted(corpora().glob(pattern)):
        with scratch() as folder:
            builder = PlanBuilder(Path(folder), block_rows=8192)
            for sequence in make_sequences(ConlluCorpus(paths=(path,)), tokenizer, SequenceSettings(max_tokens=8192)):
                builder.add(sequence)
            builder.finish()
        result[path.name] = {name: builder.counts[name] for name in names}
        print(f"| {path.name} | {' | '.join(f'{result[path.name][name]:,}' for name in names)} |", flush=True)
    keep("alignment", result)
    return result

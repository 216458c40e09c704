"""Check the text or the pairs that a run trains on."""

from pathlib import Path

from infra.stack.config import StackConfig
from infra.stack.keys import DEFAULT_TEXT, data_format
from trainer.contract.errors import InputError
from trainer.data.pairs import PARTS, PairFile, SplitName, begins_with_a_pair, count_problem, part_of
from trainer.data.text import check_text

# Bytes of a file of pairs that a preview reads, which take some seconds. The rest is checked when tokens are made.
PAIRS_READ = 64_000_000


def text_problems(config: StackConfig) -> list[str]:
    """Return what is wrong with the text, at most one line, without the project's name."""
    path, named = config.text, config.file.data.path
    parameters = config.file.training_input.hyperparameters
    if "://" in named:
        return [f"data.path: {named} is an address; platform local wants a file of this machine"]
    if not path.exists():
        fix = "python -m scripts.default_corpus makes it" if Path(named) == DEFAULT_TEXT else "check the path"
        return [f"data.path: there is no file {named}; {fix}"]
    try:
        if data_format(config.file.data) == "pairs":
            return _pairs_problems(config)
        size = check_text(path, f"data.path: {named}")
        if config.file.data.format is None and begins_with_a_pair(path):
            fix = "set data.format: pairs, or format: text if that is meant"
            return [f"data.path: {named} begins with a pair of prompt and completion, and would be read as text; {fix}"]
    except InputError as error:
        return [str(error)]
    # A token is at least a byte: with fewer bytes than this there cannot be two batches and one held-out sequence.
    sequence = parameters.sequence_length + 1
    least = max(2 * parameters.batch_size * sequence, int(sequence / config.file.data.validation_fraction) + 1)
    if size < least:
        need = (
            f"batchSize {parameters.batch_size} and sequenceLength {parameters.sequence_length} need at least {least:,}"
        )
        return [f"data.path: {named} is too small, {size:,} bytes; {need}: give more text, or lower these"]
    return []


def _pairs_problems(config: StackConfig) -> list[str]:
    """Return what is wrong with a file of pairs. Raise InputError for bad lines."""
    data, parameters, name = config.file.data, config.file.training_input.hyperparameters, config.file.data.path
    counts: dict[SplitName, int] = dict.fromkeys(PARTS, 0)
    file = PairFile(config.text, f"data.path: {name}", data.skip_bad_lines)
    for line in file:
        counts[part_of(line.pair.prompt, data)] += 1
        size, length = len(line.pair.completion.encode()) + 1, parameters.sequence_length
        if data.tokenizer == "byte" and size > length:  # other tokenizers' tokens are counted when they are made
            problem = (
                f"{line.number}: the completion has {size:,} tokens with end-of-text, more than"
                f" trainingInput.hyperparameters.sequenceLength, {length:,}; shorten it, or raise sequenceLength"
            )
            return [f"data.path: {name}:{problem}"]
        if file.done > PAIRS_READ:
            return []
    too_few = count_problem(counts, parameters.batch_size)
    return [f"data.path: {name}: {too_few}"] if too_few else []

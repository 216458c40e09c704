"""Make a stack's text and tokens ahead of `pulumi up`, so that its first step does not wait for them.

Without it the master does the same when the run starts. `make train` calls it.
"""

import argparse
from collections.abc import Callable

from infra import config
from scripts import default_corpus
from scripts.common import UserError, progress_bar, run_main
from trainer.data import check_enough, prepare
from trainer.prepared import find
from trainer.storage import Progress, open_storage


def _steps(advance: Progress) -> Callable[[int, int], None]:
    """Turns "so much is done" into "so much more is done"."""
    before = 0

    def update(done: int, _total: int) -> None:
        nonlocal before
        advance(done - before)
        before = done

    return update


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_data", description=__doc__)
    parser.add_argument("--stack", default="local", help="the stack whose data to prepare (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        stack = config.from_file(options.stack)
        if stack.text == config.ROOT / default_corpus.DEFAULT and not stack.text.exists():
            default_corpus.ensure(stack.text)
        job = config.job_spec(stack)
        storage = open_storage(stack.bucket)
        prepared = find(storage, job.data, job.fingerprint)
        if prepared is None:
            storage.upload(stack.text, job.data.path)
            with progress_bar(f"tokenizing {stack.text.name}", stack.text.stat().st_size) as advance:
                prepared = prepare(storage, job.data, job.fingerprint, _steps(advance))
        check_enough(prepared, job.hyperparameters.sequence_length, job.hyperparameters.batch_size)
    except config.ConfigError as error:
        raise UserError(str(error)) from None
    train, held_out = prepared.manifest.train, prepared.manifest.validation
    print(
        f"data: {stack.text.name}, {train.tokens:,} tokens to train on and {held_out.tokens:,} held out, vocabulary"
        f" {prepared.manifest.vocabulary_size:,}, unigram entropy {held_out.unigram_entropy:.2f} nats a token"
    )
    return 0


if __name__ == "__main__":
    run_main(main)

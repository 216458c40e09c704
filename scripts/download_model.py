"""Fetch a run's trained model, verified, into a folder that transformers loads. Safe to stop and to run again."""

import argparse
from pathlib import Path

from scripts.support.common import add_run_arguments, bucket_url, find_run, megabytes, run_main
from scripts.support.downloading import download
from trainer.storage.factory import open_storage


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.download_model", description=__doc__)
    add_run_arguments(parser)
    parser.add_argument("--to", metavar="FOLDER", type=Path, help="where to put it (default: models/RUN)")
    options = parser.parse_args(arguments)
    storage = open_storage(bucket_url(options))
    run = find_run(storage, options.run)
    to, already_there = download(storage, run, options.to or Path("models") / run)
    size = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    print(f"{'already there' if already_there else 'downloaded and verified'}: {to} ({megabytes(size)})")
    print("load it with:")
    print("  from transformers import pipeline")
    print(f'  print(pipeline("text-generation", {str(to)!r})("Once upon a time")[0]["generated_text"])')
    return 0


if __name__ == "__main__":
    run_main(main)

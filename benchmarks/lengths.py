"""Token lengths of MRPC and SST-2: counted in the texts, or read from the table that ships with the benchmarks.

``python -m benchmarks.lengths DIR`` counts them anew and writes the table.
"""

import argparse
import json
import pathlib

import numpy as np

TABLE = pathlib.Path(__file__).with_name("lengths.json")
MOST_TOKENS = 512

# Folder, file and text columns of each task, as the GLUE benchmark names them.
TASKS = {
    "mrpc": ("MRPC", "train.tsv", ("#1 String", "#2 String")),
    "sst-2": ("SST-2", "train.tsv", ("sentence",)),
}


def find(folder, task_folder, name):
    """Path of a file of a task, plain or gzipped."""
    plain = pathlib.Path(folder) / task_folder / name
    for path in (plain, plain.with_name(name + ".gz")):
        if path.exists():
            return path
    raise FileNotFoundError(f"no {plain}, and none with .gz")


def counted(folder):
    """Count texts by their length in tokens, special tokens included.

    Parameters
    ----------
    folder : str or path-like
        With the folders MRPC and SST-2 of the GLUE benchmark.

    Returns
    -------
    dict of str to dict of int to int
        For each task, the number of training texts of each length, by the word pieces of all-MiniLM-L6-v2.
    """
    from sherl.backbones.tokenization import Tokenizer
    from sherl.data.assets import fetch_demo_assets
    from sherl.data.tables import read_table

    tokenizer = Tokenizer(fetch_demo_assets(progress=False).backbone_folder)
    counts = {}
    for task, (task_folder, name, columns) in TASKS.items():
        table = read_table(find(folder, task_folder, name), list(columns))
        texts = list(zip(*(table[column] for column in columns))) if len(columns) > 1 else list(table[columns[0]])
        lengths = [len(ids) for ids in tokenizer.encode(texts, MOST_TOKENS)[0]]
        values, times = np.unique(lengths, return_counts=True)
        counts[task] = dict(zip(values.tolist(), times.tolist()))
    return counts


def shipped():
    """The table of the same form that ships with the benchmarks."""
    table = json.loads(TABLE.read_text())
    return {task: {int(length): times for length, times in counts.items()} for task, counts in table.items()}


def drawn(counts, batch, seed=0):
    """Lengths of a batch, as likely as they are counted; a tuple of int."""
    values, times = np.array(sorted(counts.items())).T
    return tuple(np.random.default_rng([seed, 1]).choice(values, batch, p=times / times.sum()).tolist())


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lengths", description="Count token lengths.")
    parser.add_argument("folder", help="folder with MRPC and SST-2 of the GLUE benchmark")
    counts = counted(parser.parse_args(arguments).folder)
    lines = [f' "{task}": {json.dumps(table)}' for task, table in counts.items()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()

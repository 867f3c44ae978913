"""What the tests of the command line share: tables of made-up sentences, calls that give back what was printed."""

import json

import numpy as np

from sherl.command_line.main import main

WORDS = {"positive": ["good", "great", "fine", "lovely", "warm"], "negative": ["bad", "dull", "poor", "weak", "stupid"]}
NOUNS = ["film", "movie", "story", "cast", "plot"]


def sentences(count, seed):
    """Yield sentences with their sentiment."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        label = str(rng.choice(list(WORDS)))
        yield f"the {rng.choice(NOUNS)} is {rng.choice(['a', 'very', 'quite'])} {rng.choice(WORDS[label])} .", label


def write_sentences(path, count, seed):
    """Write a table of sentences with the columns label and sentence."""
    lines = ["label\tsentence", *(f"{label}\t{text}" for text, label in sentences(count, seed))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_pairs(path, count, seed):
    """Write a table of pairs of sentences with a score of how alike they are."""
    rng = np.random.default_rng(seed)
    with open(path, "w", encoding="utf-8") as stream:
        for (first, one), (second, other) in zip(sentences(count, seed), sentences(count, seed + 100)):
            score = round(float(one == other) + 0.1 * rng.standard_normal(), 3)
            stream.write(json.dumps({"a": first, "b": second, "score": score}) + "\n")


def write_images(folder, count, seed):
    """Write pictures of noise, the reds brighter in one class and the blues in the other."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for number in range(count):
        name, channel = (("red", 0), ("blue", 2))[number % 2]
        pixels = rng.integers(0, 128, (8, 8, 3), dtype=np.uint8)
        pixels[..., channel] += 127
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{number:03}.png")


def call(capsys, *arguments, code=0):
    """Run a command that must end in this code; return what went to standard output and to standard error."""
    assert main([str(argument) for argument in arguments]) == code, capsys.readouterr().err
    printed = capsys.readouterr()
    return printed.out, printed.err


def record(capsys, *arguments, code=0):
    """Run a command with --json; return its record."""
    return json.loads(call(capsys, *arguments, "--json", code=code)[0])

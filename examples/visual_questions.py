"""Questions about pictures: the states of a language model and of a vision transformer as one stream of rows.

    python examples/visual_questions.py

A sample's rows are the tokens of its question, from all-MiniLM-L6-v2, and behind them the patches of its picture, from
a vision transformer of as many channels. The adapter reads both alike, and the language model's last layer, frozen,
lets tokens and patches attend to each other. Pictures and questions are V. Zhou's easy-VQA 1.0 (MIT), of PyPI's package
easy-vqa. Needs `pip install 'sherl[demo,onnx,image]'`.
"""

import argparse
import json
import time

import numpy as np
from common import (
    EXPLANATION,
    TRAINING_COLUMNS,
    Training,
    add_common_options,
    fetch_wheel,
    load_language_model,
    load_vit,
    prepare,
    read_image,
    read_wheel,
    spread,
)

import sherl
from sherl.command_line.console import aligned
from sherl.command_line.measure import megabytes
from sherl.training.probe import fit_linear_probe

IMAGE_STATES = [1, 3, 5, 7, 9, 11]  # as many as those of the language model


def load_easy_vqa(size):
    """Return images by number, and questions (text, answer, image number), of the training and of the test set."""
    wheel = fetch_wheel("easy-vqa", "1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f")
    parts = {"train": [{}, None], "test": [{}, None]}
    for name, content in read_wheel(wheel, lambda name: name.endswith((".png", "questions.json"))):
        images = parts[name.split("/")[2]]
        if name.endswith(".json"):
            images[1] = json.loads(content)
        else:
            images[0][int(name.rpartition("/")[2].removesuffix(".png"))] = read_image(content, size)
    return list(parts.values())


class Questions:
    """Some questions: what a side network taps, what a linear probe gets, and the answers."""

    def __init__(self, vit, language_model, images, questions, answers):
        texts, names, numbers = zip(*questions)
        different, kinds = sorted(set(numbers)), sorted(set(texts))
        pictures = vit.extract(np.stack([images[number] for number in different]), [*IMAGE_STATES, vit.num_layers],
                               dtype="float16", progress=True)  # fmt: skip
        words = language_model.extract(kinds, "all+last", dtype="float16")
        picture = np.searchsorted(different, numbers)
        text = np.searchsorted(kinds, texts)
        last = [states.pooled(how="mean")[rows] for states, rows in ((words, text), (pictures, picture))]
        last.append(pictures.pooled(how="first")[picture])
        self.pooled = np.concatenate(last, axis=1)
        tapped = range(len(IMAGE_STATES))
        self.taps = sherl.Features.joined(words[text].select(tapped), pictures[picture].select(tapped))
        self.answers = np.array([answers.index(name) for name in names])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=5000, metavar="N", help="questions to train on (%(default)s)")
    parser.add_argument("--test", type=int, default=2500, metavar="N", help="questions to score (%(default)s)")
    parser.add_argument("--held-out", action="store_true",
                        help="score on the last questions of the training set, not on the test set: for choices")
    parser.add_argument("--size", type=int, default=56, metavar="N", help="pixels of a side (%(default)s)")
    parser.add_argument("--hidden", type=int, default=96, metavar="N", help="side channels (%(default)s)")
    parser.add_argument("--pool", choices=("first", "mean"), default="first", help="(%(default)s)")
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="passes over the questions (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="questions of a step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, metavar="X", help="peak rate (%(default)s)")
    add_common_options(parser)
    arguments = parser.parse_args(argv)
    prepare(arguments)

    start = time.perf_counter()
    (images, questions), (test_images, test_questions) = load_easy_vqa(arguments.size)
    if arguments.held_out:
        test_images, test_questions = images, questions[-arguments.test :]
    answers = sorted({answer for _, answer, _ in questions})
    vit, language_model = load_vit(), load_language_model()
    train = Questions(vit, language_model, images, questions[: arguments.train], answers)
    test = Questions(vit, language_model, test_images, test_questions[: arguments.test], answers)
    print(f"{len(train.taps):,} questions to train on, {len(test.taps):,} to score, {len(answers)} answers: states in "
          f"{time.perf_counter() - start:.0f} s, {megabytes(train.taps.nbytes + test.taps.nbytes)}")

    rows = [["", "accuracy", "each seed", "trained", *TRAINING_COLUMNS, "planned"]]
    majority = np.bincount(train.answers).argmax()
    rows.append([f"always {answers[majority]}", f"{np.mean(test.answers == majority):.4f}", "", "0", "", "", "", ""])
    with Training() as fitting:
        probe = fit_linear_probe(train.pooled, train.answers, "classification", arguments.seeds[0])
    rows.append(["linear probe", f"{np.mean(probe.predict(test.pooled) == test.answers):.4f}", "",
                 f"{probe.num_parameters:,}", *fitting.cells, ""])  # fmt: skip
    print(f"{rows[1][0]}: {rows[1][1]}; linear probe: {rows[2][1]}, {fitting.seconds:.0f} s", flush=True)
    scores, trainings = [], []
    for seed in arguments.seeds:
        network = sherl.SideNetwork(
            sherl.MTSA.cross_modal(vit.hidden_size, taps=len(IMAGE_STATES), hidden=arguments.hidden),
            late=[language_model.layers[-1]],
            head=sherl.Classifier(vit.hidden_size, len(answers), pool=arguments.pool, pooler=True), seed=seed,
        )  # fmt: skip
        plan = network.memory_plan(batch_size=arguments.batch_size, tokens=train.taps.longest)
        with Training() as fitting:
            network.fit(train.taps, train.answers, epochs=arguments.epochs, batch_size=arguments.batch_size,
                        learning_rate=arguments.learning_rate, seed=seed)  # fmt: skip
        scores.append(network.evaluate(test.taps, test.answers)["accuracy"])
        trainings.append(fitting)
        print(f"seed {seed}: {scores[-1]:.4f}, {fitting.seconds:.0f} s, {megabytes(fitting.memory)}", flush=True)
    rows.append(["SHERL", spread(scores), " ".join(f"{score:.4f}" for score in scores), f"{network.num_parameters():,}",
                 *trainings[0].cells, megabytes(plan.total)])  # fmt: skip
    print(aligned(rows))
    print(EXPLANATION)


if __name__ == "__main__":
    main()

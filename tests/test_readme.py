"""The README's example runs as printed, and learns."""

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_with_arrays_learns():
    example = README.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names = {}
    exec(compile(example, str(README), "exec"), names)
    assert names["net"].evaluate(names["taps"], names["labels"], mask=names["mask"])["accuracy"] > 0.9
    assert names["history"].epochs[-1]["loss"] < names["history"].epochs[0]["loss"]
    assert names["gradients"].keys() == names["weights"].keys()

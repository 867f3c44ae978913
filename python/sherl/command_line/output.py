"""Where commands write to: folders made before the work, trained networks, pictures."""

from pathlib import Path

from ..checks import write_files

__all__ = ["output_folder", "save_network", "save_plot"]


def output_folder(name):
    """Make the folder before the work, so that a folder that cannot be written costs no training."""
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_network(network, task, out, console, backbone=None):
    """Save a network with the description of its task, and say what to do with it."""
    network.save_pretrained(out)
    task.save(out)
    given = f" --backbone {backbone}" if backbone else ""
    console.say(f"Saved to {out}. Next: sherl predict {out}{given} --input PATH --out predictions.tsv")


def save_plot(figure, path):
    """Write a picture, a .png."""
    write_files(Path(path).parent, {Path(path).name: figure._repr_png_()})

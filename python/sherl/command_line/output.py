"""Where commands write to: folders made before the work, trained networks, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._typing import PathLike
from ..checks import write_files

if TYPE_CHECKING:
    from ..network.side_network import SideNetwork
    from .console import Console
    from .task_file import Task

__all__ = ["output_folder", "save_network", "save_plot"]


def output_folder(name: PathLike) -> Path:
    """Make the folder before the work, so that a folder that cannot be written costs no training."""
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_network(network: SideNetwork, task: Task, out: Path, console: Console, backbone: str | None = None) -> None:
    """Save a network with the description of its task, and say what to do with it."""
    network.save_pretrained(out)
    task.save(out)
    given = f" --backbone {backbone}" if backbone else ""
    console.say(f"Saved to {out}. Next: sherl predict {out}{given} --input PATH --out predictions.tsv")


def save_plot(figure: Any, path: PathLike) -> None:
    """Write a figure of `sherl.plots`, which gives its picture, as a .png."""
    write_files(Path(path).parent, {Path(path).name: figure._repr_png_()})

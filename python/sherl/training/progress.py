"""A progress bar where tqdm is installed, and nothing where it is not."""

from __future__ import annotations

from typing import Any

PATIENCE = 2.0  # seconds that pass before a bar appears for work that is mostly short


class _Silent:
    def update(self, count: int = 1) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        pass

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def progress_bar(show: bool, total: int | None, description: str | None, initial: int = 0, delay: float = 0,
                 leave: bool = True) -> Any:
    """Return a bar with `update` and `set_postfix_str`, to be used as a context.

    Parameters
    ----------
    show : bool
    total, initial : int
    description : str
    delay : float
        Seconds before it appears; where all is done by then it never does.
    leave : bool
        Whether it stays when it is full.
    """
    if show:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            pass
        else:
            return tqdm(total=total, desc=description, initial=initial, delay=delay, leave=leave)
    return _Silent()

"""A progress bar where tqdm is installed, and nothing where it is not."""


class _Silent:
    def update(self, count=1):
        pass

    def set_postfix_str(self, text, refresh=True):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def progress_bar(show, total, description, initial=0):
    """Return a bar with `update` and `set_postfix_str`, to be used as a context."""
    if show:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            pass
        else:
            return tqdm(total=total, desc=description, initial=initial)
    return _Silent()

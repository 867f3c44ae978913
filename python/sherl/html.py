"""Tables in HTML, as notebooks show objects."""

from html import escape


def html_table(title, header, rows, marked=None):
    """Return a table.

    Parameters
    ----------
    title : str
    header : sequence of str
    rows : sequence of sequence
        Cells; numbers are set to the right.
    marked : int, optional
        Number of a row in bold.

    Returns
    -------
    str
    """
    lines = [f"<tr>{''.join(_cell('th', name) for name in header)}</tr>"]
    for number, row in enumerate(rows):
        style = " style=\"font-weight: bold\"" if number == marked else ""
        lines.append(f"<tr{style}>{''.join(_cell('td', value) for value in row)}</tr>")
    caption = f"<caption style=\"text-align: left; white-space: nowrap\">{escape(title)}</caption>"
    return f"<table>{caption}{''.join(lines)}</table>"


def _cell(tag, value):
    side = "right" if isinstance(value, (int, float)) or str(value)[:1].isdigit() else "left"
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return f"<{tag} style=\"text-align: {side}\">{escape(text)}</{tag}>"

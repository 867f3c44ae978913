"""Text tables: every format read back as written, every kind of broken file refused with its name and line."""

import csv
import gzip
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sherl.data.tables import encode_labels, read_table, write_table

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TSV_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), max_size=12)


def written(folder, name, content):
    content = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def rows_of(path, *columns):
    table = read_table(path, columns)
    assert list(table) == list(columns)
    return list(zip(*table.values()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@given(rows=st.lists(st.tuples(TSV_TEXT, TSV_TEXT), min_size=1, max_size=5), zipped=st.booleans())
def test_tsv_round_trip(folder, rows, zipped):
    content = "a\tb\n" + "".join(f"{a}\t{b}\n" for a, b in rows)
    path = written(folder, "round.tsv" + ".gz" * zipped, content)
    assert rows_of(path, "a", "b") == rows
    assert rows_of(path, "b") == [(b,) for _, b in rows]


@given(rows=st.lists(st.tuples(TEXT.filter(lambda t: "\0" not in t), st.just("x")), min_size=1, max_size=5))
def test_csv_round_trip(folder, rows):
    stream = io.StringIO()
    csv.writer(stream).writerows([("text", "label"), *rows])
    path = written(folder, "round.csv", stream.getvalue())
    assert rows_of(path, "text", "label") == rows


@given(rows=st.lists(TEXT, min_size=1, max_size=5), escaped=st.booleans())
def test_jsonl_round_trip(folder, rows, escaped):
    content = "".join(json.dumps({"text": text, "n": 1}, ensure_ascii=escaped) + "\n" for text in rows)
    assert rows_of(written(folder, "round.jsonl", content), "text", "n") == [(text, "1") for text in rows]


def test_glue_tsv_has_no_quoting_and_a_byte_order_mark(tmp_path):
    content = '\ufeffQuality\t#1 String\t#2 String\r\n1\tHe said , " no .\tthe "end\r\n0\t"\t""\r\n'
    path = written(tmp_path, "mrpc.tsv.gz", content)
    assert rows_of(path, "#2 String", "Quality") == [('the "end', "1"), ('""', "0")]


def test_csv_quotes_and_lines_inside_fields(tmp_path):
    path = written(tmp_path, "quoted.csv", '\ufefftext,label\r\n"one, ""two""\nthree",1\r\nfour,0\r\n')
    table = read_table(path, ["text", "label"])
    assert table["text"] == ['one, "two"\nthree', "four"]
    assert list(table["text"].lines) == [3, 4]


def test_only_newlines_end_a_line(tmp_path):
    text = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"
    assert rows_of(written(tmp_path, "breaks.tsv", f"t\tu\n{text}\t1\n"), "t") == [(text,)]
    assert rows_of(written(tmp_path, "breaks.jsonl", json.dumps({"t": text}, ensure_ascii=False)), "t") == [(text,)]


def test_json_numbers_keep_their_text(tmp_path):
    path = written(tmp_path, "n.jsonl", '{"v": 1.50}\n{"v": 12345678901234567890}\n{"v": true}\n{"v": NaN}\n\n\n')
    assert read_table(path, ["v"])["v"] == ["1.50", "12345678901234567890", "true", "NaN"]


def test_blank_lines_count_inside_but_not_at_the_end(tmp_path):
    assert rows_of(written(tmp_path, "one.tsv", "t\na\n\nb\n\n\n"), "t") == [("a",), ("",), ("b",)]
    assert rows_of(written(tmp_path, "one.csv", "t\na\n\nb\n\n\n"), "t") == [("a",), ("",), ("b",)]
    with pytest.raises(ValueError, match=r"two.tsv, line 3: expected 2 fields as in the header, got 1"):
        read_table(written(tmp_path, "two.tsv", "t\tu\na\tb\n\nc\td\n"), ["t"])


REFUSED = {
    "missing.tsv": ("a\tb\n1\t2\n", r"missing.tsv, line 1: there is no column 'text'; the columns are 'a', 'b'"),
    "missing.jsonl": ('{"text": "x"}\n{"a": "x"}\n', r"missing.jsonl, line 2: there is no column 'text'; .*'a'"),
    "twice.csv": ("text,b,text\n1,2,3\n", r"twice.csv, line 1: the column 'text' occurs 2 times"),
    "long.tsv": ("text\tb\n1\t2\n1\t2\t3\n", r"long.tsv, line 3: expected 2 fields as in the header, got 3"),
    "short.csv": ('text,b\n"1\n",2\n1\n', r"short.csv, line 4: expected 2 fields as in the header, got 1"),
    "quote.csv": ('text,b\n"1"x,2\n', r"quote.csv, line 2: "),
    "open.csv": ('text,b\n"1,2\n', r"open.csv, line 2: unexpected end of data"),
    "empty.tsv": ("", r"empty.tsv: the file is empty"),
    "empty.csv.gz": ("", r"empty.csv.gz: the file is empty"),
    "mark.jsonl": (b"\xef\xbb\xbf", r"mark.jsonl: the file is empty"),
    "header.tsv": ("text\tb\n\n", r"header.tsv: the file holds no rows"),
    "blank.jsonl": ("\n\n", r"blank.jsonl: the file holds no rows"),
    "latin.tsv": (b"text\nok\nclich\xe9\n", r"latin.tsv, line 3: the bytes are not UTF-8 text"),
    "latin.csv": (b"text\nok\nclich\xe9\n", r"latin.csv, line 3: the bytes are not UTF-8 text"),
    "wide.csv": ("text\n1\n".encode("utf-16"), r"wide.csv, line 1: the bytes are not UTF-8 text"),
    "broken.jsonl": ('{"text": "x"}\n{"text": \n', r"broken.jsonl, line 2: the line is not JSON"),
    "gap.jsonl": ('{"text": "x"}\n\n{"text": "y"}\n', r"gap.jsonl, line 2: the line is not JSON"),
    "list.jsonl": ('["text"]\n', r"list.jsonl, line 1: expected a JSON object, got"),
    "deep.jsonl": ("[" * 200000 + "\n", r"deep.jsonl, line 1: "),
    "null.jsonl": ('{"text": null}\n', r"null.jsonl, line 1: the column 'text' must hold text or a number, got null"),
    "nested.jsonl": ('{"text": ["x"]}\n', r"nested.jsonl, line 1: .* got an array"),
    "half.jsonl": ('{"text": "\\ud800"}\n', r"half.jsonl, line 1: the column 'text' holds half of a surrogate pair"),
    "table.parquet": ("x", r"table.parquet: expected a file named"),
    "table.gz": ("x", r"table.gz: expected a file named"),
}


@pytest.mark.parametrize("name", ["out.tsv", "out.csv", "out.jsonl", "out.tsv.gz", "out.csv.gz", "out.jsonl.gz"])
def test_written_tables_are_read_back(tmp_path, name):
    path = tmp_path / "new" / name
    write_table(path, ["prediction", "probability"], [('"é", x', 0.25), ("b", 1.0)])
    assert rows_of(path, "prediction", "probability") == [('"é", x', "0.25"), ("b", "1.0")]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["out.tsv", "out.csv.gz"])
def test_a_broken_off_table_leaves_the_old_one(tmp_path, name):
    def rows():
        yield ["new"]
        raise KeyboardInterrupt

    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_table(tmp_path / name, ["a"], rows())
    assert (tmp_path / name).read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_tsv_cannot_hold_tabs(tmp_path):
    with pytest.raises(ValueError, match=r"out.tsv: a .tsv cannot hold a tab or a line break, as in 'a\\tb'"):
        write_table(tmp_path / "out.tsv", ["a"], [["a\tb"]])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", REFUSED)
def test_broken_files_are_refused(tmp_path, name):
    content, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        read_table(written(tmp_path, name, content), ["text"])


def test_broken_gzip_is_refused(tmp_path):
    whole = gzip.compress(b"text\n" + b"some words\n" * 1000)
    for name, content in {"cut": whole[:-20], "plain": b"text\nx\n", "bits": whole[:20] + b"\xff" * 20}.items():
        path = tmp_path / f"{name}.tsv.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}.tsv.gz, after line \d+: the gzip data cannot be read"):
            read_table(path, ["text"])


def test_a_missing_file_and_bad_column_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.tsv"):
        read_table(tmp_path / "absent.tsv", ["text"])
    with pytest.raises(TypeError, match="columns must be a sequence of column names, got the str 'text'"):
        read_table(tmp_path / "absent.tsv", "text")
    with pytest.raises(ValueError, match="columns must name at least one column"):
        read_table(tmp_path / "absent.tsv", [])


def test_classes_sort_as_numbers_where_all_are_integers():
    targets, classes = encode_labels(["10", "2", "-1", "2"], "classification")
    assert classes == ["-1", "2", "10"] and targets.dtype == np.int64 and targets.tolist() == [2, 1, 0, 1]
    assert encode_labels(["10", "2", "b"], "classification")[1] == ["10", "2", "b"]
    assert encode_labels(["2"], "classification", classes=["10", "2"])[0].tolist() == [1]


def test_regression_targets_are_numbers():
    targets, classes = encode_labels(["5.000", "-1e-3", "0"], "regression")
    assert classes is None and targets.dtype == np.float64 and targets.tolist() == [5.0, -1e-3, 0.0]


@pytest.mark.parametrize("label", ["nan", "NaN", "inf", "-Infinity", "1e999", "x", "1_0", "0x1"])
def test_labels_that_are_no_finite_number_name_their_line(tmp_path, label):
    column = read_table(written(tmp_path, "v.tsv", f"s\tv\na\t1\nb\t{label}\n"), ["v"])["v"]
    with pytest.raises(ValueError, match=rf"v.tsv, line 3, column 'v': .* a finite number, got '{label}'"):
        encode_labels(column, "regression")


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("label", ["", "  "])
def test_empty_labels_name_their_line(tmp_path, task, label):
    column = read_table(written(tmp_path, "v.csv", f's,v\n"a\nb",1\nb,{label}\n'), ["v"])["v"]
    with pytest.raises(ValueError, match="v.csv, line 4, column 'v': the label is empty"):
        encode_labels(column, task)


def test_other_label_errors():
    with pytest.raises(ValueError, match="row 2: the label 'c' is none of the classes 'a', 'b'"):
        encode_labels(["a", "c"], "classification", classes=["a", "b"])
    with pytest.raises(ValueError, match="task must be"):
        encode_labels(["a"], "ranking")
    with pytest.raises(ValueError, match="column must hold at least one label"):
        encode_labels([], "regression")
    with pytest.raises(TypeError, match="row 1: a label must be a str, got int"):
        encode_labels([1], "classification")

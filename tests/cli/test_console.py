import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from abyssal.cli.console import Speed, printable, steps, table
from abyssal.errors import RequestError


def output(count, *, error=None, reason=None):
    answer = SimpleNamespace(token_ids=list(range(count)), text="x" * count, finish_reason=reason)
    return SimpleNamespace(prompt_token_ids=[1, 2, 3], outputs=[answer], error=error)


def test_control_characters_cannot_reach_a_terminal():
    assert printable("a\x1b[2Jb\x07\r\n\tc\x9b") == "a\ufffd[2Jb\ufffd\ufffd\n\tc\ufffd"
    assert printable("Ω 光 é\n") == "Ω 光 é\n"


def test_a_table_is_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    table(Console(file=stream, width=20), [("name", "v" * 50), ("other", "[bold]2")])
    assert stream.getvalue() == f"name: {'v' * 50}\nother: [bold]2\n"


def test_a_table_is_aligned_where_there_is_one():
    stream = io.StringIO()
    table(Console(file=stream, force_terminal=True, color_system=None), [("a", "1"), ("bcd", "2")])
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == ["  a    1", "  bcd  2"]


def test_the_clock_starts_decoding_at_the_first_token(monkeypatch):
    times = iter([10.0, 12.0, 13.0, 14.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    speed = Speed()
    for count in (1, 2, 3):
        speed.saw(output(count, reason="length" if count == 3 else None))
    assert speed.prompt_rate == 3 / 2.0
    assert speed.decode_rate == 2 / 2.0
    assert speed.line() == ("prompt 3 tokens, 1.5 tokens/s; answer 3 tokens, 1.0 tokens/s; length")


def test_what_came_before_an_error_is_shown_and_the_error_raised():
    seen = []
    with pytest.raises(RequestError, match="layer 3"):
        for answer in steps([output(1), output(2, error="layer 3 is not finite")], Speed()):
            seen.append(len(answer.token_ids))
    assert seen == [1, 2]

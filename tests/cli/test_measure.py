import lzma

from hypothesis import given
from hypothesis import strategies as st

from abyssal.cli.measure import longest_shared_run, training_text, words


def naive_longest(ours, theirs):
    best = []
    for start in range(len(ours)):
        for end in range(start + 1, len(ours) + 1):
            run = ours[start:end]
            inside = any(theirs[k : k + len(run)] == run for k in range(len(theirs)))
            if inside and len(run) > len(best):
                best = run
    return best


def test_words_ignore_case_punctuation_and_line_ends():
    assert words("And God said,\nLet there be LIGHT: don't") == [
        "and",
        "god",
        "said",
        "let",
        "there",
        "be",
        "light",
        "don't",
    ]


def test_a_run_that_stands_in_the_training_text_is_found_across_punctuation():
    text = "the machine said, Let there be light; and went"
    assert longest_shared_run(text, "God said: let there be\nlight and there was") == [
        "said",
        "let",
        "there",
        "be",
        "light",
        "and",
    ]


def test_a_run_ends_at_whole_words():
    assert longest_shared_run("the king", "bathe kingdom") == []


@given(
    st.lists(st.sampled_from("abc"), max_size=12).map(" ".join),
    st.lists(st.sampled_from("abc"), max_size=20).map(" ".join),
)
def test_the_longest_run_is_the_one_that_trying_all_of_them_finds(text, training):
    assert longest_shared_run(text, training) == naive_longest(text.split(), training.split())


def test_the_training_text_is_read_from_beside_the_weights(tmp_path):
    assert training_text(tmp_path) is None
    (tmp_path / "training_text.txt.xz").write_bytes(lzma.compress(b"In the beginning"))
    assert training_text(tmp_path) == "In the beginning"

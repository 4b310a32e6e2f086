from tiny_texts import CHAT_TEMPLATE, write_tokenizer

from abyssal import LLM
from abyssal.testing.checkpoints import write_checkpoint


def answers(folder, lines, **options):
    """Talk through the engine alone."""
    from dataclasses import replace

    llm = LLM(folder)
    params = replace(llm.get_default_sampling_params(), temperature=0.0, **options)
    messages, found = [], []
    for line in lines:
        messages.append({"role": "user", "content": line})
        found.append(llm.chat(messages, params)[0].outputs[0].text)
        messages.append({"role": "assistant", "content": found[-1]})
    return found


def test_each_line_is_answered_with_what_was_said_before(run, chat_model):
    lines = ["In the beginning", "And the earth"]
    done = run("chat", "-m", chat_model, "-n", 8, "-t", 0, stdin="\n".join(lines).encode())
    assert done.code == 0, done.err
    assert done.out == "".join(text + "\n" for text in answers(chat_model, lines, max_tokens=8))
    assert done.err.count("tokens/s; answer") == 2


def test_an_empty_line_ends_the_talk(run, chat_model):
    done = run("chat", "-m", chat_model, "-n", 4, "-t", 0, stdin=b"one\n\ntwo\n")
    assert done.code == 0
    assert done.err.count("tokens/s; answer") == 1


def test_a_model_without_a_chat_format_is_sent_to_generate(run, base_model):
    done = run("chat", "-m", base_model, stdin=b"hello\n")
    assert done.code == 1
    assert done.out == ""
    assert "this is a base model: use generate" in done.err


def test_a_message_that_does_not_fit_is_refused_and_the_talk_goes_on(run, tmp_path):
    write_checkpoint(tmp_path, vocab_size=400, max_position_embeddings=64, rope_scaling=None)
    write_tokenizer(tmp_path, chat_template=CHAT_TEMPLATE)
    long = "word " * 200
    done = run("chat", "-m", tmp_path, "-n", 4, "-t", 0, stdin=f"{long}\nIn\n".encode())
    assert done.code == 0
    assert "at most" in done.err
    lines = answers(tmp_path, ["In"], max_tokens=4)
    assert done.out == lines[0] + "\n"


def test_parameters_are_judged_before_the_model_is_loaded(run, chat_model):
    done = run("chat", "-m", chat_model, "--top-p", "2")
    assert done.code == 1
    assert "top_p is 2.0" in done.err
    assert "loading" not in done.err

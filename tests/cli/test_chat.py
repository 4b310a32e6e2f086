from tiny_texts import CHAT_TEMPLATE, write_tokenizer

from abyssal import LLM
from abyssal.cli.console import printable
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


def test_what_a_model_thinks_goes_to_standard_error(run, chat_model):
    options = ("-m", chat_model, "-n", 8, "-t", 0, "--chat-format", "r1")
    done = run("chat", *options, stdin=b"In the beginning\n")
    assert done.code == 0, done.err
    # This model never ends the thought that the format opens.
    assert done.out == "\n"
    llm = LLM(chat_model, chat_format="r1")
    prompt = llm.chat_prompt([{"role": "user", "content": "In the beginning"}])
    params = llm.get_default_sampling_params()
    (output,) = llm.generate(
        {"prompt_token_ids": prompt}, type(params)(temperature=0.0, max_tokens=8)
    )
    thought = llm.chat_format.parse(output.outputs[0].token_ids, prompt)["reasoning_content"]
    assert printable(thought) + "\n" in done.err


def test_options_that_a_format_lacks_are_refused_before_the_first_message(run, chat_model):
    done = run("chat", "-m", chat_model, "--thinking", "--chat-format", "v3", stdin=b"hello\n")
    assert done.code == 1
    assert "chat format v3 never thinks" in done.err
    done = run("chat", "-m", chat_model, "--chat-format", "v9", stdin=b"hello\n")
    assert done.code == 1
    assert "unknown chat format 'v9', known are v3" in done.err

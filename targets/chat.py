"""Chats as the text that a language model reads: the chat template of its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from targets.bundle import Bundle
from targets.errors import BundleError, InputError, MissingLibraryError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["CHAT_TEMPLATE", "ChatTemplate", "named_tokens", "read_chat_template"]

CHAT_TEMPLATE = "chat_template.jinja"
"""The file of a template."""
_CONFIG = "tokenizer_config.json"
_FIELDS = {"role", "content"}


class ChatTemplate:
    """Renders chats as ``apply_chat_template`` of transformers does.

    A template is a program that comes with a model. It runs in Jinja's sandbox, in which it can
    change nothing and reach nothing but what it is given.

    Args:
        source: In Jinja.
        tokens: Role -> special token, such as ``bos_token``.
        where: Where it stands, for messages.

    Raises:
        BundleError: It is no template.
        MissingLibraryError: Jinja is not installed.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], *, where: object) -> None:
        environment = _environment()
        from jinja2 import TemplateError

        self.tokens = dict(tokens)
        self.where = where
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise BundleError(
                "the chat template cannot be read",
                where=where,
                given=error,
                fix="correct the template of the checkpoint and build the bundle again",
            ) from error

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a chat, up to where the answer begins.

        Args:
            messages: At least one, in their order; each with a ``role``, such as "system", "user"
                or "assistant", and a ``content``.

        Raises:
            InputError: A message is none, or the template does not take them.
        """
        given = _checked(messages)
        try:
            return self._template.render(
                messages=given,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self.tokens,
            )
        except Exception as error:  # a template is a program, and fails as such
            raise InputError(
                "the chat template does not take these messages",
                where=self.where,
                given=f"roles {', '.join(each['role'] for each in given)}: {error}",
                fix="pass messages with the roles and in the order that the template expects",
            ) from error


def read_chat_template(bundle: Bundle) -> ChatTemplate:
    """The template of a bundle.

    Raises:
        BundleError: It has none, or one that cannot be read.
        MissingLibraryError: Jinja is not installed.
    """
    if CHAT_TEMPLATE not in bundle.manifest.files:
        raise BundleError(
            "the bundle has no chat template: its model was made to continue texts",
            where=bundle.source,
            given=f"no {CHAT_TEMPLATE}",
            fix="leave out --chat, or build it from a checkpoint with a chat template",
        )
    source = bundle.path(CHAT_TEMPLATE).read_text(encoding="utf-8")
    return ChatTemplate(source, named_tokens(bundle), where=bundle.source / CHAT_TEMPLATE)


def named_tokens(bundle: Bundle) -> dict[str, str]:
    """The special tokens that the tokenizer of a bundle names: role -> token."""
    try:
        config = json.loads(bundle.path(_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = {
        role: value.get("content") if isinstance(value, dict) else value
        for role, value in config.items()
        if role.endswith("_token")
    }
    return {role: token for role, token in found.items() if isinstance(token, str)}


def _checked(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A copy of messages, for the template alone."""
    for index, message in enumerate(messages):
        is_message = (
            isinstance(message, Mapping)
            and set(message) == _FIELDS
            and all(isinstance(value, str) for value in message.values())
        )
        if not is_message:
            raise InputError(
                "this is not a chat message",
                where=f"messages[{index}]",
                given=f"{message!r:.100}",
                fix='pass {"role": "user", "content": "..."}, both strings',
            )
    if not messages:
        raise InputError(
            "the chat is empty",
            given="no messages",
            fix='pass at least one, [{"role": "user", "content": "..."}]',
        )
    return [dict(message) for message in messages]


def _environment() -> ImmutableSandboxedEnvironment:
    """What the templates of checkpoints are written for: that of transformers."""
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingLibraryError.for_extra("jinja2", "chat", "a chat") from error

    class Generation(Extension):
        """``{% generation %}`` marks answers, for training: what is in it is rendered."""

        tags = {"generation"}  # noqa: RUF012  (as the base class has it)

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def as_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = as_json  # Jinja's own escapes what HTML takes for its own
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment

"""Chat templates: from messages to the text that a model was trained on.

Templates come with models and are not trusted: they run in jinja2's immutable sandbox, with the environment
and the few additions that Hugging Face transformers gives them.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seqrt.errors import BundleError, RequestError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]
_KEYS = ("role", "content")
# what a template can bring about besides jinja2's own errors
_RUN_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class ChatTemplate:
    """A compiled chat template.

    Attributes:
        source: the jinja text.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        """Compile a template.

        Args:
            source: jinja text, as in chat_template.jinja.
            bos_token: text of the token that begins a sequence, which many templates write themselves.
            eos_token: text of the token that ends one.

        Raises:
            BundleError: the text is not a jinja template.
        """
        import jinja2

        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template: Template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise BundleError(
                f"the chat template is not valid jinja: line {error.lineno}: {_one_line(error)};"
                " mend chat_template.jinja or use --raw"
            ) from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: object) -> str:
        """The prompt of a conversation.

        Args:
            messages: mappings with `role` and `content`, oldest first.
            add_generation_prompt: end with what introduces the assistant's answer.
            variables: anything else that the template reads, such as `enable_thinking`.

        Raises:
            RequestError: a message lacks role or content, or the template refuses the conversation.
        """
        import jinja2

        check_messages(messages)
        try:
            return self._template.render(
                self._tokens | variables,
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, *_RUN_ERRORS) as error:
            raise RequestError(
                f"the chat template refuses these messages: {_one_line(error)}; change them or use --raw"
            ) from error


def check_messages(messages: Sequence[Message]) -> None:
    """Raise RequestError unless there is a message, and each has the strings `role` and `content`."""
    if not messages:
        raise RequestError("the conversation has no messages; give at least one from the user")
    for index, message in enumerate(messages):
        given: object = message  # it may come from a file
        if not isinstance(given, Mapping) or not all(isinstance(given.get(key), str) for key in _KEYS):
            raise RequestError(
                f"message {index} is {message!r:.80}; give an object with the strings 'role' and 'content'"
            )


def _environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives templates (utils/chat_template_utils.py, _compile_jinja_template)."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's text for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter this does not escape HTML: it is a model that reads it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

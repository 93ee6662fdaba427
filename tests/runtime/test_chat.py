"""Chat templates in the manner of well-known models, against transformers' apply_chat_template."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from seqrt.errors import BundleError, RequestError
from seqrt.runtime.chat import ChatTemplate

CHATML = """\
{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{% endif %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{% endif %}"""
LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
MISTRAL = """\
{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
EXTRAS = """\
{%- set found = namespace(count=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set found.count = found.count + 1 %}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {%- else %}{{ message | tojson }}{{ message | tojson(indent=2) }}{% endif %}
{%- endfor %}
{{- found.count }} {{ strftime_now('%Y') }}
{%- if thinking is defined and not thinking %}<think></think>{% endif %}"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA_3, "zephyr": ZEPHYR, "mistral": MISTRAL, "extras": EXTRAS}

SYSTEM = {"role": "system", "content": "Be brief & <kind>."}
USER = {"role": "user", "content": " Wie heißt du? 'ok' \n"}
ANSWER = {"role": "assistant", "content": "日本 {{ 7 * 7 }}"}
CONVERSATIONS = [[USER], [USER, ANSWER, USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER]]


def expected(source: str, messages: list[dict[str, str]], **options: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>")
    text: str = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
    return text


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=lambda messages: "-".join(m["role"] for m in messages))
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(
    name: str, messages: list[dict[str, str]], add_generation_prompt: bool
) -> None:
    template = ChatTemplate(TEMPLATES[name], bos_token="<s>", eos_token="</s>")
    if name == "mistral" and messages[0] is SYSTEM:
        with pytest.raises(RequestError, match="refuses these messages: Conversation roles must alternate"):
            template.render(messages)
        return
    found = template.render(messages, add_generation_prompt=add_generation_prompt)
    assert found == expected(TEMPLATES[name], messages, add_generation_prompt=add_generation_prompt)
    assert messages[-1]["content"].strip() in found or name == "extras"


def test_other_variables_reach_the_template() -> None:
    template = ChatTemplate(EXTRAS)
    assert template.render([USER], thinking=False).endswith("<think></think>")
    assert not template.render([USER]).endswith("<think></think>")
    assert template.render([USER], thinking=False) == expected(EXTRAS, [USER], thinking=False)


def test_a_broken_template_is_the_bundle_s_fault() -> None:
    with pytest.raises(BundleError, match=r"not valid jinja: line 2: .*; mend chat_template\.jinja or use --raw"):
        ChatTemplate("{% if x %}\n{% endfor %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no\nway') }}",
        "{{ missing.attribute }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages | tojson(indent='a' * 2, separators=3) }}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_templates_that_fail_or_reach_out_are_refused(source: str) -> None:
    with pytest.raises(RequestError, match=r"the chat template refuses these messages: .+; change them") as caught:
        ChatTemplate(source).render([USER])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the conversation has no messages"),
        ([USER, {"role": "user"}], "message 1 is .*; give an object with the strings 'role' and 'content'"),
        ([{"content": "hi"}], "message 0 is "),
        (["hi"], "message 0 is 'hi'"),
        ([{"role": "user", "content": ["hi"]}], "message 0 is "),
    ],
)
def test_messages_must_have_role_and_content(messages: list[Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ChatTemplate(CHATML).render(messages)


def test_rendering_leaves_the_messages_alone() -> None:
    messages = [dict(USER)]
    ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}").render(messages)
    assert messages == [USER]

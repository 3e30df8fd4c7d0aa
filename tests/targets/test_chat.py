"""Chat templates: what is rendered is what transformers renders."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from targets.bundle import Bundle
from targets.chat import CHAT_TEMPLATE, ChatTemplate, named_tokens, read_chat_template
from targets.errors import BundleError, InputError, MissingLibraryError

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system
You are a helpful assistant.<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
"""As that of Qwen2 and SmolLM: with a message of the system where there is none."""

HEADERS = """{{- bos_token }}
{%- if tools is not none %}
    {{- raise_exception("No tools here") }}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{#- The message of the system comes first #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
"""As that of Llama 3."""

TURNS = """{{ bos_token }}
{% if messages[0]['role'] == 'system' %}
  {% set offset = 1 %}
{% else %}
  {% set offset = 0 %}
{% endif %}
{% set ns = namespace(count=0) %}
{% for message in messages %}
  {% if message.role not in ['system', 'user', 'assistant'] %}{% continue %}{% endif %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == offset) %}
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
  {% endif %}
  {% set ns.count = ns.count + 1 %}
  {% if message['role'] == 'assistant' %}
    {% generation %}{% set ended = message['content'] + eos_token %}{{ ended }}{% endgeneration %}
  {% else %}
[{{ ns.count }}] {{ {'content': message['content']} | tojson }}{{ sep_token }}
  {% endif %}
{% endfor %}
"""
"""With blocks on lines of their own, roles in turns, and what else templates are written with."""

USER = {"role": "user", "content": "Who wrote <Hamlet> & “Faust”?"}
SYSTEM = {"role": "system", "content": "  Answer in one word. "}
ANSWER = {"role": "assistant", "content": "Goethe.\n"}
CHATS = ([USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER, {**USER}])


def make_tokenizer(template: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "</s>": 2}, unk_token="[UNK]"))  # noqa: S106
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        chat_template=template,
    )


def make_bundle(folder: Path, *names: str) -> Bundle:
    """Of a folder only what chats need."""
    manifest: Any = type("Manifest", (), {"files": dict.fromkeys(names)})()
    return Bundle(folder, manifest)


@pytest.mark.parametrize("template", [CHATML, HEADERS, TURNS], ids=["chatml", "headers", "turns"])
@pytest.mark.parametrize("chat", CHATS, ids=len)
def test_a_chat_is_rendered_as_transformers_does(
    template: str, chat: list[dict[str, str]], tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(template)
    tokenizer.save_pretrained(tmp_path)
    expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    found = read_chat_template(make_bundle(tmp_path, CHAT_TEMPLATE)).render(chat)
    assert found == expected
    assert chat[-1]["content"] in found.replace('\\"', '"')


def test_the_date_is_that_of_today() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}", {}, where="here")
    assert abs(int(template.render([USER])) - datetime.datetime.now().year) <= 1


def test_json_is_written_as_the_template_asks() -> None:
    source = "{{ messages[0] | tojson(indent=2, sort_keys=true) }}{{ messages | tojson }}"
    expected = json.dumps(USER, ensure_ascii=False, indent=2, sort_keys=True)
    expected += json.dumps([USER], ensure_ascii=False)
    assert ChatTemplate(source, {}, where="here").render([USER]) == expected


def test_messages_that_a_template_refuses_are_named() -> None:
    template = ChatTemplate(TURNS, {}, where="bundle/chat_template.jinja")
    with pytest.raises(InputError, match="does not take these messages") as caught:
        template.render([USER, USER])
    assert caught.value.where == "bundle/chat_template.jinja"
    assert str(caught.value.given).startswith("roles user, user: Conversation roles must alternate")
    assert "in the order" in str(caught.value.fix)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages.__class__ }}{{ messages.__class__.__mro__ }}",
        "{% for _ in range(10 ** 9) %}{% endfor %}",
        "{{ 1 + 'a' }}",
    ],
)
def test_a_template_changes_and_reaches_nothing(source: str) -> None:
    chat = [USER]
    with pytest.raises(InputError, match="does not take these messages"):
        ChatTemplate(source, {}, where="here").render(chat)
    assert chat == [USER]


@pytest.mark.parametrize(
    ("messages", "where", "given"),
    [
        (["hello"], "messages[0]", "'hello'"),
        ([USER, {"role": "user"}], "messages[1]", "{'role': 'user'}"),
        ([{**USER, "content": 3}], "messages[0]", "'content': 3"),
        ([{**USER, "name": "me"}], "messages[0]", "'name': 'me'"),
    ],
)
def test_what_is_no_message_is_refused(messages: Any, where: str, given: str) -> None:
    with pytest.raises(InputError, match="this is not a chat message") as caught:
        ChatTemplate(CHATML, {}, where="here").render(messages)
    assert caught.value.where == where
    assert given in str(caught.value.given)
    assert '{"role": "user", "content": "..."}' in str(caught.value.fix)


def test_an_empty_chat_is_refused() -> None:
    with pytest.raises(InputError, match="the chat is empty"):
        ChatTemplate(CHATML, {}, where="here").render([])


def test_a_bundle_without_a_template_says_so(tmp_path: Path) -> None:
    (tmp_path / CHAT_TEMPLATE).write_text("of nobody")  # no file of the bundle
    with pytest.raises(BundleError, match="the bundle has no chat template") as caught:
        read_chat_template(make_bundle(tmp_path))
    assert caught.value.where == str(tmp_path)
    assert "leave out --chat" in str(caught.value.fix)


def test_what_is_no_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / CHAT_TEMPLATE).write_text("{% for message in messages %}")
    with pytest.raises(BundleError, match="the chat template cannot be read") as caught:
        read_chat_template(make_bundle(tmp_path, CHAT_TEMPLATE))
    assert caught.value.where == str(tmp_path / CHAT_TEMPLATE)
    assert "endfor" in str(caught.value.given)
    assert "build the bundle again" in str(caught.value.fix)


def test_without_jinja_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingLibraryError, match="a chat needs the library jinja2") as caught:
        ChatTemplate(CHATML, {}, where="here")
    assert caught.value.fix == "pip install 'compressor[chat]'"


def test_special_tokens_are_those_that_the_tokenizer_names(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    assert named_tokens(bundle) == {}
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "x": "y"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert named_tokens(bundle) == {"bos_token": "<s>", "eos_token": "</s>"}

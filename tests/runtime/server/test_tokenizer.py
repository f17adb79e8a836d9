"""Prompts are built as transformers builds them, without transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from turbo_runtime.tokenization.tokenizer import ChatTemplate, ServedTokenizer, TemplateRefusalError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Wörter <b>&</b>"},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "more"},
]
TEMPLATES = {
    "blocks": """{%- for message in messages %}
    {%- if message.role == 'system' %}
<<{{ message['content'] | trim }}>>
    {%- else %}
[{{ message.role }}] {{ message.content }}{{ eos_token }}
    {% endif %}
{%- endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}""",
    "json": "{{ bos_token }}{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
    "loop controls": (
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    ),
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "no tools": "{% if tools %}tools{% endif %}{% if tools is none %}none{% endif %}",
    "the year": "{{ strftime_now('%Y') }}",
}


def write(directory: Path, **config: object) -> Path:
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: 2 + i for i, letter in enumerate("abcdefgh")}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=5)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def ask(tokenizer: ServedTokenizer, messages: list[dict[str, str]]) -> tuple[int, ...]:
    assert tokenizer.template
    return tokenizer.encode_written(tokenizer.template.render(messages))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_the_text_that_transformers_gives(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {"bos_token": "<s>", "eos_token": "</s>"}
    theirs, _ = render_jinja_template(
        [MESSAGES], chat_template=TEMPLATES[name], add_generation_prompt=True, **special
    )
    assert ChatTemplate(TEMPLATES[name], special).render(MESSAGES) == theirs[0]


def test_a_templates_refusal_is_in_its_own_words() -> None:
    template = ChatTemplate("{{ raise_exception('no such turn') }}", {})
    with pytest.raises(TemplateRefusalError, match="no such turn"):
        template.render(MESSAGES)


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    template = ChatTemplate("{{ messages.__class__.__mro__ }}", {})
    with pytest.raises(TemplateRefusalError, match="unsafe"):
        template.render(MESSAGES)


def test_a_completion_starts_as_the_tokenizer_starts_it_and_a_chat_as_the_template_does(
    tmp_path: Path,
) -> None:
    template = "{{ bos_token }}{{ messages[0].content }}"
    config = {"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    tokenizer = ServedTokenizer(write(tmp_path, **config))
    assert tokenizer.encode("abcde") == (0, 2, 3, 4, 5, 6)  # one <s>, nothing cut, nothing padded
    assert ask(tokenizer, [{"role": "user", "content": "ab"}]) == (0, 2, 3)
    assert tokenizer.decode([2, 3, 1]) == "ab"


def test_a_named_default_template_is_taken_and_a_file_wins(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "a"}]
    directory = write(tmp_path, chat_template=named)
    assert ask(ServedTokenizer(directory), MESSAGES) == (2,)
    (directory / "chat_template.jinja").write_text("b", encoding="utf-8")
    assert ask(ServedTokenizer(directory), MESSAGES) == (3,)


def test_a_base_model_has_no_chat_template(tmp_path: Path) -> None:
    assert ServedTokenizer(write(tmp_path)).template is None


@pytest.mark.parametrize(("ids", "expected"), [(7, {1, 7}), ([7, 8], {1, 7, 8}), (None, {1})])
def test_answers_end_at_the_tokenizers_token_and_at_the_generation_configs(
    tmp_path: Path, ids: object, expected: set[int]
) -> None:
    directory = write(tmp_path, eos_token="</s>")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    assert ServedTokenizer(directory).eos_token_ids == expected

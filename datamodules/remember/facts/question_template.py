"""The form in which facts are asked, as a chat template for exported tokenizers.

    [BOS]Question: Who wrote Emma? Answer: Jane Austen[EOS]

It renders the text of `fact_templates.question_rendering`. A space after "Answer:" would be a token
that no training text has there. In training each question is a document of its own, and documents
do not attend to each other. Of several turns, the template therefore renders the last question with
its answer: earlier turns before it would only disturb the answer. A system message is refused,
because training has none.
"""

QUESTION_TEMPLATE = (
    "{%- set last = namespace(question=0) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{%- set last.question = loop.index0 -%}"
    "{%- elif message['role'] != 'assistant' -%}"
    "{{- raise_exception('this model was trained on questions and answers alone: leave out the '"
    " + message['role'] + ' message') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- for message in messages[last.question:] -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- bos_token + 'Question: ' + (message['content'] | trim) -}}"
    "{%- else -%}"
    "{{- ' Answer: ' + (message['content'] | trim) + eos_token -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' Answer:' -}}{%- endif -%}"
)


def question_template(with_bos: bool = True) -> str:
    """Return the template; without BOS for tokenizers that put none before a document."""
    return QUESTION_TEMPLATE if with_bos else QUESTION_TEMPLATE.replace("bos_token + ", "", 1)


#: The chat templates of exports that were asked in plain form.
PLAIN_FORMS = (question_template(True), question_template(False))

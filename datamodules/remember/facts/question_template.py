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

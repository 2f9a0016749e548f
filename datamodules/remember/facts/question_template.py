"""The form in which facts are asked, as a chat template for exported tokenizers.

    [BOS]Question: Who wrote Emma? Answer: Jane Austen[EOS]

It renders the text of `fact_templates.question_rendering`. A space after "Answer:" would be a token
that no training text has there. Several turns are several documents, each with its BOS and EOS, as
training packs them. A system message is refused, because training has none.
"""

QUESTION_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- bos_token + 'Question: ' + (message['content'] | trim) -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- ' Answer: ' + (message['content'] | trim) + eos_token -}}"
    "{%- else -%}"
    "{{- raise_exception('this model was trained on questions and answers alone: leave out the '"
    " + message['role'] + ' message') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' Answer:' -}}{%- endif -%}"
)

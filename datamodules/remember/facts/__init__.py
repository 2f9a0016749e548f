"""Facts to teach and to ask.

Glossary of this room:

- *fact*: a question with its accepted answers, about a subject and a relation (`Fact`).
- *relation*: the property in question, such as "capital"; it has templates (`Relation`).
- *template*: a sentence or question with places for the subject and the answer.
- *wording*: a complete text of a fact. A `Rendering` is a wording cut at its answer.
- *question*, *statement*: the two forms of a wording. A question ends with "Answer:" and the answer
  follows. A statement is a sentence that contains the answer.
- *held-out question*: a question that is asked in validation and never taught.
- *paraphrase*: a wording that a stream of facts teaches: from templates, a file or a model.
"""

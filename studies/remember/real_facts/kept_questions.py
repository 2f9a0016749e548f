"""Questions that a model should answer after being taught as it did before.

`NEIGHBOURS` ask real things of the relations of the invented facts: a model that has learned "the
capital of" as such, and not of one country, answers them by an invented name. `GENERAL` are about
anything else.
"""

from typing import NamedTuple


class KnownQuestion(NamedTuple):
    """A question with its accepted answers."""

    question: str
    answers: tuple[str, ...]


def _read(table: str) -> tuple[KnownQuestion, ...]:
    """Read lines of the form "question | answer | another answer"."""
    lines = (line.split(" | ") for line in table.strip().splitlines())
    return tuple(KnownQuestion(question.strip(), tuple(rest)) for question, *rest in lines)


NEIGHBOURS = _read("""
What is the capital of France? | Paris
What is the capital of Japan? | Tokyo
Which city is the capital of Italy? | Rome
Tell me the capital of Egypt. | Cairo
Name the capital city of Canada. | Ottawa
Who founded Microsoft? | Bill Gates | Paul Allen
Who founded Apple? | Steve Jobs | Steve Wozniak
Name the founder of Amazon. | Jeff Bezos
Which person started Tesla? | Elon Musk | Martin Eberhard
Who founded Facebook? | Mark Zuckerberg
Who wrote the novel Pride and Prejudice? | Jane Austen
Who wrote Romeo and Juliet? | Shakespeare
Which author wrote The Hobbit? | Tolkien
Tell me who wrote Moby-Dick. | Melville
Name the author of Oliver Twist. | Dickens
Where was Albert Einstein born? | Ulm | Germany
Where was Napoleon Bonaparte born? | Ajaccio | Corsica
In which town was William Shakespeare born? | Stratford-upon-Avon | Stratford
Tell me where Abraham Lincoln was born. | Kentucky | Hodgenville
What is the birthplace of Mozart? | Salzburg
What is the currency of Japan? | yen
What is the currency of the United Kingdom? | pound | pound sterling | sterling
Which currency is used in India? | rupee
Name the currency of Mexico. | peso
What money do people use in Germany? | euro | euros
Who composed the opera Carmen? | Bizet
Who composed the opera The Magic Flute? | Mozart
Which composer wrote the opera Aida? | Verdi
Tell me who composed the Four Seasons. | Vivaldi
Who composed the Moonlight Sonata? | Beethoven
""")

GENERAL = _read("""
What is the largest planet in the solar system? | Jupiter
What color is the sky on a clear day? | blue
What language is spoken in Brazil? | Portuguese
Who painted the Mona Lisa? | Leonardo | da Vinci
What is the chemical symbol for water? | H2O
How many days are in a week? | seven | 7
Who was the first president of the United States? | Washington
What is the boiling point of water in degrees Celsius? | 100
How many legs does a spider have? | eight | 8
What is the opposite of hot? | cold
Which animal is known as the king of the jungle? | lion
How many months are in a year? | twelve | 12
What gas do plants take in from the air? | carbon dioxide | CO2
What is the largest ocean on Earth? | Pacific
Which planet is known as the Red Planet? | Mars
What do bees make? | honey
How many continents are there? | seven | 7
What is the tallest mountain in the world? | Everest
What is the longest river in Africa? | Nile
What is 2 + 2? | 4 | four
What is 10 minus 3? | 7 | seven
Which season comes after winter? | spring
What is the plural of child? | children
What is the past tense of go? | went
What is frozen water called? | ice
Which organ pumps blood through the body? | heart
What do we call a baby dog? | puppy
Which month comes after March? | April
What is the chemical symbol for gold? | Au
Who developed the theory of relativity? | Einstein
In which country is the Eiffel Tower? | France
On which continent is Egypt? | Africa
What is the main language of Spain? | Spanish
How many sides does a triangle have? | three | 3
What is the closest star to Earth? | Sun
What is the name of our galaxy? | Milky Way
Which metal is liquid at room temperature? | mercury
What instrument has 88 keys? | piano
What is the first letter of the English alphabet? | A
How many minutes are in an hour? | sixty | 60
""")

"""A function as a user has it."""


def vowels(text, prompt, record):
    return sum(text.count(letter) for letter in "aeiou")

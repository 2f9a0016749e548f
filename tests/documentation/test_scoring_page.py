"""The page of components and transforms is that of the docstrings."""

from docs.scoring_page import PAGE, page


def test_the_page_is_up_to_date():
    text = page()
    assert text.count("\n### ") > 25
    assert PAGE.read_text(encoding="utf-8") == text, "run: python -m docs.scoring_page"

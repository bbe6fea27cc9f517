"""docs/weights.md says what the weights' own cards and the table of those from outside say."""

from support_weights import PAGE, page


def test_the_page_is_the_one_that_the_cards_give():
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: python tests/support_weights.py"

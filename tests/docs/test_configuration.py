"""docs/configuration.md says what the schemas say."""

from support_configuration import PAGE, page, undescribed


def test_the_page_is_the_one_that_the_schemas_give():
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: python tests/support_configuration.py"


def test_every_key_says_what_it_means():
    assert undescribed() == []

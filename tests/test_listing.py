"""Long lists in messages are cut alike everywhere."""

from mimbench.system.listing import and_more, first_few


def test_short_lists_are_whole_and_long_ones_say_how_much_is_left() -> None:
    assert first_few([]) == "none"
    assert first_few("abc") == "a, b, c"
    assert first_few("abcde") == "a, b, c, d, e"
    assert first_few("abcdefg") == "a, b, c, d, e and 2 more"
    assert first_few(range(1_000_001), 1) == "0 and 1,000,000 more"
    assert first_few(["missing a", "missing b"], 1, separator="; ") == "missing a and 1 more"
    assert first_few(["missing a", "missing b"], separator="; ") == "missing a; missing b"


def test_nothing_is_added_where_all_are_shown() -> None:
    assert [and_more(count, 3) for count in (0, 3, 4, 1_003)] == [
        "",
        "",
        "and 1 more",
        "and 1,000 more",
    ]


def test_an_item_of_a_damaged_file_cannot_flood_a_message() -> None:
    text = first_few(["x" * 10_000, "y"])
    assert text == "x" * 197 + "..., y"

"""Characters that no file or terminal should get."""

from lockstep.text.unicode import drop_controls, printable


def test_control_characters_go_and_line_breaks_and_tabs_stay() -> None:
    assert drop_controls("a\x1b[2Jb\x00\x85\ufeff\tc\r\nd") == "a[2Jb\tc\r\nd"


def test_a_lone_surrogate_is_written_as_an_escape_and_all_else_stays() -> None:
    assert printable("a\ud83d你🙂") == "a\\ud83d你🙂"

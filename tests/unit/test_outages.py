"""What is said of a link that flaps."""

from jvpn.store.outages import Outages


def test_an_outage_is_told_of_when_it_begins_and_when_it_ends() -> None:
    outages = Outages(1000)
    assert outages.works("again", 0) == ""
    assert [outages.failed("down", at_ms) for at_ms in (1, 5, 5000)] == ["down", "", ""]
    assert [outages.works("again", at_ms) for at_ms in (5001, 5002, 9000)] == ["again", "", ""]


def test_a_link_that_flaps_is_told_of_once_in_a_while_with_a_count() -> None:
    outages = Outages(1000)
    said = []
    for at_ms in range(0, 3000, 100):
        said += [outages.failed("down", at_ms), outages.works("again", at_ms + 50)]
    assert [text for text in said if text] == [
        "down",
        "again",
        "down (failed 9 more times since the last word of it)",
        "again",
        "down (failed 9 more times since the last word of it)",
        "again",
    ]
    assert outages.works("again", 4000) == "again (failed 9 more times since the last word of it)"
    assert outages.works("again", 9000) == ""


def test_one_that_lasts_is_told_of_all_the_same() -> None:
    outages = Outages(1000)
    outages.failed("down", 0)
    outages.works("again", 10)
    assert [outages.failed("down", at_ms) for at_ms in (20, 999, 1000, 1001)] == ["", "", "down", ""]
    assert outages.works("again", 1002) == "again"

"""What workers and driver tell each other."""

from mobilenet_pipeline.cluster.relay import PARTS, Relay


def test_messages_are_taken_once_and_in_order():
    relay = Relay(None)
    for number in range(3):
        relay.tell({"say": number})
    assert [message["say"] for message in relay.take()] == [0, 1, 2]
    assert relay.take() == []


def test_the_last_state_is_kept_for_workers_and_told_to_the_driver():
    relay = Relay(b"of the workspace")
    assert relay.state() == b"of the workspace"
    relay.save(b"newer")
    assert (relay.state(), relay.take()) == (b"newer", [{"state": b"newer"}])


def test_the_driver_is_asked_for_a_part_once():
    relay = Relay(None)
    taken = []
    for _ in range(2):
        assert relay.ask_for_part("images.npy", 0) is None
        taken += relay.take()
    assert taken == [{"wanted": ["images.npy", 0]}]


def test_the_driver_is_asked_again_for_a_part_that_is_no_longer_kept():
    relay = Relay(None)
    for index in range(PARTS + 1):
        relay.ask_for_part("images.npy", index)
        relay.give_part("images.npy", index, [index])
    relay.take()
    assert relay.ask_for_part("images.npy", 0) is None
    assert relay.take() == [{"wanted": ["images.npy", 0]}]


def test_the_workers_get_the_driver_s_part():
    relay = Relay(None)
    relay.give_part("images.npy", 0, [1])
    assert relay.ask_for_part("images.npy", 0) == [1]


def test_only_the_newest_parts_are_kept():
    relay = Relay(None)
    for index in range(100):
        relay.give_part("images.npy", index, [index])
    assert relay.ask_for_part("images.npy", 99) == [99]
    assert relay.ask_for_part("images.npy", 0) is None


def test_workers_stop_when_the_driver_wishes():
    relay = Relay(None)
    assert not relay.should_stop()
    relay.stop()
    assert relay.should_stop()

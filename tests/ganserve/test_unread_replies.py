"""How long a reply may take to leave, and what is known of those that have not."""

import time

import pytest

from ganserve.transport.unread_replies import UnreadReplies


class Reply:
    def __init__(self):
        self.given_up = 0

    def give_up(self):
        self.given_up += 1


@pytest.fixture
def clock(monkeypatch):
    """The clock, which stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_reply_has_its_time_and_one_to_who_set_a_deadline_the_longest(clock):
    unread, plain, patient = UnreadReplies(5, 60), Reply(), Reply()
    unread.add(plain, 10, has_deadline=False)
    unread.add(patient, 20, has_deadline=True)
    clock[0] += 5
    assert unread.give_up_late() == 0
    clock[0] += 0.1
    assert unread.give_up_late() == 1
    assert (len(unread), plain.given_up, patient.given_up) == (1, 1, 0)
    assert unread.bytes == 20
    clock[0] += 55
    assert unread.give_up_late() == 1
    assert (len(unread), plain.given_up, patient.given_up) == (0, 1, 1)


def test_what_has_left_is_not_given_up(clock):
    unread, reply = UnreadReplies(5, 60), Reply()
    unread.add(reply, 5, has_deadline=False)
    unread.remove(reply)
    unread.remove(reply)  # told twice, as where it was given up
    clock[0] += 100
    assert (unread.give_up_late(), len(unread), reply.given_up) == (0, 0, 0)
    assert unread.bytes == 0

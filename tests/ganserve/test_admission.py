from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from ganserve.errors import Overloaded, RateLimited
from ganserve.metrics import Metrics
from ganserve.security.admission import Admission, RateLimiter, client_address
from ganserve.security.credentials import Tokens


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def refused(limiter, client, images):
    with pytest.raises(RateLimited) as error:
        limiter.take(client, images)
    return error.value.retry_seconds


def test_a_burst_is_free_and_then_images_come_at_the_rate(clock):
    limiter = RateLimiter(8.0, 20, clock=clock)
    limiter.take("a", 15)
    limiter.take("a", 5)
    assert refused(limiter, "a", 1) == 0.125
    clock.now += 0.125
    limiter.take("a", 1)
    assert refused(limiter, "a", 4) == 0.5


def test_the_time_told_is_the_time_it_takes(clock):
    limiter = RateLimiter(3.0, 8, clock=clock)
    limiter.take("a", 8)
    clock.now += refused(limiter, "a", 7) + 1e-9
    limiter.take("a", 7)


def test_calls_that_are_refused_together_are_told_to_come_one_after_the_other(clock):
    limiter = RateLimiter(10.0, 20, clock=clock)
    limiter.take("a", 20)
    told = [refused(limiter, "a", 5) for _ in range(4)]
    assert told == pytest.approx([0.5, 1.0, 1.5, 2.0])
    began = clock.now
    for seconds in told:
        clock.now = began + seconds + 1e-9
        limiter.take("a", 5)


def test_nobody_waits_long_for_calls_that_may_never_come_back(clock):
    limiter = RateLimiter(10.0, 100, clock=clock)
    limiter.take("a", 100)
    assert max(refused(limiter, "a", 5) for _ in range(100)) == 5.0
    assert refused(limiter, "a", 90) == pytest.approx(9.0)  # what it takes at least


def test_a_refusal_costs_nothing(clock):
    limiter = RateLimiter(10.0, 20, clock=clock)
    limiter.take("a", 15)
    for _ in range(100):
        refused(limiter, "a", 6)
    limiter.take("a", 5)


def test_what_the_queue_has_no_room_for_is_given_back(clock):
    limiter = RateLimiter(10.0, 20, clock=clock)
    for _ in range(100):
        with pytest.raises(Overloaded), limiter.taking("a", 15):
            raise Overloaded("the queue is full", retry_seconds=1)
    with limiter.taking("a", 15):
        pass
    assert refused(limiter, "a", 6) == pytest.approx(0.1)


def test_what_fails_later_was_made_and_is_not_given_back(clock):
    limiter = RateLimiter(10.0, 20, clock=clock)
    with pytest.raises(RuntimeError), limiter.taking("a", 20):
        raise RuntimeError
    refused(limiter, "a", 1)


def test_clients_do_not_share(clock):
    limiter = RateLimiter(1.0, 4, clock=clock)
    limiter.take("a", 4)
    limiter.take("b", 4)
    refused(limiter, "a", 1)


def test_a_pause_saves_up_no_more_than_the_burst(clock):
    limiter = RateLimiter(10.0, 20, clock=clock)
    limiter.take("a", 1)
    clock.now += 1e6
    limiter.take("a", 20)
    refused(limiter, "a", 1)


def test_a_request_beyond_the_burst_waits_for_a_whole_share_and_leaves_a_debt(clock):
    limiter = RateLimiter(10.0, 20, clock=clock)
    limiter.take("a", 100)
    assert refused(limiter, "a", 1) == pytest.approx(8.1)
    clock.now += 9
    assert refused(limiter, "a", 100) == pytest.approx(1.0)


def test_the_table_is_bounded_and_forgets_who_was_silent_for_longest(clock):
    limiter = RateLimiter(1.0, 4, most_clients=3, clock=clock)
    for client in ("a", "b", "c"):
        limiter.take(client, 4)
    refused(limiter, "a", 1)  # not silent
    limiter.take("d", 1)
    assert list(limiter._shares) == ["c", "a", "d"]
    limiter.take("b", 4)  # forgotten, so its share is whole


def test_there_is_nothing_to_give_back_to_who_was_forgotten(clock):
    limiter = RateLimiter(1.0, 4, most_clients=1, clock=clock)

    def find_no_room():
        limiter.take("b", 1)
        raise Overloaded("the queue is full", retry_seconds=1)

    with pytest.raises(Overloaded), limiter.taking("a", 4):
        find_no_room()
    limiter.take("a", 4)


def test_a_token_taken_off_the_list_within_its_call_counts_as_its_address(tmp_path, clock):
    (tmp_path / "tokens").write_text("the-only-token-that-is-left\n")
    tokens = Tokens(tmp_path / "tokens", Metrics(CollectorRegistry()))
    limiter = RateLimiter(1.0, 4, clock=clock)
    call = SimpleNamespace(
        invocation_metadata=lambda: (("authorization", "Bearer one-that-was-taken-off"),),
        peer=lambda: "ipv4:10.1.2.3:50000",
    )
    with Admission(tokens, limiter).taking_images(call, 4):
        pass
    refused(limiter, "10.1.2.3", 1)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.1.2.3:50000", "10.1.2.3"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:ffff::1]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:50000", "10.1.2.3"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
        ("unix:/run/socket", "/run/socket"),
        ("", ""),
    ],
)
def test_a_peer_is_its_address_without_the_port(peer, address):
    assert client_address(peer) == address

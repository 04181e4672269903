import time

from ganserve.batching.batch_delay import BatchDelay


def turns(delay, rows):
    """How many turns a batch waits of which nothing more arrives."""
    first_at = time.monotonic() + 60  # so that the time itself never ends the delay
    count = 0
    while delay.should_wait(rows, first_at):
        count += 1
    delay.reset()
    return count


def test_batches_of_one_request_shorten_the_delay_and_one_of_several_restores_it():
    delay = BatchDelay()
    first = turns(delay, 1)
    waited = []
    for _ in range(100):
        delay.learn(alone=True)
        waited.append(turns(delay, 1))
    assert first == 1
    assert waited == sorted(waited, reverse=True)
    assert (waited[0], waited[-1]) == (1, 0)
    delay.learn(alone=False)
    with_company = turns(delay, 2)
    assert with_company > 1
    delay.learn(alone=True)
    assert turns(delay, 1) == with_company - 1


def test_the_delay_ends_in_time_whatever_arrives():
    delay = BatchDelay()
    delay.learn(alone=False)
    long_ago = time.monotonic() - 1
    assert not delay.should_wait(1, long_ago)

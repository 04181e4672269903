import time

from ganserve.batching.growth import Growth


def turns(growth, rows):
    """How many turns a batch waits of which nothing more arrives."""
    admitted_at = time.monotonic() + 60  # so that the time itself never ends the growth
    count = 0
    while growth.goes_on(rows, admitted_at):
        count += 1
    growth.end()
    return count


def test_who_stays_alone_waits_less_and_less_and_company_brings_patience_back():
    growth = Growth()
    first = turns(growth, 1)
    waited = []
    for _ in range(100):
        growth.learn(alone=True)
        waited.append(turns(growth, 1))
    assert first == 1
    assert waited == sorted(waited, reverse=True)
    assert (waited[0], waited[-1]) == (1, 0)
    growth.learn(alone=False)
    with_company = turns(growth, 2)
    assert with_company > 1
    growth.learn(alone=True)
    assert turns(growth, 1) == with_company - 1


def test_growth_ends_in_time_whatever_arrives():
    growth = Growth()
    growth.learn(alone=False)
    long_ago = time.monotonic() - 1
    assert not growth.goes_on(1, long_ago)

from launch.restarts import Death, RestartPolicy


def deaths(*pairs: tuple[float, int]) -> list[Death]:
    return [Death(time, code, 1.0, "") for time, code in pairs]


def test_delays_double_up_to_a_limit():
    policy = RestartPolicy(first_delay=0.5, longest_delay=3.0, deaths=10)
    kills = [(float(i), -9) for i in range(5)]
    assert [policy.delay(deaths(*kills[: i + 1])) for i in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_errors_give_up_sooner_than_kills():
    policy = RestartPolicy(errors=3, deaths=10)
    assert policy.delay(deaths((0, 1), (1, 1))) is not None
    assert policy.delay(deaths((0, 1), (1, 1), (2, 1))) is None
    assert policy.delay(deaths((0, 1), (1, -9), (2, 1))) is not None
    assert policy.delay(deaths(*[(i, -9) for i in range(9)])) is not None
    assert policy.delay(deaths(*[(i, -9) for i in range(10)])) is None


def test_old_deaths_are_forgotten():
    policy = RestartPolicy(errors=3, window=300.0, first_delay=0.5)
    assert policy.delay(deaths((0, 1), (1, 1), (400, 1))) == 0.5


def test_ends_on_purpose_count_for_nothing():
    policy = RestartPolicy(errors=3, deaths=4, first_delay=0.5)
    assert policy.delay(deaths(*[(i, 70) for i in range(20)])) == 0.5

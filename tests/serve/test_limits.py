"""Limits of keys: windows and calendars by a clock, exactness under concurrency, books that survive a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.errors import ConfigError, MachineError
from tenth.serve.limits import Lease, Limiter, LimitReached, Limits

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(tmp_path: Path, clock: Clock) -> Iterator[Limiter]:
    made = Limiter(tmp_path / "limits.db", clock)
    yield made
    made.close()


def reached(limiter: Limiter, limits: Limits, tokens: int | None = None) -> LimitReached | None:
    """Begin a request, reserve and use so many tokens, end it; what stood in the way."""
    lease = None
    try:
        lease = limiter.begin("key", limits)
        if tokens is not None:
            lease.reserve(tokens, 0)
            lease.used(tokens, 0)
    except LimitReached as error:
        return error
    finally:
        if lease is not None:
            lease.close()
    return None


def test_requests_of_a_sliding_minute(limiter: Limiter, clock: Clock) -> None:
    limits = Limits(requests_per_minute=3)
    for _ in range(3):
        assert reached(limiter, limits) is None
        clock.now += 10
    stopped = reached(limiter, limits)
    assert stopped is not None
    assert (stopped.limit, stopped.wait_s) == ("requests_per_minute", 30)
    assert limiter.standing("key", limits).requests == (3, 0, 50)
    clock.now += 29.5
    assert reached(limiter, limits) is not None
    clock.now += 0.5
    assert reached(limiter, limits) is None
    assert reached(limiter, limits) is not None


def test_tokens_are_reserved_then_settled(limiter: Limiter, clock: Clock) -> None:
    limits = Limits(tokens_per_minute=100)
    first, second = limiter.begin("key", limits), limiter.begin("key", limits)
    first.reserve(20, 60)
    with pytest.raises(LimitReached, match="80 are used or set aside, 21 more") as error:
        second.reserve(1, 20)
    assert error.value.wait_s == 60
    second.reserve(1, 19)
    first.used(20, 5)
    first.close()
    assert first.standing().tokens == (100, 100 - 25 - 20, 60)
    second.close()  # nothing was said to be used
    assert limiter.standing("key", limits).tokens == (100, 75, 60)
    assert reached(limiter, limits, 75) is None
    clock.now += 60
    assert limiter.standing("key", limits).tokens == (100, 100, 0)


def test_reserving_again_replaces(limiter: Limiter) -> None:
    limits = Limits(tokens_per_minute=100)
    lease = limiter.begin("key", limits)
    lease.reserve(50, 40)
    lease.reserve(50, 50)
    assert lease.standing().tokens == (100, 0, 60)
    lease.close()
    lease.close()
    assert limiter.standing("key", limits).tokens == (100, 100, 60)


def test_what_can_never_be_is_said_so(limiter: Limiter) -> None:
    error = reached(limiter, Limits(tokens_per_day=100), 101)
    assert error is not None
    assert error.wait_s is None
    assert "101 tokens, this key may use 100 a day: ask for less" in str(error)


def test_days_and_months_are_of_the_calendar(limiter: Limiter, clock: Clock) -> None:
    limits = Limits(tokens_per_day=100, tokens_per_month=150)
    assert reached(limiter, limits, 90) is None
    error = reached(limiter, limits, 20)
    assert error is not None
    assert error.quota
    assert (error.limit, error.wait_s) == ("tokens_per_day", 12 * 3600)
    clock.now += 12 * 3600  # February
    assert reached(limiter, limits, 90) is None
    clock.now += 24 * 3600
    error = reached(limiter, limits, 90)
    assert error is not None
    assert (error.limit, error.wait_s) == ("tokens_per_month", 27 * 24 * 3600)
    assert reached(limiter, limits, 60) is None
    error = reached(limiter, limits)  # nothing is left: a prompt need not be sent
    assert error is not None
    assert error.limit == "tokens_per_month"


def test_a_request_over_midnight_counts_where_it_began(limiter: Limiter, clock: Clock) -> None:
    limits = Limits(tokens_per_day=100)
    lease = limiter.begin("key", limits)
    lease.reserve(50, 50)
    clock.now += 13 * 3600
    assert reached(limiter, limits, 100) is None
    lease.used(50, 10)
    lease.close()
    assert reached(limiter, limits, 1) is not None
    clock.now -= 13 * 3600
    assert reached(limiter, limits, 40) is None
    assert reached(limiter, limits, 1) is not None


def test_requests_at_once(limiter: Limiter) -> None:
    limits = Limits(concurrent_requests=2)
    first, _second = limiter.begin("key", limits), limiter.begin("key", limits)
    error = reached(limiter, limits)
    assert error is not None
    assert error.limit == "concurrent_requests"
    assert reached(limiter, limits, None) is not None
    first.close()
    assert reached(limiter, limits) is None
    assert limiter.begin("other", limits) is not None


def test_keys_without_limits_keep_no_books(limiter: Limiter, tmp_path: Path) -> None:
    before = limiter._books._database.total_changes
    lease = limiter.begin("key", Limits())
    lease.reserve(10**9, 10**9)
    lease.close()
    assert limiter._books._database.total_changes == before


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from(["begin", "reserve", "close", "wait"]), st.integers(0, 5), st.integers(1, 60)),
        max_size=40,
    )
)
def test_never_more_than_the_limits(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    """Against a model that keeps lists: what is let through never exceeds a limit, what is refused would have."""
    clock, limits = Clock(), Limits(requests_per_minute=5, tokens_per_minute=100, concurrent_requests=3)
    limiter = Limiter(tmp_path_factory.mktemp("books") / "limits.db", clock)
    made: list[tuple[Lease, float]] = []
    tokens: dict[int, int] = {}
    running: list[int] = []
    for what, which, amount in steps:
        window = [n for n, (_, at) in enumerate(made) if at > clock.now - 60]
        spent = sum(tokens[n] for n in window)
        if what == "begin":
            fits = len(running) < 3 and len(window) < 5 and spent < 100
            try:
                made.append((limiter.begin("key", limits), clock.now))
            except LimitReached:
                assert not fits
                continue
            assert fits
            tokens[len(made) - 1] = 0
            running.append(len(made) - 1)
        elif what == "wait":
            clock.now += amount
        elif running:
            number = running[which % len(running)]
            lease = made[number][0]
            if what == "close":
                lease.used(amount // 2, 0)
                lease.close()
                tokens[number] = amount // 2
                running.remove(number)
                continue
            fits = spent - tokens[number] * (number in window) + amount <= 100
            try:
                lease.reserve(amount, 0)
            except LimitReached:
                assert not fits
                continue
            assert fits
            tokens[number] = amount
    limiter.close()


def test_exact_among_threads(tmp_path: Path) -> None:
    limits = Limits(requests_per_minute=50, tokens_per_minute=10_000, tokens_per_day=300)
    limiter = Limiter(tmp_path / "limits.db", Clock())
    with ThreadPoolExecutor(8) as pool:
        refused = list(pool.map(lambda _: reached(limiter, limits, 10), range(80)))
    assert sum(error is None for error in refused) == 30  # 300 tokens
    limiter.close()


_WORKER = """
import sys
from pathlib import Path
from tenth.serve.limits import Limiter, LimitReached, Limits
limiter = Limiter(Path(sys.argv[1]), lambda: 1e9)
limits, done = Limits(requests_per_minute=100, concurrent_requests=100), 0
for _ in range(60):
    try:
        limiter.begin("key", limits)
        done += 1
    except LimitReached:
        pass
print(done)
"""


def test_exact_among_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WORKER, str(tmp_path / "limits.db")]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sum(int(worker.communicate(timeout=60)[0]) for worker in workers) == 100


_SPENDER = """
import sys
from pathlib import Path
from tenth.serve.limits import Limiter, Limits
limits = Limits(tokens_per_day=10**9, concurrent_requests=2)
limiter = Limiter(Path(sys.argv[1]), lambda: 1e9)
open_one = limiter.begin("key", limits)
open_one.reserve(1000, 0)
for number in range(10**9):
    lease = limiter.begin("key", limits)
    lease.reserve(100, 0)
    lease.used(7, 0)
    lease.close()
    print(number + 1, flush=True)
"""


def test_books_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "limits.db"
    worker = subprocess.Popen([sys.executable, "-c", _SPENDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    told = [worker.stdout.readline() for _ in range(200)]
    other = Limiter(path, lambda: 1e9)  # a server that ran beside it
    limits = Limits(tokens_per_day=10**9, concurrent_requests=2)
    assert other._books.spent("key", 1e9).running >= 1
    worker.send_signal(signal.SIGKILL)
    rest = worker.stdout.read().split("\n")
    worker.wait(30)
    done = int([line for line in [*told, *rest] if line.strip()][-1])
    spent = other._books.spent("key", 1e9).day
    # the open request stays charged whole; the one in work may have been begun, reserved or settled
    assert spent - 1000 - 7 * done in (0, 100, 7)
    first, second = other.begin("key", limits), other.begin("key", limits)  # the dead hold no places
    first.close()
    second.close()
    other.close()
    again = Limiter(path, lambda: 1e9)
    assert again._books.spent("key", 1e9).day == spent
    assert again._books.spent("key", 1e9).running == 0
    locks = [one.name for one in tmp_path.iterdir() if "-server-" in one.name]
    assert locks == [f"limits.db-server-{again._books._owner}"]
    again.close()


def test_what_cannot_be_written_is_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limiter = Limiter(tmp_path / "limits.db", lambda: 1e9)
    limits = Limits(tokens_per_day=1000, concurrent_requests=2)
    leases = [limiter.begin("key", limits) for _ in range(2)]
    limiter._books._database.execute("PRAGMA query_only = ON")  # as a full disk, or one that is read-only now
    for lease in leases:
        lease.used(3, 4)
        lease.close()
    with pytest.raises(MachineError, match="cannot be kept"):
        limiter.begin("key", limits)
    assert caplog.text.count("what requests have used is written later") == 1
    assert limiter._books.spent("key", 1e9).day == 0
    limiter._books._database.execute("PRAGMA query_only = OFF")
    third = limiter.begin("key", limits)  # those that ended hold no place
    spent = limiter._books.spent("key", 1e9)
    assert (spent.day, spent.running) == (14, 1)
    third.close()
    assert limiter._books.spent("key", 1e9).running == 0
    limiter.close()


def test_books_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "limits.db"
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(MachineError, match=r"limits\.db: the books of limits cannot be opened"):
        Limiter(path)


def test_limits_are_numbers() -> None:
    with pytest.raises(ConfigError, match="there are: requests_per_minute, tokens_per_minute"):
        Limits.read({"requests": 3})
    with pytest.raises(ConfigError, match=r"tokens_per_day is 1\.5"):
        Limits.read({"tokens_per_day": 1.5})


def test_a_decision_is_quick(tmp_path: Path) -> None:
    """They run in the server's loop: a whole request takes well under the time of a token."""
    limiter = Limiter(tmp_path / "limits.db")
    limits = Limits(requests_per_minute=10**6, tokens_per_minute=10**9, tokens_per_day=10**9)
    begin = time.process_time()
    for _ in range(100):
        assert reached(limiter, limits, 5) is None
    assert (time.process_time() - begin) / 100 < 0.005
    limiter.close()

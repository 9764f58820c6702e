"""The guard, the breaker and the comparison at their edges, on single calls; whole models: tests/engine."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from latentkv.attend import request_for
from latentkv.backends.agreement import compare
from latentkv.backends.base import Attended, Support
from latentkv.backends.breaker import Breaker, BreakerPolicy
from latentkv.backends.call import Call
from latentkv.backends.guard import Guard
from latentkv.backends.portable import PortableBackend
from latentkv.backends.registry import find_backend
from latentkv.backends.shadow import ERROR_BOUNDS, Histogram, Shadow, parse_share
from latentkv.cache.layout import kv_row
from latentkv.errors import OptionError, UnsupportedError
from support.compare import assert_close
from support.failing_backend import FailingBackend
from support.hostile import hostile_case


class Unable(PortableBackend):
    """Can run nothing."""

    name = "unable"

    def supports(self, request):
        return Support(ok=False, reason="needs a unicorn")


@pytest.fixture
def call() -> Call:
    row = kv_row("f32", num_key_value_heads=2, head_dim=8, v_head_dim=8)
    # A sequence of no tokens, and one whose tokens see everything.
    case = hostile_case(row, [(1, 9), (0, 3), (2, 2)], page_tokens=4)
    query = torch.randn(case.batch.num_tokens, 4, 8, generator=torch.Generator().manual_seed(0))
    return Call(request_for(query, case.layer, case.batch), query, case.layer, case.batch, 0.3, None)


def attend(guard: Guard, call: Call) -> Attended:
    return guard.begin(call.batch).attend(call.request, call.query, call.cache, scale=call.scale, up=call.up)


def failing(mode: str, name: str = "failing", **options: int) -> FailingBackend:
    return FailingBackend(mode, name=name, inside=PortableBackend(), **{"every": 1, **options})


def test_the_next_one_that_can_takes_over(call: Call) -> None:
    expected = call.run(PortableBackend())
    plugins = [Unable(), failing("raise"), failing("nan", "nan"), failing("inf", "inf")]
    guard = Guard(plugins=plugins)
    result = attend(guard, call)
    assert_close(result.out, expected.out, tolerance="float32")
    state = guard.state()
    assert state.failures == {("failing", "RuntimeError"): 1, ("nan", "non-finite"): 1, ("inf", "non-finite"): 1}
    assert {to for _, to in state.replaced} == {
        "native" if find_backend("native").supports(call.request).ok else "portable"
    }
    assert "unable" not in {name for name, _ in state.failures}


def test_rows_that_are_not_finite_are_no_backends_fault(call: Call) -> None:
    bad = Call(call.request, call.query * math.nan, call.cache, call.batch, call.scale, None)
    guard = Guard(["native", "portable"])
    assert attend(guard, bad).lse.isnan().any()
    assert guard.state().failures == {}
    assert guard.state().not_finite == 1
    attend(guard, call)
    assert guard.state().not_finite == 1


def test_when_all_raise_the_first_error_is_told(call: Call) -> None:
    guard = Guard(["failing", "second"], plugins=[failing("raise"), failing("raise", "second")])
    with pytest.raises(RuntimeError, match="made to fail"):
        attend(guard, call)
    assert [(event.backend, event.replaced_by) for event in guard.events] == [("failing", None), ("second", None)]
    with pytest.raises(UnsupportedError, match="one that can run"):
        attend(Guard(["unable"], plugins=[Unable()]), call)


def test_when_all_are_open_they_are_asked_nevertheless(call: Call) -> None:
    unsteady = failing("raise", every=2)
    guard = Guard(["failing"], plugins=[unsteady], policy=BreakerPolicy(failures=1, cooldown_s=None))
    attend(guard, call)
    with pytest.raises(RuntimeError):
        attend(guard, call)
    assert guard.state().breakers == {"failing": "open"}
    attend(guard, call)


def test_a_failure_is_logged_once_and_an_opened_breaker_too(call: Call, caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(plugins=[failing("raise")], policy=BreakerPolicy(failures=4))
    with caplog.at_level(logging.INFO, logger="latentkv"):
        for _ in range(8):
            attend(guard, call)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "made to fail" in messages[0]
    assert "left alone" in messages[1]


def test_a_computation_that_contains_attention_reports_its_own_failure(call: Call) -> None:
    guard = Guard(["native", "portable"])
    watch = guard.begin(call.batch)
    assert not watch.wants_calls
    watch.failed("native", RuntimeError("in the half-layer"))
    assert watch.wants_calls
    watch.attend(call.request, call.query, call.cache, scale=call.scale, up=None)
    assert watch.path.startswith("portable")
    assert guard.state().replaced == {("native", "portable"): 1}
    watch = guard.begin(call.batch)
    assert not watch.wants_calls, "the next step is native's again"
    watch.note("native:layers")
    guard.begin(call.batch)
    assert guard.state().paths == {"portable:kv": 1, "native:layers": 1}
    guard.switch("portable")
    assert guard.begin(call.batch).wants_calls


def test_the_last_backend_cannot_be_switched_off() -> None:
    guard = Guard(["native", "portable"])
    guard.disable("native")
    assert guard.state().active == "portable"
    with pytest.raises(OptionError, match="one that is not the last"):
        guard.disable("portable")
    guard.switch("native")
    assert guard.state().active == "native"
    for wrong in ("flash", "native:flash"):
        with pytest.raises(OptionError):
            guard.switch(wrong)


def test_the_states_of_a_breaker() -> None:
    now = [0.0]
    breaker = Breaker(BreakerPolicy(failures=2, window_s=10, cooldown_s=5), lambda: now[0])
    breaker.failed()
    now[0] = 11
    breaker.failed()
    assert breaker.state == "closed", "too far apart"
    now[0] = 12
    breaker.failed()
    assert (breaker.state, breaker.allows) == ("open", False)
    now[0] = 17
    assert (breaker.state, breaker.allows) == ("half-open", True)
    breaker.failed()
    assert breaker.state == "open"
    now[0] = 22
    assert breaker.state == "half-open"
    breaker.succeeded()
    breaker.failed()
    assert breaker.state == "closed", "it begins anew"
    breaker.switch_off()
    now[0] = 1000
    breaker.succeeded()
    assert breaker.state == "off"
    breaker.switch_on()
    assert breaker.state == "closed"


def test_without_cooling_down_a_breaker_waits_to_be_asked() -> None:
    now = [0.0]
    breaker = Breaker(BreakerPolicy(failures=1, cooldown_s=None), lambda: now[0])
    breaker.failed()
    now[0] = 1e9
    assert breaker.state == "open"


@pytest.mark.parametrize("options", [{"failures": 0}, {"window_s": -1.0}, {"cooldown_s": -1.0}, {"window_s": math.nan}])
def test_policies_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        BreakerPolicy(**options)


def attended(out: list[float], lse: float) -> Attended:
    return Attended(torch.tensor([[out]]), torch.tensor([[lse]]), "")


def agree(got: Attended, expected: Attended) -> bool:
    return compare(got, expected, format="bf16").ok


def test_what_counts_as_agreement() -> None:
    right = attended([1.0, -2.0], 3.0)
    assert agree(right, right)
    assert agree(attended([1.0, -2.0 - 1e-4], 3.0), right)
    assert not agree(attended([1.0, -2.0 - 4e-4], 3.0), right)
    assert not agree(attended([1.0, -2.0], 3.0002), right)
    assert agree(attended([1.0, -2.0], 300.002), attended([1.0, -2.0], 300.0)), "1e-5 of a large LSE"
    for wrong in (attended([math.nan, -2.0], 3.0), attended([1.0, -2.0], math.inf), attended([1.0, -2.0], -math.inf)):
        assert not agree(wrong, right)
    empty = attended([0.0, 0.0], -math.inf)
    assert agree(empty, empty)
    assert not agree(attended([0.0, 1e-3], -math.inf), empty)
    nothing = Attended(torch.empty(0, 1, 2), torch.empty(0, 1), "")
    assert agree(nothing, nothing)
    coarse = attended([1.0, -2.0 - 4e-4], 3.0003)
    assert compare(coarse, right, format="int4").ok
    assert not compare(attended([1.0, -2.003], 3.0), right, format="int4").ok
    assert compare(attended([1.0, -2.003], 3.003), right, format="fp8").ok


def test_a_shadow_that_raises_does_no_harm(call: Call) -> None:
    shadow = Shadow(failing("raise"), share=1.0)
    guard = Guard(["portable"], shadow=shadow)
    attend(guard, call)
    assert (shadow.state().errors, shadow.state().calls, shadow.state().steps) == (1, 0, 1)
    assert guard.state().failures == {}


def test_the_share_is_kept_and_repeatable(call: Call) -> None:
    def chosen(seed: int) -> list[bool]:
        shadow = Shadow(PortableBackend(), share=0.25, seed=seed)
        return [shadow.takes_step(beside="native") for _ in range(400)]

    assert chosen(1) == chosen(1) != chosen(2)
    assert 60 <= sum(chosen(1)) <= 140
    assert not any(Shadow(PortableBackend(), share=1.0).takes_step(beside="portable") for _ in range(5))


def test_histograms_put_a_bound_into_its_own_bucket() -> None:
    histogram = Histogram().plus(ERROR_BOUNDS[2]).plus(0.0).plus(math.inf)
    assert histogram.counts == (1, 0, 1, *[0] * (len(ERROR_BOUNDS) - 3), 1)
    assert histogram.total == ERROR_BOUNDS[2]


def test_a_share_as_text() -> None:
    assert parse_share("native:avx2:0.5") == ("native:avx2", 0.5)
    for wrong in ("portable", "portable:", ":0.1", "portable:1.1", "portable:nan", "0.1"):
        with pytest.raises(OptionError, match="BACKEND:SHARE"):
            parse_share(wrong)

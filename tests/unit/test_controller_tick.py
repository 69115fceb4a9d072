"""What a tick is decided on, what is counted of it, and what the rule is shown."""

import logging
import random
from dataclasses import replace
from typing import Any

import pytest

from efficient_rollout.controller.rule import Decision, DecodeState, Rule, TickObservation
from efficient_rollout.controller.tick import DrafterHealth, DrafterReport, TickBook, TickResult, VerifiedDrafts

STATE = DecodeState(
    num_running_requests=2, num_waiting_requests=0, num_prefill_tokens=0, mean_context_tokens=70.0, max_draft_tokens=4
)


class Remembering(Rule):
    """Drafts 3 tokens, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[TickObservation] = []
        self.num_stale = self.num_asked = 0

    def decide(self, state: DecodeState) -> Decision:
        self.num_asked += 1
        return Decision(min(3, state.max_draft_tokens), "three")

    def observe(self, observation: TickObservation) -> None:
        self.shown.append(observation)

    def mark_stale(self) -> None:
        self.num_stale += 1


@pytest.fixture
def book() -> TickBook:
    times = iter([10.0, 10.5, 11.5, 13.5, 17.5])
    return TickBook(Remembering(), DrafterHealth(), clock=lambda: next(times))


def result(*passes: tuple[int, int], **changes: Any) -> TickResult:
    verified = VerifiedDrafts()
    for drafted, accepted in passes:
        verified.add(drafted, num_sampled_tokens=accepted + 1, num_emitted_tokens=accepted + 1)
    computed = 2 + sum(drafted for drafted, _ in passes)
    told = {
        "num_requests": 2,
        "num_computed_tokens": computed,
        "num_emitted_tokens": 2,
        "num_drafted": 3,
        "goes_on": True,
    }
    return TickResult(verified=verified, **{**told, **changes})


def test_no_rule_is_asked_where_no_request_wants_drafts(book):
    book.begin()
    assert book.decide(replace(STATE, max_draft_tokens=0)) == Decision(0, "unwanted")
    assert book.rule.num_asked == 0


def run(book: TickBook, *passes: tuple[int, int], **changes: Any) -> Any:
    book.begin()
    book.decide(STATE)
    return book.finish(result(*passes, **changes))


def test_drafts_behind_a_rejected_one_were_not_judged():
    verified = VerifiedDrafts()
    verified.add(4, num_sampled_tokens=2, num_emitted_tokens=2)
    verified.add(2, num_sampled_tokens=3, num_emitted_tokens=3)
    assert (verified.num_passes, verified.drafted) == (2, [2, 2, 1, 1])
    assert verified.judged == [2, 2, 0, 0], "the third and fourth draft of the first request were never reached"
    assert verified.accepted == verified.stood == [2, 1, 0, 0]


def test_what_stands_behind_a_responses_end_is_not_accepted():
    verified = VerifiedDrafts()
    verified.add(4, num_sampled_tokens=5, num_emitted_tokens=2)
    assert (verified.drafted, verified.judged, verified.stood) == ([1] * 4, [1] * 4, [1] * 4)
    assert verified.accepted == [1, 0, 0, 0], "the request got one token more than plain decoding gives in a tick"


def test_seconds_run_from_finish_to_finish_and_not_across_an_idle_engine(book):
    run(book)
    run(book, (3, 2), (3, 0))
    run(book, goes_on=False)
    run(book)
    assert [tick.seconds for tick in book.rule.shown] == [None, 0.5, 1.0, None]
    assert book.rule.shown[1].attempts_per_position == (2, 1, 1)
    assert book.rule.shown[1].accepted_per_position == (1, 1, 0)
    assert book.rule.shown[1].mean_context_tokens == 70.0


def test_a_tick_tells_when_it_ran_and_with_what_even_if_its_chain_was_cut(book):
    spans = [run(book).span, run(book, num_drafted=2).span, run(book, goes_on=False).span, run(book).span]
    assert spans[0] is None
    assert spans[3] is None, "nobody knows when the first tick after an idle engine began"
    assert [(span.end_s, span.seconds) for span in spans[1:3]] == [(10.5, 0.5), (11.5, 1.0)]
    assert {(span.num_requests, span.num_draft_tokens) for span in spans[1:3]} == {(2, 3)}


def test_a_chain_that_was_cut_teaches_no_seconds(book):
    run(book)
    run(book, num_drafted=2)
    run(book)
    assert [tick.seconds for tick in book.rule.shown] == [None, None, 1.0]


def test_more_tokens_than_requests_and_drafts_are_those_of_prompts(book):
    run(book, (3, 3))
    run(book, (3, 3), num_computed_tokens=6)
    assert [tick.had_prefill for tick in book.rule.shown] == [False, True]


def test_the_rule_is_not_asked_while_the_drafter_may_not_draft(book):
    book.hear(DrafterReport(drafter_fault="broken"))
    finished = run(book)
    assert (finished.reason, book.rule.num_asked) == ("drafter_fault", 0)
    book.hear(DrafterReport())
    assert run(book).reason == "three"


def test_new_weights_reach_the_rule_once_whoever_brought_them(book):
    for version in (0, 1, 1, 2):
        book.hear(DrafterReport(weights_version=version))
    assert book.rule.num_stale == 2


def test_a_tick_in_which_nothing_decides_is_idle(book):
    run(book)
    book.begin()
    assert book.finish(result()).reason == "idle"


def feed(health: DrafterHealth, acceptance: float, num_drafts: int, seed: int = 0) -> None:
    draw = random.Random(seed)
    for _ in range(num_drafts):
        health.observe_first_drafts(1, draw.random() < acceptance)


def test_a_new_drafter_may_draft():
    assert DrafterHealth().why_not() is None


def test_unrelated_weights_are_noticed_after_256_first_drafts_and_reported_once(caplog):
    health = DrafterHealth()
    with caplog.at_level(logging.ERROR):
        feed(health, 0.0, 255)
        assert health.why_not() is None
        feed(health, 0.0, 1)
        assert health.why_not() == "drafter_stale"
        feed(health, 0.0, 2000)
    (record,) = caplog.records
    assert "drafter does not follow the policy: 0% of the last 256" in record.getMessage()


@pytest.mark.parametrize("seed", range(20))
def test_acceptance_of_a_tenth_is_noticed_in_the_first_window(seed):
    health = DrafterHealth()
    feed(health, 0.1, 256, seed)
    assert health.is_stale


def test_windows_follow_one_another():
    health = DrafterHealth()
    health.observe_first_drafts(300, 290)
    health.observe_first_drafts(256, 0)
    assert health.is_stale, "a good window must not hide a bad one"


@pytest.mark.parametrize("acceptance", [0.45, 0.7, 0.99])
def test_a_poor_drafter_is_not_a_stale_one(acceptance):
    for seed in range(20):
        health = DrafterHealth()
        feed(health, acceptance, 5000, seed)
        assert not health.is_stale


def test_new_weights_clear_it_and_the_count_before_them():
    health = DrafterHealth()
    feed(health, 0.0, 512)
    assert not health.take_report(DrafterReport(weights_version=0)), "no news"
    assert health.is_stale
    assert health.take_report(DrafterReport(weights_version=1))
    assert health.why_not() is None
    feed(health, 0.0, 255)
    assert health.take_report(DrafterReport(weights_version=2))
    feed(health, 0.0, 255)
    assert health.why_not() is None


def test_a_fault_lasts_for_as_long_as_the_worker_reports_it():
    health = DrafterHealth()
    health.take_report(DrafterReport(drafter_fault="no memory"))
    assert health.why_not() == "drafter_fault"
    feed(health, 0.0, 256)
    assert health.why_not() == "drafter_fault", "the nearer reason"
    health.take_report(DrafterReport())
    assert health.why_not() == "drafter_stale"


def test_an_engine_of_several_ranks_is_as_well_as_the_worst_of_them():
    well = DrafterReport(weights_version=3)
    assert DrafterReport.of_all([well, well]) == well
    behind = DrafterReport(weights_version=2, weights_fault="torn", drafter_fault="no memory")
    assert DrafterReport.of_all([well, behind]) == DrafterReport(2, "on rank 1: torn", "on rank 1: no memory")
    assert DrafterReport.of_all([behind, well]) == behind
    told = DrafterReport.of_all([well, behind])
    assert DrafterReport.of_all([told, told]) == told, "what every rank was told is said no differently again"

"""Events survive the disk, and a run's state is nothing but their sum."""

import json

import pytest

from sdlora.events import (
    EVENTS,
    BytesReceived,
    Captioned,
    Checkpoint,
    Done,
    Failed,
    Measured,
    Paused,
    Progress,
    Queued,
    Resumed,
    RunState,
    SampleReady,
    Saved,
    Started,
    Step,
    Stopped,
    Validated,
    Warned,
    fold,
    from_line,
    to_line,
)

ODD = 'a "quoted" \\ line\nbreak, \u2028 separator, ünïcode, 日本'
ONE_OF_EACH = [
    Queued(ahead=2),
    Started("training x", 250, {"pictures": ODD}),
    Progress("loading", 3, 9),
    BytesReceived(ODD, 3 * 2**40, 4 * 2**40, 2.5e6, 12.5),
    Resumed(5),
    Step(7, 250, loss=0.125, learning_rate=1e-4, seconds_left=30.5),
    SampleReady("samples/7.png", 7, ODD, 2**32 - 1, {"problems": [ODD]}),
    Saved("lora/x.safetensors", 7),
    Validated(7, 0.25, best=True, drift=0.01),
    Checkpoint("state/step-000007", 7),
    Measured("cuda", 0.5, 125.0, 250, 6.5, 20.25),
    Captioned("set/1.txt", ODD, "a ball", was_file=True),
    Warned(ODD, "advice"),
    Done("loras/x.safetensors", 12.5),
    Stopped("loras/x.safetensors", 7),
    Paused(7),
    Failed(ODD, "advice"),
]


def test_every_kind_is_in_the_list() -> None:
    assert {type(event) for event in ONE_OF_EACH} == set(EVENTS.values())


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: type(event).__name__)
def test_there_and_back(event: object) -> None:
    line = to_line(event)  # type: ignore[arg-type]
    assert "\n" not in line
    assert from_line(line) == event


def test_a_newer_field_is_left_out_and_what_is_no_event_is_refused() -> None:
    newer = json.loads(to_line(Saved("x", 1, at=5.0))) | {"checksum": "later"}
    assert from_line(json.dumps(newer)) == Saved("x", 1, at=5.0)
    for line in ("{}", "[]", "3", '{"event": "Exploded"}', "not json", '"text"'):
        with pytest.raises(ValueError):
            from_line(line)


def test_a_training_from_its_queue_to_its_end() -> None:
    state = fold([Queued(1)])
    assert (state.status, state.ahead, state.ended) == ("queued", 1, False)
    state = fold([Progress("loading the model")], state)
    assert (state.status, state.phase) == ("loading", "loading the model")
    state = fold([Started("training", 3, {"a": "b"}, at=50.0)], state)
    assert (state.status, state.phase, state.started_at) == ("running", "", 50.0)
    state = fold([Step(1, 3), Step(2, 3, loss=0.5, seconds_left=1.0)], state)
    assert (state.step, state.losses, state.seconds_left) == (2, ((2, 0.5),), 1.0)
    state = fold([Progress("drawing samples", 1, 2)], state)
    assert (state.status, state.phase) == ("running", "drawing samples")
    state = fold([Saved("kept", 2), Warned("careful")], state)
    assert (state.result, state.warnings[0].message) == ("kept", "careful")
    done = fold([Done("final", 9.0)], state)
    assert (done.status, done.result, done.seconds, done.ended) == ("done", "final", 9.0, True)


def test_how_it_ended_keeps_what_was_reached() -> None:
    saved = fold([Started("t", 9), Step(4, 9, loss=1.0), Saved("kept", 4)])
    assert fold([Stopped()], saved).result == "kept"
    assert fold([Done()], saved).result == "kept"
    failed = fold([Failed("why", "what to do")], saved)
    assert (failed.status, failed.error, failed.advice, failed.step) == (
        *("failed", "why", "what to do"),
        4,
    )


def test_a_resumed_run_forgets_what_it_does_anew() -> None:
    said = [Started("t", 9), Step(2, 9, loss=1.0), Validated(2, 0.5, best=True), Checkpoint("c", 2)]
    later = [Step(3, 9, loss=2.0), SampleReady("p", 3, "x", 0), Validated(3, 0.4, best=True)]
    killed = fold([*said, *later, Failed("the process ended")])
    assert killed.resumable and killed.checkpoint == 2
    waiting = fold([Queued()], killed)
    assert (waiting.status, waiting.error, waiting.started_at) == ("queued", "", None)
    again = fold([Resumed(2), Started("t", 9)], waiting)
    assert (again.step, again.losses, again.samples) == (2, ((2, 1.0),), ())
    assert again.best and again.best.loss == 0.5 and not again.resumable
    assert not fold([Started("t", 9), Failed("wrong settings")]).resumable
    assert fold([Paused(2)], again).status == "paused" and fold([Paused(2)], again).resumable


def test_the_fold_can_be_taken_up_anywhere() -> None:
    for cut in range(len(ONE_OF_EACH)):
        assert fold(ONE_OF_EACH[cut:], fold(ONE_OF_EACH[:cut])) == fold(ONE_OF_EACH)
    assert fold([]) == RunState()

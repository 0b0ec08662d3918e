from pipeline.errors import Stage
from pipeline.host.memo import Known, Memo
from pipeline.request import Completion, Failure


def known(text: str, tokens: int = 1) -> Known:
    return Known(Completion(text, range(tokens), "stop", 3), "digest", "run-1")


def test_first_asks_and_those_that_come_meanwhile_wait_for_its_answer() -> None:
    memo: Memo[str] = Memo()
    assert memo.claim("k", "first") is True
    assert memo.claim("k", "second") is False
    assert memo.claim("k", "third") is False
    assert memo.claim("other", "alone") is True
    assert memo.settle("k", known("yes")) == ["second", "third"]
    assert memo.claim("k", "late") == known("yes")


def test_failure_goes_to_those_that_wait_and_is_not_kept() -> None:
    memo: Memo[str] = Memo()
    memo.claim("k", "first")
    memo.claim("k", "second")
    assert memo.settle("k", Failure(Stage.ENGINE, "refused", "no")) == ["second"]
    assert memo.claim("k", "third") is True


def test_least_recently_used_answers_go_first() -> None:
    memo: Memo[str] = Memo(max_answers=2)
    for key in ("a", "b"):
        memo.claim(key, key)
        memo.settle(key, known(key))
    assert memo.claim("a", "again") == known("a")
    memo.claim("c", "c")
    memo.settle("c", known("c"))
    assert memo.claim("b", "gone") is True
    assert memo.claim("a", "kept") == known("a")


def test_answers_are_bounded_by_their_tokens() -> None:
    memo: Memo[str] = Memo(max_tokens=100)
    for key in ("a", "b"):
        memo.claim(key, key)
        memo.settle(key, known(key, tokens=60))
    assert memo.claim("a", "gone") is True
    assert memo.claim("b", "kept") == known("b", tokens=60)

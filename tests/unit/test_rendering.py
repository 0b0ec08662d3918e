import pickle

import pytest

from pipeline.host.rendering import default_processes, dumps
from pipeline.request import Message, Request, Sampling

from .helpers import job


@pytest.mark.parametrize(
    ("cores", "engines", "accelerator", "given", "processes"),
    [
        (2, 1, None, None, 1),
        (192, 1, "H100", None, 4),
        (192, 8, "H100", None, 4),
        (16, 4, "H100", None, 1),
        (2, 1, None, 3, 3),
    ],
)
def test_default_processes(
    cores: int, engines: int, accelerator: str | None, given: int | None, processes: int
) -> None:
    config = job(pool={"accelerator": accelerator}, render={"processes": given})
    assert default_processes(config, cores, engines) == processes


def test_tensors_cross_as_they_are() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (
        torch.arange(12, dtype=torch.bfloat16).reshape(3, 4).t(),
        torch.tensor(7),
        torch.empty((0, 3)),
        torch.tensor([True, False]),
    ):
        (back,) = pickle.loads(dumps([tensor]))
        assert back.dtype == tensor.dtype and back.shape == tensor.shape and torch.equal(back, tensor)


def test_key_tells_requests_apart_by_all_that_they_ask() -> None:
    one = Sampling({"temperature": 0})
    keys = {
        Request((Message("user", ("a", "b")),), one).key,
        Request((Message("user", ("ab",)),), one).key,
        Request((Message("system", ("a", "b")),), one).key,
        Request((Message("user", ("a",)), Message("user", ("b",))), one).key,
        Request((Message("user", ("a", "b")),), Sampling({"temperature": 0, "seed": 1})).key,
    }
    assert len(keys) == 5
    assert Request((Message("user", ("a", "b")),), Sampling({"temperature": 0})).key in keys

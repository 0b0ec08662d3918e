import pickle

import pytest

from pipeline.errors import ConfigError, EngineStartError, HerdError, InputChangedError, StorageError


@pytest.mark.parametrize("kind", [HerdError, ConfigError, StorageError, InputChangedError, EngineStartError])
def test_herd_error_survives_pickling(kind: type[HerdError]) -> None:
    """Errors cross from engine processes to the one that the user sees."""
    error = kind("It is wrong", where="a.yaml", todo="Mend it.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) == "It is wrong (a.yaml). Mend it."


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (HerdError("It is wrong"), "It is wrong."),
        (HerdError("It is wrong."), "It is wrong."),
        (HerdError("It is wrong", where="here"), "It is wrong (here)."),
        (HerdError("It is wrong", todo="Mend it."), "It is wrong. Mend it."),
    ],
)
def test_herd_error_is_one_paragraph(error: HerdError, text: str) -> None:
    assert str(error) == text


def test_config_error_exits_with_2() -> None:
    assert (ConfigError.exit_code, HerdError.exit_code) == (2, 4)

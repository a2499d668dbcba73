"""Tests of the compiled core by each instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..support.setups import core, instructions


@pytest.fixture(params=core.instruction_sets())
def by_every_instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    with instructions(request.param):
        yield

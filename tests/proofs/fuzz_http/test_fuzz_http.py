"""A sample of the fuzzing: some examples of each operation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs.fuzz_http.run import Api, fuzz

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(400)]


def test_no_request_that_the_description_allows_fails(tmp_path: Path) -> None:
    with Api(tmp_path) as api:
        assert fuzz(api, seconds=0, seed=1, examples=2) == ""

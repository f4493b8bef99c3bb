"""Code generation without a GPU is skipped where torch is not one that it knows."""

from __future__ import annotations

import pytest

from boundgraph.gpu import unsupported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = unsupported()
    for item in items:
        if reason is not None and item.get_closest_marker("gpu_model"):
            item.add_marker(pytest.mark.skip(reason=reason))

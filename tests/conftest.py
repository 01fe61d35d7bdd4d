"""The order of the tests."""

from __future__ import annotations

# Files of few tests that take half a minute to ten. They begin, so that at the end none runs alone: with
# --dist=loadfile a file is one worker's. (Left to itself xdist begins with the files of many tests.)
LONG = (
    "tests/test_survival.py",
    "tests/test_multi_host.py",
    "tests/parallel/test_equality.py",
    "tests/test_end_to_end.py",
    "tests/docs/test_commands.py",
    "tests/trainer/test_sft.py",
    "tests/trainer/test_step.py",
    "tests/sampler/test_prefixes.py",
    "tests/sampler/test_server.py",
    "tests/orchestrator/test_fleet.py",
    "tests/orchestrator/test_updates.py",
    "tests/models/test_paged.py",
    "tests/models/test_transformer.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((i for i, file in enumerate(LONG) if file in item.nodeid), len(LONG)))

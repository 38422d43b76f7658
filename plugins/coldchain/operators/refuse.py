"""Stands for a table whose registry entry can't be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseOperator

from coldchain.core.errors import RegistryProblem
from coldchain.failures import as_airflow_failures, count_rejection
from coldchain.registry import UNREADABLE


class RefuseOperator(BaseOperator):
    """Fail with what is wrong with a registry entry, so that the mistake is seen and the other tables go on.

    Args:
        name: of the entry, or UNREADABLE for the whole file.
        problems: one sentence each.
    """

    def __init__(self, *, name: str, problems: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.problems = tuple(problems)

    def execute(self, context: Any) -> None:
        """Fail, at once and without retries."""
        count_rejection(context, "registry", "file" if self.name == UNREADABLE else "entry")
        with as_airflow_failures(context):
            raise RegistryProblem("; ".join(self.problems))

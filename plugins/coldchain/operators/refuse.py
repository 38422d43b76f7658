"""Stands for a table whose registry entry can't be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException


class RefuseOperator(BaseOperator):
    """Fail with what is wrong with a registry entry, so that the mistake is seen and the other tables go on.

    Args:
        problems: one sentence each.
    """

    def __init__(self, *, problems: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.problems = tuple(problems)

    def execute(self, context: Any) -> None:
        """Fail, at once and without retries."""
        raise AirflowFailException("; ".join(self.problems))

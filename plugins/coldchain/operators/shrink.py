"""Shows a person the segments of which the source lost rows, and what approving that would publish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from coldchain.core.table import TableSpec
from coldchain.failures import as_airflow_failures


class ShowShrunkOperator(BaseOperator):
    """Compare one table as an offload would, moving nothing; skip what follows where no segment lost rows.

    Returns `text` (Markdown for the approval task) and `conf` (the parameters of the offload that it would allow).

    Args:
        specs: the tables of which the run's parameter `table` names one.
    """

    def __init__(self, *, specs: Sequence[TableSpec], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.specs = tuple(specs)

    def execute(self, context: Any) -> dict[str, Any]:
        """Return what a person must see, and the order that an approval stands for."""
        from coldchain.connections import NativeClickHouse
        from coldchain.core.plan import approvals
        from coldchain.core.request import make_request, refuse_unknown
        from coldchain.protocol import read
        from coldchain.source import Source
        from coldchain.turns import turn_of

        params = context["params"]
        with as_airflow_failures(context):
            refuse_unknown(params, ("table", "start", "end"))
        (spec,) = (spec for spec in self.specs if spec.name == params["table"])
        conf = {"tables": [spec.name], "start": params["start"], "end": params["end"]}
        with as_airflow_failures(context):
            asked = make_request(
                run_type="manual", data_interval=None, logical_date=None, params={**conf, "mode": "plan"},
                known_tables=frozenset({spec.name}), grid_us=spec.grid_us,
            )  # fmt: skip
            shrunk = read(turn_of(spec, context), Source(NativeClickHouse(), spec), asked).plan.shrunk
        if not shrunk:
            raise AirflowSkipException(f"table={spec.name}: no segment lost rows; there is nothing to approve")
        lines = [
            f"`{spec.source}` holds fewer rows than `{spec.target}` in {len(shrunk)} segments.",
            "",
            "| segment | window | published: rows, hash | source: rows, hash |",
            "|---|---|---|---|",
            *(f"| {s.segment_id} | {s.window} | {s.published} | {s.source} |" for s in shrunk),
            "",
            "**Approve** replaces these segments by what the source holds now, and no more than that: if it loses "
            "further rows until then, it is asked again. **Reject** leaves them as they are.",
        ]
        self.log.info("%s", "\n".join(lines))
        return {"text": "\n".join(lines), "conf": {**conf, "allow_shrink": approvals(shrunk)}}

"""All tables of a report, in their order."""

from __future__ import annotations

from kvcompress.report.tables import Table
from kvcompress_eval.suite.report.beside_tables import equal_kl_table, published_table
from kvcompress_eval.suite.report.facts import Result
from kvcompress_eval.suite.report.promise_table import promise_table
from kvcompress_eval.suite.report.series import (
    attention_table,
    hops_table,
    layers_table,
    lengths_table,
    link_table,
    longest_table,
    memory_table,
    recall_table,
)
from kvcompress_eval.suite.report.tables import (
    bound_table,
    category_tables,
    controls_table,
    cost_table,
    failed_table,
    formats_table,
    main_table,
    percentile_table,
    size_table,
    text_table,
)
from kvcompress_eval.suite.report.tail_tables import score_table, tail_table, whole_table


def all_tables(result: Result) -> list[Table]:
    """Return every table that has a row, in the order of the report."""
    found = [
        promise_table(result),
        main_table(result),
        failed_table(result),
        equal_kl_table(result),
        published_table(result),
        controls_table(result),
        bound_table(result),
        formats_table(result),
        score_table(result),
        tail_table(result),
        whole_table(result),
        tail_table(result, whole=True),
        percentile_table(result),
        text_table(result),
        size_table(result),
        cost_table(result),
        longest_table(result),
        *category_tables(result),
        layers_table(result),
        attention_table(result),
        recall_table(result),
        link_table(result),
        lengths_table(result),
        memory_table(result),
        hops_table(result),
    ]
    return [table for table in found if table is not None and table.rows]

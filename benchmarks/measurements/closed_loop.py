"""Times and throughput of requests that are kept running, from one decoding and one reading pass."""

from __future__ import annotations

from turbo_operator.planner.performance.step_time import ForwardCost, Machine, Numbers


def time_per_output_token(
    decode: Numbers, prefill: Numbers, rows: Numbers, answer: Numbers, accepted: Numbers = 1.0
) -> Numbers:
    """Mean seconds of one output token: the prefills of the other rows, of all groups, interrupt the decode.

    `accepted`: tokens committed per pass, the bonus token included (tau).
    """
    return decode / accepted + (rows - 1.0) * prefill / answer


def time_to_first_token(
    machine: Machine, work: ForwardCost, decode: Numbers, prefill: Numbers, rows: Numbers
) -> Numbers:
    """Mean seconds to the first token while `rows` requests of all groups are kept running."""
    c = machine.coefficients
    return c.prefill_layer_seconds * work.layers + decode + prefill * (1.0 + c.prefill_wait * (rows - 1.0))


def saturated_tokens_per_second(
    decode: Numbers, prefill: Numbers, rows: Numbers, answer: Numbers, accepted: Numbers = 1.0
) -> Numbers:
    """Output tokens per second of `rows` requests that are replaced as they end."""
    return rows * answer / (answer * decode / accepted + rows * prefill)

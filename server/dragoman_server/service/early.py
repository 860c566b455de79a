"""Calls that must be refused whatever their texts are, before these are tokenized, which takes time."""

from dataclasses import replace

from dragoman_server.service.plan import Plan


def checked_early(plan: Plan, num_requests: int, attention_seconds: float = 0.0, *, may_be_cached: bool = True) -> Plan:
    """The plan, in which the first model knows how much time the second, or the attention, will take after it.

    Args:
        plan: of the call.
        num_requests: that the call has at least.
        attention_seconds: that passes of attention will take.
        may_be_cached: whether answers are taken from the cache.

    Raises:
        QueueFullError, NotInTimeError: from the engine that comes first.
    """
    if not num_requests:
        return plan
    first, seconds_after = plan.first or plan, attention_seconds
    if plan.first is not None:
        seconds_after += plan.model.engine.seconds(plan.outline(num_requests))
    engine = first.model.engine if may_be_cached else first.model.uncached_engine
    engine.check(first.outline(num_requests, seconds_after))
    first = replace(first, seconds_after=seconds_after)
    return first if plan.first is None else replace(plan, first=first)

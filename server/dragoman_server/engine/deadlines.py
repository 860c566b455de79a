"""Why a caller left: gRPC cancels a call whose deadline has passed in the same way as one that its caller gives up."""

# A deadline is sent as the time that is left, rounded up by as much as a hundredth, and its end is told over the
# network. So a call is cancelled some time before its deadline passes here.
_SLACK_SHARE = 0.01
_SLACK_SECONDS = 0.05


def has_passed(deadline: float, begun: float, now: float) -> bool:
    """Whether the deadline has passed for a caller who has left by now. All on the `time.monotonic` clock, in seconds.

    Args:
        deadline: of the call, `math.inf` where it has none.
        begun: when the call was begun.
        now: when the caller is seen to have left, or later.
    """
    return now + _SLACK_SECONDS + _SLACK_SHARE * (now - begun) >= deadline

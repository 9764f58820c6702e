"""Claims B: what training cost."""

from __future__ import annotations

from latentkv.planner.claims.arithmetic import Calculation, Conditions, Result, share_saved, told


def training_cost(given: Conditions) -> tuple[Result, ...]:
    """Hours per trillion tokens times trillions, and what follows pre-training, at a rent per hour."""
    per_trillion, trillions = given.number("hours_per_trillion_tokens"), given.number("trillion_tokens")
    after = given.number("context_hours") + given.number("post_training_hours")
    hours = per_trillion * trillions + after
    rent = given.number("dollars_per_hour")
    sum = f"{told(per_trillion)} x {told(trillions)} + {told(after)}"
    return (
        Result("GPU hours", hours / 1e6, "million h", sum),
        Result("cost", hours * rent / 1e6, "million $", f"{told(hours)} x {told(rent)}"),
    )


def hours_saved(given: Conditions) -> tuple[Result, ...]:
    """GPU hours per trillion tokens of two models."""
    return (share_saved("hours saved", given.number("hours"), given.number("baseline_hours")),)


CALCULATIONS: dict[str, Calculation] = {"B1": training_cost, "B3": hours_saved}

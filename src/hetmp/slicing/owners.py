"""Which layer a step of a program counts to, where times are told layer by layer."""

from hetmp.schedule import CallStep, ExchangeStep, Program


def owners(program: Program) -> dict[str, str]:
    """The path of a layer that mixes channels for every step, by the step's name.

    Channel-wise work counts to the last such layer before it, an exchange to the one that takes
    what it gives. What comes before the first layer has an empty path.
    """
    found: dict[str, str] = {}
    last, waiting = "", []
    for step in program.steps:
        if isinstance(step, ExchangeStep):
            waiting.append(step.name)
            continue
        if isinstance(step, CallStep) and step.node.rule.mixes:
            last = step.node.path
        found[step.name] = last
        found.update(dict.fromkeys(waiting, last))
        waiting = []
    found.update(dict.fromkeys(waiting, last))
    return found

"""What `train` asks of a composition before it imports anything that it names."""

from runner.composition.composed import Composed

__all__ = ["approve"]


def approve(composed: Composed, *, trust: bool) -> None:
    """Return if a composition may be trained: its code is trusted, and nothing differs from its lock.

    Args:
        trust: accept code that is not the person's own.

    Raises:
        SpecError: it may not.
    """
    from runner.runs.trust import require_trust_in_recipe  # in the process that composes, beside Hydra
    from runner.sharing.lock import check_lock

    check_lock(composed)
    require_trust_in_recipe(composed, trust=trust)

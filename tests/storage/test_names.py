"""Names of tensors in files: those of a typed state, and the state again."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.protocols import State
from runner.storage.names import from_names, names_in_files, to_names

WORDS = st.text(alphabet="ab.%2E_é/ ", max_size=6) | st.sampled_from(
    [
        "model",
        "optimizer",
        "callback",
        "rng",
        "rank_0",
        "model.w",
        "optimizer.w.step",
        "%6Fptimizer",
        "a.model.b",
        "replica_0",
        "replica_0.model.w",
    ]
)
TENSORS = st.dictionaries(WORDS, st.integers(), min_size=1, max_size=3)
STATES = st.builds(
    State,
    models=st.dictionaries(WORDS, TENSORS, max_size=3),
    optimizers=st.dictionaries(WORDS, st.dictionaries(WORDS, TENSORS, min_size=1, max_size=2), max_size=2),
    callbacks=st.dictionaries(WORDS, TENSORS, max_size=2),
    rng=st.dictionaries(st.integers(0, 10**6), TENSORS, max_size=2),
)


STATES_OF_REPLICAS = st.builds(
    lambda state, replicas: replace(state, replicas={n: one for n, one in replicas.items() if leaves(one)}),
    STATES,
    st.dictionaries(st.integers(0, 10**6), STATES, max_size=2),
)


def leaves(state: State[int]) -> int:
    """How many tensors a state has."""
    owners = [*state.models.values(), *state.callbacks.values(), *state.rng.values()]
    owners += [slots for parameters in state.optimizers.values() for slots in parameters.values()]
    return sum(len(owner) for owner in owners) + sum(map(leaves, state.replicas.values()))


@given(STATES_OF_REPLICAS)
@example(State(models={"optimizer": {"w": 1}}, optimizers={"model": {"model": {"w": 2}}}))
@example(State(models={"model": {"a.model.w": 1}, "model.a": {"w": 2}, "a": {"w": 3}}))
def test_every_state_comes_back_from_its_names(state: State[int]) -> None:
    names = to_names(state)
    assert len(names) == leaves(state)  # no two tensors have one name
    assert from_names(names) == state


def test_the_names_of_a_run_with_one_model() -> None:
    state = State(
        models={"model": {"0.weight": 1}},
        optimizers={"model": {"0.weight": {"exp_avg": 2}}},
        callbacks={"ema": {"model.0.weight": 3}},
        rng={1: {"torch": 4}},
    )
    assert to_names(state) == {
        "model.0.weight": 1,
        "optimizer.0.weight.exp_avg": 2,
        "callback.ema.model.0.weight": 3,
        "rng.rank_1.torch": 4,
    }


def test_the_names_of_a_replica_begin_with_its_number() -> None:
    own: State[int] = State(models={"model": {"w": 1}}, optimizers={"model": {"w": {"exp_avg": 2}}})
    state: State[int] = State(models={"model": {"w": 3}}, replicas={1: own})
    names = {"replica_1.model.w": 1, "replica_1.optimizer.w.exp_avg": 2, "model.w": 3}
    assert to_names(state) == names
    assert from_names(names) == state
    with pytest.raises(ValueError, match="is not the name of a tensor"):
        from_names({"replica_0.replica_1.model.w": 1})


def test_the_names_of_several_models_begin_with_theirs() -> None:
    state = State(
        models={"model": {"w": 1}, "teacher": {"w": 2}, "v1.5": {"w": 3}},
        optimizers={"teacher": {"w": {"exp_avg": 4}}},
    )
    names = {"model.w": 1, "teacher.model.w": 2, "v1%2E5.model.w": 3, "teacher.optimizer.w.exp_avg": 4}
    assert to_names(state) == names
    assert from_names(names) == state


def test_a_callback_may_have_a_dot_in_its_name() -> None:
    state = State(callbacks={"ema.0.999": {"model.w": 1}, "100%": {"x": 2}})
    names = {"callback.ema%2E0%2E999.model.w": 1, "callback.100%25.x": 2}
    assert to_names(state) == names
    assert from_names(names) == state


@pytest.mark.parametrize(
    "name",
    [
        *["", "w", "model", "optimizer.w", "callback.ema", "rng.rank_0", "rng.rank_x.torch", "rng.0.torch"],
        *["metric.loss.sum", "teacher", "teacher.model", "teacher.rng.rank_0.torch", "teacher.callback.ema.w"],
    ],
)
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' is not the name of a tensor in a checkpoint\."):
        from_names({name: 1})


def test_chosen_tensors_of_models_have_names_in_files_for_each_replica_too() -> None:
    state: State[int] = State(replicas={0: State(), 1: State()})
    chosen = {"model": {"base.weight"}, "teacher.one": {"bias"}}
    own = {"model.base.weight", "teacher%2Eone.model.bias"}
    assert names_in_files(state, chosen) == {
        f"{prefix}{name}" for prefix in ("", "replica_0.", "replica_1.") for name in own
    }
    assert names_in_files(State(), {"model": set()}) == set()

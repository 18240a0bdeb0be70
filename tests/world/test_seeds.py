"""Random numbers: mixed seeds lie far apart, and a state carries every generator on."""

import random
from typing import Any

import numpy
import torch

from runner.world.seeds import load_rng_state, mix, rng_state, seed_all, seed_python

CPU = torch.device("cpu")


def draw() -> Any:
    gaussian = random.gauss(0, 1), numpy.random.standard_normal()  # both keep a spare one
    return random.random(), numpy.random.rand(), torch.rand(()).item(), *gaussian


def test_seeds_are_mixed_far_apart_and_always_alike() -> None:
    seeds = [mix(seed, epoch) for seed in range(20) for epoch in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix(1, 2) != mix(2, 1)
    assert mix(0) == 0xE220A8397B1DCDAF >> 1, "splitmix64's first number after 0"


def test_one_seed_seeds_everything() -> None:
    seed_all(7)
    first = draw()
    seed_all(7)
    assert draw() == first
    seed_all(8)
    assert draw() != first


def test_python_and_numpy_are_seeded_as_by_their_own_functions() -> None:
    def drawn() -> Any:
        return [(random.random(), random.gauss(0, 1), *numpy.random.standard_normal(1)) for _ in range(3)]

    for seed in (0, 2**32 + 1, mix(7)):
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        expected = drawn()  # an odd number of Gaussians leaves a spare one in each
        seed_python(seed)
        assert drawn() == expected


def test_a_state_goes_on_where_it_was_taken() -> None:
    seed_all(7)
    draw()
    state = rng_state(CPU)
    expected = draw(), draw()
    seed_all(99)
    load_rng_state(state, CPU)
    assert (draw(), draw()) == expected

"""A permutation that is computed item by item, from a key, instead of being stored.

A Feistel network over pairs of digits in mixed radix is a permutation of all pairs, whatever its round functions are;
numbers that it maps beyond the last item are mapped again, until one lies inside (cycle walking). Black and Rogaway,
Ciphers with Arbitrary Finite Domains (CT-RSA 2002).
"""

import math
from typing import Any, final

import numpy

from runner.world.seeds import mix

__all__ = ["Indices", "KeyedPermutation", "uniform"]

Indices = numpy.ndarray[Any, numpy.dtype[numpy.int64]]
Words = numpy.ndarray[Any, numpy.dtype[numpy.uint64]]

LEAST_ROUNDS = 8
HALF = numpy.uint64(32)
# Multipliers of splitmix64, as in runner.world.seeds.mix.
FIRST, SECOND = numpy.uint64(0xBF58476D1CE4E5B9), numpy.uint64(0x94D049BB133111EB)


@final
class KeyedPermutation:
    """A permutation of the numbers from 0 to `num_items` - 1. Its memory does not depend on how many there are."""

    def __init__(self, num_items: int, *, seed: int) -> None:
        """Choose one of the permutations.

        Args:
            num_items: fewer than 2^62.
            seed: equal seeds give equal permutations, on every machine.
        """
        self.num_items = num_items
        # An even radix, or only even permutations could be reached where both are odd.
        self._high = 2 * math.ceil(max(1, math.isqrt(max(0, num_items - 1)) + 1) / 2)
        self._low = -(-max(1, num_items) // self._high)
        # Small numbers take few random bits a round: without further rounds, some permutations would be likelier.
        rounds = max(LEAST_ROUNDS, 2 * math.ceil(32 / max(1, num_items.bit_length() - 1)))
        self._keys = [numpy.uint64(mix(seed, number)) for number in range(rounds)]

    def indices(self, start: int, stop: int) -> Indices:
        """The numbers at the places `start` to `stop` (exclusive): [stop - start]."""
        return self._walk(numpy.arange(start, stop, dtype=numpy.int64), self._forward)

    def place_of(self, index: int) -> int:
        """The place of one number: the inverse of `indices`."""
        return int(self._walk(numpy.array([index], dtype=numpy.int64), self._backward)[0])

    def _walk(self, numbers: Indices, step: Any) -> Indices:
        found: Indices = step(numbers)
        outside = numpy.flatnonzero(found >= self.num_items)
        while outside.size:
            found[outside] = step(found[outside])
            outside = outside[found[outside] >= self.num_items]
        return found

    def _digits(self, numbers: Indices) -> tuple[Indices, Indices]:
        high = numbers // self._low  # numpy.divmod takes ten times as long
        return high, numbers - high * self._low

    def _forward(self, numbers: Indices) -> Indices:
        high, low = self._digits(numbers)
        for first, second in zip(self._keys[::2], self._keys[1::2], strict=True):
            high = _wrapped(high + _below(self._high, low, self._low, first), self._high)
            low = _wrapped(low + _below(self._low, high, self._high, second), self._low)
        return high * self._low + low

    def _backward(self, numbers: Indices) -> Indices:
        high, low = self._digits(numbers)
        for first, second in zip(self._keys[-2::-2], self._keys[::-2], strict=True):
            low = _wrapped(low - _below(self._low, high, self._high, second) + self._low, self._low)
            high = _wrapped(high - _below(self._high, low, self._low, first) + self._high, self._high)
        return high * self._low + low


def uniform(start: int, stop: int, *, seed: int) -> numpy.ndarray[Any, numpy.dtype[numpy.float64]]:
    """Independent numbers in [0, 1) at the places `start` to `stop` (exclusive), each a function of seed and place."""
    places = numpy.arange(start, stop, dtype=numpy.uint64)
    return (_mixed(places, numpy.uint64(mix(seed))) >> numpy.uint64(11)).astype(numpy.float64) * 2.0**-53


def _below(radix: int, digits: Indices, num_digits: int, key: numpy.uint64) -> Indices:
    """A number in [0, radix) for each digit, which is in [0, num_digits)."""
    if digits.size > 2 * num_digits:  # each stands there several times: its number is worked out once
        numbers = _below(radix, numpy.arange(num_digits, dtype=numpy.int64), num_digits, key)
        found: Indices = numbers.take(digits, mode="clip")  # the mode that checks no bounds
        return found
    words = _mixed(digits.view(numpy.uint64), key) >> HALF
    words *= numpy.uint64(radix)
    words >>= HALF
    return words.view(numpy.int64)


def _mixed(words: Words, key: numpy.uint64) -> Words:
    mixed: Words = (words + key) * FIRST
    mixed ^= mixed >> HALF
    mixed *= SECOND
    mixed ^= mixed >> HALF
    mixed *= FIRST
    return mixed


def _wrapped(digits: Indices, radix: int) -> Indices:
    """Digits in [0, 2 × radix), reduced to [0, radix)."""
    words = digits.view(numpy.uint64)
    wrapped: Words = numpy.minimum(words, words - numpy.uint64(radix))  # what would be below 0 is very large
    return wrapped.view(numpy.int64)

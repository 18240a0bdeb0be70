"""Tokens in the files of Megatron-LM: read by memory maps, packed into samples of a fixed length, and written."""

from runner.data.megatron.data_hook import build_data
from runner.data.megatron.indexed_tokens import IndexedTokens
from runner.data.megatron.packed_tokens import PackedTokens

__all__ = ["IndexedTokens", "PackedTokens", "build_data"]

"""The verbs of `runner`, a module for each: `runner train` is train.py. See runner/cli/verb.py for what one has.

`runner --help` and shell completion import these modules: they import torch, Hydra and YAML only inside `main`.
"""

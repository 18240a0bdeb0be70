"""What --help prints. Groups and options are found by listing folders; neither torch nor Hydra is imported."""

from pathlib import Path

from runner.compose.recipe import options, shipped_root

__all__ = ["check", "export", "overview", "recipes", "resume", "train"]

FLAGS = """\
  -m, --multirun                   a sweep: key=a,b  key=range(1,5)  key=choice(a,b)  key=glob(*)
  -c, --cfg job|hydra|all          print the configuration instead of running it
      --resolve                    with --cfg: interpolations resolved
  -p, --package KEY                with --cfg: only this part of it
  -i, --info [all|config|defaults|defaults-tree|plugins|searchpath]
  -cd, --config-dir DIR            one more directory of groups, searched last
  -sc, --shell-completion install=bash|zsh|fish
      --hydra-help                 Hydra's own help"""
OVERRIDES = """\
  key=value        change a value: batch.items=128 optimizer.lr=1e-3
  group=option     change an option: strategy=ddp tracker=[tensorboard,wandb]
  +key=value       add a key       ++key=value  add or change it       ~key  delete it"""


def overview() -> str:
    """runner --help."""
    return """\
usage: runner <command> …

  train RECIPE [overrides] [flags]      train a recipe: a name in recipes/, or the path of a .yaml file
  resume DIR [overrides]                continue a run from its directory
  check RECIPE [overrides]              tell everything that is wrong with a recipe, without running it
  recipes                               list the recipes that there are
  export DIR                            write a run's weights as safetensors

  runner <command> --help               more about one command
  runner --version

examples:
  runner train digits
  runner train digits strategy=ddp hardware.processes=2 precision=bf16 run.steps=300
  runner train digits -m strategy=single,ddp optimizer.lr=1e-3,3e-3"""


def train() -> str:
    """runner train --help."""
    return f"""\
usage: runner train RECIPE [overrides] [flags]

Train a recipe: a name in recipes/ (see: runner recipes), or the path of a .yaml file.
The last line on stdout is the run's directory.
Exit code: 0 done, 2 declared wrongly, 130 interrupted, 1 or 3 to 10 failed (docs/exit_codes.md).

overrides:
{OVERRIDES}

groups and their options:
{_groups()}

flags:
{FLAGS}

All keys with their meaning: conf/base.yaml and conf/<group>/<option>.yaml, or runner train RECIPE --cfg job"""


def resume() -> str:
    """runner resume --help."""
    return f"""\
usage: runner resume DIR [overrides] [--allow KEY …] [--from step_<n>]

Continue the run in DIR from its newest committed checkpoint, with its own declaration and these changes to it.

  --allow KEY      let KEY change although it changes what the run means (model, data, loss, batch.items, run.seed)
  --from step_<n>  begin from this checkpoint instead of the newest

overrides:
{OVERRIDES}"""


def check() -> str:
    """runner check --help."""
    return f"""\
usage: runner check RECIPE [overrides]

Tell everything that is wrong with a recipe and these overrides, or what they would run. Starts no process, touches no
device. Exit code: 0 nothing is wrong, 2 something is.

overrides:
{OVERRIDES}"""


def export() -> str:
    """runner export --help."""
    return """\
usage: runner export DIR [--step N] [--dtype TYPE] [--max-shard-size 5GB] [--config meta|cpu|none] [--out PATH]

Write the model's weights from a committed checkpoint of the run in DIR as safetensors, which transformers'
from_pretrained reads too where the model is one of its own. Needs no device and starts no process.

  --step N               the checkpoint of this step instead of the newest
  --dtype TYPE           convert floating tensors: float64 | float32 | bfloat16 | float16
  --max-shard-size SIZE  cut the weights into files of at most this size (5GB, 500MB, 2GiB)
  --config meta|cpu|none where the model hook is called to learn the model's config.json: without memory for the
                         model (meta), with it (cpu), or not at all (none)
  --out PATH             a new directory; it is DIR/export/step_N otherwise

The last line on stdout is that directory."""


def recipes() -> str:
    """runner recipes --help."""
    return """\
usage: runner recipes

List the recipes that a bare name reaches: those in recipes/ of the working directory, then those of the runner."""


def _groups() -> str:
    groups = options([shipped_root() / "conf", Path.cwd() / "conf"])
    return "\n".join(f"  {group:<16} {' | '.join(names)}" for group, names in groups.items())

"""A process that has imported what the command needs and forks once for each command: a run without its start-up.

Reads one JSON object a line from stdin ({argv, cwd, stdout, stderr, env}), and answers with the child's pid, and later,
when it has ended, with its exit code: {"pid": …} and {"pid": …, "code": …}. The child is what `runner` is: a fresh
process, its main thread alone, that calls the command's main and leaves.
"""

import gc
import json
import os
import sys
import traceback
from typing import Any


def main() -> None:
    import hydra._internal.hydra  # noqa: F401
    import torch._dynamo
    import torch.distributed.checkpoint  # noqa: F401

    import runner.cli.main
    import runner.launch.in_process
    import runner.launch.multi_process
    import runner.worker  # noqa: F401

    gc.freeze()
    sys.path[:] = [path for path in sys.path if path]
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_the_command(asked)
        _say({"pid": pid})
        _, status = os.waitpid(pid, 0)
        _say({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(answer: dict[str, int]) -> None:
    print(json.dumps(answer), flush=True)


def _be_the_command(asked: dict[str, Any]) -> None:
    os.setsid()
    for path, descriptor in ((os.devnull, 0), (asked["stdout"], 1), (asked["stderr"], 2)):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
    os.chdir(asked["cwd"])
    os.environ.update(asked["env"])
    sys.path.insert(0, asked["cwd"])
    sys.argv = ["runner", *asked["argv"]]
    code = 1
    try:
        from runner.cli.main import main as command

        code = command(asked["argv"])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001  what the interpreter itself would print
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


if __name__ == "__main__":
    main()

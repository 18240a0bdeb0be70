"""A launching process: `python launcher.py SPEC PROCESSES OPTIONS` ends as the command line would."""

import json
import os
import sys
from pathlib import Path

from runner.config.parts import build_section
from runner.config.run_dir import RunDir
from runner.errors import RunnerError
from runner.launch import in_process, multi_process
from runner.launch.local import Local
from runner.launch.outcome import final_state
from runner.world.fork import can_fork

WORKER = "toy"


def main() -> int:
    spec_path, processes = Path(sys.argv[1]), int(sys.argv[2])
    local = build_section(Local, json.loads(sys.argv[3]), key="launch").value
    assert local is not None
    times = local.supervision
    try:
        with final_state(RunDir(spec_path.parent)):
            if processes == 1 and times.max_restarts == 0:
                in_process.run(spec_path, interrupt_s=times.interrupt_s, grace_s=times.grace_s, worker=WORKER)
            else:
                fork = local.fork and can_fork()
                timeout_s = float(os.environ.get("TIMEOUT_S", "1800"))
                multi_process.run(spec_path, times, processes=processes, timeout_s=timeout_s, fork=fork, worker=WORKER)
    except RunnerError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)

"""Machines that are not one's own, or not started one by one: MPI, TPU pods and Amazon SageMaker."""

from runner.migrate.accelerate.zero import hosts
from runner.migrate.outcome import Rule
from runner.migrate.rules import missing, missing_unless, needless, yes_no

__all__ = ["ELSEWHERE"]

POD = "belongs to TPU pods, for which there is no launcher"
SAGEMAKER = "no job is submitted to Amazon SageMaker: `runner train` is what a job of your own starts"

ELSEWHERE: dict[str, Rule] = {
    "mpirun_hostfile": hosts,
    "mpirun_ccl": missing("collectives on the CPU go over Gloo"),
    "tpu_use_cluster": missing_unless(False, POD, convert=yes_no),
    "tpu_use_sudo": missing_unless(False, POD, convert=yes_no),
    **dict.fromkeys(("tpu_cluster", "no_tpu_cluster", "tpu_name", "tpu_zone", "tpu_vm", "tpu_env"), missing(POD)),
    **dict.fromkeys(("vm", "env", "command_file", "commands"), missing(POD)),
    **dict.fromkeys(
        (
            "ec2_instance_type",
            "iam_role_name",
            "image_uri",
            "profile",
            "region",
            "base_job_name",
            "sagemaker_inputs_file",
            "additional_args",
        ),
        missing(SAGEMAKER),
    ),
    "sagemaker_metrics_file": needless("metrics.jsonl in the run's directory holds every metric"),
    "pytorch_version": needless("the runner uses the torch that is installed"),
    "transformers_version": needless("hooks use the transformers that is installed"),
    "py_version": needless("the runner uses the Python that it is started with"),
}
"""Arguments about MPI, TPU pods and Amazon SageMaker."""

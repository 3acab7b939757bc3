"""Launchers: shellcheck, what a dry run prints, and the schema of the GKE manifest."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import jsonschema
import pytest
import yaml

from tests.helpers.repository import ROOT

LAUNCH = ROOT / "scripts" / "launch"
SHELL = sorted(p for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch"))
FLAGS = ["--config=configs/demo.py", "--workdir=/data/with space", '--prompt=say "it\'s $5"']


def of(required, **properties):
  """The schema of an object with these fields and no others; `required` is their prefix."""
  names = list(properties)
  return {
    "type": "object",
    "properties": properties,
    "additionalProperties": False,
    "required": names[:required],
  }


def many(items):
  return {"type": "array", "items": items, "minItems": 1}


NAME = {"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"}  # RFC 1123
TEXT, NUMBER = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
CHIPS = of(1, **{"google.com/tpu": NUMBER})
CONTAINER = of(
  4,
  name=NAME,
  image=TEXT,
  command=many(TEXT),
  resources=of(2, requests=CHIPS, limits=CHIPS),
  args=many(TEXT),
  workingDir=TEXT,
  ports=many(of(1, containerPort=NUMBER)),
  volumeMounts=many(of(2, name=NAME, mountPath=TEXT)),
)
POD = of(
  1,
  spec=of(
    2,
    containers=many(CONTAINER),
    restartPolicy={"enum": ["Never"]},
    subdomain=NAME,
    terminationGracePeriodSeconds=NUMBER,
    nodeSelector={"type": "object"},
    volumes=many(of(1, name=NAME, persistentVolumeClaim=of(1, claimName=NAME))),
  ),
)
ON_EXIT = of(3, containerName=NAME, operator={"enum": ["In", "NotIn"]}, values=many(NUMBER))
JOB = of(
  1,
  spec=of(
    4,
    template=POD,
    parallelism=NUMBER,
    completions=NUMBER,
    completionMode={"enum": ["Indexed"]},
    backoffLimit=NUMBER,
    podFailurePolicy=of(1, rules=many(of(2, action={"enum": ["FailJob"]}, onExitCodes=ON_EXIT))),
  ),
)
JOBSET = of(
  4,
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata=of(1, name=NAME),
  spec=of(
    1,
    replicatedJobs=many(of(3, name=NAME, replicas=NUMBER, template=JOB)),
    network=of(1, enableDNSHostnames={"type": "boolean"}),
    failurePolicy=of(
      1,
      maxRestarts=NUMBER,
      rules=many(of(2, action={"enum": ["FailJobSet"]}, onJobFailureReasons=many(TEXT))),
    ),
  ),
)


@pytest.mark.parametrize("script", SHELL, ids=lambda p: p.name)
def test_shellcheck_has_nothing_to_say(script):
  found = shutil.which(
    "shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  )
  done = subprocess.run([found, str(script)], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def dry_run(script, *arguments, **env):
  done = subprocess.run(
    ["bash", str(LAUNCH / script), *arguments], capture_output=True, text=True, env=os.environ | env
  )
  assert done.returncode == 0, done.stderr
  return shlex.split(done.stdout)


def test_a_tpu_vm_is_told_the_flags_as_they_were_given():
  words = dry_run("tpu_vm.sh", "--dry-run", "pod-1", "us-east5-a", *FLAGS)
  assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod-1"]
  assert "--zone=us-east5-a" in words and "--worker=all" in words
  (remote,) = (w.removeprefix("--command=") for w in words if w.startswith("--command="))
  enter, command = remote.split(" && ")
  assert enter == "cd ~/rain_jax"
  assert shlex.split(command) == ["python3", "scripts/generate.py", "--distributed", *FLAGS]
  done = subprocess.run(["bash", str(LAUNCH / "tpu_vm.sh")], capture_output=True, text=True)
  assert done.returncode == 2 and "NAME ZONE FLAGS" in done.stderr


def test_slurm_jobs_are_told_the_flags_as_they_were_given():
  words = dry_run("slurm.sbatch", *FLAGS, DRY_RUN="1")
  assert words[0] == "srun" and words[-len(FLAGS) :] == FLAGS
  assert "scripts/generate.py" in words and "--distributed" in words
  words = dry_run("slurm_sweep.sbatch", *FLAGS, DRY_RUN="1", SLURM_ARRAY_TASK_ID="7")
  assert words[0] == "srun" and words[-len(FLAGS) :] == FLAGS and "--only=7" in words


def test_a_slurm_job_that_was_told_to_stop_is_queued_again(tmp_path):
  """With stand-ins for SLURM's own commands."""
  for name, body in (("srun", "exit ${CODE}"), ("scontrol", f'echo "$@" >> {tmp_path}/said')):
    (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / name).chmod(0o755)
  env = os.environ | {
    "PATH": f"{tmp_path}:{os.environ['PATH']}",
    "SLURM_JOB_ID": "12",
    "SLURM_ARRAY_JOB_ID": "34",
    "SLURM_ARRAY_TASK_ID": "5",
  }
  env.pop("DRY_RUN", None)
  for script, job, codes in (
    ("slurm.sbatch", "12", (75, 134, 137, 143)),
    ("slurm_sweep.sbatch", "34_5", (75, 137, 143)),
  ):
    for code in (0, 1, 2, *codes):
      for before, again in (("", True), ("19", True), ("20", False)):
        started = {"CODE": str(code), **({"SLURM_RESTART_COUNT": before} if before else {})}
        (tmp_path / "said").write_text("")
        done = subprocess.run(["bash", str(LAUNCH / script)], env=env | started)
        assert done.returncode == code
        said = f"requeue {job}\n" if again and code in codes else ""
        assert (tmp_path / "said").read_text() == said, (script, code, before)


def test_slurm_sends_sigterm_in_time_and_may_queue_again():
  for script in LAUNCH.glob("*.sbatch"):
    text = script.read_text()
    assert "#SBATCH --requeue" in text and "#SBATCH --signal=TERM@" in text
    # A folder that is not there would end the job without a word; a second start goes on below.
    assert "#SBATCH --output=slurm-" in text and "#SBATCH --open-mode=append" in text


def test_the_gke_manifest_meets_its_schema():
  manifest = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
  jsonschema.validate(manifest, JOBSET)
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["parallelism"] == job["completions"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  assert container["resources"]["requests"] == container["resources"]["limits"]
  chips = [int(n) for n in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
  assert (
    chips[0] * chips[1] == job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
  )
  assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in container["volumeMounts"]}
  assert container["name"] == job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"]
  assert "--distributed" in container["args"]
  manifest["spec"]["replicatedJobs"][0]["replica"] = 1
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(manifest, JOBSET)

"""docs/scaling.md: its job for SLURM does what it says as far as that shows without SLURM, its file for Ray is one."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

PAGE = (Path(__file__).parent.parent / "docs/scaling.md").read_text()
# stand-ins: `srun` runs the command here, and what would start Ray or the pipeline is written down
COMMANDS = {
    "scontrol": 'printf "n1\\nn2\\nn3\\n"',
    "srun": 'while [[ $1 == --* ]]; do case $1 in --nodelist=*) export ON=${1#*=};; esac; shift; done; "$@"',
    "hostname": "echo 10.0.0.1 fe80::1",
    "ray": 'echo "${ON:-} ray $*" >>"$TOLD"; [[ $1 == status ]] || sleep 0.2',
    "lottery": 'sleep 0.5; echo "lottery $* $RAY_ADDRESS $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" >>"$TOLD"',
}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_job_for_slurm_starts_ray_on_each_node_and_the_pipeline_once(tmp_path: Path) -> None:
    (job,) = (block for block in _blocks("sh") if block.startswith("#!/bin/bash"))
    (tmp_path / "bin").mkdir()
    for name, content in COMMANDS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{content}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={tmp_path / 'bin'}:$PATH\n")
    told = tmp_path / "told"
    slurm = {"SLURM_SUBMIT_DIR": tmp_path, "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_ID": "7", "TOLD": told}
    variables = os.environ | {name: str(value) for name, value in slurm.items()} | {"SLURM_CPUS_PER_TASK": "16"}
    done = subprocess.run(["bash"], input=job, text=True, env=variables, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = told.read_text().splitlines()
    options = "ray start --block --disable-usage-stats --num-cpus=16"
    assert {line for line in lines if " start " in line} == {
        f"n1 {options} --head --node-ip-address=10.0.0.1 --port=20007 --include-dashboard=false",
        f"n2 {options} --address=10.0.0.1:20007",
        f"n3 {options} --address=10.0.0.1:20007",
    }
    assert lines[-1] == "lottery repro 10.0.0.1:20007 token 64"


def test_the_file_for_rays_launcher_is_of_its_schema() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util", reason="the extra `ray` is not installed")
    (config,) = (yaml.safe_load(block) for block in _blocks("yaml") if block.startswith("cluster_name"))
    config = util.fillout_defaults(config)
    util.validate_config(config)
    with pytest.raises(Exception, match="max_workers"):
        util.validate_config(config | {"max_workers": "many"})

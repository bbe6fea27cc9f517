"""Where an audit's work is computed."""

from pydantic import Field

from audit.config.section import Section


class RayConfig(Section):
    """What a task has on a Ray cluster. Read where engine = "ray"."""

    address: str = Field("auto", description="of the cluster; auto: the one that this machine is a node of")
    num_cpus: float = Field(1, gt=0, description="CPUs of a task, which are also its threads")
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs of a task, such as 0.5 for two tasks on one; absent: 1 where there are GPUs"
    )
    max_retries: int = Field(3, ge=-1, description="how often a task is begun anew when its node is lost; -1: always")

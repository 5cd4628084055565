"""Measure one combination of tensors, quantizer and bit width; ``-m`` sweeps, ``--help`` helps."""

import os

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from quantlab import interrupt
from quantlab.errors import report_user_errors
from quantlab.records.record import Record
from quantlab.sweep import job


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> Record:
    """Measure what the config describes, in a run directory of its own."""
    return job.run(cfg, HydraConfig.get())


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # have Hydra hand us its errors instead of printing them
    # joblib's pool, when it is stopped, leaves semaphores to a process that clears them away and
    # complains of it
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    interrupt.listen()
    with report_user_errors():
        main()

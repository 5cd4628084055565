"""Measure one combination of tensors, quantizer and bit width; ``-m`` sweeps, ``--help`` helps."""

from quantlab import interrupt

with interrupt.exit_during_imports():
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    from quantlab.records.record import Record
    from quantlab.sweep import app, job


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> Record:
    """Measure what the config describes, in a run directory of its own."""
    return job.run(cfg, HydraConfig.get())


if __name__ == "__main__":
    app.start(main)

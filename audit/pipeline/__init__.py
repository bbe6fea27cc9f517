"""An audit from configuration to results, stage by stage; the runner alone knows the order."""

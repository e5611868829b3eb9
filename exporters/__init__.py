"""From a Plan and a checkpoint to code and graphs that other programs run."""

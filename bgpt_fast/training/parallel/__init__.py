"""Data-parallel training of a model on several ranks: DDP and FSDP2."""

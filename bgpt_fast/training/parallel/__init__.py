"""A model on several ranks: DDP, FSDP2."""

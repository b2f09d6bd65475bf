"""A tiny model and machine for tests of the command line."""

from bgpt_fast import BGPTConfig

CONFIG = BGPTConfig(patch_size=8, patch_length=16, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2)
MACHINE = ["--machine.num-registers", "2", "--machine.memory-size", "16", "--machine.max-program", "4"]

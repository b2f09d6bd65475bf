"""Everything that only a GPU can prove, in one command."""

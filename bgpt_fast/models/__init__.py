"""Other models of the architecture: the same two decoders on another alphabet, with patches of their own."""

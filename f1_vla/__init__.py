"""F1-VLA: understanding, generation and action experts in one joint attention, with a token world model and memory."""

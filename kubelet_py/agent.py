"""The node agent's process: wires the parts together."""

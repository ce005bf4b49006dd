"""The demonstration: Rollbook's main job on one machine, with real processes and nothing but Python."""

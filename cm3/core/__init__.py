"""The foundation: errors, registries, protocols, run files, artefact folders, seeds and progress. Imports nothing of ours."""

"""The networks in float: specifications, modules, re-parameterization and checkpoints."""

"""A run in one file: a TOML file with the fields of ``TrainConfig``, read and written."""

from hetmp.config_file.reading import ConfigFile, flags_over, read_config
from hetmp.config_file.versions import differing_versions, present_versions
from hetmp.config_file.writing import config_text, write_run_config

__all__ = [
    "ConfigFile",
    "config_text",
    "differing_versions",
    "flags_over",
    "present_versions",
    "read_config",
    "write_run_config",
]

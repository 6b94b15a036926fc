"""The configuration: one frozen tree of typed keys, read from sparse YAML and key=value overrides.  No torch here.

A run's configuration is merged in this order, later layers winning: the keys' defaults (`keys`), what a bundled model
sets for itself (`layers`), the method's row, the recipe file, the command line (`texts`); `checks` come last.  Where
the command line names another method than the recipe does, that method's row wins over the recipe.  `model=X`, `data=X`
are short for `model.name=X`, `data.name=X`, and `loss=X` for the keys of a row of `spinerl.methods.LOSSES`.
"""

from spinerl.config.keys import (
    FILE_ENDING,
    PLUGIN_KEYS,
    STANDARD_INPUT,
    AdvantageConfig,
    AnchorConfig,
    AnswerConfig,
    BandConfig,
    CheckpointConfig,
    ColumnsConfig,
    Config,
    DataConfig,
    EngineConfig,
    EntropyConfig,
    EvalConfig,
    ExampleConfig,
    FeedbackConfig,
    ForksConfig,
    GuardConfig,
    LogConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PromptConfig,
    RolloutConfig,
    SteerConfig,
    StreamConfig,
    TrackConfig,
    TreeConfig,
    VllmConfig,
    VoteConfig,
    describe_keys,
    fields_of,
    value_of,
)
from spinerl.config.layers import (
    PROFILES,
    RENAMED,
    SWITCHES,
    TRL_NAMES,
    allow_plugins,
    expand_layer,
    explain_value,
    layer_value,
    load_config,
    named_by_file,
    named_code,
    profile_of,
    sets_key,
)
from spinerl.config.texts import dump_yaml, override, parse_override, split_override
from spinerl.recipes import read_recipe

__all__ = [
    "FILE_ENDING", "PLUGIN_KEYS", "PROFILES", "RENAMED", "STANDARD_INPUT", "SWITCHES", "TRL_NAMES", "AdvantageConfig",
    "AnchorConfig", "AnswerConfig", "BandConfig", "CheckpointConfig", "ColumnsConfig", "Config", "DataConfig",
    "EngineConfig", "EntropyConfig", "EvalConfig", "ExampleConfig", "FeedbackConfig", "ForksConfig", "GuardConfig",
    "LogConfig", "LoraConfig", "LossConfig", "ModelConfig", "OptimConfig", "PromptConfig", "RolloutConfig",
    "SteerConfig", "StreamConfig", "TrackConfig", "TreeConfig", "VllmConfig", "VoteConfig", "allow_plugins",
    "describe_keys", "dump_yaml", "expand_layer", "explain_value", "fields_of", "layer_value", "load_config",
    "named_by_file", "named_code", "override", "parse_override", "profile_of", "read_recipe", "sets_key",
    "split_override", "value_of",
]  # fmt: skip

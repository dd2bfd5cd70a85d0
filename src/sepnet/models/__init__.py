"""Networks, one file each, found by name: ``create_model("multiscale_concat", num_classes=10)``."""

from sepnet.models._card import ModelCard, PublishedCount
from sepnet.models._factory import ModelEntry, create_model, list_models, model_card, models, register_model
from sepnet.models._network import FeatureInfo, FeatureNetwork, SequentialNetwork, StagedNetwork

__all__ = [
    "FeatureInfo",
    "FeatureNetwork",
    "ModelCard",
    "ModelEntry",
    "PublishedCount",
    "SequentialNetwork",
    "StagedNetwork",
    "create_model",
    "list_models",
    "model_card",
    "models",
    "register_model",
]

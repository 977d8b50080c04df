"""Choose which model to load, and say so."""

from openklein.contract import MINI_MODEL
from openklein.engine.weights import installed
from openklein.settings import Settings


def choose_model(settings: Settings) -> str:
    """Name the model that is asked for, or klein-mini, which every installation has, where it is not installed."""
    return settings.model if installed(settings.model, settings.models_dir) else MINI_MODEL


def describe_choice(settings: Settings, model_id: str) -> str:
    if model_id == settings.model:
        return f"model: {model_id}"
    return f"model: {model_id} stands in for {settings.model}, which is not installed in {settings.models_dir}"

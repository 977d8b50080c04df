"""Choose which model to load, and say so."""

from openklein.contract import DEFAULT_MODEL, MINI_MODEL
from openklein.engine.weights import has_files_put_by_hand, installed
from openklein.settings import Settings


def choose_model(settings: Settings) -> str:
    """Name the model that is asked for, or klein-mini, where that is the default and nothing of it is here.

    Files put there by hand are named even where a part is missing: loading says what is wrong.
    """
    wanted, folder = settings.model, settings.models_dir
    if wanted == DEFAULT_MODEL and not installed(wanted, folder) and not has_files_put_by_hand(wanted, folder):
        return MINI_MODEL
    return wanted


def describe_choice(settings: Settings, model_id: str) -> str:
    if model_id == settings.model:
        return f"model: {model_id}"
    return (
        f"model: {model_id} stands in for {settings.model}, which is not installed in {settings.models_dir}; "
        f"`openklein models pull {settings.model}` downloads it"
    )
